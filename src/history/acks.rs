//! Batches the read positions that clients acknowledge, and writes them to the store in the background.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::store::{Ack, Acked, HistoryStore, Move};
use crate::log::{LogRate, OUTAGE_EVERY};
use crate::metrics::Metrics;
use crate::protocol::{ConnectionId, Cursor, UserId};

const WRITE_EVERY: Duration = Duration::from_millis(500);

/// Read positions in one write.
const BATCH: usize = 500;

/// At this many pending read positions, those of further devices are dropped and counted.
const MAX_PENDING: usize = 100_000;

#[derive(Debug)]
pub struct Acks {
    store: Arc<HistoryStore>,
    metrics: Arc<Metrics>,
    pending: Arc<PendingAcks>,
    drops: LogRate,
}

/// The read positions that clients of this instance have acknowledged, and that are not written yet.
#[derive(Debug, Default)]
pub struct PendingAcks(Mutex<HashMap<Device, Pending>>);

type Device = (UserId, String);

/// A read position, and the connection that acknowledged it.
type Pending = (Cursor, Option<ConnectionId>);

/// Whether the first position is after the second, in one epoch.
fn is_further(a: &Cursor, b: &Cursor) -> bool {
    a.epoch == b.epoch && (a.ms, a.number) > (b.ms, b.number)
}

impl PendingAcks {
    /// Whether clients are to be told of a read position that was set elsewhere: not if a pending one will replace it. One
    /// that a backend has set, not a connection, replaces the pending one.
    pub fn gives_way(&self, user: &str, device: &str, cursor: &Cursor, by: Option<ConnectionId>) -> bool {
        let mut pending = self.0.lock();
        if pending.is_empty() {
            return true;
        }
        let Ok(user) = UserId::new(user) else { return true };
        let device = (user, device.to_owned());
        if by.is_none() {
            pending.remove(&device);
            return true;
        }
        !pending.get(&device).is_some_and(|(further, _)| is_further(further, cursor))
    }

    /// Removes a read position that was written, unless the client has acknowledged another meanwhile.
    fn remove_written(&self, Ack { user, device, cursor, by }: &Ack) {
        if let Entry::Occupied(known) = self.0.lock().entry((user.clone(), device.clone()))
            && *known.get() == (*cursor, *by)
        {
            known.remove();
        }
    }
}

impl Acks {
    pub fn new(store: Arc<HistoryStore>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics, pending: Arc::default(), drops: LogRate::new() }
    }

    pub fn pending(&self) -> &Arc<PendingAcks> {
        &self.pending
    }

    /// Queues a read position. For each device the furthest is kept; between different epochs, the later call.
    pub fn note(&self, user: &UserId, device: &str, cursor: Cursor, by: ConnectionId) {
        let mut pending = self.pending.0.lock();
        let room = pending.len() < MAX_PENDING;
        match pending.entry((user.clone(), device.to_owned())) {
            Entry::Occupied(mut known) => {
                let (before, _) = *known.get();
                if before.epoch != cursor.epoch || is_further(&cursor, &before) {
                    known.insert((cursor, Some(by)));
                }
            }
            Entry::Vacant(free) if room => {
                free.insert((cursor, Some(by)));
            }
            Entry::Vacant(_) => self.dropped(),
        }
    }

    /// Writes the pending read positions periodically, and a last time after `stopping`, within `grace`.
    pub async fn run(self: Arc<Self>, stopping: impl Future<Output = ()>, grace: Duration) {
        let mut ticks = interval(WRITE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => break,
                _ = ticks.tick() => self.write().await,
            }
        }
        timeout(grace, self.write()).await.ok();
        let left = self.pending.0.lock().len();
        if left > 0 {
            warn!(left, "read positions not written before shutdown: clients receive those notifications again");
        }
    }

    /// Writes all pending read positions; those that fail stay pending.
    async fn write(&self) {
        static FAILURES: LogRate = LogRate::every(OUTAGE_EVERY);
        let ack = |((user, device), (cursor, by)): (&Device, &Pending)| Ack {
            user: user.clone(),
            device: device.clone(),
            cursor: *cursor,
            by: *by,
        };
        let pending: Vec<_> = self.pending.0.lock().iter().map(ack).collect();
        for batch in pending.chunks(BATCH) {
            match self.store.ack_each(batch, Move::Forward).await {
                Ok(outcomes) => {
                    for (ack, outcome) in batch.iter().zip(outcomes) {
                        if let Ok(outcome) = outcome {
                            self.pending.remove_written(ack);
                            self.count(outcome);
                        }
                    }
                }
                Err(error) => {
                    // Counted and logged by the store. The later batches would fail the same way.
                    if let Some(held_back) = FAILURES.admit() {
                        debug!(%error, held_back, "read positions not written");
                    }
                    break;
                }
            }
        }
    }

    fn count(&self, outcome: Acked) {
        let result = match outcome {
            Acked::Kept => "kept",
            Acked::Foreign => "foreign",
            Acked::TooManyDevices => "too_many_devices",
        };
        self.metrics.acks.with_label_values(&[result]).inc();
    }

    fn dropped(&self) {
        self.metrics.acks.with_label_values(&["dropped"]).inc();
        if let Some(held_back) = self.drops.admit() {
            warn!(held_back, "read positions dropped: {MAX_PENDING} are pending already");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn a_pending_read_position_yields_to_a_backend_and_hides_an_earlier_one_of_another_connection() {
        let user = UserId::new("42").unwrap();
        let at = |number| Cursor { epoch: NonZeroU64::MIN, ms: 1, number };
        let (acks, mine, other) = (PendingAcks::default(), ConnectionId::random(), ConnectionId::random());
        assert!(acks.gives_way("42", "default", &at(3), Some(other)), "nothing is pending");
        acks.0.lock().insert((user.clone(), "default".into()), (at(4), Some(mine)));
        assert!(!acks.gives_way("42", "default", &at(3), Some(other)), "it moves on to 4 soon");
        assert!(acks.gives_way("42", "default", &at(5), Some(other)));
        assert!(acks.gives_way("42", "phone", &at(3), Some(other)));
        assert!(acks.gives_way("43", "default", &at(3), Some(other)));
        assert!(acks.gives_way("42", "default", &at(3), None));
        assert!(acks.0.lock().is_empty());
    }

    #[test]
    fn a_read_position_acknowledged_while_another_is_written_stays_pending() {
        let user = UserId::new("42").unwrap();
        let at = |number| Cursor { epoch: NonZeroU64::MIN, ms: 1, number };
        let ack = |number| Ack { user: user.clone(), device: "default".into(), cursor: at(number), by: None };
        let acks = PendingAcks::default();
        acks.0.lock().insert((user.clone(), "default".into()), (at(5), None));
        acks.remove_written(&ack(4));
        assert_eq!(acks.0.lock().len(), 1);
        acks.remove_written(&ack(5));
        assert!(acks.0.lock().is_empty());
    }
}
