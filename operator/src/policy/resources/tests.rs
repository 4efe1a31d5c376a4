use super::*;
use crate::fixture;
use crate::policy::overrides;
use roadstead_crds::jobclass::{ContainerResources, Helper, OnExceed, OnForbidden};
use roadstead_crds::request::{JobRequest, ServiceRequest};

fn amounts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned())).collect()
}

fn memory(limit: &str) -> Resources {
    Resources { limits: amounts(&[("memory", limit)]), ..Resources::default() }
}

fn class(build: Resources) -> JobClassSpec {
    let resources = ContainerResources { build, ..ContainerResources::default() };
    JobClassSpec { resources, ..JobClassSpec::default() }
}

fn asking(pairs: &[(&str, &str)]) -> JobRequest {
    JobRequest { overrides: amounts(pairs), ..fixture::request() }
}

fn grant(class: &JobClassSpec, pairs: &[(&str, &str)]) -> Granted {
    let request = asking(pairs);
    effective("c", class, &overrides::read(&request).unwrap(), &[])
}

/// `what asked/allowed/applied source outcome` of each row.
fn rows(granted: &Granted) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let row = |row: &OverrideReport| {
        let (asked, allowed, applied) = (text(&row.asked), text(&row.allowed), text(&row.applied));
        format!("{}: {asked}/{allowed}/{applied} {} {:?}", row.what, row.source, row.outcome)
    };
    granted.report.iter().map(row).collect()
}

/// A class with a request of 1Gi, a limit of 2Gi, and between 512Mi and 8Gi of choice.
fn bounded(on_exceed: OnExceed) -> JobClassSpec {
    class(Resources {
        requests: amounts(&[("memory", "1Gi")]),
        limits: amounts(&[("memory", "2Gi")]),
        max: amounts(&[("memory", "8Gi")]),
        min: amounts(&[("memory", "512Mi")]),
        on_exceed,
        ..Resources::default()
    })
}

#[test]
fn each_container_gets_its_kind_and_the_agent_the_helpers() {
    let mut class = JobClassSpec {
        resources: ContainerResources {
            build: memory("2Gi"),
            helper: memory("256Mi"),
            services: memory("1Gi"),
            pod: Resources::default(),
        },
        ..JobClassSpec::default()
    };
    let containers = grant(&class, &[]).containers;
    assert_eq!(containers["build"].limits["memory"], "2Gi");
    assert_eq!(containers["helper"].limits["memory"], "256Mi");
    assert_eq!(containers["agent"].limits["memory"], "256Mi");
    assert!(!containers.contains_key("pod"), "nothing is said of it");

    class.helper = Helper { agent: AgentSource::HelperImage, ..Helper::default() };
    assert!(!grant(&class, &[]).containers.contains_key("agent"));
}

#[test]
fn the_services_of_a_job_are_asked_for_together_or_one_by_one() {
    let services = Resources { max: amounts(&[("memory", "1Gi")]), ..memory("256Mi") };
    let mut class = class(Resources::default());
    class.resources.services = Resources { on_exceed: OnExceed::Clamp, ..services };
    let service = |overrides: &[(&str, &str)]| ServiceRequest {
        name: "img".to_owned(),
        overrides: amounts(overrides),
        ..ServiceRequest::default()
    };
    let choosy =
        service(&[("KUBERNETES_SERVICE_MEMORY_LIMIT", "4Gi"), ("KUBERNETES_SERVICE_CPU_LIMIT", "1")]);
    let request = JobRequest {
        services: vec![service(&[]), choosy],
        ..asking(&[("KUBERNETES_SERVICE_MEMORY_LIMIT", "512Mi"), ("KUBERNETES_MEMORY_LIMIT", "1Gi")])
    };
    let own: Vec<_> = request.services.iter().map(|one| overrides::of_service(one).unwrap()).collect();
    let granted = effective("c", &class, &overrides::read(&request).unwrap(), &own);
    assert_eq!(granted.containers["svc-0"].limits["memory"], "512Mi");
    assert_eq!(granted.containers["svc-1"].limits["memory"], "1Gi");
    assert_eq!(
        rows(&granted),
        [
            "build memory limit: 1Gi/-/- KUBERNETES_MEMORY_LIMIT Forbidden",
            "svc-0 memory limit: 512Mi/at most 1Gi/512Mi KUBERNETES_SERVICE_MEMORY_LIMIT Applied",
            "svc-1 cpu limit: 1/-/- KUBERNETES_SERVICE_CPU_LIMIT Forbidden",
            "svc-1 memory limit: 4Gi/at most 1Gi/1Gi KUBERNETES_SERVICE_MEMORY_LIMIT Clamped",
        ]
    );
    class.resources.services.on_exceed = OnExceed::Reject;
    let granted = effective("c", &class, &[], &own);
    assert_eq!(
        granted.refusals,
        [
            "KUBERNETES_SERVICE_MEMORY_LIMIT=4Gi asks for more memory of the svc-1 container than JobClass \"c\" allows, which is at most 1Gi"
        ]
    );
    let foreign = service(&[("KUBERNETES_MEMORY_LIMIT", "4Gi")]);
    assert_eq!(overrides::of_service(&foreign).unwrap_err().len(), 1);
}

