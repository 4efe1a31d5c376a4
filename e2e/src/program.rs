//! Programs that are written to be run at once.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Writes an executable file by way of another process.
///
/// A file that is open for writing cannot be executed ("Text file busy"), and a process that is being
/// forked by another thread holds whatever this one has open at that moment. So this one never opens it.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let context = || format!("cannot write the program {}", path.display());
    let mut shell = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(context)?;
    if let Some(mut stdin) = shell.stdin.take() {
        stdin.write_all(text.as_bytes()).with_context(context)?;
    }
    let status = shell.wait().with_context(context)?;
    ensure!(status.success(), "{}: {status}", context());
    Ok(())
}
