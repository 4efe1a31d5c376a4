//! Whole jobs: the shim's real binary, a small API server, and the agent's real binary.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::calls::{DEADLINE, ended, finish, until};
use crate::pod::{Pod, ready, running};

#[tokio::test]
async fn a_whole_job() {
    let (server, pod, attempt) = ready().await;
    for stage in ["prepare_script", "get_sources"] {
        let called = attempt.run(stage, "echo $PWD; echo note >&2").await;
        called.assert(0);
        assert_eq!(
            (called.stdout.trim_end(), called.stderr.as_str()),
            (pod.path("").to_str().unwrap().trim_end_matches('/'), "note\n")
        );
    }
    let called = attempt.run("build_script", "echo one; echo two >&2; exit 3").await;
    called.assert(1);
    assert_eq!(
        (called.stdout.as_str(), called.stderr.as_str()),
        ("one\n", "two\n"),
        "and nothing of the shim's own"
    );
    assert_eq!(attempt.exit_code().as_deref(), Some("3\n"));
    attempt.run("after_script", "echo after").await.assert(0);
    assert_eq!(attempt.exit_code(), None, "an earlier stage's exit code is gone");
    attempt.call(&["cleanup"]).await.assert(0);

    let report = server.job()["spec"]["report"].clone();
    assert_eq!((report["outcome"].as_str(), report["exitCode"].as_i64()), (Some("Failed"), Some(3)));
    assert_eq!(report["message"], "the script of the stage build_script exited with 3");
    assert_eq!(report["reconnects"], 0);
    let stages: Vec<_> = report["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| {
            (
                stage["name"].as_str().unwrap(),
                stage["container"].as_str().unwrap(),
                stage["exitCode"].as_i64().unwrap(),
                stage["stdoutBytes"].as_i64().unwrap(),
            )
        })
        .collect();
    let dir = i64::try_from(pod.path("").as_os_str().len()).unwrap();
    assert_eq!(
        stages,
        [
            ("prepare_script", "helper", 0, dir),
            ("get_sources", "helper", 0, dir),
            ("build_script", "build", 3, 4),
            ("after_script", "build", 0, 6),
        ]
    );
    for step in ["helperMs", "buildMs", "firstByteMs"] {
        assert!(report["start"][step].as_i64().unwrap() >= 0, "{report}");
    }
    // A POST and a watch; a look, a watch and two streams; one stream for each of the four stages; a PATCH.
    assert_eq!(server.world().requests.len(), 2 + 4 + 4 + 1, "{:#?}", server.world().requests);
}

#[tokio::test]
async fn prepare_says_what_there_is() {
    let (server, _pod, attempt) = ready().await;
    let called = attempt.call(&["prepare"]).await;
    called.assert(0);
    assert_eq!(called.stdout, "");
    let lines: Vec<_> = called.stderr.lines().collect();
    let job = server.job();
    assert_eq!(lines[0], format!("Job jobs/{}, class default", job["metadata"]["name"].as_str().unwrap()));
    assert_eq!(
        lines[1],
        format!("Pod {} starts on node node-1", job["status"]["pod"]["name"].as_str().unwrap())
    );
    assert!(lines[2].starts_with("Ready after "), "{lines:?}");
    assert!(lines[3].starts_with("Image alpine:3.20, user "), "{lines:?}");
}

#[tokio::test]
async fn exit_codes_never_become_the_shims_own() {
    let (_server, _pod, attempt) = ready().await;
    for code in [1, 2, 42, 126, 137, 255] {
        attempt.run("build_script", &format!("exit {code}")).await.assert(1);
        assert_eq!(attempt.exit_code(), Some(format!("{code}\n")));
    }
    let called = attempt.run("build_script", "kill -9 $$").await;
    called.assert(1);
    assert_eq!(attempt.exit_code().as_deref(), Some("137\n"));
    assert_eq!(called.stderr, "the script was ended by signal 9 (SIGKILL)\n");
    attempt.run("build_script", "exit 0").await.assert(0);
    assert_eq!(attempt.exit_code(), None);
}

