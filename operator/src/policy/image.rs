//! Which image the job's scripts run in, and what the kubelet says when it cannot be pulled.

use roadstead_crds::jobclass::JobClassSpec;
use roadstead_crds::request::{JobRequest, PullPolicy};
use roadstead_crds::{Reason, jobclass};

use crate::policy::overrides;
use crate::policy::pattern::Pattern;
use crate::policy::verdict::Verdict;
use crate::policy::words::listed;

/// Who chose an image, and so who has to mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chooser {
    /// The job, with `image:` in `.gitlab-ci.yml`.
    Job,
    /// The administrator, with the JobClass or the operator's settings.
    Administrator,
}

/// The reference of the job's image: its own, or the class's default.
///
/// # Errors
/// The verdict on a job that has no image at all, one that cannot be a reference, or one that the class does not allow.
pub fn choose<'a>(
    request: &'a JobRequest,
    class_name: &str,
    class: &'a JobClassSpec,
) -> Result<&'a str, Verdict> {
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
    if is_blank(name) {
        return Err(blank(&subject(chooser(request), class_name), name, remedy(chooser(request))));
    }
    if let Some(image) = &request.image {
        let default = class.image.default.as_ref() == Some(&image.name);
        let allowed: &[String] = if default { &[] } else { &class.image.allowed };
        let asked = Asked {
            image: &image.name,
            user: image.user.as_deref(),
            pull_policy: &image.pull_policy,
            part: "image",
            what: "the image",
            allowed,
        };
        let refusals = asked.refusals(class_name, &class.image);
        if !refusals.is_empty() {
            return Err(overrides::refused(&refusals));
        }
    }
    Ok(name)
}

/// Whether it cannot be a reference, for which the API server refuses a pod without saying that it is about the
/// image. The kubelet judges everything else about the name, with its own words.
pub(super) fn is_blank(name: &str) -> bool {
    name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// The verdict on a job with such an image.
pub(super) fn blank(subject: &str, name: &str, remedy: &str) -> Verdict {
    Verdict::new(
        Reason::InvalidImageName,
        format!("{subject} \"{}\" is empty or contains spaces: {remedy}", name.escape_debug()),
    )
}

/// An image that a job asks for, and how.
pub(super) struct Asked<'a> {
    /// Its reference.
    pub image: &'a str,
    /// User to run it as.
    pub user: Option<&'a str>,
    /// When to pull it.
    pub pull_policy: &'a [PullPolicy],
    /// Where it is in `.gitlab-ci.yml`, and in the class.
    pub part: &'static str,
    /// What it is, in a sentence.
    pub what: &'static str,
    /// Patterns of the class, one of which has to match it if there are any.
    pub allowed: &'a [String],
}

impl Asked<'_> {
    /// What a class does not allow about it, a sentence each. Users and pull policies are those of the class's
    /// `image`.
    pub fn refusals(&self, class_name: &str, class: &jobclass::BuildImage) -> Vec<String> {
        let Self { image, user, pull_policy, part, what, allowed } = *self;
        let mut refusals = Vec::new();
        // What is no pattern is told of the class, which takes no job then.
        let mut patterns = allowed.iter().filter_map(|text| Pattern::new(text).ok());
        if !allowed.is_empty() && !patterns.any(|pattern| pattern.matches(image)) {
            refusals.push(format!(
                "JobClass \"{class_name}\" does not allow {what} \"{}\", only {}: change `{part}:` in .gitlab-ci.yml, \
                 or ask the administrator for `{part}.allowed`",
                image.escape_debug(),
                listed(&allowed.iter().map(String::as_str).collect::<Vec<_>>())
            ));
        }
        if let Some(user) = user {
            let group_of = |allowed: &String| user.split_once(':').is_some_and(|(user, _)| user == allowed);
            if !class.allowed_users.is_empty()
                && !class.allowed_users.iter().any(|allowed| allowed == user || group_of(allowed))
            {
                refusals.push(format!(
                    "JobClass \"{class_name}\" does not allow the user {user}, only {}: change `{part}:kubernetes:user` in \
                     .gitlab-ci.yml, or ask the administrator for `image.allowedUsers`",
                    listed(&class.allowed_users.iter().map(String::as_str).collect::<Vec<_>>())
                ));
            }
        }
        if !pull_policy.is_empty() && pull_policies(pull_policy, class).is_empty() {
            let words = |policies: &[PullPolicy]| {
                listed(&policies.iter().map(|one| one.as_str()).collect::<Vec<_>>())
            };
            refusals.push(format!(
                "JobClass \"{class_name}\" does not allow the pull policy {}, only {}: change `{part}:pull_policy` in \
                 .gitlab-ci.yml, or ask the administrator for `image.allowedPullPolicies`",
                words(pull_policy),
                words(&class.allowed_pull_policies)
            ));
        }
        refusals
    }
}

