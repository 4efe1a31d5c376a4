//! Why a container does not start, whose doing that is, and whether it can still mend itself.

use roadstead_crds::Reason;

use crate::policy::image::{self, Chooser, PullFailure};
use crate::policy::words::quoted;

/// A container of a job's pod, as far as its start is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// What it is for.
    pub role: Role,
    /// Its name in the pod.
    pub name: &'a str,
    /// Its image, as the kubelet reports it.
    pub image: &'a str,
    /// The job's class.
    pub class: &'a str,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs the job's scripts, in an image that the job or the class chose.
    Build(Chooser),
    /// Runs checkout, caches and artifacts.
    Helper,
    /// Puts the agent into the pod and exits.
    Agent,
    /// A service that the job asked for.
    Service,
    /// Added by the class's overlay.
    Extra,
}

impl Role {
    /// Whether the job can do without the container once it ran to its end.
    pub fn may_end(self) -> bool {
        match self {
            Self::Build(_) | Self::Helper => false,
            Self::Agent | Self::Service | Self::Extra => true,
        }
    }
}

/// What keeps a container from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In one word.
    pub reason: Reason,
    /// In a sentence.
    pub message: String,
    /// Whether trying again is pointless. Otherwise the kubelet gets some time.
    pub definite: bool,
    /// The container of the job's whose image is not on the node, where another pull policy may help.
    pub unpulled: Option<String>,
}

/// Reads the state of a container that waits. `None`: it waits for nothing out of the ordinary.
pub fn waiting(container: Container<'_>, reason: &str, message: &str) -> Option<Trouble> {
    if let Some(failure) = image::pull_failure(reason, message, container.image) {
        return Some(not_pulled(container, failure, message));
    }
    match reason {
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError"
        | "CreatePodSandboxError"
        | "ConfigPodSandboxError" => Some(not_created(container, reason, message, false)),
        _ => None,
    }
}

/// Reads the end of a container whose command never ran (`StartError`). With the restart policy
/// `Never` nobody tries again.
pub fn not_started(container: Container<'_>, reason: &str, message: &str) -> Trouble {
    not_created(container, reason, message, true)
}

fn not_pulled(container: Container<'_>, failure: PullFailure, message: &str) -> Trouble {
    let Container { role, image, class, name } = container;
    let (reason, what) = match (role, failure) {
        (Role::Build(Chooser::Job), PullFailure::InvalidName) => (
            Reason::InvalidImageName,
            "is not a valid image reference: correct `image:` in .gitlab-ci.yml (is a variable in it empty or undefined?)",
        ),
        (Role::Build(Chooser::Job), PullFailure::NotThere) => (
            Reason::ImageNotFound,
            "cannot be pulled: the registry does not have it, or does not show it to these credentials. \
             Check `image:` in .gitlab-ci.yml and the credentials for its registry",
        ),
        (Role::Build(Chooser::Job) | Role::Service, PullFailure::NeverPulled) => (
            Reason::ImageNotFound,
            "is not on the node, and the pull policy Never forbids to pull it: choose another `pull_policy` or image in .gitlab-ci.yml",
        ),
        (Role::Service, PullFailure::InvalidName) => (
            Reason::InvalidImageName,
            "is not a valid image reference: correct `services:` in .gitlab-ci.yml (is a variable in it empty or undefined?)",
        ),
        (Role::Service, PullFailure::NotThere) => (
            Reason::ImageNotFound,
            "cannot be pulled: the registry does not have it, or does not show it to these credentials. \
             Check `services:` in .gitlab-ci.yml and the credentials for its registry",
        ),
        (_, PullFailure::InvalidName) => {
            (Reason::ImagePullFailed, "is not a valid image reference: the administrator has to correct it")
        }
        (_, PullFailure::NotThere) => (
            Reason::ImagePullFailed,
            "cannot be pulled: the registry does not have it, or does not show it to these credentials. \
             The administrator has to correct it",
        ),
        (_, PullFailure::NeverPulled) => (
            Reason::ImagePullFailed,
            "is not on the node, and the pull policy Never forbids to pull it: the administrator has to load it",
        ),
        (_, PullFailure::Unavailable) => (Reason::ImagePullFailed, "cannot be pulled"),
    };
    let subject = match role {
        Role::Build(chooser) => image::subject(chooser, class),
        Role::Helper => "the helper image".to_owned(),
        Role::Agent => "the agent image".to_owned(),
        Role::Service => format!("the image of the service in container \"{name}\","),
        Role::Extra => format!("the image of container \"{name}\", which JobClass \"{class}\" adds,"),
    };
    Trouble {
        reason,
        message: said(format!("{subject} \"{image}\" {what}"), message),
        definite: failure != PullFailure::Unavailable,
        unpulled: (matches!(role, Role::Build(_) | Role::Service) && failure != PullFailure::InvalidName)
            .then(|| name.to_owned()),
    }
}