#[test]
fn each_request_is_fitted_in_its_own_row() {
    let mut class = class(Resources::default());
    class.resources.services =
        Resources { max: amounts(&[("memory", "1Gi")]), on_exceed: OnExceed::Clamp, ..memory("256Mi") };
    let service = ServiceRequest { name: "img".to_owned(), ..ServiceRequest::default() };
    let request = JobRequest {
        services: vec![service.clone(), service],
        ..asking(&[("KUBERNETES_SERVICE_MEMORY_REQUEST", "512Mi")])
    };
    let granted = effective("c", &class, &overrides::read(&request).unwrap(), &[vec![], vec![]]);
    let row = |name: &str| {
        format!("{name} memory request: 512Mi/at most 1Gi/256Mi KUBERNETES_SERVICE_MEMORY_REQUEST Clamped")
    };
    assert_eq!(rows(&granted), [row("svc-0"), row("svc-1")]);
}

#[test]
fn nothing_asked_is_nothing_said() {
    assert_eq!(requirements(&EffectiveResources::default()), None);
    let limited = requirements(&of(&memory("1Gi"))).unwrap();
    assert_eq!(limited.limits.unwrap()["memory"], Quantity("1Gi".to_owned()));
    assert_eq!(limited.requests, None);
    let granted = grant(&bounded(OnExceed::Reject), &[]);
    assert_eq!((granted.report, granted.refusals), (vec![], vec![]));
}

#[test]
fn what_is_within_the_bounds_applies() {
    let asked = [("KUBERNETES_MEMORY_LIMIT", "4096Mi"), ("KUBERNETES_MEMORY_REQUEST", "3Gi")];
    let granted = grant(&bounded(OnExceed::Reject), &asked);
    assert_eq!(granted.refusals, [""; 0]);
    assert_eq!(granted.containers["build"].limits["memory"], "4096Mi");
    assert_eq!(granted.containers["build"].requests["memory"], "3Gi");
    assert_eq!(
        rows(&granted),
        [
            "build memory limit: 4096Mi/512Mi to 8Gi/4096Mi KUBERNETES_MEMORY_LIMIT Applied",
            "build memory request: 3Gi/512Mi to 8Gi/3Gi KUBERNETES_MEMORY_REQUEST Applied",
        ]
    );
}

#[test]
fn what_is_outside_the_bounds_is_refused_by_one_sentence_or_clamped() {
    const LIMIT: &str = "KUBERNETES_MEMORY_LIMIT";
    const REQUEST: &str = "KUBERNETES_MEMORY_REQUEST";
    for (asked, sentence, request, limit) in [
        (
            &[(LIMIT, "16Gi")][..],
            "KUBERNETES_MEMORY_LIMIT=16Gi asks for more memory of the build container than JobClass \"c\" allows, which is at most 8Gi",
            "1Gi",
            "8Gi",
        ),
        (
            &[(LIMIT, "100Mi")],
            "KUBERNETES_MEMORY_LIMIT=100Mi asks for less memory of the build container than JobClass \"c\" allows, which is at least 512Mi",
            // The class's request follows its limit down.
            "512Mi",
            "512Mi",
        ),
        (
            &[(REQUEST, "4Gi")],
            "KUBERNETES_MEMORY_REQUEST=4Gi asks for more than the limit of 2Gi that JobClass \"c\" gives memory of the build container: set the limit too, or ask for less",
            "2Gi",
            "2Gi",
        ),
        (
            &[(LIMIT, "32Gi"), (REQUEST, "16Gi")],
            "KUBERNETES_MEMORY_LIMIT=32Gi asks for more memory of the build container than JobClass \"c\" allows, which is at most 8Gi",
            "8Gi",
            "8Gi",
        ),
    ] {
        let granted = grant(&bounded(OnExceed::Reject), asked);
        assert_eq!(granted.refusals.first().map(String::as_str), Some(sentence));
        let granted = grant(&bounded(OnExceed::Clamp), asked);
        assert_eq!(granted.refusals, [""; 0], "{asked:?}");
        let build = &granted.containers["build"];
        assert_eq!(
            (build.requests["memory"].as_str(), build.limits["memory"].as_str()),
            (request, limit),
            "{asked:?}"
        );
    }
    let granted = grant(&bounded(OnExceed::Clamp), &[(REQUEST, "4Gi")]);
    assert_eq!(
        rows(&granted),
        ["build memory request: 4Gi/512Mi to 8Gi/2Gi KUBERNETES_MEMORY_REQUEST Clamped"]
    );
}

