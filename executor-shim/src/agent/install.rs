//! Putting the binary where the containers of the pod find it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Name of the binary in the target directory.
const NAME: &str = "stage-agent";

/// Copies this program into `dir`. It appears there under its name only when it is whole and nobody
/// has it open for writing: others wait for the name and execute it at once.
pub(super) fn install(dir: &Path) -> io::Result<()> {
    let new = dir.join(format!(".{NAME}.{}", std::process::id()));
    copy(&new).and_then(|()| fs::rename(&new, dir.join(NAME))).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

fn copy(target: &Path) -> io::Result<()> {
    let mut from = File::open("/proc/self/exe")?;
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(target)?;
    io::copy(&mut from, &mut to)?;
    // Not left to the umask.
    to.set_permissions(fs::Permissions::from_mode(0o555))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_whole_and_executable_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            install(dir.path()).unwrap();
            let copy = dir.path().join(NAME);
            assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o555);
            assert_eq!(fs::read(&copy).unwrap(), fs::read("/proc/self/exe").unwrap());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert!(install(Path::new("/nonexistent")).is_err());
    }
}
