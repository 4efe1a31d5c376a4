//! Requests and limits of a job's containers: the class's own, changed by what the job asks for
//! within the class's bounds.

mod bounds;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use roadstead_crds::jobclass::{AgentSource, JobClassSpec, Resources};
use roadstead_crds::labels::{AGENT_CONTAINER, BUILD_CONTAINER, HELPER_CONTAINER, service_container};
use roadstead_crds::overrides::{Bound, Target, Wish};
use roadstead_crds::status::{EffectiveResources, OverrideReport};

use crate::policy::overrides::Wished;

use bounds::{Ask, Container};

pub use bounds::POD;

/// What Kubernetes lets a pod as a whole have.
const OF_POD: [&str; 2] = ["cpu", "memory"];

/// What the containers of a job get.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Granted {
    /// Requests and limits by container name, and under [`POD`] those of all of them together.
    pub containers: BTreeMap<String, EffectiveResources>,
    /// What the job asked for and what became of it.
    pub report: Vec<OverrideReport>,
    /// What it cannot have, a sentence each. Not empty: the job must not run.
    pub refusals: Vec<String>,
}

/// What each container of a job of the class gets. What the variables of a service ask for comes before what the job's
/// ask for its services.
pub fn effective(
    class_name: &str,
    class: &JobClassSpec,
    wishes: &[Wished<'_>],
    services: &[Vec<Wished<'_>>],
) -> Granted {
    let mut granted = Granted::default();
    for (name, target, field, resources) in [
        (BUILD_CONTAINER, Target::Build, "resources.build", &class.resources.build),
        (HELPER_CONTAINER, Target::Helper, "resources.helper", &class.resources.helper),
        (POD, Target::Pod, "resources.pod", &class.resources.pod),
    ] {
        let container = Container { class: class_name, name, field, resources };
        let asks: Vec<Ask<'_>> = wishes.iter().filter_map(|wished| ask(wished, target)).collect();
        let amounts = container.grant(&asks, &mut granted);
        if name != POD || requirements(&amounts).is_some() {
            granted.containers.insert(name.to_owned(), amounts);
        }
    }
    if class.helper.agent == AgentSource::Container {
        // It only copies a file, but a namespace's quota may demand that every container says.
        granted.containers.insert(AGENT_CONTAINER.to_owned(), of(&class.resources.helper));
    }
    for (place, own) in services.iter().enumerate() {
        let name = &service_container(place);
        let resources = &class.resources.services;
        let container = Container { class: class_name, name, field: "resources.services", resources };
        let mut asks: Vec<Ask<'_>> = own.iter().filter_map(|wished| ask(wished, Target::Service)).collect();
        for of_all in wishes.iter().filter_map(|wished| ask(wished, Target::Service)) {
            if !asks.iter().any(|ask| ask.resource == of_all.resource && ask.bounds == of_all.bounds) {
                asks.push(of_all);
            }
        }
        let amounts = container.grant(&asks, &mut granted);
        granted.containers.insert(name.clone(), amounts);
    }
    granted
}

/// What a variable asks for a container, if it does.
fn ask<'a>(wished: &'a Wished<'a>, container: Target) -> Option<Ask<'a>> {
    let (resource, bounds, text, amount) = match &wished.wish {
        Wish::Amount { target, resource, bound, amount } if *target == container => {
            let bounds: &[Bound] = match bound {
                Bound::Request => &[Bound::Request],
                Bound::Limit => &[Bound::Limit],
            };
            (*resource, bounds, wished.value, amount)
        }
        // Kubernetes lends nothing of these: what is requested is what cannot be exceeded.
        Wish::Extended { resource, text, amount } if container == Target::Build => {
            (resource.as_str(), &[Bound::Request, Bound::Limit][..], text.as_str(), amount)
        }
        _ => return None,
    };
    Some(Ask { variable: wished.variable, resource, bounds, text, amount })
}

/// What is wrong with the resources of a class, a sentence each.
pub fn problems(class: &JobClassSpec) -> Vec<String> {
    let mut problems = bounds::problems("resources.build", &class.resources.build);
    problems.extend(bounds::problems("resources.helper", &class.resources.helper));
    problems.extend(bounds::problems("resources.services", &class.resources.services));
    let pod = &class.resources.pod;
    problems.extend(bounds::problems("resources.pod", pod));
    for (map, amounts) in [("requests", &pod.requests), ("limits", &pod.limits), ("max", &pod.max)] {
        let others = amounts.keys().filter(|name| !OF_POD.contains(&name.as_str()));
        problems.extend(others.map(|name| {
            format!("`resources.pod.{map}.{name}`: a pod as a whole has only {}", OF_POD.join(" and "))
        }));
    }
    problems
}

fn of(resources: &Resources) -> EffectiveResources {
    EffectiveResources {
        requests: resources.requests.clone(),
        limits: resources.limits.clone(),
        max: resources.max.clone(),
    }
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
mod laws;
#[cfg(test)]
mod tests;
