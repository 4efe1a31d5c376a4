//! The API server's audit log: who asked for what, request by request.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cluster::Cluster;

/// One request to the API server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// The user, for an account `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// Kubernetes' verb: `get`, `create`, `watch` …
    pub verb: String,
    /// The resource with its subresource: `pods`, `pods/exec`. Empty for what is none, such as `/version`.
    pub resource: String,
    /// The object's name. Empty for lists and watches.
    pub name: String,
    /// Path and query.
    pub uri: String,
}

impl Request {
    /// Whether it was made by this account.
    pub fn is_by(&self, namespace: &str, account: &str) -> bool {
        self.user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
            == Some((namespace, account))
    }

    /// Whether the request is about an object whose name contains this, or asks for it by a selector.
    pub fn concerns(&self, name: &str) -> bool {
        self.name.contains(name) || self.uri.contains(name)
    }

    /// Verb and resource, as in `get pods`.
    pub fn kind(&self) -> String {
        format!("{} {}", self.verb, self.resource)
    }
}

/// A place in the audit log.
#[derive(Clone, Debug)]
pub struct AuditLog {
    path: PathBuf,
    from: u64,
}

impl AuditLog {
    /// The whole log of a cluster.
    ///
    /// # Errors
    /// When the cluster's provider gives no access to it.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        Ok(Self { path: cluster.host_parts()?.audit_log.clone(), from: 0 })
    }

    /// What the log will have from now on.
    ///
    /// # Errors
    /// When the log cannot be looked at.
    pub fn from_now(cluster: &Cluster) -> Result<Self> {
        let mut log = Self::of(cluster)?;
        log.from = std::fs::metadata(&log.path).context("no audit log")?.len();
        Ok(log)
    }

    /// The requests that have begun since, in the order in which the log tells of them.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let mut file = File::open(&self.path).context("no audit log")?;
        file.seek(SeekFrom::Start(self.from)).context("cannot read the audit log")?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).context("cannot read the audit log")?;
        Ok(requests(&String::from_utf8_lossy(&text)))
    }
}

/// The requests in some lines of the log. A request that lasts, such as a watch, has a line for its start and one for
/// its end, with the same id; it is one request. A line that is still being written is left out.
fn requests(lines: &str) -> Vec<Request> {
    let mut seen = HashSet::new();
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| seen.insert(text(event, "/auditID"))).map(|event| request(&event)).collect()
}

fn request(event: &Value) -> Request {
    let resource = [text(event, "/objectRef/resource"), text(event, "/objectRef/subresource")];
    Request {
        user: text(event, "/user/username"),
        verb: text(event, "/verb"),
        resource: resource.join("/").trim_end_matches('/').to_owned(),
        name: text(event, "/objectRef/name"),
        uri: text(event, "/requestURI"),
    }
}

fn text(event: &Value, pointer: &str) -> String {
    event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(id: &str, stage: &str, verb: &str, uri: &str, object: &Value) -> String {
        let user = json!({"username": "system:serviceaccount:roadstead-system:roadstead-shim"});
        let event = json!({"auditID": id, "stage": stage, "verb": verb, "requestURI": uri, "user": user, "objectRef": object});
        format!("{event}\n")
    }

    #[test]
    fn what_lasts_is_one_request() {
        let exec = json!({"resource": "pods", "subresource": "exec", "name": "cij-1-a"});
        let uri = "/api/v1/namespaces/n/pods/cij-1-a/exec?command=x";
        let log = [
            line("1", "ResponseStarted", "get", uri, &exec),
            line(
                "2",
                "ResponseComplete",
                "create",
                "/apis/e/events",
                &json!({"resource": "events", "name": "cij-1.5"}),
            ),
            line("1", "ResponseComplete", "get", uri, &exec),
            line("3", "ResponseComplete", "get", "/version", &Value::Null),
            "{\"auditID\": \"4\", \"verb".to_owned(),
        ];
        let found = requests(&log.concat());
        let kinds: Vec<String> = found.iter().map(Request::kind).collect();
        assert_eq!(kinds, ["get pods/exec", "create events", "get "]);
        assert!(found[0].concerns("cij-1") && found[1].concerns("cij-1") && !found[2].concerns("cij-1"));
        assert!(found[0].is_by("roadstead-system", "roadstead-shim"));
        assert!(!found[0].is_by("roadstead-system", "roadstead"));
    }

    #[test]
    fn a_name_in_a_selector_counts() {
        let uri =
            "/apis/roadstead.dev/v1alpha1/namespaces/n/cijobs?fieldSelector=metadata.name%3Dcij-1&watch=true";
        let log = line("1", "ResponseStarted", "watch", uri, &json!({"resource": "cijobs"}));
        assert!(requests(&log)[0].concerns("cij-1"));
        assert!(!requests(&log)[0].concerns("cij-2"));
    }
}
