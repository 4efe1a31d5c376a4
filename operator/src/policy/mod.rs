//! What the operator decides by rule: which class, image, resources and timeouts a job gets, and
//! how it ended. Pure: everything comes in as an argument, nothing is asked or written.

pub mod census;
pub mod class;
pub mod expression;
pub mod image;
pub mod matching;
pub mod overrides;
pub mod pattern;
pub mod placement;
pub mod queue;
pub mod resources;
pub mod select;
pub mod services;
pub mod start;
pub mod storage;
pub mod timeouts;
pub mod verdict;
pub mod waiting;
pub mod words;

/// Images that the administrator gives the operator rather than a JobClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Image of the helper container where the class names none.
    pub helper: String,
    /// Image that carries the stage-agent, for classes whose agent comes by a container of its own.
    pub agent: String,
}