fn not_created(container: Container<'_>, reason: &str, message: &str, ended: bool) -> Trouble {
    let Container { role, image, class, name } = container;
    let lower = message.to_lowercase();
    let flaw = match role {
        Role::Build(_) | Role::Helper => Flaw::find(&lower),
        // Its command is the image's own or the job's, not /bin/sh.
        Role::Service => Flaw::find(&lower).filter(|flaw| matches!(flaw, Flaw::Root)),
        Role::Agent | Role::Extra => None,
    };
    let Some(flaw) = flaw else {
        return Trouble {
            reason: Reason::ContainerCreateFailed,
            message: said(
                format!("container \"{name}\" of the job's pod cannot be started ({reason})"),
                message,
            ),
            definite: ended,
            unpulled: None,
        };
    };
    let (subject, reason, remedy) = match role {
        Role::Build(chooser @ Chooser::Job) => {
            (image::subject(chooser, class), Reason::ImageUnusable, flaw.remedy())
        }
        Role::Build(chooser @ Chooser::Administrator) => (
            image::subject(chooser, class),
            Reason::ContainerCreateFailed,
            "The administrator has to correct it",
        ),
        Role::Service => (
            format!("the image of the service in container \"{name}\","),
            Reason::ImageUnusable,
            "Use an image with a numeric user, or set `kubernetes:user` of the service",
        ),
        Role::Helper | Role::Agent | Role::Extra => (
            "the helper image".to_owned(),
            Reason::ContainerCreateFailed,
            "The administrator has to correct it",
        ),
    };
    Trouble {
        reason,
        message: said(format!("{subject} \"{image}\" {}. {remedy}", flaw.what(class)), message),
        definite: true,
        unpulled: None,
    }
}

/// What is wrong with an image itself.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    NoShell,
    Architecture,
    Root,
}

impl Flaw {
    /// What runc, crun and the kubelet say, in lower case.
    fn find(message: &str) -> Option<Self> {
        let missing = ["no such file or directory", "not found", "no such file"];
        if message.contains("/bin/sh") && missing.iter().any(|phrase| message.contains(phrase)) {
            Some(Self::NoShell)
        } else if message.contains("exec format error") {
            Some(Self::Architecture)
        } else if message.contains("runasnonroot") || message.contains("non-root policy") {
            Some(Self::Root)
        } else {
            None
        }
    }

    fn what(self, class: &str) -> String {
        match self {
            Self::NoShell => "has no /bin/sh, which every job needs".to_owned(),
            Self::Architecture => "is for another CPU architecture than the node's".to_owned(),
            Self::Root => format!(
                "would run as root, or as a user without a number, which JobClass \"{class}\" forbids"
            ),
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::NoShell => {
                "Use an image with a shell (of images without one there is often a `debug` variant)"
            }
            Self::Architecture => {
                "Use an image that is built for several architectures, or a class with other nodes"
            }
            Self::Root => "Use an image with a numeric user, or set `image:kubernetes:user`",
        }
    }
}

