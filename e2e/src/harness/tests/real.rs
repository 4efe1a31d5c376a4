//! The same jobs through the played and, where there is one, a real gitlab-runner.

use std::time::Duration;

use super::super::{Backend, Outcome};
use super::{Fake, SOON};
use crate::coordinator::{Coordinator, CoordinatorConfig, JobSpec};

pub(super) async fn backends() -> (Fake, Vec<Backend>) {
    let coordinator =
        Coordinator::start(CoordinatorConfig::new("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let fake = Fake::new().with(|config| *config = config.clone().coordinator(&coordinator));
    let backends = Backend::available(&fake.config).unwrap();
    (fake, backends)
}

#[tokio::test]
async fn a_job_succeeds() {
    let (fake, backends) = backends().await;
    for backend in backends {
        let spec =
            JobSpec::fresh().script(["echo hello from $CI_JOB_ID"]).after_script(["echo $CI_JOB_STATUS"]);
        let result = backend.run(&spec, SOON).await.unwrap();
        result.assert_success();
        assert!(result.log_contains(&format!("\nhello from {}\n", spec.id)), "{}", result.text());
        assert!(result.log_contains("Using Custom executor with driver fake 1.0..."), "{}", backend.name());
        assert!(result.log_contains("\nsuccess\n"), "{}", backend.name());
        let (first, line) = (result.first_output().unwrap(), result.first_line().unwrap());
        assert!(first <= line && line < SOON, "{}: {first:?} {line:?}", backend.name());
        assert!(result.when("hello from").unwrap() >= first);
        if backend.is_real() {
            let job = fake.config.coordinator.as_ref().unwrap().job(spec.id).unwrap();
            assert_eq!(job.checksum_ok, Some(true), "the whole log has arrived");
        }
    }
}

#[tokio::test]
async fn exit_codes_arrive() {
    let (_fake, backends) = backends().await;
    for backend in backends {
        let result = backend.run(&JobSpec::fresh().script(["exit 42"]), SOON).await.unwrap();
        result.assert_script_failure(42);
        assert!(result.log_contains("Job failed: exit status 42"), "{}", result.text());
    }
}

#[tokio::test]
async fn system_failures_are_told_apart() {
    let (fake, _) = backends().await;
    let fake = fake.hook("run", r#"[ "$2" = build_script ] && exit 2"#);
    for backend in Backend::available(&fake.config).unwrap() {
        let result = backend.run(&JobSpec::fresh().script(["true"]), SOON).await.unwrap();
        assert_eq!(
            result.outcome,
            Outcome::SystemFailure { message: "exit status 2".to_owned() },
            "{}",
            backend.name()
        );
    }
}

#[tokio::test]
async fn cancels_run_after_script() {
    let (_fake, backends) = backends().await;
    for backend in backends {
        let spec = JobSpec::fresh()
            .script(["echo begun; sleep 300"])
            .after_script(["echo status is $CI_JOB_STATUS"]);
        let job = backend.start(&spec).await.unwrap();
        job.wait_log("\nbegun\n", SOON).await.unwrap();
        job.wait_stage("build_script", SOON).await.unwrap();
        job.cancel();
        // A real runner learns of it with its next update: up to half a minute for a silent job.
        let result = job.finish(SOON * 2).await.unwrap();
        assert_eq!(result.outcome, Outcome::Canceled, "{}", backend.name());
        assert!(result.log_contains("\nstatus is canceled\n"), "{}", result.text());
    }
}

#[tokio::test]
async fn script_timeouts_are_told() {
    let (_fake, backends) = backends().await;
    for backend in backends {
        let spec = JobSpec::fresh()
            .script(["sleep 300"])
            .after_script(["echo status is $CI_JOB_STATUS"])
            .variable("RUNNER_SCRIPT_TIMEOUT", "1s");
        let result = backend.run(&spec, SOON).await.unwrap();
        assert!(matches!(result.outcome, Outcome::TimedOut { .. }), "{}", result.text());
        assert!(result.log_contains("\nstatus is timedout\n"), "{}", result.text());
    }
}

#[tokio::test]
async fn killed_runners_leave_the_job_open() {
    let (fake, _) = backends().await;
    let fake = fake.hook("cleanup", "touch $FAKE_DIR/cleaned");
    for backend in Backend::available(&fake.config).unwrap() {
        let job = backend.start(&JobSpec::fresh().script(["echo begun; sleep 5"])).await.unwrap();
        job.wait_log("\nbegun\n", SOON).await.unwrap();
        job.kill_runner();
        let result = job.finish(Duration::from_secs(10)).await.unwrap();
        assert_eq!(result.outcome, Outcome::RunnerKilled, "{}", backend.name());
        if let Some(orphan) = result.orphan {
            orphan.wait(SOON).await.expect("the script is short");
        }
        assert!(!fake.path("cleaned").exists(), "{}", backend.name());
    }
}

#[tokio::test]
async fn tokens_rotate_while_a_job_runs() {
    let (fake, _) = backends().await;
    let fake = fake.with(|config| config.token_life = Some(Duration::from_secs(8)));
    let backends = Backend::available(&fake.config).unwrap();
    let Some(backend) = backends.into_iter().find(Backend::is_real) else {
        eprintln!("there is no real gitlab-runner whose token could rotate");
        return;
    };
    let coordinator = fake.config.coordinator.clone().unwrap();
    coordinator.set_token_life(Duration::from_hours(1));
    let spec = JobSpec::fresh().script(["echo begun; sleep 12; echo finished"]);
    let job = backend.start(&spec).await.unwrap();
    job.wait_log("\nfinished\n", SOON).await.unwrap();
    let token =
        coordinator.runner_tokens().into_iter().find(|token| token.starts_with("glrt-rotated")).unwrap();
    let file = job.config_toml().unwrap();
    assert!(file.contains(&token), "{file}");
    job.finish(SOON).await.unwrap().assert_success();
}

/// Lets every call of the driver leave a file with its environment and one with its `JOB_RESPONSE_FILE`.
const RECORD: &str = r#"mkdir -p "$FAKE_DIR/seen"
    number=$(printf %02d "$(ls "$FAKE_DIR/seen" | wc -l)")
    env -0 > "$FAKE_DIR/seen/$number-$stage-$2"
    cp "$JOB_RESPONSE_FILE" "$FAKE_DIR/response""#;

/// What a driver saw of a job: for each call its stage and what GitLab's part of the environment says, and the last
/// response file.
async fn seen_by_driver(
    spec: &JobSpec,
    real: bool,
) -> Option<(Vec<(String, Vec<String>)>, serde_json::Value)> {
    let (mut fake, _) = backends().await;
    for stage in ["config", "prepare", "run", "cleanup"] {
        fake = fake.hook(stage, RECORD);
    }
    let backends = Backend::available(&fake.config).unwrap();
    let backend = backends.into_iter().find(|backend| backend.is_real() == real)?;
    backend.run(spec, SOON).await.unwrap().assert_script_failure(4);

    let folder = fake.path("");
    let folder = folder.to_string_lossy();
    let server = fake.config.url.clone();
    let tidy = |text: &str| {
        text.replace(folder.trim_end_matches('/'), "DIR")
            .replace(&server, "SERVER")
            .replace(server.trim_start_matches("http://"), "SERVER")
    };
    let mut names: Vec<_> =
        std::fs::read_dir(fake.path("seen")).unwrap().map(|one| one.unwrap().file_name()).collect();
    names.sort();
    // Versions, flags and tokens are each runner's own.
    let own = ["CI_RUNNER_VERSION", "CI_RUNNER_REVISION", "CI_RUNNER_SHORT_TOKEN", "FF_"];
    let calls = names.iter().map(|name| {
        let name = name.to_string_lossy().into_owned();
        let environment = fake.read(&format!("seen/{name}"));
        let mut lines: Vec<String> = environment
            .split('\0')
            .filter(|line| {
                line.strip_prefix("CUSTOM_ENV_")
                    .is_some_and(|line| !own.iter().any(|own| line.starts_with(own)))
                    || line.ends_with("_EXIT_CODE=1")
                    || line.ends_with("_EXIT_CODE=2")
            })
            .map(tidy)
            .collect();
        lines.sort();
        (name, lines)
    });
    let response = serde_json::from_str(&tidy(&fake.read("response"))).unwrap();
    Some((calls.collect(), response))
}

/// `CI_JOB_SERVICES`, and the rest.
fn without_services(lines: &[String]) -> (serde_json::Value, Vec<&String>) {
    let services = |line: &&String| line.starts_with("CUSTOM_ENV_CI_JOB_SERVICES=");
    let (services, rest): (Vec<&String>, Vec<&String>) = lines.iter().partition(services);
    let (_, json) = services[0].split_once('=').unwrap();
    (serde_json::from_str(json).unwrap(), rest)
}

/// Asserts that everything in `less` is in `more` too, with the same value.
fn assert_within(less: &serde_json::Value, more: &serde_json::Value, path: &str) {
    match (less, more) {
        (serde_json::Value::Object(less), serde_json::Value::Object(more)) => {
            for (key, value) in less {
                let path = format!("{path}.{key}");
                assert_within(value, more.get(key).unwrap_or_else(|| panic!("{path} is missing")), &path);
            }
        }
        (serde_json::Value::Array(less), serde_json::Value::Array(more)) => {
            assert_eq!(less.len(), more.len(), "{path}");
            for (index, (less, more)) in less.iter().zip(more).enumerate() {
                assert_within(less, more, &format!("{path}.{index}"));
            }
        }
        _ => assert_eq!(less, more, "{path}"),
    }
}

#[tokio::test]
async fn the_played_runner_shows_a_driver_what_the_real_one_shows() {
    use crate::coordinator::{Artifact, Cache, Image, Variable};
    let spec = JobSpec::new(4711)
        .script(["exit 4"])
        .after_script(["echo $CI_JOB_STATUS"])
        .image("img:$TAG")
        .service(Image::new("redis:$TAG").alias("a,b").variable("X", "x-$TAG").entrypoint(["e"]))
        .service(Image::new("plain"))
        .variable("TAG", "1")
        .variable("DOUBLE", "first")
        .variable("DOUBLE", "second")
        .variable("ODD", "$$ $1 ${TAG}x $NONE ${} a$ $ b")
        .masked("SECRET", "very-secret-value")
        .file("FILE", "line1\nline2 $TAG")
        .variable("USES_FILE", "at $FILE and $CI_PROJECT_DIR")
        .var(Variable { raw: true, ..Variable::new("RAW", "$TAG") })
        .artifact(Artifact::paths(["out/"]).when("on_failure"))
        .cache(Cache::new("key-$TAG", ["vendor/"]).when("always"))
        .credential("registry.test", "user", "password")
        .tags(["k8s"])
        .runner_tags(["k8s", "linux"]);
    let Some((real_calls, mut real_response)) = seen_by_driver(&spec, true).await else {
        eprintln!("there is no real gitlab-runner to compare with");
        return;
    };
    // Older versions write it even when there is nothing in it.
    real_response.as_object_mut().unwrap().retain(|key, value| key != "run" || value != "");
    let (calls, response) = seen_by_driver(&spec, false).await.unwrap();
    let names =
        |calls: &[(String, Vec<String>)]| calls.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&calls), names(&real_calls));
    for ((name, played), (_, real)) in calls.iter().zip(&real_calls) {
        // Variables of services are younger than the executor.
        let (played_services, played) = without_services(played);
        let (real_services, real) = without_services(real);
        assert_eq!(played, real, "{name}");
        assert_within(&real_services, &played_services, name);
    }
    // A newer runner knows more keys than an older one.
    assert_within(&real_response, &response, "");
}
