//! Counts and checks every delivery.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::time::sleep;

/// The longest latency that is told from a longer one: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// How long to wait for the last deliveries.
const PATIENCE: Duration = Duration::from_secs(10);

/// How exactly it is known when they have come.
const POLL: Duration = Duration::from_millis(2);

/// What all clients received.
pub(super) struct Tally {
    /// The moment that times in messages count from.
    pub(super) epoch: Instant,
    counting: AtomicBool,
    delivered: AtomicU64,
    twice: AtomicU64,
    out_of_order: AtomicU64,
    closed: AtomicU64,
    /// Connections that get each message.
    copies: u32,
    latencies: Mutex<Latencies>,
}

/// Of one phase, in nanoseconds from when a message was due.
#[derive(Default)]
pub(super) struct Latencies {
    /// Of every copy.
    pub(super) all: Option<Histogram<u64>>,
    /// Of the last copy, for messages of many copies.
    pub(super) last_copy: Option<Histogram<u64>>,
    /// Copies of each message that have not come yet.
    under_way: HashMap<u64, u32>,
}

impl Latencies {
    fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_NS, 3).ok();
        Self { all: histogram(), last_copy: histogram(), under_way: HashMap::new() }
    }

    fn note(&mut self, copies: u32, number: u64, latency_ns: u64) {
        // Beyond its range a histogram keeps the largest it can.
        let record = |histogram: &mut Option<Histogram<u64>>| {
            if let Some(histogram) = histogram {
                histogram.saturating_record(latency_ns);
            }
        };
        record(&mut self.all);
        if copies > 1 {
            let left = self.under_way.entry(number).or_insert(copies);
            *left -= 1;
            if *left == 0 {
                self.under_way.remove(&number);
                record(&mut self.last_copy);
            }
        }
    }
}

impl Tally {
    pub(super) fn new(copies: u32) -> Self {
        Self {
            epoch: Instant::now(),
            counting: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            twice: AtomicU64::new(0),
            out_of_order: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            copies,
            latencies: Mutex::default(),
        }
    }

    /// From now on latencies are recorded.
    pub(super) fn start_counting(&self) {
        *self.latencies.lock() = Latencies::new();
        self.counting.store(true, Ordering::Relaxed);
    }

    /// What was recorded since [`Tally::start_counting`]; from now on nothing is.
    pub(super) fn stop_counting(&self) -> Latencies {
        self.counting.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.latencies.lock())
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

    fn record(&self, number: u64, due_ns: u64) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
        if self.counting.load(Ordering::Relaxed) {
            let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latencies.lock().note(self.copies, number, now.saturating_sub(due_ns).max(1));
        }
    }

    /// Waits until everything expected has come, or nothing more does.
    pub(super) async fn settled(&self, expected: u64) {
        let (mut last, mut since) = (self.delivered(), Instant::now());
        while self.delivered() < expected && since.elapsed() < PATIENCE {
            sleep(POLL).await;
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
    /// Of one whose user has received so many.
    pub(super) fn after(received: u64) -> Self {
        Self { last: received, missing: HashSet::new() }
    }

    pub(super) fn take(&mut self, tally: &Tally, number: u64, due_ns: u64) {
        if number > self.last {
            self.missing.extend(self.last + 1..number);
            self.last = number;
        } else if self.missing.remove(&number) {
            tally.out_of_order.fetch_add(1, Ordering::Relaxed);
        } else {
            tally.twice.fetch_add(1, Ordering::Relaxed);
            return;
        }
        tally.record(number, due_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(numbers: &[u64]) -> (u64, u64, u64) {
        let (tally, mut sequence) = (Tally::new(1), Sequence::default());
        numbers.iter().for_each(|number| sequence.take(&tally, *number, 0));
        (tally.delivered(), tally.twice(), tally.out_of_order())
    }

    #[test]
    fn twice_and_out_of_order_are_told_apart() {
        assert_eq!(take(&[1, 2, 3]), (3, 0, 0));
        assert_eq!(take(&[1, 2, 2, 3]), (3, 1, 0));
        assert_eq!(take(&[1, 3, 2, 4]), (4, 0, 1));
        assert_eq!(take(&[1, 4]), (2, 0, 0));
    }

    #[test]
    fn what_was_received_before_a_cut_comes_twice_when_it_comes_again() {
        let (tally, mut sequence) = (Tally::new(1), Sequence::after(3));
        [3, 4, 5].iter().for_each(|number| sequence.take(&tally, *number, 0));
        assert_eq!((tally.delivered(), tally.twice(), tally.out_of_order()), (2, 1, 0));
    }

    #[test]
    fn a_message_of_many_copies_is_timed_by_its_last() {
        let tally = Tally::new(2);
        tally.start_counting();
        for number in [1, 1, 2] {
            Sequence::default().take(&tally, number, 0);
        }
        let found = tally.stop_counting();
        assert_eq!(found.all.unwrap().len(), 3);
        assert_eq!(found.last_copy.unwrap().len(), 1);
    }
}
