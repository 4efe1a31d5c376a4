//! Real Git repositories for tests: made in a given folder with fixed authors and dates, and served read-only
//! over smart HTTP.
//!
//! The repositories are bare and are written through `git fast-import`, so the same list of commits has the same
//! ids on every machine.

mod http;

pub use http::{GitRequest, Service, answer};

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// The moment of the first commit, in seconds since 1970: 2026-01-01T00:00:00Z. Each later commit is a minute
/// younger.
const FIRST_COMMIT: u64 = 1_767_225_600;

/// Author and committer of every commit.
const IDENTITY: &str = "Roadstead Test <test@roadstead.invalid>";

/// One commit: a message and what it changes against the commit before.
#[derive(Debug, Clone)]
pub struct Commit {
    message: String,
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Blob { mode: &'static str, path: String, content: Vec<u8> },
    Submodule { path: String, url: String, sha: String },
    Remove { path: String },
}

impl Commit {
    /// A commit that changes nothing yet.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), changes: Vec::new() }
    }

    /// Writes an ordinary file.
    #[must_use]
    pub fn file(self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.blob("100644", path, content)
    }

    /// Writes a file with the executable bit.
    #[must_use]
    pub fn executable(self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.blob("100755", path, content)
    }

    /// Writes a symbolic link.
    #[must_use]
    pub fn symlink(self, path: impl Into<String>, target: impl Into<Vec<u8>>) -> Self {
        self.blob("120000", path, target)
    }

    /// Adds a submodule at `path` that points to commit `sha` of the repository at `url`, and lists it in
    /// `.gitmodules` together with the submodules of earlier commits.
    #[must_use]
    pub fn submodule(
        mut self,
        path: impl Into<String>,
        url: impl Into<String>,
        sha: impl Into<String>,
    ) -> Self {
        self.changes.push(Change::Submodule { path: path.into(), url: url.into(), sha: sha.into() });
        self
    }

    /// Removes a file.
    #[must_use]
    pub fn remove(mut self, path: impl Into<String>) -> Self {
        self.changes.push(Change::Remove { path: path.into() });
        self
    }

    fn blob(mut self, mode: &'static str, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.changes.push(Change::Blob { mode, path: path.into(), content: content.into() });
        self
    }
}

/// A bare repository with one branch, `main`.
#[derive(Debug, Clone)]
pub struct GitRepo {
    dir: PathBuf,
    commits: Vec<String>,
}

impl GitRepo {
    /// Makes a repository in `dir`, which must not exist or be empty, with the given commits on `main`.
    ///
    /// # Errors
    /// When there is no commit, or when `git` is missing or refuses.
    pub fn create(dir: impl Into<PathBuf>, commits: &[Commit]) -> Result<Self> {
        ensure!(!commits.is_empty(), "a repository needs at least one commit");
        let dir = dir.into();
        run(git(&dir).args(["init", "--quiet", "--bare", "--initial-branch", "main"]).arg(&dir), b"")?;
        // As GitLab's repositories: any object may be asked for, and partial clones work.
        for key in ["uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter"] {
            run(git(&dir).arg("-C").arg(&dir).args(["config", key, "true"]), b"")?;
        }
        let marks = dir.join("import-marks");
        let mut import = git(&dir);
        import.arg("-C").arg(&dir).args(["fast-import", "--quiet"]);
        import.arg(format!("--export-marks={}", marks.display()));
        run(&mut import, &import_stream(commits)?)?;

        let text = std::fs::read_to_string(&marks).context("cannot read what git has imported")?;
        let mut shas = vec![String::new(); commits.len()];
        for line in text.lines() {
            let (mark, sha) = line.split_once(' ').context("a line of git's marks has no space")?;
            let number: usize = mark.trim_start_matches(':').parse().context("a mark is not a number")?;
            let slot = shas.get_mut(number - 1).context("git knows a mark that nobody has set")?;
            sha.clone_into(slot);
        }
        std::fs::remove_file(&marks).context("cannot remove git's marks")?;
        Ok(Self { dir, commits: shas })
    }

    /// Where the repository is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The id of the newest commit of `main`.
    pub fn head(&self) -> &str {
        self.commits.last().map_or("", String::as_str)
    }

    /// The ids of all commits, oldest first.
    pub fn commits(&self) -> &[String] {
        &self.commits
    }

    /// Lets the reference `name` (in full, such as `refs/tags/v1`) point to `sha`.
    ///
    /// # Errors
    /// When the repository has no such commit.
    pub fn set_ref(&self, name: &str, sha: &str) -> Result<()> {
        set_ref(&self.dir, name, sha)
    }
}

/// Lets the reference `name` of the repository in `dir` point to `sha`.
///
/// # Errors
/// When the repository has no such commit.
pub fn set_ref(dir: &Path, name: &str, sha: &str) -> Result<()> {
    run(git(dir).arg("-C").arg(dir).args(["update-ref", name, sha]), b"")
}

