//! containerd's log: when a pod's sandbox and containers came to be. Kubernetes' own times are whole seconds.

use std::time::SystemTime;

/// A log of containerd, level info.
pub(super) struct RuntimeLog<'a>(&'a str);

/// When a pod got what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Started {
    /// The kubelet asked for the sandbox: it knows the pod, and its volumes are mounted.
    pub(super) begun: Option<SystemTime>,
    /// The sandbox with its network was there.
    pub(super) sandbox: Option<SystemTime>,
    /// The last of its containers was started.
    pub(super) containers: Option<SystemTime>,
}

impl<'a> RuntimeLog<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// Reads what became of a pod. What the log does not tell stays empty.
    pub(super) fn started(&self, pod: &str) -> Started {
        let mut started = Started::default();
        let run = format!("RunPodSandbox for &PodSandboxMetadata{{Name:{pod},");
        let (mut sandbox, mut containers) = (None, Vec::new());
        for line in self.0.lines() {
            if line.contains(&run) {
                match returned(line, "returns sandbox id ") {
                    Some(id) => (sandbox, started.sandbox) = (Some(id), time(line)),
                    None => started.begun = started.begun.or_else(|| time(line)),
                }
            } else if line.contains("CreateContainer within sandbox ")
                && sandbox.is_some_and(|id| line.contains(id))
            {
                containers.extend(returned(line, "returns container id "));
            } else if line.contains("StartContainer for ")
                && line.contains("returns successfully")
                && containers.iter().any(|id| line.contains(id))
            {
                started.containers = time(line);
            }
        }
        started
    }
}

/// An id in escaped quotes after some words.
fn returned<'l>(line: &'l str, words: &str) -> Option<&'l str> {
    let (_, id) = line.split_once(words)?;
    id.trim_start_matches(['\\', '"']).split(['\\', '"']).next().filter(|id| !id.is_empty())
}

fn time(line: &str) -> Option<SystemTime> {
    let text = line.strip_prefix("time=\"")?.split('"').next()?;
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LOG: &str = r#"
time="2026-11-22T10:30:26.300Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:p-1,Uid:5d,Namespace:ci,Attempt:0,}"
time="2026-11-22T10:30:26.310Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:p-10,Uid:5e,Namespace:ci,Attempt:0,}"
time="2026-11-22T10:30:26.500Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:p-1,Uid:5d,Namespace:ci,Attempt:0,} returns sandbox id \"d1cd\""
time="2026-11-22T10:30:26.510Z" level=info msg="CreateContainer within sandbox \"d1cd\" for container &ContainerMetadata{Name:helper,Attempt:0,}"
time="2026-11-22T10:30:26.520Z" level=info msg="CreateContainer within sandbox \"d1cd\" for &ContainerMetadata{Name:helper,Attempt:0,} returns container id \"2550\""
time="2026-11-22T10:30:26.590Z" level=info msg="StartContainer for \"2550\" returns successfully"
time="2026-11-22T10:30:26.595Z" level=info msg="StartContainer for \"9999\" returns successfully"
"#;

    #[test]
    fn a_pods_lines_are_told_from_anothers() {
        let started = RuntimeLog::new(LOG).started("p-1");
        let after = |from: Option<SystemTime>, to: Option<SystemTime>| {
            to.unwrap().duration_since(from.unwrap()).unwrap()
        };
        assert_eq!(after(started.begun, started.sandbox), Duration::from_millis(200));
        assert_eq!(after(started.sandbox, started.containers), Duration::from_millis(90));
        let other = RuntimeLog::new(LOG).started("p-10");
        assert!(other.begun.is_some() && other.sandbox.is_none() && other.containers.is_none());
        assert_eq!(RuntimeLog::new(LOG).started("p"), Started::default());
    }
}