#[test]
fn a_request_above_its_own_limit_is_refused_however_it_is_bounded() {
    for on_exceed in [OnExceed::Reject, OnExceed::Clamp] {
        let asked = [("KUBERNETES_MEMORY_LIMIT", "1Gi"), ("KUBERNETES_MEMORY_REQUEST", "1025Mi")];
        let granted = grant(&bounded(on_exceed), &asked);
        let sentence =
            "KUBERNETES_MEMORY_REQUEST=1025Mi asks for more than KUBERNETES_MEMORY_LIMIT=1Gi, its own limit";
        assert_eq!(granted.refusals, [sentence]);
    }
}

#[test]
fn the_classs_request_follows_a_lower_limit_of_the_job() {
    let granted = grant(&bounded(OnExceed::Reject), &[("KUBERNETES_MEMORY_LIMIT", "600Mi")]);
    let build = &granted.containers["build"];
    assert_eq!((build.requests["memory"].as_str(), build.limits["memory"].as_str()), ("600Mi", "600Mi"));
    assert_eq!(
        rows(&granted),
        [
            "build memory limit: 600Mi/512Mi to 8Gi/600Mi KUBERNETES_MEMORY_LIMIT Applied",
            "build memory request: -/at most 600Mi/600Mi JobClass Adjusted",
        ]
    );
}

#[test]
fn what_the_class_gives_no_choice_of_is_never_silent() {
    let mut class = bounded(OnExceed::Reject);
    let asked = [("KUBERNETES_CPU_LIMIT", "2"), ("KUBERNETES_HELPER_MEMORY_LIMIT", "1Gi")];
    let granted = grant(&class, &asked);
    assert_eq!(granted.refusals, [""; 0]);
    assert_eq!(granted.containers, grant(&class, &[]).containers);
    assert_eq!(
        rows(&granted),
        [
            "build cpu limit: 2/-/- KUBERNETES_CPU_LIMIT Forbidden",
            "helper memory limit: 1Gi/-/- KUBERNETES_HELPER_MEMORY_LIMIT Forbidden",
        ]
    );
    class.resources.build.on_forbidden = OnForbidden::Reject;
    assert_eq!(
        grant(&class, &asked).refusals,
        [
            "JobClass \"c\" does not let jobs set cpu of the build container: remove KUBERNETES_CPU_LIMIT, or ask the administrator for `resources.build.max`"
        ]
    );
}

#[test]
fn helper_and_build_are_apart_and_the_agent_stays_as_it_is() {
    let mut class = bounded(OnExceed::Reject);
    class.resources.helper = Resources { max: amounts(&[("cpu", "1")]), ..memory("256Mi") };
    let granted = grant(&class, &[("KUBERNETES_HELPER_CPU_LIMIT", "500m")]);
    assert_eq!(granted.containers["helper"].limits, amounts(&[("cpu", "500m"), ("memory", "256Mi")]));
    assert_eq!(granted.containers["agent"].limits, amounts(&[("memory", "256Mi")]));
    assert_eq!(granted.containers["build"], grant(&class, &[]).containers["build"]);
}

#[test]
fn extended_resources_are_requested_as_they_are_limited() {
    let class = class(Resources { max: amounts(&[("nvidia.com/gpu", "2")]), ..Resources::default() });
    let granted = grant(&class, &[("ROADSTEAD_RESOURCE_GPU", "nvidia.com/gpu=1")]);
    let one = amounts(&[("nvidia.com/gpu", "1")]);
    let build = &granted.containers["build"];
    assert_eq!((&build.requests, &build.limits), (&one, &one));
    assert_eq!(rows(&granted), ["build nvidia.com/gpu: 1/at most 2/1 ROADSTEAD_RESOURCE_GPU Applied"]);

    let refusals = grant(&class, &[("ROADSTEAD_RESOURCE_GPU", "nvidia.com/gpu=3")]).refusals;
    assert_eq!(
        refusals,
        [
            "ROADSTEAD_RESOURCE_GPU=3 asks for more nvidia.com/gpu of the build container than JobClass \"c\" allows, which is at most 2"
        ]
    );
    let twice = [("ROADSTEAD_RESOURCE_A", "nvidia.com/gpu=1"), ("ROADSTEAD_RESOURCE_B", "nvidia.com/gpu=1")];
    let words = "ROADSTEAD_RESOURCE_A and ROADSTEAD_RESOURCE_B both ask for nvidia.com/gpu of the build container: keep one of them";
    assert_eq!(grant(&class, &twice).refusals, [words]);
    let other = grant(&class, &[("ROADSTEAD_RESOURCE_FPGA", "example.com/fpga=1")]);
    assert_eq!(rows(&other), ["build example.com/fpga: 1/-/- ROADSTEAD_RESOURCE_FPGA Forbidden"]);
}

