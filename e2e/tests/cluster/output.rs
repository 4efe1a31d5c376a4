//! Every byte of both streams, once and in order, at the shim's own standard output and error.

use anyhow::Result;
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;

use crate::DEADLINE;

/// Runs a script in a stage of its own and returns what the shim wrote, without what the generated
/// script around it prints: the script's output lies between two marks.
async fn output_of(bench: &Installation, image: &str, script: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let marked = format!("printf 'BE''GIN'; {script}\nprintf 'EN''D'");
    let spec = JobSpec::fresh().image(bench.image(image)?).script([marked]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_success();
    let call = result.call("build_script");
    let stdout = &call.stdout;
    let begin = find(stdout, b"BEGIN").map_or(0, |at| at + 5);
    let end =
        stdout.len() - stdout.windows(3).rev().position(|window| window == b"END").map_or(0, |at| at + 3);
    Ok((stdout[begin..end].to_vec(), call.stderr.clone()))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_stay_apart() -> Result<()> {
    let bench = Installation::join().await?;
    let (stdout, stderr) =
        output_of(&bench, "busybox", "echo out; echo err >&2; printf unterminated >&2").await?;
    assert_eq!(String::from_utf8_lossy(&stdout), "out\n");
    assert_eq!(String::from_utf8_lossy(&stderr), "err\nunterminated");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_value_passes() -> Result<()> {
    let bench = Installation::join().await?;
    let all: Vec<String> = (0..=255).map(|byte: u8| format!("\\{byte:03o}")).collect();
    let (stdout, _) = output_of(&bench, "busybox", &format!("printf '{}'", all.concat())).await?;
    assert_eq!(stdout, (0..=255).collect::<Vec<u8>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_megabytes_without_a_newline_pass_unchanged() -> Result<()> {
    let bench = Installation::join().await?;
    let (stdout, _) =
        output_of(&bench, "busybox", "dd if=/dev/zero bs=1024 count=3072 2>/dev/null | tr '\\0' x").await?;
    assert_eq!(stdout.len(), 3 << 20);
    assert!(stdout.iter().all(|byte| *byte == b'x'));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_megabytes_of_log_are_exact() -> Result<()> {
    let bench = Installation::join().await?;
    let (stdout, stderr) = output_of(&bench, "debian-git", "seq 1 2800000; seq 1 100000 >&2").await?;
    let seq = |last: u32| (1..=last).fold(String::new(), |text, number| text + &number.to_string() + "\n");
    assert!(stdout.len() > 20 << 20, "{} bytes", stdout.len());
    assert!(stdout == seq(2_800_000).as_bytes(), "stdout differs");
    assert!(stderr == seq(100_000).as_bytes(), "stderr differs");
    Ok(())
}
