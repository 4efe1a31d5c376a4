//! Which image the job's scripts run in, and what the kubelet says when it cannot be pulled.

use roadstead_crds::jobclass::JobClassSpec;
use roadstead_crds::request::{JobRequest, PullPolicy};
use roadstead_crds::{Reason, jobclass};

use crate::policy::verdict::Verdict;

/// Who chose an image, and so who has to mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chooser {
    /// The job, with `image:` in `.gitlab-ci.yml`.
    Job,
    /// The administrator, with the JobClass or the operator's settings.
    Administrator,
}

/// The build container's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildImage<'a> {
    /// Its reference.
    pub name: &'a str,
    /// When to pull it; Kubernetes' own rule where nobody says.
    pub pull_policy: Option<PullPolicy>,
}

/// The image of the job: its own, or the class's default.
///
/// # Errors
/// The verdict on a job that has no image at all, or one that cannot be a reference.
pub fn choose<'a>(
    request: &'a JobRequest,
    class_name: &str,
    class: &'a JobClassSpec,
) -> Result<BuildImage<'a>, Verdict> {
    let name = match (&request.image, &class.image.default) {
        (Some(image), _) => image.name.as_str(),
        (None, Some(default)) => default.as_str(),
        (None, None) => {
            let place = if request.is_by_hand() { "in the request" } else { "in .gitlab-ci.yml" };
            return Err(Verdict::new(
                Reason::InvalidImageName,
                format!(
                    "the job names no image and JobClass \"{class_name}\" has no default one: \
                     set `image:` {place}"
                ),
            ));
        }
    };
    // The API server refuses such a pod without saying that it is about the image; the kubelet
    // judges everything else about the name, with its own words.
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Verdict::new(
            Reason::InvalidImageName,
            format!(
                "{} \"{}\" is empty or contains spaces: {}",
                subject(chooser(request), class_name),
                name.escape_debug(),
                remedy(chooser(request))
            ),
        ));
    }
    Ok(BuildImage { name, pull_policy: pull_policy(request, &class.image) })
}

/// When the build image is to be pulled: the job's first choice, or the class's.
pub fn pull_policy(request: &JobRequest, class: &jobclass::BuildImage) -> Option<PullPolicy> {
    let requested = request.image.as_ref().and_then(|image| image.pull_policy.first().copied());
    requested.or(class.pull_policy)
}

/// Who chose the image of the job's build container.
pub fn chooser(request: &JobRequest) -> Chooser {
    if request.image.is_some() { Chooser::Job } else { Chooser::Administrator }
}

/// The build image in the words of a sentence's start.
pub fn subject(chooser: Chooser, class_name: &str) -> String {
    match chooser {
        Chooser::Job => "the job's image".to_owned(),
        Chooser::Administrator => format!("the default image of JobClass \"{class_name}\""),
    }
}

fn remedy(chooser: Chooser) -> &'static str {
    match chooser {
        Chooser::Job => "correct `image:` in .gitlab-ci.yml (is a variable in it empty or undefined?)",
        Chooser::Administrator => "the administrator has to correct it",
    }
}

/// Why an image is not on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullFailure {
    /// The reference is malformed.
    InvalidName,
    /// The registry answered: it does not have the image, or not for these credentials.
    NotThere,
    /// The pull policy forbids to pull it and the node does not have it.
    NeverPulled,
    /// Anything else: network, registry down, rate limit, certificates.
    Unavailable,
}

/// What a registry or the kubelet says when trying again may help. These win: a rate limit can be
/// worded as a denial.
const PASSING: [&str; 21] = [
    "no such host",
    "server misbehaving",
    "connection refused",
    "connection reset",
    "network is unreachable",
    "no route to host",
    "timeout",
    "timed out",
    "deadline exceeded",
    "toomanyrequests",
    "too many requests",
    "rate limit",
    "unexpected eof",
    "internal server error",
    "bad gateway",
    "service unavailable",
    "x509:",
    "tls:",
    "http response to https client",
    "no space left",
    "temporary failure",
];

/// What containerd, CRI-O and registries say of an image that is not there, or that is hidden.
const NOT_THERE: [&str; 16] = [
    "not found",
    "manifest unknown",
    "manifest_unknown",
    "name unknown",
    "name_unknown",
    "no such image",
    "does not exist",
    "pull access denied",
    "access denied",
    "access to the resource is denied",
    "insufficient_scope",
    "unauthorized",
    "authentication required",
    "forbidden",
    "no match for platform",
    "no matching manifest",
];

