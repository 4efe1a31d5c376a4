//! Names of CiJobs and of their pods.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Name of the CiJob for one Prepare attempt of one GitLab job: `cij-<job id>-<hash>`.
///
/// `attempt` is what is unique to the attempt (gitlab-runner gives each one a temporary directory
/// of its own). The same input gives the same name, so a call that is repeated after an answer
/// was lost finds its object again.
pub fn cijob_name(server: &str, job_id: i64, attempt: &str) -> String {
    let mut hash = Sha256::new();
    for part in [server.as_bytes(), &job_id.to_be_bytes(), attempt.as_bytes()] {
        // Lengths keep the parts apart: ("ab", "c") is not ("a", "bc").
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let mut name = format!("cij-{job_id}-");
    for byte in digest.iter().take(5) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Name of a CiJob's pod: the CiJob's name, the first eight digits of its UID and the number of
/// the pod, from 1.
///
/// Exec addresses pods by name and the API server checks no UID on the way, so no name may ever
/// mean two pods: the UID tells CiJobs of one name apart, the number the pods of one CiJob.
pub fn pod_name(cijob: &str, cijob_uid: &str, attempt: i32) -> String {
    format!("{}-{attempt}", owned(cijob, cijob_uid))
}

/// What the names of all begin with that this very CiJob owns.
fn owned(cijob: &str, cijob_uid: &str) -> String {
    let uid: String = cijob_uid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    format!("{cijob}-{uid}")
}

/// Name of the Secret with the variables of a CiJob's service, by the service's place from 0.
pub fn service_secret_name(cijob: &str, cijob_uid: &str, service: usize) -> String {
    format!("{}-svc-{service}", owned(cijob, cijob_uid))
}

/// Name of the Secret with a CiJob's credentials for pulling images.
pub fn pull_secret_name(cijob: &str, cijob_uid: &str) -> String {
    format!("{}-pull", owned(cijob, cijob_uid))
}

/// Whether it is a DNS subdomain as Kubernetes names objects and hosts.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// A part of a DNS subdomain.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let end = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    bytes.iter().all(plain) && end(bytes.first()) && end(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_the_job_and_tells_attempts_apart() {
        let first = cijob_name("https://gitlab.example", 4711, "/builds/a");
        assert!(first.starts_with("cij-4711-"), "{first}");
        assert_eq!(first.len(), "cij-4711-".len() + 10);
        assert_eq!(first, cijob_name("https://gitlab.example", 4711, "/builds/a"));
        assert_ne!(first, cijob_name("https://gitlab.example", 4711, "/builds/b"));
        assert_ne!(first, cijob_name("https://other.example", 4711, "/builds/a"));
    }

    #[test]
    fn the_longest_pod_name_is_a_dns_label() {
        let cijob = cijob_name("https://gitlab.example", i64::MAX, "/builds/a");
        let pod = pod_name(&cijob, "3f2a91bc-0000-4000-8000-000000000000", i32::MAX);
        assert!(pod.len() <= 63, "{pod}");
        assert_eq!(pod_name("cij-1-0123456789", "3f2a91bc-0000", 2), "cij-1-0123456789-3f2a91bc-2");
    }

    #[test]
    fn the_secrets_of_a_job_are_not_those_of_another_one_of_its_name() {
        let service = |uid| service_secret_name("cij-1-0123456789", uid, 0);
        assert_eq!(service("3f2a91bc-0000"), "cij-1-0123456789-3f2a91bc-svc-0");
        assert_ne!(service("3f2a91bc-0000"), service("4f2a91bc-0000"));
        assert_eq!(pull_secret_name("cij-1-0123456789", "3f2a91bc-0000"), "cij-1-0123456789-3f2a91bc-pull");
    }
}
