//! What the account of the kubeconfig has to be allowed, asked before anything is made.

use anyhow::{Context as _, Result};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::release::Release;

/// Where a right is needed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    Cluster,
    /// The operator's namespace.
    System,
    /// The namespace of the jobs.
    Jobs,
}

/// Rights on one resource.
struct Right {
    scope: Scope,
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
}

const fn right(
    scope: Scope,
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
) -> Right {
    Right { scope, group, resource, verbs }
}

const MANAGE: &[&str] = &["get", "create", "patch", "delete"];
const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const OWN: &str = "roadstead.dev";

/// What the release and the tests need.
const RIGHTS: &[Right] = &[
    right(Scope::Cluster, "", "namespaces", MANAGE),
    right(Scope::Cluster, "apiextensions.k8s.io", "customresourcedefinitions", MANAGE),
    right(Scope::Cluster, RBAC, "clusterroles", MANAGE),
    right(Scope::Cluster, RBAC, "clusterrolebindings", MANAGE),
    right(Scope::Cluster, ADMISSION, "validatingadmissionpolicies", MANAGE),
    right(Scope::Cluster, ADMISSION, "validatingadmissionpolicybindings", MANAGE),
    right(Scope::Cluster, OWN, "jobclasses", &["get", "list", "create", "patch", "delete"]),
    // Where other releases' jobs are has to be known before definitions are removed.
    right(Scope::Cluster, OWN, "cijobs", &["list"]),
    right(Scope::System, "", "secrets", &["get", "list", "create", "update", "delete"]),
    right(Scope::System, "", "serviceaccounts", MANAGE),
    right(Scope::System, "", "serviceaccounts/token", &["create"]),
    right(Scope::System, "apps", "deployments", MANAGE),
    right(Scope::System, "", "pods", &["get", "list", "create", "delete"]),
    right(Scope::System, "", "pods/log", &["get"]),
    right(Scope::Jobs, RBAC, "roles", MANAGE),
    right(Scope::Jobs, RBAC, "rolebindings", MANAGE),
    right(Scope::Jobs, OWN, "cijobs", &["get", "list", "watch", "create", "patch", "delete"]),
    right(Scope::Jobs, "", "pods", &["get", "list", "watch", "create", "delete"]),
    right(Scope::Jobs, "", "pods/exec", &["create"]),
    right(Scope::Jobs, "", "events", &["list"]),
];

impl Right {
    fn namespace(&self, release: &Release) -> Option<String> {
        match self.scope {
            Scope::Cluster => None,
            Scope::System => Some(release.namespace.clone()),
            Scope::Jobs => Some(release.job_namespace.clone()),
        }
    }

    fn review(&self, verb: &str, release: &Release) -> SelfSubjectAccessReview {
        let (resource, subresource) = match self.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (self.resource, None),
        };
        SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    namespace: self.namespace(release),
                    verb: Some(verb.to_owned()),
                    group: Some(self.group.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource,
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        }
    }

    /// For people: `get, create clusterroles.rbac.authorization.k8s.io`.
    fn describe(&self, verbs: &[&str], release: &Release) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        let place =
            self.namespace(release).map_or_else(String::new, |name| format!(" in the namespace {name}"));
        format!("{} {}{dot}{}{place}", verbs.join(", "), self.resource, self.group)
    }
}

/// The rights that the client's account lacks, one line each.
///
/// # Errors
/// When the API server does not answer the question.
pub(super) async fn lacking(client: &Client, release: &Release) -> Result<Vec<String>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut lacking = Vec::new();
    for right in RIGHTS {
        let mut refused = Vec::new();
        for verb in right.verbs {
            let review = right.review(verb, release);
            let answer = reviews
                .create(&PostParams::default(), &review)
                .await
                .context("the API server does not say what this account may do")?;
            if !answer.status.is_some_and(|status| status.allowed) {
                refused.push(*verb);
            }
        }
        if !refused.is_empty() {
            lacking.push(right.describe(&refused, release));
        }
    }
    Ok(lacking)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_takes_the_subresource_apart() {
        let right = right(Scope::Jobs, "", "pods/exec", &["create"]);
        let attributes = right.review("create", &Release::default()).spec.resource_attributes.unwrap();
        assert_eq!(attributes.resource.as_deref(), Some("pods"));
        assert_eq!(attributes.subresource.as_deref(), Some("exec"));
        assert_eq!(attributes.namespace.as_deref(), Some("ci-jobs"));
        let words = right.describe(&["create"], &Release::default());
        assert_eq!(words, "create pods/exec in the namespace ci-jobs");
    }

    #[test]
    fn cluster_wide_rights_name_their_group() {
        let right = &RIGHTS[2];
        assert_eq!(right.namespace(&Release::default()), None);
        let words = right.describe(&["get", "patch"], &Release::default());
        assert_eq!(words, "get, patch clusterroles.rbac.authorization.k8s.io");
    }
}
