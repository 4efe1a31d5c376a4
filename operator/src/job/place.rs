//! How a job stands to the places of a class. Pure.

use roadstead_crds::{CiJobStatus, Phase};

use crate::job::status::waits_for_room;
use crate::policy::queue::Stand;

/// How a job stands to the places of a class, by its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has one.
    Has(Stand),
    /// It waits for one.
    Waits,
    /// It is of another class, or has none yet, or does not ask for a pod.
    Elsewhere,
    /// It has ended.
    Over,
}

/// How the job with that status stands to the class.
pub fn place(status: Option<&CiJobStatus>, class: &str) -> Place {
    let Some(status) = status else { return Place::Elsewhere };
    if status.class.as_deref() != Some(class) {
        return Place::Elsewhere;
    }
    if status.phase.is_some_and(Phase::is_final) {
        return Place::Over;
    }
    match &status.pod {
        _ if waits_for_room(status) => Place::Waits,
        Some(pod) if pod.uid.is_some() => Place::Has(Stand::Runs),
        Some(_) => Place::Has(Stand::Starts),
        None => Place::Elsewhere,
    }
}
