//! The state folder: everything that this crate leaves on the machine, but for installed packages.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::hash::Key;
use crate::provider::Name;

/// Overrides the state folder's place.
pub const STATE_ENV: &str = "ROADSTEAD_E2E_STATE";

/// Longest path of a Unix socket, without the closing NUL.
const SOCKET_PATH_MAX: usize = 107;

/// The state folder.
#[derive(Clone, Debug)]
pub struct State {
    root: PathBuf,
}

impl State {
    /// `$ROADSTEAD_E2E_STATE`, or `roadstead-e2e` in `$XDG_STATE_HOME` or in `~/.local/state`.
    ///
    /// # Errors
    /// When none of the three is known or the folder cannot be made.
    pub fn open() -> Result<Self> {
        let root = place(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))?;
        fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("cannot resolve {}", root.display()))?;
        Ok(Self { root })
    }

    /// A state folder at a given place, which must exist.
    #[cfg(test)]
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes all of it. A folder that holds something else too, because somebody pointed the variable at it, stays.
    ///
    /// # Errors
    /// When a part of it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        for part in ["clusters", "cache"] {
            let part = self.root.join(part);
            if part.exists() {
                fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))?;
            }
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(error).with_context(|| format!("cannot remove {}", self.root.display()))
            }
            _ => Ok(()),
        }
    }

    /// A folder of the cache that all clones share; made when missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn cache(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("cache").join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// A lock file of the cache.
    #[must_use]
    pub fn cache_lock(&self, name: &str) -> PathBuf {
        self.root.join("cache/locks").join(name)
    }

    /// The folder of a clone's cluster. Each provider has one of its own.
    ///
    /// # Errors
    /// When its sockets' paths would be longer than a Unix socket allows.
    pub fn cluster(&self, clone: &Path, provider: Name) -> Result<ClusterDir> {
        let id = cluster_id(clone, provider);
        let dir = ClusterDir { dir: self.root.join("clusters").join(&id), id };
        // containerd appends ".ttrpc" for its second socket.
        let longest = dir.file("containerd.sock.ttrpc");
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "the state folder's path is too long for a Unix socket ({}): set {STATE_ENV} to a shorter one",
                longest.display()
            );
        }
        Ok(dir)
    }

    /// The folders of all clusters, of other clones too.
    ///
    /// # Errors
    /// When the state folder cannot be read.
    pub fn clusters(&self) -> Result<Vec<ClusterDir>> {
        let parent = self.root.join("clusters");
        if !parent.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&parent).with_context(|| format!("cannot list {}", parent.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", parent.display()))?;
            if entry.path().is_dir() {
                let id = entry.file_name().to_string_lossy().into_owned();
                found.push(ClusterDir { dir: entry.path(), id });
            }
        }
        found.sort_by(|one, two| one.id.cmp(&two.id));
        Ok(found)
    }
}

fn place(env: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    if let Some(root) = env(STATE_ENV) {
        return Ok(root);
    }
    let home = env("XDG_STATE_HOME").or_else(|| env("HOME").map(|home| home.join(".local/state")));
    match home {
        Some(home) => Ok(home.join("roadstead-e2e")),
        None => bail!("no place for the state folder: set {STATE_ENV}, XDG_STATE_HOME or HOME"),
    }
}

/// Eight hexadecimal digits that stand for a clone's path and a provider.
fn cluster_id(clone: &Path, provider: Name) -> String {
    let mut key = Key::new().part("clone", clone.as_os_str().as_encoded_bytes());
    if provider != Name::Host {
        key = key.part("provider", provider.to_string());
    }
    let mut id = key.finish();
    id.truncate(8);
    id
}

/// The clone that this program was built from: the workspace's root.
#[must_use]
pub fn workspace() -> PathBuf {
    let mut dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    dir.pop();
    dir
}

/// Writes a file so that a reader sees the old or the new content, nothing between.
pub(crate) fn replace(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    fs::write(&temporary, content).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("cannot replace {}", path.display()))
}

/// One cluster's folder.
#[derive(Clone, Debug)]
pub struct ClusterDir {
    dir: PathBuf,
    id: String,
}

impl ClusterDir {
    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster's id: eight hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Any file in the folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The root folder that the cluster's processes see.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A component's log.
    #[must_use]
    pub fn log(&self, component: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{component}.log"))
    }

    /// The supervisor's control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// containerd's socket.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// What `Cluster` is loaded from.
    #[must_use]
    pub fn description(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<PathBuf> {
        place(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value)))
    }

    #[test]
    fn the_state_folder_follows_the_environment() {
        assert_eq!(with(&[(STATE_ENV, "/s"), ("HOME", "/h")]).unwrap(), Path::new("/s"));
        assert_eq!(with(&[("XDG_STATE_HOME", "/x"), ("HOME", "/h")]).unwrap(), Path::new("/x/roadstead-e2e"));
        assert_eq!(with(&[("HOME", "/h")]).unwrap(), Path::new("/h/.local/state/roadstead-e2e"));
        assert!(with(&[]).unwrap_err().to_string().contains(STATE_ENV));
    }

    #[test]
    fn removal_spares_what_is_not_its_own() {
        let home = tempfile::tempdir().unwrap();
        let state = State::at(home.path().join("state"));
        state.cache("tools").unwrap();
        fs::write(state.root().join("letter"), "dear").unwrap();
        state.remove().unwrap();
        assert!(!state.root().join("cache").exists());
        assert!(state.root().join("letter").exists());
        fs::remove_file(state.root().join("letter")).unwrap();
        state.remove().unwrap();
        assert!(!state.root().exists());
    }

    #[test]
    fn clones_have_clusters_of_their_own() {
        let state = State::at(PathBuf::from("/s"));
        let one = state.cluster(Path::new("/a"), Name::Host).unwrap();
        let two = state.cluster(Path::new("/b"), Name::Host).unwrap();
        let three = state.cluster(Path::new("/a"), Name::Kind).unwrap();
        assert_ne!(one.dir(), two.dir());
        assert_ne!(one.dir(), three.dir());
        assert_eq!(one.id().len(), 8);
    }

    #[test]
    fn a_long_state_folder_is_refused_by_name() {
        let state = State::at(PathBuf::from(format!("/{}", "x".repeat(100))));
        assert!(state.cluster(Path::new("/a"), Name::Host).unwrap_err().to_string().contains(STATE_ENV));
    }
}