#[test]
fn nothing_is_asked_for_a_service_where_there_is_none() {
    let granted = grant(&bounded(OnExceed::Reject), &[("KUBERNETES_SERVICE_CPU_LIMIT", "1")]);
    assert_eq!((rows(&granted), granted.refusals), (vec![], vec![]));
}

#[test]
fn the_pod_as_a_whole_has_amounts_of_its_own() {
    let mut class = bounded(OnExceed::Reject);
    let asked = [("KUBERNETES_POD_MEMORY_LIMIT", "1Gi"), ("KUBERNETES_POD_CPU_REQUEST", "2")];
    let granted = grant(&class, &asked);
    assert_eq!(
        rows(&granted),
        [
            "pod cpu request: 2/-/- KUBERNETES_POD_CPU_REQUEST Forbidden",
            "pod memory limit: 1Gi/-/- KUBERNETES_POD_MEMORY_LIMIT Forbidden",
        ]
    );
    assert!(!granted.containers.contains_key("pod"));

    class.resources.pod =
        Resources { max: amounts(&[("memory", "4Gi"), ("cpu", "1")]), ..Resources::default() };
    let granted = grant(&class, &asked);
    assert_eq!(granted.containers["pod"].limits, amounts(&[("memory", "1Gi")]));
    let [refusal] = &granted.refusals[..] else { panic!("{:?}", granted.refusals) };
    assert!(
        refusal.starts_with("KUBERNETES_POD_CPU_REQUEST=2 asks for more cpu of the pod than"),
        "{refusal}"
    );

    class.resources.pod.max = amounts(&[("ephemeral-storage", "1Gi")]);
    assert_eq!(
        problems(&class),
        ["`resources.pod.max.ephemeral-storage`: a pod as a whole has only cpu and memory"]
    );
}

#[test]
fn a_class_that_contradicts_itself_is_told_so() {
    let table = [
        (
            Resources { max: amounts(&[("cpu", "lots")]), ..Resources::default() },
            "`resources.build.max.cpu` is \"lots\", which is not a Kubernetes quantity, or a negative one",
        ),
        (
            Resources {
                min: amounts(&[("cpu", "2")]),
                max: amounts(&[("cpu", "1")]),
                ..Resources::default()
            },
            "`resources.build.min.cpu` (2) is more than `resources.build.max.cpu` (1)",
        ),
        (
            Resources {
                limits: amounts(&[("cpu", "2")]),
                max: amounts(&[("cpu", "1")]),
                ..Resources::default()
            },
            "`resources.build.limits.cpu` (2) is more than `resources.build.max.cpu` (1)",
        ),
        (
            Resources {
                requests: amounts(&[("cpu", "2")]),
                max: amounts(&[("cpu", "1")]),
                ..Resources::default()
            },
            "`resources.build.requests.cpu` (2) is more than `resources.build.max.cpu` (1)",
        ),
        (
            Resources {
                min: amounts(&[("memory", "1Gi")]),
                limits: amounts(&[("memory", "1G")]),
                ..Resources::default()
            },
            "`resources.build.min.memory` (1Gi) is more than `resources.build.limits.memory` (1G)",
        ),
        (
            Resources {
                requests: amounts(&[("cpu", "2")]),
                limits: amounts(&[("cpu", "1")]),
                ..Resources::default()
            },
            "`resources.build.requests.cpu` (2) is more than `resources.build.limits.cpu` (1)",
        ),
        (
            Resources {
                limits: amounts(&[("cpu", "0")]),
                max: amounts(&[("cpu", "1")]),
                ..Resources::default()
            },
            "`resources.build.limits.cpu` is 0, which Kubernetes takes for no limit, beside a `max`",
        ),
    ];
    for (resources, problem) in table {
        assert_eq!(problems(&class(resources)), [problem]);
    }
    assert_eq!(problems(&bounded(OnExceed::Clamp)), [""; 0]);
    assert_eq!(problems(&JobClassSpec::default()), [""; 0]);
}
