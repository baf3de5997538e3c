//! The backlog: the bytes in all send queues together, and the share of each queue.

use std::sync::Arc;

use prometheus::{Histogram, IntCounter, IntGauge};
use tracing::warn;

use super::read_at::ReadAt;
use crate::log::LogRate;
use crate::metrics::Metrics;

/// The bytes that each send queue may hold, however full the others are.
const FAIR_SHARE: usize = 16 * 1024;

#[derive(Debug)]
pub struct Backlog {
    /// The metric itself is the counter.
    bytes: IntGauge,
    max_bytes: usize,
    lost: IntCounter,
    given_up: IntCounter,
    delivery_seconds: Histogram,
    warnings: LogRate,
}

impl Backlog {
    pub fn new(metrics: &Metrics, max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: metrics.backlog_bytes.clone(),
            max_bytes,
            lost: metrics.deliveries_dropped.clone(),
            given_up: metrics.limited.with_label_values(&["max_total_bytes"]),
            delivery_seconds: metrics.delivery_seconds.clone(),
            warnings: LogRate::new(),
        })
    }
}

/// One send queue's share. It is updated only while the socket is stalled, so that an ordinary delivery costs nothing.
#[derive(Debug)]
pub(super) struct Share {
    backlog: Arc<Backlog>,
    bytes: usize,
}

impl Share {
    pub(super) fn new(backlog: Arc<Backlog>) -> Self {
        Self { backlog, bytes: 0 }
    }

    /// Sets the bytes in this queue. Returns whether they exceed its fair share while the whole backlog is too large.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        if bytes != self.bytes {
            let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
            self.backlog.bytes.add(signed(bytes) - signed(self.bytes));
            self.bytes = bytes;
        }
        bytes > FAIR_SHARE
            && usize::try_from(self.backlog.bytes.get()).is_ok_and(|total| total > self.backlog.max_bytes)
    }

    /// Counts a measured delivery, whose event the socket has just accepted.
    pub(super) fn count_accepted(&self, read_at: ReadAt) {
        self.backlog.delivery_seconds.observe(read_at.elapsed().as_secs_f64());
    }

    /// Counts a connection that is closed because of the backlog, with the events lost.
    pub(super) fn count_given_up(&self, lost: usize) {
        self.backlog.given_up.inc();
        self.backlog.lost.inc_by(lost as u64);
        if let Some(held_back) = self.backlog.warnings.admit() {
            warn!(
                lost,
                held_back, "slow connection closed: the send queues together exceed send_queue.max_total_bytes"
            );
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
