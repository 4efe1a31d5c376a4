//! Images for the cluster, built here (one Containerfile each in `e2e/images`) and kept as archives in the cache.

mod build;
mod context;
mod debian;
mod docker;
mod programs;

use std::path::{Path, PathBuf};

use anyhow::Result;

use self::build::Workshop;
use crate::progress::Progress;
use crate::state::State;

/// The image of the pods' first process.
pub const PAUSE: &str = "roadstead.test/pause:e2e";
/// Names a `gitlab-runner-helper` program that the helper image shall carry.
pub const RUNNER_HELPER_ENV: &str = "ROADSTEAD_GITLAB_RUNNER_HELPER";

/// An image in the cache, ready for import.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Archive {
    /// Short name: `busybox`, `agent`.
    pub name: String,
    /// The full name with registry and tag.
    pub reference: String,
    /// Digest of all that went into it.
    pub key: String,
    /// The archive.
    pub path: PathBuf,
}

impl Archive {
    /// The name as a pod and a chart's values give it: without the registry that everybody leaves out.
    #[must_use]
    pub fn short_reference(&self) -> &str {
        self.reference.strip_prefix("docker.io/").unwrap_or(&self.reference)
    }
}

/// The product as it was built.
#[derive(Clone, Debug)]
pub struct Product {
    /// Its images.
    pub images: Vec<Archive>,
    /// The executor-shim, which runs beside gitlab-runner: a static program.
    pub shim: PathBuf,
}

/// The program that builds images.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Builder {
    /// buildah, from nothing but this machine's own packages; needs root.
    Buildah,
    /// Docker, from images of Debian and busybox that it pulls.
    Docker,
}

/// What the images are made from.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    progress: Progress,
    builder: Builder,
    state: &'a State,
    workspace: &'a Path,
}

impl<'a> Images<'a> {
    /// Images of that workspace, kept in that state folder.
    #[must_use]
    pub fn new(progress: Progress, builder: Builder, state: &'a State, workspace: &'a Path) -> Self {
        Self { progress, builder, state, workspace }
    }

    /// The images that test jobs run in, and `pause` for a node that has none.
    ///
    /// # Errors
    /// When a build fails.
    pub fn jobs(&self) -> Result<Vec<Archive>> {
        let workshop = self.workshop();
        let debian = workshop.build(&self.debian_git()?)?;
        let mut archives = vec![workshop.build(&self.busybox())?];
        for recipe in self.unusable() {
            archives.push(workshop.build(&recipe)?);
        }
        if self.builder == Builder::Buildah {
            archives.push(workshop.build(&self.pause()?)?);
        }
        archives.push(workshop.build(&Self::debian_user(&debian))?);
        archives.push(workshop.build(&self.debian_sudo(&debian)?)?);
        if let Some(helper) = self.gitlab_helper(&debian) {
            archives.push(workshop.build(&helper)?);
        }
        archives.push(debian);
        Ok(archives)
    }

    /// The product, built from the workspace.
    ///
    /// # Errors
    /// When cargo or a build fails.
    pub fn product(&self) -> Result<Product> {
        let programs = programs::build(self.progress, self.workspace)?;
        let workshop = self.workshop();
        let debian = workshop.build(&self.debian_git()?)?;
        let mut images = Vec::new();
        for recipe in self.product_recipes(&programs, &debian) {
            images.push(workshop.build(&recipe)?);
        }
        Ok(Product { images, shim: programs.shim })
    }

    fn workshop(&self) -> Workshop<'_> {
        Workshop::new(self.progress, self.builder, self.state, self.workspace)
    }
}

/// The executor-shim alone, built from the workspace, for a cluster that has its images from elsewhere.
///
/// # Errors
/// When cargo fails.
pub fn shim(progress: Progress, workspace: &Path) -> Result<PathBuf> {
    Ok(programs::build(progress, workspace)?.shim)
}

/// How an image is named.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Naming {
    /// `roadstead.test/NAME:e2e`, the same for every version: tests write it down.
    Test,
    /// `docker.io/roadstead/NAME:VERSION-KEY`: a changed image is another image, so a roll-out sees it.
    Product,
}

impl Naming {
    fn reference(self, name: &str, key: &str) -> String {
        match self {
            Self::Test => format!("roadstead.test/{name}:e2e"),
            Self::Product => {
                let key: String = key.chars().take(12).collect();
                format!("docker.io/roadstead/{name}:{}-{key}", env!("CARGO_PKG_VERSION"))
            }
        }
    }
}

/// One image to be built.
#[derive(Clone, Debug)]
struct Recipe<'a> {
    /// Its short name, and its folder's in `e2e/images`.
    name: &'static str,
    naming: Naming,
    /// The image that it starts from.
    base: Option<&'a Archive>,
    /// What its Containerfile copies.
    files: Vec<Input>,
    /// Whether other images start from it.
    is_base: bool,
}

/// A file for a Containerfile to copy.
#[derive(Clone, Debug)]
struct Input {
    /// Its path in the build's context.
    name: String,
    /// Where it is now.
    file: PathBuf,
    /// Whether the file's own name already tells its content, so that it need not be read.
    named_by_content: bool,
}

impl Input {
    fn new(name: &str, file: impl Into<PathBuf>) -> Self {
        Self { name: name.to_owned(), file: file.into(), named_by_content: false }
    }

    fn named_by_content(name: &str, file: impl Into<PathBuf>) -> Self {
        Self { named_by_content: true, ..Self::new(name, file) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_images_change_their_name_with_their_content() {
        let one = Naming::Product.reference("agent", "0123456789abcdef");
        assert_eq!(one, format!("docker.io/roadstead/agent:{}-0123456789ab", env!("CARGO_PKG_VERSION")));
        let archive = Archive { name: "agent".into(), reference: one, key: "k".into(), path: "/x".into() };
        assert!(archive.short_reference().starts_with("roadstead/agent:"));
    }

    #[test]
    fn the_pause_image_is_named_as_containerd_expects() {
        assert_eq!(Naming::Test.reference("pause", "k"), PAUSE);
    }
}
