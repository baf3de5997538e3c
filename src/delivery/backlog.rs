//! What waits in all send queues together, and one outbox's share of it.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge};
use tracing::warn;

use crate::log::LogRate;
use crate::metrics::Metrics;

/// What each outbox may keep however much waits in the others.
const FAIR_SHARE: usize = 16 * 1024;

/// The bytes that wait in all send queues together.
#[derive(Debug)]
pub struct Backlog {
    /// The metric is the account.
    bytes: IntGauge,
    most: usize,
    lost: IntCounter,
    given_up: IntCounter,
    crowds: LogRate,
}

impl Backlog {
    /// With room for this many bytes.
    pub fn new(metrics: &Metrics, most: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: metrics.backlog_bytes.clone(),
            most,
            lost: metrics.deliveries_dropped.clone(),
            given_up: metrics.limited.with_label_values(&["max_total_bytes"]),
            crowds: LogRate::new(),
        })
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

impl Share {
    /// Takes note that this outbox was given up with so many events in it.
    pub(super) fn count_given_up(&self, lost: usize) {
        self.backlog.given_up.inc();
        self.backlog.lost.inc_by(lost as u64);
        if let Some(held_back) = self.backlog.crowds.admit() {
            warn!(lost, held_back, "slow connection given up: too much waits in all (send_queue.max_total_bytes)");
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
