//! Uploading and downloading artifacts.

use super::super::job::Artifact;
use super::writer::Writer;
use super::{RUNNER_COMMAND, Source, with_runner};

impl Source<'_> {
    pub(super) fn download_artifacts(&self, writer: &mut Writer) -> bool {
        let needed: Vec<_> =
            self.job.dependencies().iter().filter(|job| !job.artifacts_file.filename.is_empty()).collect();
        if needed.is_empty() {
            return false;
        }
        self.exports(writer, true);
        self.enter_project(writer);
        with_runner(writer, "Artifacts downloading", |writer| {
            for job in needed {
                let id = job.id.to_string();
                writer.notice(&format!("Downloading artifacts for {} ({id})...", job.name));
                writer.command(&[
                    RUNNER_COMMAND,
                    "artifacts-downloader",
                    "--url",
                    &self.config.url,
                    "--token",
                    &job.token,
                    "--id",
                    &id,
                ]);
            }
        });
        self.change_owner(writer, &[&self.place.cache, &self.place.root]);
        true
    }

    pub(super) fn upload_artifacts(&self, writer: &mut Writer, success: bool) -> bool {
        let wanted: Vec<_> = self
            .job
            .artifacts()
            .iter()
            .filter(|one| one.wanted(success))
            .filter(|one| one.untracked || !one.paths().is_empty() || !one.exclude().is_empty())
            .collect();
        if wanted.is_empty() {
            return false;
        }
        self.exports(writer, true);
        self.enter_project(writer);
        for artifact in wanted {
            let words = self.upload_command(artifact);
            with_runner(writer, "Uploading artifacts", |writer| {
                writer.notice("Uploading artifacts...");
                writer.command(&words);
            });
        }
        true
    }

    fn upload_command(&self, artifact: &Artifact) -> Vec<String> {
        let mut words: Vec<String> = [
            RUNNER_COMMAND,
            "artifacts-uploader",
            "--url",
            &self.config.url,
            "--token",
            &self.job.token,
            "--id",
            &self.job.id.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        if self.config.is_at_least(18, 10) {
            let limits = ["--timeout", "1h0m0s", "--response-header-timeout", "10m0s"];
            words.extend(limits.map(str::to_owned));
        }
        if self.variables.is_on("RUNNER_GENERATE_ARTIFACTS_METADATA") && artifact.format == "zip" {
            words.extend(self.metadata());
        }
        let mut pair = |option: &str, value: &str| words.extend([option.to_owned(), value.to_owned()]);
        for path in artifact.paths() {
            pair("--path", path);
        }
        for path in artifact.exclude() {
            pair("--exclude", path);
        }
        for (option, value) in [
            ("--name", &artifact.name),
            ("--expire-in", &artifact.expire_in),
            ("--artifact-format", &artifact.format),
            ("--artifact-type", &artifact.kind),
        ] {
            if !value.is_empty() {
                pair(option, value);
            }
        }
        if artifact.untracked {
            words.push("--untracked".to_owned());
        }
        words
    }

    /// What the helper writes into the provenance statement.
    fn metadata(&self) -> Vec<String> {
        let now = jiff::Timestamp::now().to_string();
        let repository = super::super::remote::Remote::parse(&self.job.git_info.repo_url)
            .map(|remote| remote.without_user().trim_end_matches(".git").to_owned())
            .unwrap_or_default();
        let version = match self.variables.value("SLSA_PROVENANCE_SCHEMA_VERSION") {
            "" => "unknown",
            version => version,
        };
        let mut words = vec!["--generate-artifacts-metadata".to_owned()];
        for (option, value) in [
            ("--runner-id", self.variables.value("CI_RUNNER_ID")),
            ("--repo-url", &repository),
            ("--repo-digest", &self.job.git_info.sha),
            ("--job-name", &self.job.job_info.name),
            ("--executor-name", "custom"),
            ("--runner-name", &self.config.name),
            ("--started-at", &now),
            ("--ended-at", &now),
            ("--schema-version", version),
        ] {
            words.extend([option.to_owned(), value.to_owned()]);
        }
        for variable in self.job.variables() {
            words.extend(["--metadata-parameter".to_owned(), variable.key.clone()]);
        }
        words
    }
}
