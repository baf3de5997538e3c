//! How an instance tells the fleet whom it holds: batches of changes under a lease.

use crate::protocol::UserId;

/// One step of an incarnation's held set, numbered so that it is applied once and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Whose set.
    pub incarnation: String,
    /// One more than the last applied; the first is 1.
    pub sequence: u64,
    /// Users who come.
    pub online: Vec<UserId>,
    /// Users who go.
    pub offline: Vec<UserId>,
    /// The set's size afterwards: anything else means that somebody else wrote to it.
    pub held: usize,
}

/// What became of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Written, now or by an earlier try.
    Done,
    /// Nothing can be written under this incarnation any more: take a new one and add everybody again.
    Stale(&'static str),
}
