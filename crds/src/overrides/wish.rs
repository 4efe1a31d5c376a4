//! What the value of a variable asks for.

use k8s_openapi::api::core::v1::Toleration;
use thiserror::Error;

use crate::names::{is_dns_label, is_dns_subdomain as is_subdomain};
use crate::overrides::{Bound, Target, Variable};
use crate::quantity::Quantity;

/// Why a value cannot be what its variable is for, as the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// What a job asks for with one variable.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// An amount of a resource that every container has.
    Amount {
        /// Whose.
        target: Target,
        /// Kubernetes' name of the resource.
        resource: &'static str,
        /// Request or limit.
        bound: Bound,
        /// How much.
        amount: Quantity,
    },
    /// An extended resource for the build container, as its request and its limit.
    Extended {
        /// Its name, `nvidia.com/gpu`.
        resource: String,
        /// How many, as the job wrote it.
        text: String,
        /// How many.
        amount: Quantity,
    },
    /// A label that the node must have.
    NodeSelector {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Taints that the pod tolerates.
    Toleration(Toleration),
    /// A label of the pod.
    PodLabel {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// An annotation of the pod.
    PodAnnotation {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// The pod's service account.
    ServiceAccount(String),
    /// The namespace of the CiJob and its pod.
    Namespace(String),
}

/// Resources with variables of their own.
const PLAIN: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

impl Wish {
    /// Reads the value of a variable.
    ///
    /// # Errors
    /// Why it cannot be one, without the value: that may be secret.
    pub fn parse(variable: Variable, value: &str) -> Result<Self, Malformed> {
        match variable {
            Variable::Amount { target, resource, bound } => {
                let amount = amount(value)?;
                if bound == Bound::Limit && amount.is_zero() {
                    return Err(Malformed("must be more than 0, which Kubernetes takes for no limit"));
                }
                Ok(Self::Amount { target, resource, bound, amount })
            }
            Variable::Extended => extended(value),
            Variable::NodeSelector => {
                let (key, value) = label(value)?;
                Ok(Self::NodeSelector { key, value })
            }
            Variable::PodLabel => {
                let (key, value) = label(value)?;
                if is_reserved(&key) {
                    return Err(Malformed(
                        "must not name a label of Roadstead's or Kubernetes' own (roadstead.dev, kubernetes.io, k8s.io)",
                    ));
                }
                Ok(Self::PodLabel { key, value })
            }
            Variable::PodAnnotation => {
                let (key, value) = pair(value)?;
                if is_of(domain(&key), "roadstead.dev") {
                    return Err(Malformed("must not name an annotation of Roadstead's own (roadstead.dev)"));
                }
                Ok(Self::PodAnnotation { key, value: value.to_owned() })
            }
            Variable::Toleration => toleration(value).map(Self::Toleration),
            Variable::ServiceAccount => {
                if !is_subdomain(value) {
                    return Err(Malformed("must be the name of a ServiceAccount"));
                }
                Ok(Self::ServiceAccount(value.to_owned()))
            }
            Variable::Namespace => {
                if value.len() > 63 || !is_dns_label(value) {
                    return Err(Malformed("must be the name of a namespace"));
                }
                Ok(Self::Namespace(value.to_owned()))
            }
            Variable::BearerToken => Err(Malformed(
                "cannot be overridden: jobs run with the runner's own access to the cluster, so use a runner with other access",
            )),
        }
    }
}

fn amount(value: &str) -> Result<Quantity, Malformed> {
    let amount = Quantity::parse(value)
        .map_err(|_| Malformed("must be a Kubernetes quantity such as 500m, 2 or 4Gi"))?;
    if amount.is_negative() {
        return Err(Malformed("must not be negative"));
    }
    Ok(amount)
}

fn extended(value: &str) -> Result<Wish, Malformed> {
    const FORM: Malformed = Malformed("must be <resource>=<amount>, such as nvidia.com/gpu=1");
    let (resource, text) = value.split_once('=').ok_or(FORM)?;
    if PLAIN.contains(&resource) {
        return Err(Malformed(
            "is for extended resources such as nvidia.com/gpu: cpu, memory and ephemeral-storage have variables of their own (KUBERNETES_CPU_LIMIT and its kin)",
        ));
    }
    let named = domain(resource).is_some() || resource.starts_with("hugepages-");
    if !named || !is_qualified_name(resource) {
        return Err(FORM);
    }
    let amount = amount(text)?;
    if !amount.is_whole() {
        return Err(Malformed("must be a whole number of the resource"));
    }
    Ok(Wish::Extended { resource: resource.to_owned(), text: text.to_owned(), amount })
}

/// GitLab's syntax: no `=` tolerates every value of the key, no effect every effect, and nothing at
/// all tolerates everything.
fn toleration(value: &str) -> Result<Toleration, Malformed> {
    const FORM: Malformed = Malformed(
        "must be <key>[=<value>][:<effect>] with the effect NoSchedule, PreferNoSchedule or NoExecute",
    );
    let (taint, effect) = match value.rsplit_once(':') {
        Some((taint, effect)) => (taint, Some(effect)),
        None => (value, None),
    };
    let effect = match effect {
        None | Some("") => None,
        Some(effect @ ("NoSchedule" | "PreferNoSchedule" | "NoExecute")) => Some(effect.to_owned()),
        Some(_) => return Err(FORM),
    };
    let (key, value) = match taint.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (taint, None),
    };
    let all = taint.is_empty() && effect.is_none();
    if !(all || is_qualified_name(key)) || !value.is_none_or(is_label_value) {
        return Err(FORM);
    }
    Ok(Toleration {
        key: (!key.is_empty()).then(|| key.to_owned()),
        operator: Some(if value.is_some() { "Equal" } else { "Exists" }.to_owned()),
        value: value.map(str::to_owned),
        effect,
        toleration_seconds: None,
    })
}

fn pair(text: &str) -> Result<(String, &str), Malformed> {
    let (key, value) = text.split_once('=').ok_or(Malformed("must be <key>=<value>"))?;
    if !is_qualified_name(key) {
        return Err(Malformed(
            "must be <key>=<value> with a key that Kubernetes takes, such as team or example.com/team",
        ));
    }
    Ok((key.to_owned(), value))
}

fn label(text: &str) -> Result<(String, String), Malformed> {
    let (key, value) = pair(text)?;
    if !is_label_value(value) {
        return Err(Malformed(
            "must be <key>=<value> with a value of at most 63 letters, digits, '-', '_' and '.', as Kubernetes' labels have",
        ));
    }
    Ok((key, value.to_owned()))
}

fn domain(key: &str) -> Option<&str> {
    key.split_once('/').map(|(domain, _)| domain)
}

fn is_of(domain: Option<&str>, suffix: &str) -> bool {
    let rest = domain.and_then(|domain| domain.strip_suffix(suffix));
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a label is Roadstead's or Kubernetes' own.
fn is_reserved(key: &str) -> bool {
    ["roadstead.dev", "kubernetes.io", "k8s.io"].into_iter().any(|suffix| is_of(domain(key), suffix))
}

/// Kubernetes' "qualified name": an optional DNS subdomain, and a name of at most 63 characters.
fn is_qualified_name(key: &str) -> bool {
    let name = match key.split_once('/') {
        Some((domain, name)) if is_subdomain(domain) => name,
        Some(_) => return false,
        None => key,
    };
    !name.is_empty() && is_label_value(name)
}

/// What a label's value may be; also what the name in its key may be, which cannot be empty.
fn is_label_value(value: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    bytes.len() <= 63 && bytes.iter().all(plain) && ends(bytes.first()) && ends(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Wish, String> {
        Wish::parse(Variable::named(name).unwrap(), value).map_err(|malformed| malformed.to_string())
    }

    fn refused(name: &str, value: &str, words: &str) {
        let text = read(name, value).unwrap_err();
        assert!(text.contains(words), "{name}={value}: {text}");
    }

    #[test]
    fn amounts() {
        let Ok(Wish::Amount { amount, .. }) = read("KUBERNETES_CPU_REQUEST", "1500m") else { panic!() };
        assert_eq!(amount, Quantity::parse("1.5").unwrap());
        assert!(read("KUBERNETES_CPU_REQUEST", "0").is_ok());
        refused("KUBERNETES_CPU_LIMIT", "0", "no limit");
        refused("KUBERNETES_CPU_LIMIT", "-1", "must not be negative");
        for bad in ["", "lots", "1 Gi", " 1", "2GB"] {
            refused("KUBERNETES_MEMORY_LIMIT", bad, "must be a Kubernetes quantity");
        }
    }

    #[test]
    fn extended_resources() {
        let gpu = Wish::Extended {
            resource: "nvidia.com/gpu".to_owned(),
            text: "2".to_owned(),
            amount: Quantity::from(2),
        };
        assert_eq!(read("ROADSTEAD_RESOURCE_GPU", "nvidia.com/gpu=2"), Ok(gpu));
        assert!(read("ROADSTEAD_RESOURCE_PAGES", "hugepages-2Mi=64Mi").is_ok());
        refused("ROADSTEAD_RESOURCE_GPU", "2", "such as nvidia.com/gpu=1");
        refused("ROADSTEAD_RESOURCE_GPU", "gpu=2", "such as nvidia.com/gpu=1");
        refused("ROADSTEAD_RESOURCE_GPU", "nvidia.com/gpu=half", "Kubernetes quantity");
        refused("ROADSTEAD_RESOURCE_GPU", "nvidia.com/gpu=500m", "whole number");
        refused("ROADSTEAD_RESOURCE_GPU", "nvidia.com/gpu=-1", "negative");
        refused("ROADSTEAD_RESOURCE_CPU", "cpu=2", "variables of their own");
    }

    #[test]
    fn tolerations_in_gitlabs_syntax() {
        let toleration = |key: Option<&str>, operator: &str, value: Option<&str>, effect: Option<&str>| {
            Ok(Wish::Toleration(Toleration {
                key: key.map(str::to_owned),
                operator: Some(operator.to_owned()),
                value: value.map(str::to_owned),
                effect: effect.map(str::to_owned),
                toleration_seconds: None,
            }))
        };
        for (text, expected) in [
            (
                "node-role.kubernetes.io/master:NoSchedule",
                toleration(Some("node-role.kubernetes.io/master"), "Exists", None, Some("NoSchedule")),
            ),
            (
                "custom.toleration=value:NoSchedule",
                toleration(Some("custom.toleration"), "Equal", Some("value"), Some("NoSchedule")),
            ),
            (
                "empty.value=:PreferNoSchedule",
                toleration(Some("empty.value"), "Equal", Some(""), Some("PreferNoSchedule")),
            ),
            ("onlyKey", toleration(Some("onlyKey"), "Exists", None, None)),
            ("", toleration(None, "Exists", None, None)),
        ] {
            assert_eq!(read("KUBERNETES_NODE_TOLERATIONS_1", text), expected, "{text}");
        }
        for bad in
            ["key:Never", ":NoSchedule", "=v:NoSchedule", "a b", "key=a b:NoExecute", "key:x:NoExecute"]
        {
            refused("KUBERNETES_NODE_TOLERATIONS_1", bad, "must be <key>[=<value>][:<effect>]");
        }
    }

    #[test]
    fn keys_and_values() {
        let selector = Wish::NodeSelector { key: "kubernetes.io/arch".to_owned(), value: "arm64".to_owned() };
        assert_eq!(read("KUBERNETES_NODE_SELECTOR_1", "kubernetes.io/arch=arm64"), Ok(selector));
        assert!(read("KUBERNETES_NODE_SELECTOR_1", "pool=").is_ok());
        refused("KUBERNETES_NODE_SELECTOR_1", "pool", "<key>=<value>");
        refused("KUBERNETES_NODE_SELECTOR_1", "=x", "<key>=<value>");
        refused("KUBERNETES_NODE_SELECTOR_1", "Bad_Domain/x=y", "key that Kubernetes takes");
        refused("KUBERNETES_NODE_SELECTOR_1", "pool=a b", "63 letters");
        refused("KUBERNETES_POD_LABELS_1", &format!("a={}", "x".repeat(64)), "63 letters");
        for key in [
            "roadstead.dev/cijob",
            "x.roadstead.dev/a",
            "kubernetes.io/os",
            "app.kubernetes.io/name",
            "k8s.io/x",
        ] {
            refused("KUBERNETES_POD_LABELS_1", &format!("{key}=x"), "must not name a label");
        }
        assert!(read("KUBERNETES_POD_LABELS_1", "notroadstead.dev/cijob=x").is_ok());
        let note = "cluster-autoscaler.kubernetes.io/safe-to-evict=false";
        assert!(read("KUBERNETES_POD_ANNOTATIONS_1", note).is_ok());
        assert!(read("KUBERNETES_POD_ANNOTATIONS_1", "note=any text, also = signs").is_ok());
        refused("KUBERNETES_POD_ANNOTATIONS_1", "roadstead.dev/x=y", "must not name an annotation");
    }

    #[test]
    fn accounts_and_what_cannot_be_asked_for() {
        assert_eq!(
            read("KUBERNETES_SERVICE_ACCOUNT_OVERWRITE", "ci-deploy"),
            Ok(Wish::ServiceAccount("ci-deploy".to_owned()))
        );
        for bad in ["", "Deploy", "a/b", "-a", "a..b", "a-"] {
            refused("KUBERNETES_SERVICE_ACCOUNT_OVERWRITE", bad, "name of a ServiceAccount");
        }
        assert_eq!(
            read("KUBERNETES_NAMESPACE_OVERWRITE", "ci-large"),
            Ok(Wish::Namespace("ci-large".to_owned()))
        );
        for bad in ["", "Ci", "a.b", "a/b", "-a", &"a".repeat(64)] {
            refused("KUBERNETES_NAMESPACE_OVERWRITE", bad, "name of a namespace");
        }
        refused("KUBERNETES_BEARER_TOKEN", "secret", "own access");
    }
}