/// Reads the reason and message of a container that waits. `None`: it does not wait for an image.
pub fn pull_failure(reason: &str, message: &str, image: &str) -> Option<PullFailure> {
    match reason {
        "InvalidImageName" => Some(PullFailure::InvalidName),
        "ErrImageNeverPull" => Some(PullFailure::NeverPulled),
        "ErrImagePull"
        | "ImagePullBackOff"
        | "RegistryUnavailable"
        | "ImageInspectError"
        | "SignatureValidationFailed" => {
            // The image's own name must not be taken for the registry's answer.
            let answer = message.replace(image, "").to_lowercase();
            let says = |phrases: &[&str]| phrases.iter().any(|phrase| answer.contains(phrase));
            if !says(&PASSING) && says(&NOT_THERE) {
                Some(PullFailure::NotThere)
            } else {
                Some(PullFailure::Unavailable)
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use roadstead_crds::request::ImageRequest;

    fn asking(image: &str) -> JobRequest {
        let image = ImageRequest { name: image.to_owned(), pull_policy: vec![], user: None };
        JobRequest { image: Some(image), ..fixture::request() }
    }

    fn offering(image: Option<&str>) -> JobClassSpec {
        let image = jobclass::BuildImage { default: image.map(str::to_owned), pull_policy: None };
        JobClassSpec { image, ..JobClassSpec::default() }
    }

    #[test]
    fn the_jobs_image_comes_before_the_classs() {
        let none = JobRequest { image: None, ..fixture::request() };
        let asked = asking("alpine:3");
        assert_eq!(choose(&asked, "c", &offering(Some("debian"))).unwrap().name, "alpine:3");
        assert_eq!(choose(&none, "c", &offering(Some("debian"))).unwrap().name, "debian");
        let refused = choose(&none, "c", &offering(None)).unwrap_err();
        assert_eq!(refused.reason, Reason::InvalidImageName);
        assert!(refused.message.contains("set `image:`"), "{}", refused.message);
    }

    #[test]
    fn a_reference_with_spaces_is_refused_before_the_pod() {
        for bad in ["", " alpine", "al pine", "alpine\n"] {
            let asked = asking(bad);
            let refused = choose(&asked, "c", &offering(None)).unwrap_err();
            assert_eq!(refused.reason, Reason::InvalidImageName, "{bad:?}");
        }
    }

    #[test]
    fn the_jobs_first_pull_policy_applies() {
        let mut request = asking("alpine");
        let class = jobclass::BuildImage { default: None, pull_policy: Some(PullPolicy::Always) };
        assert_eq!(pull_policy(&request, &class), Some(PullPolicy::Always));
        request.image.as_mut().unwrap().pull_policy = vec![PullPolicy::Never, PullPolicy::Always];
        assert_eq!(pull_policy(&request, &class), Some(PullPolicy::Never));
    }

    #[test]
    fn what_kubelets_say() {
        use PullFailure::{InvalidName, NeverPulled, NotThere, Unavailable};
        let table = [
            (
                "InvalidImageName",
                "Failed to apply default image tag \"UPPER:x\": couldn't parse image name \"UPPER:x\": invalid reference format: repository name must be lowercase",
                Some(InvalidName),
            ),
            (
                "ErrImageNeverPull",
                "Container image \"img\" is not present with pull policy of Never",
                Some(NeverPulled),
            ),
            (
                "ErrImagePull",
                "rpc error: code = NotFound desc = failed to pull and unpack image \"docker.io/library/img\": failed to resolve reference \"docker.io/library/img\": docker.io/library/img: not found",
                Some(NotThere),
            ),
            (
                "ErrImagePull",
                "failed to pull and unpack image \"docker.io/library/img:latest\": failed to resolve reference: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                Some(NotThere),
            ),
            (
                "ErrImagePull",
                "reading manifest nope in docker.io/library/img: manifest unknown",
                Some(NotThere),
            ),
            (
                "ErrImagePull",
                "unexpected status from HEAD request to https://r.example/v2/img/manifests/1: 401 Unauthorized",
                Some(NotThere),
            ),
            ("ErrImagePull", "no match for platform in manifest: not found", Some(NotThere)),
            (
                "ImagePullBackOff",
                "Back-off pulling image \"img\": ErrImagePull: rpc error: code = NotFound desc = img: not found",
                Some(NotThere),
            ),
            ("ImagePullBackOff", "Back-off pulling image \"img\"", Some(Unavailable)),
            (
                "ErrImagePull",
                "failed to do request: Head \"https://r.example/v2/\": dial tcp: lookup r.example: no such host",
                Some(Unavailable),
            ),
            (
                "ErrImagePull",
                "429 Too Many Requests - Server message: toomanyrequests: You have reached your unauthenticated pull rate limit. authentication required",
                Some(Unavailable),
            ),
            (
                "ErrImagePull",
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                Some(Unavailable),
            ),
            ("ErrImagePull", "", Some(Unavailable)),
            ("ContainerCreating", "", None),
            ("PodInitializing", "", None),
            ("CreateContainerConfigError", "secret \"x\" not found", None),
        ];
        for (reason, message, expected) in table {
            assert_eq!(pull_failure(reason, message, "img"), expected, "{reason}: {message}");
        }
    }

    #[test]
    fn a_name_is_not_an_answer() {
        let image = "r.example/unauthorized/not-found:forbidden";
        let message = format!("failed to pull {image}: EOF");
        assert_eq!(pull_failure("ErrImagePull", &message, image), Some(PullFailure::Unavailable));
    }
}
