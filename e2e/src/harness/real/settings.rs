//! `config.toml` for a real gitlab-runner.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::super::config::{Program, RunnerConfig};
use crate::harness::duration;

/// Settings of GitLab's own Kubernetes executor (`[runners.kubernetes]`). All that is not here is left at its default.
#[derive(Debug, Clone)]
pub struct KubernetesExecutor {
    /// URL of the API server.
    pub host: String,
    /// File with the API server's authority, PEM.
    pub ca_file: PathBuf,
    /// Token of the account that it uses.
    pub bearer_token: String,
    /// Namespace of the pods.
    pub namespace: String,
    /// Image of the pods' second container.
    pub helper_image: String,
    /// Further texts in the section, by key.
    pub settings: Vec<(String, String)>,
}

impl KubernetesExecutor {
    fn section(&self) -> String {
        let mut text = String::from("[runners.kubernetes]\npull_policy = [\"if-not-present\"]\n");
        let own = [
            ("host", self.host.as_str()),
            ("ca_file", &self.ca_file.to_string_lossy()),
            ("bearer_token", &self.bearer_token),
            ("namespace", &self.namespace),
            ("helper_image", &self.helper_image),
        ];
        let further = self.settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in own.into_iter().chain(further) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{key} = {}", quoted(value));
        }
        text
    }
}

/// The file for one runner, with the driver or with GitLab's own executor.
pub(super) fn config_toml(
    config: &RunnerConfig,
    kubernetes: Option<&KubernetesExecutor>,
    url: &str,
    token: &str,
) -> String {
    let mut text =
        String::from("concurrent = 1\ncheck_interval = 1\nshutdown_timeout = 120\n\n[[runners]]\n");
    // Writing to a string cannot fail, here and below.
    let mut set = |key: &str, value: String| {
        let _ = writeln!(text, "{key} = {value}");
    };
    set("name", quoted(&config.name));
    set("url", quoted(url));
    set("token", quoted(token));
    if let Some(life) = config.token_life {
        let now = jiff::Timestamp::now();
        set("token_obtained_at", now.to_string());
        // A life that ends after the end of all timestamps ends now.
        set("token_expires_at", now.checked_add(life).unwrap_or(now).to_string());
    }
    set("executor", quoted(if kubernetes.is_some() { "kubernetes" } else { "custom" }));
    set("shell", quoted(&config.shell));
    set("builds_dir", quoted(&config.builds_dir));
    set("cache_dir", quoted(&config.cache_dir));
    set("request_concurrency", "1".to_owned());
    set("environment", list(config.environment.iter().map(String::as_str)));
    for (key, script) in [
        ("pre_get_sources_script", &config.pre_get_sources_script),
        ("post_get_sources_script", &config.post_get_sources_script),
        ("pre_build_script", &config.pre_build_script),
        ("post_build_script", &config.post_build_script),
    ] {
        if !script.is_empty() {
            set(key, quoted(script));
        }
    }
    if let Some(limit) = config.output_limit {
        set("output_limit", limit.to_string());
    }
    for (key, limit) in
        [("prepare_timeout", config.prepare_timeout), ("get_sources_timeout", config.get_sources_timeout)]
    {
        if let Some(limit) = limit {
            set(key, quoted(&duration::format(limit)));
        }
    }
    // Results are read from timestamps; they are off in older versions.
    text.push_str("[runners.feature_flags]\nFF_TIMESTAMPS = true\n");
    for (name, on) in config.feature_flags.iter().filter(|(name, _)| name != "FF_TIMESTAMPS") {
        let _ = writeln!(text, "{name} = {on}");
    }
    let _ = writeln!(text, "[runners.custom_build_dir]\nenabled = {}", config.custom_build_dir);
    text.push_str(&kubernetes.map_or_else(|| custom(config), KubernetesExecutor::section));
    text
}

fn custom(config: &RunnerConfig) -> String {
    let mut text = String::from("[runners.custom]\n");
    let driver = &config.driver;
    for (name, program) in [
        ("config", driver.config.as_ref()),
        ("prepare", driver.prepare.as_ref()),
        ("run", Some(&driver.run)),
        ("cleanup", driver.cleanup.as_ref()),
    ] {
        if let Some(program) = program {
            text.push_str(&program_lines(name, program));
        }
    }
    for (key, limit) in [
        ("config_exec_timeout", config.config_exec_timeout),
        ("prepare_exec_timeout", config.prepare_exec_timeout),
        ("cleanup_exec_timeout", config.cleanup_exec_timeout),
        ("graceful_kill_timeout", config.graceful_kill_timeout),
        ("force_kill_timeout", config.force_kill_timeout),
    ] {
        let _ = writeln!(text, "{key} = {}", seconds(limit));
    }
    text
}

fn program_lines(name: &str, program: &Program) -> String {
    let args: Vec<String> = program.args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    format!(
        "{name}_exec = {}\n{name}_args = {}\n",
        quoted(&program.path.to_string_lossy()),
        list(args.iter().map(String::as_str))
    )
}

/// Whole seconds, at least one: zero would mean the default.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
}

/// A TOML text; JSON's escapes are a part of TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Driver;

    #[test]
    fn the_driver_is_in_the_file() {
        let mut config = RunnerConfig::new(Driver::shim("/opt/a \"b\"/shim").args(["-v"]));
        config.graceful_kill_timeout = Duration::from_millis(1500);
        let text = config_toml(&config, None, "http://h:1", "glrt-x");
        assert!(
            text.contains("run_exec = \"/opt/a \\\"b\\\"/shim\"\nrun_args = [\"run\", \"-v\"]\n"),
            "{text}"
        );
        assert!(text.contains("graceful_kill_timeout = 1\n"));
        assert!(text.contains("url = \"http://h:1\"\ntoken = \"glrt-x\"\n"));
    }
    #[test]
    fn gitlabs_own_executor_takes_the_drivers_place() {
        let executor = KubernetesExecutor {
            host: "https://10.0.0.1:6443".into(),
            ca_file: "/c/ca.crt".into(),
            bearer_token: "t\"".into(),
            namespace: "n".into(),
            helper_image: "h:1".into(),
            settings: vec![("memory_limit".into(), "64Mi".into())],
        };
        let config = RunnerConfig::new(Driver::shim("/opt/shim"));
        let text = config_toml(&config, Some(&executor), "http://h:1", "glrt-x");
        assert!(text.contains("executor = \"kubernetes\"\n") && !text.contains("[runners.custom]"), "{text}");
        assert!(
            text.ends_with(
                "[runners.kubernetes]\npull_policy = [\"if-not-present\"]\nhost = \"https://10.0.0.1:6443\"\n\
             ca_file = \"/c/ca.crt\"\nbearer_token = \"t\\\"\"\nnamespace = \"n\"\nhelper_image = \"h:1\"\n\
             memory_limit = \"64Mi\"\n"
            ),
            "{text}"
        );
    }
}
