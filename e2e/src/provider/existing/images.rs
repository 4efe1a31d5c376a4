//! The file that tells which references the images have in a registry.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

/// What the product and the tests start containers from.
const NEEDED: [&str; 8] =
    ["agent", "busybox", "debian-git", "debian-sudo", "debian-user", "executor-shim", "helper", "operator"];

/// Reads the file: on each line an image's name, as `cargo e2e images` prints it, and a reference.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} does not name the images", path.display()))
}

fn parse(text: &str) -> Result<BTreeMap<String, String>> {
    let mut images = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [name, reference] => {
                // The chart takes repository and tag apart.
                let tagged = reference.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'));
                ensure!(
                    tagged && !reference.contains('@'),
                    "line {number}: {reference} has no tag, or a digest; the form is REPOSITORY:TAG"
                );
                let before = images.insert((*name).to_owned(), (*reference).to_owned());
                ensure!(before.is_none(), "line {number}: {name} stands there twice");
            }
            _ => bail!("line {number}: the form is NAME REPOSITORY:TAG, not {line:?}"),
        }
    }
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !images.contains_key(*name)).collect();
    ensure!(missing.is_empty(), "these are missing: {}", missing.join(", "));
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> String {
        NEEDED.map(|name| format!("{name} registry.example.com:5000/x/{name}:1\n")).concat()
    }

    #[test]
    fn names_go_to_references() {
        let images = parse(&format!("# pushed today\n\n{}", all())).unwrap();
        assert_eq!(images["busybox"], "registry.example.com:5000/x/busybox:1");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, word) in [
            ("busybox", "line 1"),
            ("a b c", "line 1"),
            ("\nbusybox registry.example.com:5000/busybox", "line 2"),
            ("busybox x@sha256:00", "REPOSITORY:TAG"),
            ("busybox x:1\nbusybox x:1", "twice"),
            ("busybox x:1", "operator"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }
}
