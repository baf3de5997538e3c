//! Batches the read positions that clients acknowledge, and writes them to the store in the background.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::store::{Acked, HistoryStore, Move};
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, UserId};

const WRITE_EVERY: Duration = Duration::from_millis(500);

/// Read positions in one write.
const BATCH: usize = 500;

/// At this many pending read positions, those of further devices are dropped and counted.
const MAX_PENDING: usize = 100_000;

#[derive(Debug)]
pub struct Acks {
    store: Arc<HistoryStore>,
    metrics: Arc<Metrics>,
    pending: Mutex<HashMap<Device, Cursor>>,
    drops: LogRate,
}

type Device = (UserId, String);

impl Acks {
    pub fn new(store: Arc<HistoryStore>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics, pending: Mutex::default(), drops: LogRate::new() }
    }

    /// Queues a read position. For each device the furthest is kept; between different epochs, the later call.
    pub fn note(&self, user: &UserId, device: &str, cursor: Cursor) {
        self.queue((user.clone(), device.to_owned()), cursor, true);
    }

    fn queue(&self, device: Device, cursor: Cursor, is_later: bool) {
        let mut pending = self.pending.lock();
        let room = pending.len() < MAX_PENDING;
        match pending.entry(device) {
            Entry::Occupied(mut known) => {
                let (epoch, position) = (known.get().epoch, (known.get().ms, known.get().number));
                let further = if epoch == cursor.epoch { (cursor.ms, cursor.number) > position } else { is_later };
                if further {
                    known.insert(cursor);
                }
            }
            Entry::Vacant(free) if room => {
                free.insert(cursor);
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
        let pending = self.pending.lock().len();
        let left = timeout(grace, self.write()).await.map_or(pending, |()| self.pending.lock().len());
        if left > 0 {
            warn!(left, "read positions not written before shutdown: clients receive those notifications again");
        }
    }

    /// Writes all pending read positions; those that fail are pending again.
    async fn write(&self) {
        let pending = std::mem::take(&mut *self.pending.lock());
        let pending: Vec<_> = pending.into_iter().map(|((user, device), cursor)| (user, device, cursor)).collect();
        for (number, batch) in pending.chunks(BATCH).enumerate() {
            match self.store.ack(batch, Move::Forward).await {
                Ok(outcomes) => outcomes.into_iter().for_each(|outcome| self.count(outcome)),
                Err(error) => {
                    // Counted and logged by the store. The later batches would fail the same way.
                    debug!(%error, "read positions not written");
                    for (user, device, cursor) in pending.iter().skip(number * BATCH) {
                        self.queue((user.clone(), device.clone()), *cursor, false);
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