#[tokio::test]
async fn much_output_over_a_line_that_breaks_arrives_whole_and_in_order() {
    let (server, pod, attempt) = ready().await;
    server.world().cuts = [70_000, 1, 300_000, 33, 400_000, 20_000, 500_001].into();
    let started = pod.path("started");
    let script = format!(
        "echo x >> {}; i=0; while [ $i -lt 100000 ]; do echo \"out $i\"; echo \"err $i\" >&2; i=$((i+1)); done; exit 9",
        started.display()
    );
    let called = attempt.run("build_script", &script).await;
    called.assert(1);
    for (text, word) in [(&called.stdout, "out"), (&called.stderr, "err")] {
        let mut lines = text.lines();
        for number in 0..100_000 {
            assert_eq!(lines.next().unwrap(), format!("{word} {number}"));
        }
        assert_eq!(lines.next(), None);
    }
    assert_eq!(std::fs::read_to_string(started).unwrap(), "x\n", "it ran once");
    assert_eq!(attempt.exit_code().as_deref(), Some("9\n"));
    assert_eq!(attempt.state()["reconnects"], 5, "a connection that breaks before its greeting is none");
}

#[tokio::test]
async fn binary_output_is_not_touched() {
    let (_server, pod, attempt) = ready().await;
    let bytes: Vec<u8> =
        (0..300_000_u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    std::fs::write(pod.path("bytes"), &bytes).unwrap();
    let child = attempt.start("build_script", &format!("cat {}", pod.path("bytes").display()));
    let output = child.wait_with_output().await.unwrap();
    assert!(output.stdout == bytes);
}

#[tokio::test]
async fn sigterm_ends_the_script_and_what_it_started() {
    let (server, pod, attempt) = ready().await;
    let left = pod.path("child");
    // As gitlab-runner's scripts do.
    let script = format!(
        "trap 'echo bye; exit 1' TERM; (sleep 1000 & echo $! > {}; wait); echo never",
        left.display()
    );
    let mut child = attempt.start("build_script", &format!("echo ready; {script}"));
    let mut first = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    let sleeper =
        until("the script's child", || std::fs::read_to_string(&left).ok()?.trim().parse().ok()).await;
    let shim = Pid::from_raw(child.id().unwrap().cast_signed());
    let start = Instant::now();
    kill(shim, Signal::SIGTERM).unwrap();
    kill(shim, Signal::SIGTERM).unwrap();
    kill(shim, Signal::SIGINT).unwrap();
    let called = finish(child).await;
    called.assert(2);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(called.stdout.contains("bye") && !called.stdout.contains("never"), "{called:?}");
    assert_eq!(attempt.exit_code(), None);
    assert!(kill(Pid::from_raw(sleeper), None).is_err(), "the script's child still runs");

    // A cancelled job still has its after_script.
    let called = attempt.run("after_script", "echo after").await;
    assert_eq!(called.assert(0).stdout, "after\n");
    attempt.call(&["cleanup"]).await.assert(0);
    assert_eq!(server.job()["spec"]["report"]["outcome"], "Canceled");
}

#[tokio::test]
async fn a_script_that_ignores_sigterm_is_killed_after_its_grace() {
    let (_server, _pod, attempt) = ready().await;
    let mut child = attempt.start("build_script", "trap '' TERM; echo ready; while :; do sleep 1; done");
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).await.unwrap();
    let start = Instant::now();
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    finish(child).await.assert(2);
    // The class of this test gives 2 s.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1900) && took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test]
async fn the_end_of_the_reader_is_the_end_of_the_script() {
    let (_server, pod, attempt) = ready().await;
    let pid = pod.path("pid");
    // It writes nothing, so only the pipe itself can tell.
    let mut child = attempt.start("build_script", &format!("echo $$ > {}; sleep 1000", pid.display()));
    let script: i32 = until("the script", || std::fs::read_to_string(&pid).ok()?.trim().parse().ok()).await;
    drop(child.stdout.take());
    let status = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(2));
    until("the end of the script", || kill(Pid::from_raw(script), None).is_err().then_some(())).await;
}

