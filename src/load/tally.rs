//! Counts and checks every delivery.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::time::sleep;

/// Histograms that receivers share, so that they seldom meet at a lock.
const SHARDS: usize = 32;

/// The longest latency that is told from a longer one: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// How long to wait for the last deliveries.
const PATIENCE: Duration = Duration::from_secs(10);

/// What all clients received.
pub(super) struct Tally {
    /// The moment that times in messages count from.
    pub(super) epoch: Instant,
    counting: AtomicBool,
    delivered: AtomicU64,
    twice: AtomicU64,
    out_of_order: AtomicU64,
    closed: AtomicU64,
    latency: Vec<Mutex<Histogram<u64>>>,
    /// Connections that get each message.
    copies: u32,
    /// Copies of each message that have not come yet.
    under_way: Mutex<HashMap<u64, u32>>,
    /// Until the last copy of each message.
    last_copy: Option<Mutex<Histogram<u64>>>,
}

impl Tally {
    pub(super) fn new(copies: u32) -> Self {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_NS, 3).ok().map(Mutex::new);
        Self {
            epoch: Instant::now(),
            counting: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            twice: AtomicU64::new(0),
            out_of_order: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            latency: (0..SHARDS).filter_map(|_| histogram()).collect(),
            copies,
            under_way: Mutex::default(),
            last_copy: histogram(),
        }
    }

    /// From now on latencies are recorded.
    pub(super) fn start_counting(&self) {
        self.counting.store(true, Ordering::Relaxed);
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    pub(super) fn twice(&self) -> u64 {
        self.twice.load(Ordering::Relaxed)
    }

    pub(super) fn out_of_order(&self) -> u64 {
        self.out_of_order.load(Ordering::Relaxed)
    }

    pub(super) fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    /// A connection ended before the run did.
    pub(super) fn note_closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// All latencies together, in nanoseconds.
    pub(super) fn latency(&self) -> Option<Histogram<u64>> {
        let mut all = Histogram::new_with_bounds(1, LONGEST_NS, 3).ok()?;
        self.latency.iter().try_for_each(|shard| all.add(&*shard.lock())).ok()?;
        Some(all)
    }

    /// From when a message was due to its last copy, in nanoseconds; for messages of many copies.
    pub(super) fn last_copy(&self) -> Option<Histogram<u64>> {
        self.last_copy.as_ref().map(|histogram| histogram.lock().clone())
    }

    fn note_copy(&self, number: u64, latency_ns: u64) {
        let mut under_way = self.under_way.lock();
        let left = under_way.entry(number).or_insert(self.copies);
        *left -= 1;
        if *left == 0 {
            under_way.remove(&number);
            if let Some(last_copy) = &self.last_copy {
                last_copy.lock().saturating_record(latency_ns);
            }
        }
    }

    fn record(&self, connection: u32, number: u64, due_ns: u64) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
        if self.counting.load(Ordering::Relaxed) {
            let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let latency_ns = now.saturating_sub(due_ns).max(1);
            if let Some(shard) = self.latency.get(connection as usize % SHARDS) {
                // Beyond its range a histogram keeps the largest it can.
                shard.lock().saturating_record(latency_ns);
            }
            if self.copies > 1 {
                self.note_copy(number, latency_ns);
            }
        }
    }

    /// Waits until everything expected has come, or nothing more does.
    pub(super) async fn settled(&self, expected: u64) {
        let (mut last, mut since) = (self.delivered(), Instant::now());
        while self.delivered() < expected && since.elapsed() < PATIENCE {
            sleep(Duration::from_millis(20)).await;
            if self.delivered() != last {
                (last, since) = (self.delivered(), Instant::now());
            }
        }
    }
}

/// What one connection has received. A user's messages are numbered from 1 without a hole.
#[derive(Default)]
pub(super) struct Sequence {
    last: u64,
    missing: HashSet<u64>,
}

impl Sequence {
    pub(super) fn take(&mut self, tally: &Tally, connection: u32, number: u64, due_ns: u64) {
        if number > self.last {
            self.missing.extend(self.last + 1..number);
            self.last = number;
        } else if self.missing.remove(&number) {
            tally.out_of_order.fetch_add(1, Ordering::Relaxed);
        } else {
            tally.twice.fetch_add(1, Ordering::Relaxed);
            return;
        }
        tally.record(connection, number, due_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(numbers: &[u64]) -> (u64, u64, u64) {
        let (tally, mut sequence) = (Tally::new(1), Sequence::default());
        numbers.iter().for_each(|number| sequence.take(&tally, 0, *number, 0));
        (tally.delivered(), tally.twice(), tally.out_of_order())
    }

    #[test]
    fn twice_and_out_of_order_are_told_apart() {
        assert_eq!(take(&[1, 2, 3]), (3, 0, 0));
        assert_eq!(take(&[1, 2, 2, 3]), (3, 1, 0));
        assert_eq!(take(&[1, 3, 2, 4]), (4, 0, 1));
        assert_eq!(take(&[1, 4]), (2, 0, 0));
    }
}
