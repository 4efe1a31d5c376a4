//! The job variables with which a job asks for more than its class gives it by default: their
//! names, and what their values mean.
//!
//! The names and the syntax are those of GitLab's Kubernetes executor, so that a project that comes
//! from there keeps its `.gitlab-ci.yml`:
//! <https://docs.gitlab.com/runner/executors/kubernetes/#overwrite-container-resources>. Only
//! `ROADSTEAD_RESOURCE_*` is Roadstead's own. The shim reads a job's variables by these rules, the
//! operator reads the request by the same ones.

mod wish;

use std::fmt;

pub use wish::{Malformed, Wish};

/// Most variables of this kind that a job may have.
pub const MOST: usize = 64;

/// Longest value of such a variable, in characters.
pub const LONGEST_VALUE: usize = 1024;

/// The variable that asks for another namespace.
pub const NAMESPACE: &str = "KUBERNETES_NAMESPACE_OVERWRITE";

/// Whose requests and limits a variable is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The container that runs the job's scripts.
    Build,
    /// The container that checks out and moves caches and artifacts.
    Helper,
    /// The containers of `services:`.
    Service,
    /// The pod as a whole.
    Pod,
}

impl Target {
    /// The word itself.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Helper => "helper",
            Self::Service => "service",
            Self::Pod => "pod",
        }
    }
}

/// Which of the two amounts of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bound {
    /// What the scheduler sets aside.
    Request,
    /// What cannot be exceeded.
    Limit,
}

impl Bound {
    /// The word itself.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Limit => "limit",
        }
    }
}

/// What a variable is for, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// `KUBERNETES_[HELPER_|SERVICE_|POD_]{CPU,MEMORY,EPHEMERAL_STORAGE}_{REQUEST,LIMIT}`.
    Amount {
        /// Whose.
        target: Target,
        /// Kubernetes' name of the resource.
        resource: &'static str,
        /// Request or limit.
        bound: Bound,
    },
    /// `ROADSTEAD_RESOURCE_*`: `<resource>=<amount>`.
    Extended,
    /// `KUBERNETES_NODE_SELECTOR_*`: `<key>=<value>`.
    NodeSelector,
    /// `KUBERNETES_NODE_TOLERATIONS_*`: `<key>[=<value>][:<effect>]`.
    Toleration,
    /// `KUBERNETES_POD_LABELS_*`: `<key>=<value>`.
    PodLabel,
    /// `KUBERNETES_POD_ANNOTATIONS_*`: `<key>=<value>`.
    PodAnnotation,
    /// `KUBERNETES_SERVICE_ACCOUNT_OVERWRITE`: a name.
    ServiceAccount,
    /// `KUBERNETES_NAMESPACE_OVERWRITE`: a name. The CiJob is created there.
    Namespace,
    /// `KUBERNETES_BEARER_TOKEN`: refused, and secret.
    BearerToken,
}

impl Variable {
    /// What the variable of this name is for. `None`: it is none of these.
    pub fn named(name: &str) -> Option<Self> {
        if let Some(rest) = name.strip_prefix("ROADSTEAD_RESOURCE_") {
            return (!rest.is_empty()).then_some(Self::Extended);
        }
        let name = name.strip_prefix("KUBERNETES_")?;
        match name {
            "SERVICE_ACCOUNT_OVERWRITE" => return Some(Self::ServiceAccount),
            "NAMESPACE_OVERWRITE" => return Some(Self::Namespace),
            "BEARER_TOKEN" => return Some(Self::BearerToken),
            _ => {}
        }
        for (prefix, variable) in [
            ("NODE_SELECTOR_", Self::NodeSelector),
            ("NODE_TOLERATIONS_", Self::Toleration),
            ("POD_LABELS_", Self::PodLabel),
            ("POD_ANNOTATIONS_", Self::PodAnnotation),
        ] {
            if name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty()) {
                return Some(variable);
            }
        }
        let (target, rest) = [Target::Helper, Target::Service, Target::Pod]
            .into_iter()
            .find_map(|target| {
                let prefix = format!("{}_", target.as_str().to_ascii_uppercase());
                Some((target, name.strip_prefix(&prefix)?))
            })
            .unwrap_or((Target::Build, name));
        let (resource, bound) = match rest {
            "CPU_REQUEST" => ("cpu", Bound::Request),
            "CPU_LIMIT" => ("cpu", Bound::Limit),
            "MEMORY_REQUEST" => ("memory", Bound::Request),
            "MEMORY_LIMIT" => ("memory", Bound::Limit),
            "EPHEMERAL_STORAGE_REQUEST" => ("ephemeral-storage", Bound::Request),
            "EPHEMERAL_STORAGE_LIMIT" => ("ephemeral-storage", Bound::Limit),
            _ => return None,
        };
        Some(Self::Amount { target, resource, bound })
    }

    /// Whether an empty value asks for something. GitLab takes the empty toleration for all taints,
    /// and every other empty variable for one that is not set.
    pub fn may_be_empty(self) -> bool {
        self == Self::Toleration
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let amount = |target, resource, bound| Some(Variable::Amount { target, resource, bound });
        for (name, variable) in [
            ("KUBERNETES_CPU_REQUEST", amount(Target::Build, "cpu", Bound::Request)),
            ("KUBERNETES_MEMORY_LIMIT", amount(Target::Build, "memory", Bound::Limit)),
            ("KUBERNETES_EPHEMERAL_STORAGE_LIMIT", amount(Target::Build, "ephemeral-storage", Bound::Limit)),
            ("KUBERNETES_HELPER_CPU_LIMIT", amount(Target::Helper, "cpu", Bound::Limit)),
            ("KUBERNETES_SERVICE_MEMORY_REQUEST", amount(Target::Service, "memory", Bound::Request)),
            ("KUBERNETES_POD_CPU_REQUEST", amount(Target::Pod, "cpu", Bound::Request)),
            ("KUBERNETES_SERVICE_ACCOUNT_OVERWRITE", Some(Variable::ServiceAccount)),
            ("KUBERNETES_NODE_SELECTOR_POOL", Some(Variable::NodeSelector)),
            ("KUBERNETES_NODE_TOLERATIONS_1", Some(Variable::Toleration)),
            ("KUBERNETES_POD_LABELS_a", Some(Variable::PodLabel)),
            ("KUBERNETES_POD_ANNOTATIONS_1", Some(Variable::PodAnnotation)),
            ("KUBERNETES_NAMESPACE_OVERWRITE", Some(Variable::Namespace)),
            ("KUBERNETES_BEARER_TOKEN", Some(Variable::BearerToken)),
            ("ROADSTEAD_RESOURCE_GPU", Some(Variable::Extended)),
            // What Kubernetes itself puts into pods, and what only begins alike.
            ("KUBERNETES_SERVICE_HOST", None),
            ("KUBERNETES_PORT_443_TCP", None),
            ("KUBERNETES_NODE_SELECTOR_", None),
            ("ROADSTEAD_RESOURCE_", None),
            ("KUBERNETES_CPU_LIMITS", None),
            ("KUBERNETES_HELPER_HELPER_CPU_LIMIT", None),
            ("kubernetes_cpu_limit", None),
            ("CPU_LIMIT", None),
            ("", None),
        ] {
            assert_eq!(Variable::named(name), variable, "{name}");
        }
    }
}