#[tokio::test]
async fn a_reader_that_sleeps_costs_no_memory() {
    let (_server, _pod, attempt) = ready().await;
    let mut child = attempt.start("build_script", "head -c 50000000 /dev/zero");
    let pid = child.id().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    // Without optimisation the binary itself takes most of it.
    assert!(kilobytes < 48 * 1024, "{kilobytes} kB");
    let mut all = Vec::new();
    child.stdout.as_mut().unwrap().read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 50_000_000);
    finish(child).await.assert(0);
}

#[tokio::test]
async fn a_pod_that_is_not_the_jobs_is_not_used() {
    let (server, _pod, attempt) = ready().await;
    let mut status = running(&server.job());
    status["pod"]["uid"] = json!("another-uid");
    server.set_status(&status);
    let called = attempt.call(&["prepare"]).await;
    called.assert(2);
    // Whichever of the two answers first.
    assert!(called.stderr.contains("the agent in the container "), "{called:?}");
    assert!(called.stderr.contains(" refuses to serve: pod another-uid was meant"), "{called:?}");
}

#[tokio::test]
async fn a_restarted_agent_is_not_given_the_next_stage() {
    let (server, pod, attempt) = ready().await;
    attempt.run("build_script", "echo one").await.assert(0);
    drop(pod);
    let _pod = Pod::start(&server);
    let called = attempt.run("step_two", "echo two").await;
    called.assert(2);
    assert_eq!(called.stdout, "");
    assert!(called.stderr.contains("restarted"), "{called:?}");
}

#[tokio::test]
async fn a_container_killed_for_its_memory_fails_the_job_with_all_of_its_output() {
    let (server, mut pod, attempt) = ready().await;
    let child = attempt.start("build_script", "echo before the end; sleep 1000");
    let spool = pod.path("build/spool");
    until("the output on disk", || {
        let files = std::fs::read_dir(&spool).unwrap().flatten();
        files
            .filter_map(|file| std::fs::read(file.path()).ok())
            .any(|bytes| bytes.windows(4).any(|w| w == b"end\n"))
            .then_some(())
    })
    .await;
    // The kernel kills the whole container; exec finds none any more.
    server.world().agents.remove("build");
    pod.build.kill().unwrap();
    pod.build.wait().unwrap();
    until("a stream into helper", || (server.requests("container=helper").len() == 2).then_some(())).await;
    server.set_status(&ended(
        "Failed",
        "OutOfMemory",
        "the build container used more memory than its limit of 64Mi",
    ));
    let called = finish(child).await;
    called.assert(1);
    assert_eq!(attempt.exit_code().as_deref(), Some("137\n"));
    assert_eq!(called.stdout, "before the end\n");
    assert_eq!(called.stderr, "the build container used more memory than its limit of 64Mi\n");
    attempt.call(&["cleanup"]).await.assert(0);
    assert_eq!(server.job()["spec"]["report"]["outcome"], "Failed");
}

#[tokio::test]
async fn a_job_that_is_deleted_ends_its_stage() {
    let (server, _pod, attempt) = ready().await;
    let mut child = attempt.start("build_script", "echo ready; sleep 1000");
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).await.unwrap();
    // The pod goes with it.
    server.world().delete();
    server.world().cut_all();
    let called = finish(child).await;
    called.assert(2);
    assert_eq!(called.stderr, "the job's CiJob was deleted while the job ran\n");
    attempt.call(&["cleanup"]).await.assert(0);
}

#[tokio::test]
async fn nothing_secret_is_left_in_the_diagnostics() {
    let (_server, _pod, mut attempt) = ready().await;
    let log = attempt.path("log");
    attempt.env = vec![
        ("ROADSTEAD_LOG_FILE".into(), log.to_str().unwrap().into()),
        ("ROADSTEAD_LOG".into(), "trace".into()),
        ("CUSTOM_ENV_PASSWORD".into(), "hunter2hunter2".into()),
    ];
    let called = attempt.run("build_script", "echo the output; : the script").await;
    assert_eq!((called.assert(0).stdout.as_str(), called.stderr.as_str()), ("the output\n", ""));
    attempt.call(&["cleanup"]).await.assert(0);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.lines().count() > 5, "{log}");
    for secret in ["the output", "the script", "hunter2", "glcbt-job-token"] {
        assert!(!log.contains(secret), "{secret} in\n{log}");
    }
}
