//! Requests and limits of a job's containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use roadstead_crds::jobclass::{AgentSource, JobClassSpec, Resources};
use roadstead_crds::labels::{AGENT_CONTAINER, BUILD_CONTAINER, HELPER_CONTAINER};
use roadstead_crds::status::EffectiveResources;

/// What each container of a job of the class gets, by container name.
pub fn effective(class: &JobClassSpec) -> BTreeMap<String, EffectiveResources> {
    let mut containers = BTreeMap::from([
        (BUILD_CONTAINER.to_owned(), of(&class.resources.build)),
        (HELPER_CONTAINER.to_owned(), of(&class.resources.helper)),
    ]);
    if class.helper.agent == AgentSource::Container {
        // It only copies a file, but a namespace's quota may demand that every container says.
        containers.insert(AGENT_CONTAINER.to_owned(), of(&class.resources.helper));
    }
    containers
}

fn of(resources: &Resources) -> EffectiveResources {
    EffectiveResources { requests: resources.requests.clone(), limits: resources.limits.clone() }
}

/// The same as a container's spec has it.
pub fn requirements(resources: &EffectiveResources) -> Option<ResourceRequirements> {
    let quantities = |amounts: &BTreeMap<String, String>| {
        let amounts: BTreeMap<_, _> =
            amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.clone()))).collect();
        (!amounts.is_empty()).then_some(amounts)
    };
    let (requests, limits) = (quantities(&resources.requests), quantities(&resources.limits));
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_crds::jobclass::{ContainerResources, Helper};

    fn memory(limit: &str) -> Resources {
        Resources {
            requests: BTreeMap::new(),
            limits: BTreeMap::from([("memory".to_owned(), limit.to_owned())]),
        }
    }

    #[test]
    fn each_container_gets_its_kind_and_the_agent_the_helpers() {
        let mut class = JobClassSpec {
            resources: ContainerResources { build: memory("2Gi"), helper: memory("256Mi") },
            ..JobClassSpec::default()
        };
        let containers = effective(&class);
        assert_eq!(containers["build"].limits["memory"], "2Gi");
        assert_eq!(containers["helper"].limits["memory"], "256Mi");
        assert_eq!(containers["agent"].limits["memory"], "256Mi");

        class.helper = Helper { agent: AgentSource::HelperImage, ..Helper::default() };
        assert!(!effective(&class).contains_key("agent"));
    }

    #[test]
    fn nothing_asked_is_nothing_said() {
        assert_eq!(requirements(&EffectiveResources::default()), None);
        let limited = requirements(&of(&memory("1Gi"))).unwrap();
        assert_eq!(limited.limits.unwrap()["memory"], Quantity("1Gi".to_owned()));
        assert_eq!(limited.requests, None);
    }
}
