//! Which of several operators works: the one that holds the Lease.
//!
//! One Lease, one holder. The holder renews it every few seconds; the others watch it and take it
//! when it is given up or has not changed for its duration. Nobody compares clocks with anybody:
//! every time is a reading of the process's own clock, from the moment at which a renewal was sent
//! or a change was seen. That an operator which has lost the Lease writes nothing more is seen to by
//! [`Tenure`], which every write asks.
//!
//! The Lease saves work and keeps the logs plain. It is not what keeps a job from running twice:
//! that is the status, in which a pod's name is stored before the pod is created.

pub mod candidate;
pub mod election;
pub mod fence;

#[cfg(test)]
mod laws;

pub use candidate::{Candidate, Terms};
pub use election::{Election, Leadership, LeaseName, Loss, Standing};
pub use fence::{Fenced, Tenure};