fn said(sentence: String, words: &str) -> String {
    let words = quoted(words);
    if words.is_empty() { sentence } else { format!("{sentence}. The node says: {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_crds::reason::Blame;

    fn container(role: Role) -> Container<'static> {
        Container { role, name: "x", image: "img:1", class: "small" }
    }

    const JOB: Role = Role::Build(Chooser::Job);
    const CLASS: Role = Role::Build(Chooser::Administrator);

    #[test]
    fn only_the_jobs_own_image_is_the_jobs_mistake() {
        let gone = "rpc error: code = NotFound desc = img:1: not found";
        for (role, reason, blame) in [
            (JOB, Reason::ImageNotFound, Blame::User),
            (CLASS, Reason::ImagePullFailed, Blame::System),
            (Role::Service, Reason::ImageNotFound, Blame::User),
            (Role::Helper, Reason::ImagePullFailed, Blame::System),
            (Role::Agent, Reason::ImagePullFailed, Blame::System),
            (Role::Extra, Reason::ImagePullFailed, Blame::System),
        ] {
            let trouble = waiting(container(role), "ErrImagePull", gone).unwrap();
            assert_eq!((trouble.reason, trouble.reason.blame()), (reason, blame), "{role:?}");
            assert!(trouble.definite);
            assert!(trouble.message.contains("img:1"), "{}", trouble.message);
        }
    }

    #[test]
    fn an_image_that_must_not_be_pulled_is_simply_not_there() {
        for (role, reason) in [(JOB, Reason::ImageNotFound), (CLASS, Reason::ImagePullFailed)] {
            let trouble = waiting(container(role), "ErrImageNeverPull", "").unwrap();
            assert_eq!((trouble.reason, trouble.definite), (reason, true));
        }
    }

    #[test]
    fn a_registry_that_is_down_gets_time() {
        let trouble = waiting(container(JOB), "ImagePullBackOff", "dial tcp: i/o timeout").unwrap();
        assert_eq!(trouble.reason, Reason::ImagePullFailed);
        assert!(!trouble.definite);
        assert!(trouble.message.ends_with("The node says: dial tcp: i/o timeout"), "{}", trouble.message);
    }

    #[test]
    fn what_is_wrong_with_images() {
        let no_shell = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: exec: \"/bin/sh\": stat /bin/sh: no such file or directory: unknown";
        let root = "container has runAsNonRoot and image will run as root (pod: \"p\", container: build)";
        let named =
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root";
        let foreign = "exec /bin/sh: exec format error";
        for (message, word) in
            [(no_shell, "/bin/sh"), (foreign, "architecture"), (root, "root"), (named, "numeric")]
        {
            let trouble = not_started(container(JOB), "StartError", message);
            assert_eq!(trouble.reason, Reason::ImageUnusable, "{message}");
            assert!(trouble.message.contains(word), "{}", trouble.message);
            let trouble = not_started(container(CLASS), "StartError", message);
            assert_eq!(trouble.reason.blame(), Blame::System, "{message}");
            assert!(trouble.message.contains("JobClass \"small\""), "{}", trouble.message);
        }
        // The kubelet would try this for ever.
        assert!(waiting(container(JOB), "CreateContainerConfigError", root).unwrap().definite);
        let service = waiting(container(Role::Service), "CreateContainerConfigError", root).unwrap();
        assert_eq!((service.reason, service.definite), (Reason::ImageUnusable, true));
        assert!(service.message.contains("`kubernetes:user` of the service"), "{}", service.message);
    }

    #[test]
    fn a_secret_may_still_come() {
        let trouble =
            waiting(container(JOB), "CreateContainerConfigError", "secret \"x\" not found").unwrap();
        assert_eq!(trouble.reason, Reason::ContainerCreateFailed);
        assert!(!trouble.definite);
        assert!(not_started(container(JOB), "StartError", "cgroup trouble").definite);
    }

    #[test]
    fn ordinary_waiting_is_no_trouble() {
        for reason in ["ContainerCreating", "PodInitializing", ""] {
            assert_eq!(waiting(container(JOB), reason, ""), None);
        }
    }
}
