//! What a job runs with once its JobClass is known, and what is said where it is not.

use jiff::SignedDuration;
use roadstead_crds::Reason;
use roadstead_crds::jobclass::JobClassSpec;
use roadstead_crds::request::{JobRequest, PullPolicy};
use roadstead_crds::status::{
    CiJobStatus, EffectiveResources, EffectiveTimeouts, JobConfig, OverrideReport, ServiceStatus,
};
use std::collections::BTreeMap;

use crate::policy::placement::{self, Placement};
use crate::policy::verdict::Verdict;
use crate::policy::{image, overrides, resources, services, timeouts};

/// How long a job waits for a class that does not exist, from its creation: an installation or
/// upgrade may be about to create it. gitlab-runner tries twice more, each time with a new CiJob.
pub const PATIENCE: SignedDuration = SignedDuration::from_secs(10);

/// Most lines of the report in a status.
const MOST_REPORTED: usize = 128;

/// What to say of a class that is named and not there.
pub fn not_found(name: &str) -> Verdict {
    let message = format!(
        "JobClass \"{name}\", which the runner asks for, does not exist: `kubectl get jobclasses` lists those that do"
    );
    Verdict::new(Reason::ClassNotFound, message)
}

/// What to say where no class can be matched with jobs.
pub fn none(classes: usize) -> Verdict {
    let message = if classes == 0 {
        "there is no JobClass: the administrator has to create one, named \"default\" or with a `match`"
    } else {
        "no JobClass takes jobs of runners that name none: the administrator has to create one named \"default\", or give one a `match`"
    };
    Verdict::new(Reason::ClassNotFound, message)
}

/// What to say where the class of a job that was admitted is gone.
pub fn gone(name: &str) -> Verdict {
    Verdict::new(Reason::ClassNotFound, format!("JobClass \"{name}\", which admitted the job, was deleted"))
}

/// What a job runs with: decided once, when it is admitted, and kept in its status. gitlab-runner
/// has been told of some of it, so a class that changes later must not change it.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// Name of the class.
    pub class: String,
    /// Image of the build container.
    pub image: String,
    /// When to pull it, in the order of the tries.
    pub pull_policies: Vec<PullPolicy>,
    /// The services, and when to pull each.
    pub services: Vec<ServiceStatus>,
    /// What gitlab-runner has to know.
    pub config: JobConfig,
    /// Timeouts in seconds.
    pub timeouts: EffectiveTimeouts,
    /// Requests and limits by container name.
    pub resources: BTreeMap<String, EffectiveResources>,
    /// What the job asked for, and what became of it.
    pub overrides: Vec<OverrideReport>,
}

impl Terms {
    /// Applies a class to a request.
    ///
    /// # Errors
    /// The verdict on a job that cannot run with the class.
    pub fn grant(request: &JobRequest, name: &str, class: &JobClassSpec) -> Result<Self, Verdict> {
        let image = image::choose(request, name, class)?;
        let wishes = overrides::read(request).map_err(|refusals| overrides::refused(&refusals))?;
        let services = services::choose(request, name, class)?;
        let of_services = request.services.iter().map(overrides::of_service).collect::<Result<Vec<_>, _>>();
        let of_services = of_services.map_err(|refusals| overrides::refused(&refusals))?;
        let granted = resources::effective(name, class, &wishes, &of_services);
        if !granted.refusals.is_empty() {
            return Err(overrides::refused(&granted.refusals));
        }
        let placed = placement::decide(request, name, class, &wishes)?;
        Ok(Self {
            class: name.to_owned(),
            image: image.to_owned(),
            pull_policies: image::pull_policies(
                request.image.as_ref().map_or(&[], |image| &image.pull_policy),
                &class.image,
            ),
            services,
            config: JobConfig {
                shell: class.builds.shell,
                builds_dir: class.builds.builds_dir.clone(),
                cache_dir: class.builds.cache_dir.clone(),
            },
            timeouts: timeouts::effective(request, class),
            resources: granted.containers,
            overrides: granted.report.into_iter().chain(placed.report).take(MOST_REPORTED).collect(),
        })
    }

    /// The terms that a status records. `None`: the job was not admitted yet.
    pub fn recorded(status: &CiJobStatus) -> Option<Self> {
        Some(Self {
            class: status.class.clone()?,
            image: status.image.clone()?,
            pull_policies: status.pull_policies.clone(),
            services: status.services.clone(),
            config: status.config.clone()?,
            timeouts: status.timeouts.clone()?,
            resources: status.resources.clone(),
            overrides: status.overrides.clone(),
        })
    }

    /// Writes them into a status.
    pub fn record(self, status: &mut CiJobStatus) {
        status.class = Some(self.class);
        status.image = Some(self.image);
        status.pull_policies = self.pull_policies;
        status.services = self.services;
        status.config = Some(self.config);
        status.timeouts = Some(self.timeouts);
        status.resources = self.resources;
        status.overrides = self.overrides;
    }
}

/// Where the job's pod may run. Unlike the terms it is not kept in the status: a pod that has to be
/// made once more is placed by the class as it is then.
///
/// # Errors
/// The verdict on a job that cannot run with the class.
pub fn place(request: &JobRequest, name: &str, class: &JobClassSpec) -> Result<Placement, Verdict> {
    let wishes = overrides::read(request).map_err(|refusals| overrides::refused(&refusals))?;
    Ok(placement::decide(request, name, class, &wishes)?.placement)
}

/// What is wrong with a class's images, resources and placement, a sentence each. None: it can be applied.
pub fn problems(class: &JobClassSpec) -> Vec<String> {
    let mut problems = resources::problems(class);
    problems.extend(placement::problems(class));
    problems.extend(image::problems(&class.image));
    problems.extend(services::problems(class));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn terms_survive_the_status() {
        let terms = Terms::grant(&fixture::request(), "default", &JobClassSpec::default()).unwrap();
        let mut status = CiJobStatus::default();
        assert_eq!(Terms::recorded(&status), None);
        terms.clone().record(&mut status);
        assert_eq!(Terms::recorded(&status), Some(terms));
    }
}
