//! The lease of the relay.

use tokio::time::Instant;

#[derive(Debug, Clone)]
pub(super) struct LeaseId {
    pub(super) token: String,
    /// Greater than that of every earlier lease.
    pub(super) number: u64,
}

pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) renewed: Instant,
}
