//! What waits in all outboxes together, and one outbox's share of it.

use std::sync::Arc;

use prometheus::IntGauge;

/// What each outbox may keep however much waits in the others.
const FAIR_SHARE: usize = 16 * 1024;

/// The bytes that wait in all outboxes together.
#[derive(Debug)]
pub struct Backlog {
    /// The metric is the account.
    bytes: IntGauge,
    most: usize,
}

impl Backlog {
    /// With room for this many bytes.
    #[must_use]
    pub fn new(bytes: IntGauge, most: usize) -> Arc<Self> {
        Arc::new(Self { bytes, most })
    }
}

/// One outbox's share: told only while its socket takes nothing, so that an ordinary delivery pays nothing.
#[derive(Debug)]
pub(super) struct Share {
    backlog: Arc<Backlog>,
    bytes: usize,
}

impl Share {
    pub(super) fn new(backlog: Arc<Backlog>) -> Self {
        Self { backlog, bytes: 0 }
    }

    /// This many bytes wait in this outbox now. Gives whether that is more than its share while all together have too
    /// many.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        if bytes != self.bytes {
            let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
            self.backlog.bytes.add(signed(bytes) - signed(self.bytes));
            self.bytes = bytes;
        }
        bytes > FAIR_SHARE && usize::try_from(self.backlog.bytes.get()).is_ok_and(|total| total > self.backlog.most)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
