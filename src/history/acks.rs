//! The read positions that clients give: gathered, and written behind.

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

/// How long they gather.
const WRITE_EVERY: Duration = Duration::from_millis(500);

/// Written at once.
const BATCH: usize = 500;

/// Most that wait; beyond, those of other devices are dropped and counted.
const MAX_WAITING: usize = 100_000;

/// See the module.
#[derive(Debug)]
pub struct Acks {
    store: Arc<HistoryStore>,
    metrics: Arc<Metrics>,
    waiting: Mutex<HashMap<Device, Cursor>>,
    drops: LogRate,
}

/// A user's, by its name.
type Device = (UserId, String);

impl Acks {
    /// Nothing waits.
    pub fn new(store: Arc<HistoryStore>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics, waiting: Mutex::default(), drops: LogRate::new() }
    }

    /// Takes a read position, to be written soon. Of one device the furthest counts; of another epoch, the later.
    pub fn note(&self, user: &UserId, device: &str, cursor: Cursor) {
        self.gather((user.clone(), device.to_owned()), cursor, true);
    }

    fn gather(&self, device: Device, cursor: Cursor, is_later: bool) {
        let mut waiting = self.waiting.lock();
        let room = waiting.len() < MAX_WAITING;
        match waiting.entry(device) {
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

    /// Writes what has gathered, again and again, and once more when `stopping`, within `grace`.
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
        let gathered = self.waiting.lock().len();
        let left = timeout(grace, self.write()).await.map_or(gathered, |()| self.waiting.lock().len());
        if left > 0 {
            warn!(left, "read positions were not written before the end: clients see those notifications again");
        }
    }

    /// Writes all that waits; what could not be written waits again.
    async fn write(&self) {
        let gathered = std::mem::take(&mut *self.waiting.lock());
        let gathered: Vec<_> = gathered.into_iter().map(|((user, device), cursor)| (user, device, cursor)).collect();
        for (number, batch) in gathered.chunks(BATCH).enumerate() {
            match self.store.ack(batch, Move::Forward).await {
                Ok(outcomes) => outcomes.into_iter().for_each(|outcome| self.count(outcome)),
                Err(error) => {
                    // Counted by the backplane. Whatever comes after would meet the same.
                    debug!(%error, "read positions not written");
                    for (user, device, cursor) in gathered.iter().skip(number * BATCH) {
                        self.gather((user.clone(), device.clone()), *cursor, false);
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
            warn!(held_back, "read positions dropped: {MAX_WAITING} wait for the backplane already");
        }
    }
}