/// `git` with none of the machine's or the user's settings.
fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").env_remove("GIT_INDEX_FILE");
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_CEILING_DIRECTORIES", dir.parent().unwrap_or(dir));
    command
}

fn run(command: &mut Command, input: &[u8]) -> Result<()> {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {what}"))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input));
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {what}"))?;
    if !output.status.success() {
        bail!("{what} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    written.with_context(|| format!("cannot write to {what}"))
}

/// The commits in the language of `git fast-import`; commit N carries mark N.
fn import_stream(commits: &[Commit]) -> Result<Vec<u8>> {
    let mut stream = Vec::new();
    let mut modules = String::new();
    for (index, commit) in commits.iter().enumerate() {
        let when = FIRST_COMMIT + 60 * u64::try_from(index)?;
        write!(stream, "commit refs/heads/main\nmark :{}\n", index + 1)?;
        write!(stream, "author {IDENTITY} {when} +0000\ncommitter {IDENTITY} {when} +0000\n")?;
        data(&mut stream, commit.message.as_bytes())?;
        let known = modules.len();
        for change in &commit.changes {
            match change {
                Change::Blob { mode, path, content } => {
                    writeln!(stream, "M {mode} inline {}", quoted(path))?;
                    data(&mut stream, content)?;
                }
                Change::Submodule { path, url, sha } => {
                    writeln!(stream, "M 160000 {sha} {}", quoted(path))?;
                    modules.extend(["[submodule \"", path, "\"]\n\tpath = ", path, "\n\turl = ", url, "\n"]);
                }
                Change::Remove { path } => writeln!(stream, "D {}", quoted(path))?,
            }
        }
        if modules.len() > known {
            writeln!(stream, "M 100644 inline .gitmodules")?;
            data(&mut stream, modules.as_bytes())?;
        }
        stream.push(b'\n');
    }
    Ok(stream)
}

fn data(stream: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    writeln!(stream, "data {}", bytes.len())?;
    stream.extend_from_slice(bytes);
    stream.push(b'\n');
    Ok(())
}

fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_commits() -> Vec<Commit> {
        vec![
            Commit::new("first").file("README", "one\n").executable("bin/run", "#!/bin/sh\necho run\n"),
            Commit::new("second").file("README", "two\n").symlink("link", "README").remove("bin/run"),
        ]
    }

    fn git_out(repo: &GitRepo, args: &[&str]) -> String {
        let output = git(repo.dir()).arg("-C").arg(repo.dir()).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_same_commits_have_the_same_ids() {
        let folder = tempfile::tempdir().unwrap();
        let one = GitRepo::create(folder.path().join("one.git"), &two_commits()).unwrap();
        let two = GitRepo::create(folder.path().join("two.git"), &two_commits()).unwrap();
        assert_eq!(one.commits(), two.commits());
        assert_eq!(one.commits().len(), 2);
        assert_ne!(one.commits()[0], one.commits()[1]);
        assert_eq!(one.head(), git_out(&one, &["rev-parse", "refs/heads/main"]).trim());
    }

    #[test]
    fn a_commit_has_its_files_and_modes() {
        let folder = tempfile::tempdir().unwrap();
        let repo = GitRepo::create(folder.path().join("r.git"), &two_commits()).unwrap();
        let first = git_out(&repo, &["ls-tree", "-r", "main~1"]);
        assert!(first.contains("100755") && first.contains("bin/run"), "{first}");
        let second = git_out(&repo, &["ls-tree", "-r", "main"]);
        assert!(second.contains("120000") && !second.contains("bin/run"), "{second}");
        assert_eq!(git_out(&repo, &["show", "main:README"]), "two\n");
        assert_eq!(git_out(&repo, &["log", "-1", "--format=%at %ae"]), "1767225660 test@roadstead.invalid\n");
    }

    #[test]
    fn submodules_are_links_and_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let lib = GitRepo::create(folder.path().join("lib.git"), &two_commits()).unwrap();
        let commits = [
            Commit::new("one").submodule("lib", "../lib.git", lib.head()),
            Commit::new("two").submodule("vendor/b", "../b.git", &lib.commits()[0]),
        ];
        let repo = GitRepo::create(folder.path().join("r.git"), &commits).unwrap();
        assert!(git_out(&repo, &["ls-tree", "main", "lib"]).starts_with("160000 commit"));
        let modules = git_out(&repo, &["show", "main:.gitmodules"]);
        assert!(modules.contains("url = ../lib.git") && modules.contains("url = ../b.git"), "{modules}");
    }

    #[test]
    fn a_reference_to_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let repo = GitRepo::create(folder.path().join("r.git"), &two_commits()).unwrap();
        repo.set_ref("refs/pipelines/7", &repo.commits()[0]).unwrap();
        assert_eq!(git_out(&repo, &["rev-parse", "refs/pipelines/7"]).trim(), repo.commits()[0]);
        assert!(repo.set_ref("refs/pipelines/8", &"1".repeat(40)).is_err());
        assert!(GitRepo::create(folder.path().join("none.git"), &[]).is_err());
    }
}
