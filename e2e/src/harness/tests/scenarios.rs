//! What goes wrong, through both runners: the same calls in the same order, and the same end.

use std::time::Duration;

use super::super::{Backend, Outcome};
use super::real::backends;
use crate::coordinator::{Artifact, Cache, JobSpec};

/// Time for the real runner's own pauses, on a busy machine.
const LONG: Duration = Duration::from_mins(3);

/// What is done to a job while its script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Nothing,
    Cancel,
    Abort,
    Interrupt,
}

struct Scenario {
    name: &'static str,
    /// Stage and commands that the driver runs first in it.
    hook: (&'static str, &'static str),
    variables: &'static [(&'static str, &'static str)],
    script: &'static str,
    timeout: Duration,
    act: Act,
    /// How versions before 19 report the end, where that differs.
    older: Option<Outcome>,
}

const PLAIN: Scenario = Scenario {
    name: "",
    hook: ("none", ""),
    variables: &[],
    script: "echo ran",
    timeout: Duration::from_hours(1),
    act: Act::Nothing,
    older: None,
};

const SLOW: &str = "echo begun; sleep 300";

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "prepare fails", hook: ("prepare", "exit 2"), ..PLAIN },
        Scenario { name: "prepare blames the user", hook: ("prepare", "exit 1"), ..PLAIN },
        Scenario { name: "prepare ends oddly", hook: ("prepare", "exit 77"), ..PLAIN },
        Scenario {
            name: "prepare blames the user with a code",
            hook: ("prepare", r#"echo 9 > "$BUILD_EXIT_CODE_FILE"; exit 1"#),
            ..PLAIN
        },
        Scenario { name: "config says nonsense", hook: ("config", "echo {; exit 0"), ..PLAIN },
        Scenario {
            name: "config says no folder",
            hook: ("config", r#"echo '{"builds_dir":""}'; exit 0"#),
            older: Some(Outcome::ScriptFailure { exit_code: 0 }),
            ..PLAIN
        },
        Scenario {
            name: "config says a strange shell",
            hook: ("config", r#"echo '{"shell":"fish"}'; exit 0"#),
            ..PLAIN
        },
        Scenario {
            name: "prepare_script fails",
            hook: ("run", r#"[ "$2" = prepare_script ] && exit 2"#),
            ..PLAIN
        },
        Scenario {
            name: "get_sources fails once",
            hook: (
                "run",
                r#"[ "$2" = get_sources ] && ! [ -e $FAKE_DIR/once ] && touch $FAKE_DIR/once && exit 1"#,
            ),
            variables: &[("GET_SOURCES_ATTEMPTS", "3")],
            ..PLAIN
        },
        Scenario {
            name: "get_sources fails for good",
            hook: ("run", r#"[ "$2" = get_sources ] && exit 2"#),
            variables: &[("GET_SOURCES_ATTEMPTS", "2")],
            ..PLAIN
        },
        Scenario { name: "the script fails", script: "exit 42", ..PLAIN },
        Scenario {
            name: "no code is handed on",
            hook: ("run", r#"[ "$2" = build_script ] && exit 1"#),
            ..PLAIN
        },
        Scenario {
            name: "a code with a blank",
            hook: (
                "run",
                r#"[ "$2" = build_script ] && { printf '42 \n' > "$BUILD_EXIT_CODE_FILE"; exit 1; }"#,
            ),
            ..PLAIN
        },
        Scenario {
            name: "an empty code",
            hook: ("run", r#"[ "$2" = build_script ] && { : > "$BUILD_EXIT_CODE_FILE"; exit 1; }"#),
            ..PLAIN
        },
        Scenario {
            name: "code zero",
            hook: ("run", r#"[ "$2" = build_script ] && { echo 0 > "$BUILD_EXIT_CODE_FILE"; exit 1; }"#),
            ..PLAIN
        },
        Scenario {
            name: "the driver is killed",
            hook: ("run", r#"[ "$2" = build_script ] && kill -9 $$"#),
            ..PLAIN
        },
        Scenario { name: "cleanup fails", hook: ("cleanup", "exit 2"), ..PLAIN },
        Scenario {
            name: "after_script fails the job",
            hook: ("run", r#"[ "$2" = after_script ] && { echo 6 > "$BUILD_EXIT_CODE_FILE"; exit 1; }"#),
            variables: &[("AFTER_SCRIPT_IGNORE_ERRORS", "false")],
            ..PLAIN
        },
        Scenario {
            name: "after_script fails and nobody cares",
            hook: ("run", r#"[ "$2" = after_script ] && exit 1"#),
            ..PLAIN
        },
        Scenario {
            name: "saving the cache fails",
            hook: ("run", r#"[ "$2" = archive_cache ] && exit 1"#),
            ..PLAIN
        },
        Scenario { name: "the job's time is up", script: SLOW, timeout: Duration::from_secs(5), ..PLAIN },
        Scenario {
            name: "the script's time is up",
            script: SLOW,
            variables: &[("RUNNER_SCRIPT_TIMEOUT", "1s")],
            ..PLAIN
        },
        Scenario { name: "canceled", script: SLOW, act: Act::Cancel, ..PLAIN },
        Scenario { name: "aborted", script: SLOW, act: Act::Abort, ..PLAIN },
        Scenario { name: "interrupted", script: SLOW, act: Act::Interrupt, ..PLAIN },
    ]
}

/// Stages in the order in which the driver was called, and how the job ended.
async fn play(scenario: &Scenario, real: bool) -> Option<(Vec<String>, Outcome)> {
    let (mut fake, _) = backends().await;
    let note = r#"echo "$stage${2:+ $2}" >> $FAKE_DIR/stages; "#;
    for stage in ["config", "prepare", "run", "cleanup"] {
        let more = if scenario.hook.0 == stage { scenario.hook.1 } else { "" };
        fake = fake.hook(stage, &format!("{note}{more}"));
    }
    let backends = Backend::available(&fake.config).unwrap();
    let backend = backends.into_iter().find(|backend| backend.is_real() == real)?;
    let mut spec = JobSpec::fresh()
        .script([scenario.script])
        .after_script(["echo status is $CI_JOB_STATUS"])
        .artifact(Artifact::paths(["out/"]).when("always"))
        .cache(Cache::new("key", ["vendor/"]).when("always"))
        .timeout(scenario.timeout);
    for (key, value) in scenario.variables {
        spec = spec.variable(*key, *value);
    }
    let job = backend.start(&spec).await.unwrap();
    if scenario.act != Act::Nothing {
        job.wait_log("\nbegun\n", LONG).await.unwrap();
    }
    match scenario.act {
        Act::Nothing => {}
        Act::Cancel => job.cancel(),
        Act::Abort => job.abort(),
        Act::Interrupt => job.interrupt(),
    }
    let outcome = job.finish(LONG).await.unwrap().outcome;
    Some((fake.read("stages").lines().map(str::to_owned).collect(), outcome))
}

/// The kind of end, without words that versions change.
fn kind(outcome: &Outcome) -> String {
    match outcome {
        Outcome::SystemFailure { .. } => "system failure".to_owned(),
        Outcome::ConfigurationError { .. } => "configuration error".to_owned(),
        Outcome::TimedOut { .. } => "timed out".to_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn both_runners_call_a_driver_the_same_way() {
    let mut differences = Vec::new();
    for scenario in scenarios() {
        let Some((real_stages, real_outcome)) = play(&scenario, true).await else {
            eprintln!("there is no real gitlab-runner to compare with");
            return;
        };
        let (stages, outcome) = play(&scenario, false).await.unwrap();
        let same = kind(&outcome) == kind(&real_outcome) || scenario.older.as_ref() == Some(&real_outcome);
        if stages != real_stages || !same {
            differences.push(format!(
                "{}:\n  played {outcome:?} {stages:?}\n  real   {real_outcome:?} {real_stages:?}",
                scenario.name
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
