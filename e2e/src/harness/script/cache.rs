//! Caches in the runner's own folder. Caches in object storage need a runner with credentials; the harness has none.

use super::super::error::JobError;
use super::super::job::Cache;
use super::super::variables::Place;
use super::writer::Writer;
use super::{RUNNER_COMMAND, Source, with_runner};

impl Source<'_> {
    pub(super) fn restore_cache(&self, writer: &mut Writer) -> Result<bool, JobError> {
        self.exports(writer, true);
        self.enter_project(writer);
        let mut needed = false;
        for cache in self.job.caches().iter().filter(|cache| is_something(cache)) {
            needed = true;
            let Some(key) = self.cache_key(writer, &cache.key, "extraction") else { continue };
            if !self.policy_allows(cache, "pull")? {
                writer.notice(&format!("Not downloading cache {key} due to policy"));
                continue;
            }
            let mut keys = vec![key];
            for fallback in cache.fallback_keys() {
                let fallback = self.variables.expand_text(fallback);
                if !fallback.is_empty() {
                    keys.extend(self.cache_key(writer, &fallback, "extraction"));
                }
            }
            let fallback = self.variables.value("CACHE_FALLBACK_KEY").to_owned();
            if fallback.trim_end_matches(['.', ' ']).ends_with("-protected") {
                writer.warning(&format!(
                    "CACHE_FALLBACK_KEY {fallback:?} not allowed to end in \"-protected\""
                ));
            } else if !fallback.is_empty() {
                keys.extend(self.cache_key(writer, &fallback, "extraction"));
            }
            with_runner(writer, "Extracting cache", |writer| self.extract(writer, &keys));
        }
        self.change_owner(writer, &[&self.place.cache, &self.place.root]);
        Ok(needed)
    }

    /// Tries one key after the other.
    fn extract(&self, writer: &mut Writer, keys: &[String]) {
        let Some((key, others)) = keys.split_first() else { return };
        let timeout = self.settings.cache_request_timeout.to_string();
        let file = archive(self.place, key);
        writer.notice(&format!("Checking cache for {key}..."));
        writer.if_loud(&[RUNNER_COMMAND, "cache-extractor", "--file", &file, "--timeout", &timeout]);
        writer.notice("Successfully extracted cache");
        writer.or_else();
        writer.warning("Failed to extract cache");
        self.extract(writer, others);
        writer.end_if();
    }

    pub(super) fn archive_cache(&self, writer: &mut Writer, success: bool) -> Result<bool, JobError> {
        self.exports(writer, true);
        self.enter_project(writer);
        let mut needed = false;
        let wanted = |cache: &&Cache| cache.wanted(success) && is_something(cache);
        for cache in self.job.caches().iter().filter(wanted) {
            needed = true;
            let Some(key) = self.cache_key(writer, &cache.key, "archiving") else { continue };
            if !self.policy_allows(cache, "push")? {
                writer.notice(&format!("Not uploading cache {key} due to policy"));
                continue;
            }
            let timeout = self.settings.cache_request_timeout.to_string();
            let file = archive(self.place, &key);
            let mut words = vec![RUNNER_COMMAND, "cache-archiver", "--file", &file, "--timeout", &timeout];
            for path in cache.paths() {
                words.extend(["--path", path]);
            }
            if cache.untracked {
                words.push("--untracked");
            }
            with_runner(writer, "Creating cache", |writer| {
                writer.notice(&format!("Creating cache {key}..."));
                writer.if_loud(&words);
                writer.notice("Created cache");
                writer.or_else();
                writer.warning("Failed to create cache");
                writer.end_if();
            });
        }
        Ok(needed)
    }

    /// The key as it is used; says so in the script when it has to be changed, or when there is none.
    fn cache_key(&self, writer: &mut Writer, key: &str, action: &str) -> Option<String> {
        let asked = if key.is_empty() {
            format!("{}/{}", self.job.job_info.name, self.job.git_info.git_ref)
        } else {
            self.variables.expand_text(key)
        };
        let used = sanitized(&asked);
        if used.is_empty() {
            writer.notice(&format!("Skipping cache {action} due to empty cache key"));
            return None;
        }
        if used != asked {
            writer.warning(&format!("cache key {asked:?} sanitized to {used:?}"));
        }
        Some(used)
    }

    fn policy_allows(&self, cache: &Cache, wanted: &str) -> Result<bool, JobError> {
        match self.variables.expand_text(&cache.policy).as_str() {
            "" | "pull-push" => Ok(true),
            policy @ ("pull" | "push") => Ok(policy == wanted),
            policy => Err(JobError::System(format!("unknown cache policy {policy} for {}", cache.key))),
        }
    }
}

fn is_something(cache: &Cache) -> bool {
    cache.untracked || !cache.paths().is_empty()
}

/// A key that cannot lead out of the cache's folder.
fn sanitized(key: &str) -> String {
    let decoded = ["%2f", "%2F", "\\"].iter().fold(key.to_owned(), |key, slash| key.replace(slash, "/"));
    let decoded = decoded.replace("%2e", ".").replace("%2E", ".");
    let mut parts: Vec<&str> = Vec::new();
    for part in decoded.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    while let Some(last) = parts.pop() {
        let trimmed = last.trim_end();
        if !trimmed.is_empty() {
            parts.push(trimmed);
            break;
        }
    }
    parts.join("/")
}

/// The archive's path as seen from the project's folder.
fn archive(place: &Place, key: &str) -> String {
    relative(&place.project, &format!("{}/{key}/cache.zip", place.cache))
}

/// How to get from one absolute folder to another path.
fn relative(from: &str, to: &str) -> String {
    let from: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    let to: Vec<&str> = to.split('/').filter(|part| !part.is_empty()).collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let mut parts = vec![".."; from.len() - common];
    parts.extend(&to[common..]);
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_inside() {
        for (key, used) in [
            ("a", "a"),
            ("a/b", "a/b"),
            ("../../etc", "etc"),
            ("a%2fb", "a/b"),
            ("a\\..\\b ", "b"),
            ("..", ""),
            ("a/ ", "a"),
        ] {
            assert_eq!(sanitized(key), used, "{key}");
        }
    }

    #[test]
    fn archives_are_found_from_the_project() {
        let place = Place {
            root: "/builds".to_owned(),
            project: "/builds/grp/proj".to_owned(),
            cache: "/cache/grp/proj".to_owned(),
        };
        assert_eq!(archive(&place, "k-protected"), "../../../cache/grp/proj/k-protected/cache.zip");
    }
}
