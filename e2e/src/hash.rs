//! Keys made from the content of inputs: same inputs, same key, nothing to build.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use ring::digest::{Context, SHA256};

/// Collects inputs and turns them into a key. The order of the calls matters; each part carries its label and its
/// length, so that no two sets of parts give the same bytes.
#[derive(Clone)]
pub struct Key(Context);

impl Key {
    /// A key over nothing.
    #[must_use]
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Adds a text or any bytes.
    #[must_use]
    pub fn part(mut self, label: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update(format!("{label} {}\n", value.len()).as_bytes());
        self.0.update(value);
        self
    }

    /// Adds a file's content and whether it is executable.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn file(mut self, label: &str, path: &Path) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let meta = fs::metadata(path).with_context(context)?;
        let executable = meta.permissions().mode() & 0o111 != 0;
        self.0.update(format!("{label} {} {executable}\n", meta.len()).as_bytes());
        let mut file = fs::File::open(path).with_context(context)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).with_context(context)? {
                0 => return Ok(self),
                length => self.0.update(&buffer[..length]),
            }
        }
    }

    /// Adds every file below a folder, by its path in there.
    ///
    /// # Errors
    /// When something in there cannot be read.
    pub fn tree(mut self, label: &str, dir: &Path) -> Result<Self> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
            entries.push((entry.file_name(), entry.path()));
        }
        entries.sort();
        for (name, path) in entries {
            let label = format!("{label}/{}", name.to_string_lossy());
            self = if path.is_dir() { self.tree(&label, &path)? } else { self.file(&label, &path)? };
        }
        Ok(self)
    }

    /// The key: 16 hexadecimal digits, enough to tell versions apart.
    #[must_use]
    pub fn finish(self) -> String {
        use std::fmt::Write as _;
        self.0.finish().as_ref().iter().take(8).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let one = Key::new().part("a", "xy").part("b", "z").finish();
        let two = Key::new().part("a", "x").part("b", "yz").finish();
        assert_ne!(one, two);
        assert_eq!(one.len(), 16);
        assert_eq!(one, Key::new().part("a", "xy").part("b", "z").finish());
    }

    #[test]
    fn a_tree_is_its_names_contents_and_executable_bits() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let file = dir.path().join("sub/file");
        fs::write(&file, "one").unwrap();
        let key = || Key::new().tree("t", dir.path()).unwrap().finish();
        let first = key();
        fs::write(&file, "two").unwrap();
        let second = key();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let third = key();
        fs::rename(&file, dir.path().join("sub/other")).unwrap();
        let keys = [first, second, third, key()];
        for (index, one) in keys.iter().enumerate() {
            assert!(!keys[index + 1..].contains(one), "{keys:?}");
        }
    }
}