/// When to pull an image of the job, in the order of the tries: what the job asks for and the class allows, or what
/// the class says. Kubernetes' own rule where that is nothing.
pub fn pull_policies(asked: &[PullPolicy], class: &jobclass::BuildImage) -> Vec<PullPolicy> {
    let allowed = &class.allowed_pull_policies;
    let wanted: Vec<_> = if asked.is_empty() {
        class.pull_policies.clone()
    } else {
        asked.iter().copied().filter(|one| allowed.is_empty() || allowed.contains(one)).collect()
    };
    let mut once = Vec::with_capacity(wanted.len());
    for policy in wanted {
        // The same try again would come to the same.
        if !once.contains(&policy) {
            once.push(policy);
        }
    }
    once
}

/// What is wrong with a class's image, a sentence each.
pub fn problems(class: &jobclass::BuildImage) -> Vec<String> {
    problems_of("image.allowed", &class.allowed)
}

/// What is wrong with patterns of images, a sentence each.
pub(super) fn problems_of(field: &str, allowed: &[String]) -> Vec<String> {
    let problem = |(index, text): (usize, &String)| {
        let error = Pattern::new(text).err()?;
        Some(format!("{field}[{index}] {text:?} is not a pattern: {error}"))
    };
    allowed.iter().enumerate().filter_map(problem).collect()
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
        let image =
            jobclass::BuildImage { default: image.map(str::to_owned), ..jobclass::BuildImage::default() };
        JobClassSpec { image, ..JobClassSpec::default() }
    }

    #[test]
    fn the_jobs_image_comes_before_the_classs() {
        let none = JobRequest { image: None, ..fixture::request() };
        let asked = asking("alpine:3");
        assert_eq!(choose(&asked, "c", &offering(Some("debian"))).unwrap(), "alpine:3");
        assert_eq!(choose(&none, "c", &offering(Some("debian"))).unwrap(), "debian");
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
    fn the_jobs_pull_policies_come_before_the_classs() {
        use PullPolicy::{Always, IfNotPresent, Never};
        let mut class = jobclass::BuildImage { pull_policies: vec![Always], ..Default::default() };
        assert_eq!(pull_policies(&[], &class), [Always]);
        assert_eq!(pull_policies(&[Never, Always], &class), [Never, Always]);
        class.allowed_pull_policies = vec![Always, IfNotPresent];
        assert_eq!(pull_policies(&[Never, Always], &class), [Always]);
        assert_eq!(pull_policies(&[Never], &class), []);
        // What the class says itself needs no leave.
        class.pull_policies = vec![Never, Always, Never];
        assert_eq!(pull_policies(&[], &class), [Never, Always]);
    }

    #[test]
    fn a_class_allows_images_users_and_pull_policies() {
        let class = jobclass::BuildImage {
            default: Some("debian:12".to_owned()),
            allowed: vec!["registry.example/ci/**".to_owned(), "alpine:*".to_owned()],
            allowed_users: vec!["1000".to_owned(), "2000:3000".to_owned()],
            allowed_pull_policies: vec![PullPolicy::Always],
            ..jobclass::BuildImage::default()
        };
        let spec = JobClassSpec { image: class.clone(), ..JobClassSpec::default() };
        let verdict = |name: &str, user: Option<&str>, policy: &[PullPolicy]| {
            let image = ImageRequest {
                name: name.to_owned(),
                user: user.map(str::to_owned),
                pull_policy: policy.to_vec(),
            };
            let request = JobRequest { image: Some(image), ..fixture::request() };
            choose(&request, "c", &spec).err()
        };
        for name in ["debian:12", "alpine:3", "registry.example/ci/a:1", "registry.example/ci/a/b@sha256:0"] {
            assert_eq!(verdict(name, None, &[]), None, "{name}");
        }
        // A pattern always has to match the whole reference, as it is written.
        for name in ["alpine", "evil/alpine:3", "registry.example/ci", "registry.example/cix/a", "debian:13"]
        {
            let refused = verdict(name, None, &[]).unwrap();
            assert_eq!(refused.reason, Reason::OverrideRefused);
            assert!(refused.message.contains("`image.allowed`"), "{}", refused.message);
        }
        for user in ["1000", "1000:7", "2000:3000"] {
            assert_eq!(verdict("alpine:3", Some(user), &[]), None, "{user}");
        }
        for user in ["0", "2000", "2000:0", "10000"] {
            let refused = verdict("alpine:3", Some(user), &[]).unwrap();
            assert!(refused.message.contains("`image.allowedUsers`"), "{}", refused.message);
        }
        assert_eq!(verdict("alpine:3", None, &[PullPolicy::Never, PullPolicy::Always]), None);
        let refused = verdict("alpine:3", None, &[PullPolicy::Never]).unwrap();
        assert_eq!(
            refused.message,
            "JobClass \"c\" does not allow the pull policy Never, only Always: change `image:pull_policy` in .gitlab-ci.yml, \
             or ask the administrator for `image.allowedPullPolicies`."
        );
        let bad =
            jobclass::BuildImage { allowed: vec!["a//b".to_owned()], ..jobclass::BuildImage::default() };
        assert_eq!(problems(&bad).len(), 1);
        assert_eq!(problems(&class), [""; 0]);
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
