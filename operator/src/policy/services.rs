//! The services of a job: their images, and how many there may be.

use roadstead_crds::jobclass::JobClassSpec;
use roadstead_crds::labels::service_container;
use roadstead_crds::request::{JobRequest, ServiceRequest};
use roadstead_crds::status::{ServiceState, ServiceStatus};

use crate::policy::image::{self, Asked};
use crate::policy::overrides;
use crate::policy::verdict::Verdict;

/// The services of a job, as its status has them before its pod.
///
/// # Errors
/// The verdict on a job whose services the class does not allow, or with an image that cannot be a reference.
pub fn choose(
    request: &JobRequest,
    class_name: &str,
    class: &JobClassSpec,
) -> Result<Vec<ServiceStatus>, Verdict> {
    let services = &request.services;
    if let Some(bad) = services.iter().find(|service| image::is_blank(&service.name)) {
        let remedy = "correct `services:` in .gitlab-ci.yml (is a variable in it empty or undefined?)";
        return Err(image::blank("the image of the job's service", &bad.name, remedy));
    }
    let mut refusals = Vec::new();
    let (count, max) = (services.len(), class.services.max);
    if u32::try_from(count).map_or(true, |count| count > max) {
        refusals.push(format!(
            "the job has {count} services, and JobClass \"{class_name}\" allows {max}: leave some out of `services:` in \
             .gitlab-ci.yml, or ask the administrator for `services.max`"
        ));
    }
    for service in services {
        refusals.extend(asked(service, class).refusals(class_name, &class.image));
    }
    if !refusals.is_empty() {
        return Err(overrides::refused(&refusals));
    }
    let waiting = |(place, service): (usize, &ServiceRequest)| ServiceStatus {
        container: service_container(place),
        image: service.name.clone(),
        pull_policies: image::pull_policies(&service.pull_policy, &class.image),
        state: ServiceState::Waiting,
        ended: None,
    };
    Ok(services.iter().enumerate().map(waiting).collect())
}

fn asked<'a>(service: &'a ServiceRequest, class: &'a JobClassSpec) -> Asked<'a> {
    Asked {
        image: &service.name,
        user: service.user.as_deref(),
        pull_policy: &service.pull_policy,
        part: "services",
        what: "the service",
        allowed: &class.services.allowed,
    }
}

/// What is wrong with what a class says of services, a sentence each.
pub fn problems(class: &JobClassSpec) -> Vec<String> {
    image::problems_of("services.allowed", &class.services.allowed)
}

#[cfg(test)]
mod tests {
    use roadstead_crds::Reason;
    use roadstead_crds::jobclass::{BuildImage, Services};
    use roadstead_crds::request::PullPolicy;

    use super::*;
    use crate::fixture;

    fn asking(services: impl IntoIterator<Item = ServiceRequest>) -> JobRequest {
        JobRequest { services: services.into_iter().collect(), ..fixture::request() }
    }

    fn service(name: &str) -> ServiceRequest {
        ServiceRequest { name: name.to_owned(), ..ServiceRequest::default() }
    }

    #[test]
    fn each_gets_a_container_and_its_pull_policies() {
        use PullPolicy::{Always, IfNotPresent, Never};
        let class = JobClassSpec {
            image: BuildImage {
                pull_policies: vec![IfNotPresent],
                allowed_pull_policies: vec![Always],
                ..BuildImage::default()
            },
            ..JobClassSpec::default()
        };
        let choosy = ServiceRequest { pull_policy: vec![Never, Always], ..service("redis:7") };
        let chosen = choose(&asking([service("postgres:16"), choosy]), "c", &class).unwrap();
        let told: Vec<_> = chosen
            .iter()
            .map(|one| (one.container.as_str(), one.image.as_str(), one.pull_policies.as_slice(), one.state))
            .collect();
        assert_eq!(
            told,
            [
                ("svc-0", "postgres:16", &[IfNotPresent][..], ServiceState::Waiting),
                ("svc-1", "redis:7", &[Always][..], ServiceState::Waiting)
            ]
        );
    }

    #[test]
    fn a_class_allows_services_by_their_images_users_and_number() {
        let class = JobClassSpec {
            image: BuildImage {
                // What is allowed of build images says nothing of services.
                allowed: vec!["alpine".to_owned()],
                allowed_users: vec!["1000".to_owned()],
                ..BuildImage::default()
            },
            services: Services { allowed: vec!["redis:*".to_owned()], max: 2, ..Services::default() },
            ..JobClassSpec::default()
        };
        let refusal = |services: Vec<ServiceRequest>| choose(&asking(services), "c", &class).unwrap_err();
        assert_eq!(choose(&asking(vec![service("redis:7"); 2]), "c", &class).unwrap().len(), 2);
        let refused = refusal(vec![service("redis:7"), service("postgres:16")]);
        assert_eq!(refused.reason, Reason::OverrideRefused);
        assert_eq!(
            refused.message,
            "JobClass \"c\" does not allow the service \"postgres:16\", only redis:*: change `services:` in .gitlab-ci.yml, \
             or ask the administrator for `services.allowed`."
        );
        let root = ServiceRequest { user: Some("0".to_owned()), ..service("redis:7") };
        assert!(refusal(vec![root]).message.contains("`services:kubernetes:user`"));
        let many = refusal(vec![service("redis:7"); 3]);
        assert!(
            many.message.contains("has 3 services") && many.message.contains("`services.max`"),
            "{many:?}"
        );
        assert_eq!(refusal(vec![service("re dis")]).reason, Reason::InvalidImageName);
        let bad = JobClassSpec {
            services: Services { allowed: vec!["a//b".to_owned()], ..Services::default() },
            ..JobClassSpec::default()
        };
        assert_eq!((problems(&bad).len(), problems(&class).len()), (1, 0));
    }
}
