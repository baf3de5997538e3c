//! Counts and verifies every delivery.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::time::sleep;

/// The upper bound of the histograms: a minute.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// How long to wait for another delivery before the remaining ones count as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// The resolution of the time at which the last delivery is noticed.
const POLL: Duration = Duration::from_millis(2);

/// The messages published to and delivered to all clients.
pub(crate) struct Tally {
    /// The origin of the due times in messages.
    pub(crate) epoch: Instant,
    /// The number of connections that receive each message.
    copies: u32,
    counts: Mutex<Counts>,
    /// `Some` while latencies are recorded.
    latencies: Mutex<Option<Latencies>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) duplicates: u64,
    pub(crate) out_of_order: u64,
    /// Connections that ended before the run did.
    pub(crate) closed: u64,
}

/// The latencies of one phase, in nanoseconds from the time a message was due.
#[derive(Default)]
pub(crate) struct Latencies {
    pub(crate) all: Option<Histogram<u64>>,
    /// Of the last copy of each message that has more than one.
    pub(crate) last_copy: Option<Histogram<u64>>,
    /// The number of outstanding copies of each message.
    outstanding: HashMap<u64, u32>,
}

impl Latencies {
    fn record(&mut self, copies: u32, number: u64, latency_ns: u64) {
        // A value above the upper bound counts as the upper bound.
        self.all.iter_mut().for_each(|all| all.saturating_record(latency_ns));
        if copies > 1 {
            let left = self.outstanding.entry(number).or_insert(copies);
            *left -= 1;
            if *left == 0 {
                self.outstanding.remove(&number);
                self.last_copy.iter_mut().for_each(|last| last.saturating_record(latency_ns));
            }
        }
    }
}

impl Tally {
    pub(crate) fn new(copies: u32) -> Self {
        Self { epoch: Instant::now(), copies, counts: Mutex::default(), latencies: Mutex::default() }
    }

    pub(crate) fn start_recording(&self) {
        let histogram = || Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3).ok();
        let (all, last_copy) = (histogram(), histogram());
        *self.latencies.lock() = Some(Latencies { all, last_copy, outstanding: HashMap::new() });
    }

    /// Returns the latencies since [`Tally::start_recording`].
    pub(crate) fn stop_recording(&self) -> Latencies {
        self.latencies.lock().take().unwrap_or_default()
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.counts.lock()
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.counts().delivered
    }

    pub(crate) fn record_published(&self, count: u64) {
        self.counts.lock().published += count;
    }

    pub(crate) fn record_closed(&self) {
        self.counts.lock().closed += 1;
    }

    /// Waits for this total of deliveries, or until no more arrive.
    pub(crate) async fn wait_for(&self, expected: u64) {
        let (mut last, mut since) = (self.delivered(), Instant::now());
        while self.delivered() < expected && since.elapsed() < PATIENCE {
            sleep(POLL).await;
            if self.delivered() != last {
                (last, since) = (self.delivered(), Instant::now());
            }
        }
    }
}

/// The messages that one connection has received. Each user's messages are numbered from 1 without gaps.
#[derive(Default)]
pub(crate) struct Sequence {
    last: u64,
    missing: HashSet<u64>,
}

impl Sequence {
    /// Starts after the messages that the user has already received.
    pub(crate) fn after(received: u64) -> Self {
        Self { last: received, missing: HashSet::new() }
    }

    pub(crate) fn record(&mut self, tally: &Tally, number: u64, due_ns: u64) {
        let mut counts = tally.counts.lock();
        if number > self.last {
            self.missing.extend(self.last + 1..number);
            self.last = number;
        } else if self.missing.remove(&number) {
            counts.out_of_order += 1;
        } else {
            counts.duplicates += 1;
            return;
        }
        counts.delivered += 1;
        drop(counts);
        if let Some(latencies) = &mut *tally.latencies.lock() {
            let now = u64::try_from(tally.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
            latencies.record(tally.copies, number, now.saturating_sub(due_ns).max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(mut sequence: Sequence, numbers: &[u64]) -> (u64, u64, u64) {
        let tally = Tally::new(1);
        numbers.iter().for_each(|number| sequence.record(&tally, *number, 0));
        let Counts { delivered, duplicates, out_of_order, .. } = tally.counts();
        (delivered, duplicates, out_of_order)
    }

    #[test]
    fn duplicates_and_messages_out_of_order_are_counted_separately() {
        for (numbers, expected) in
            [(&[1, 2, 3][..], (3, 0, 0)), (&[1, 2, 2, 3], (3, 1, 0)), (&[1, 3, 2, 4], (4, 0, 1)), (&[1, 4], (2, 0, 0))]
        {
            assert_eq!(record(Sequence::default(), numbers), expected, "{numbers:?}");
        }
    }

    #[test]
    fn a_message_received_before_a_reconnect_is_a_duplicate_after_it() {
        assert_eq!(record(Sequence::after(3), &[3, 4, 5]), (2, 1, 0));
    }

    #[test]
    fn the_last_copy_of_a_message_is_timed_separately() {
        let tally = Tally::new(2);
        tally.start_recording();
        for number in [1, 1, 2] {
            Sequence::default().record(&tally, number, 0);
        }
        let latencies = tally.stop_recording();
        assert_eq!(latencies.all.unwrap().len(), 3);
        assert_eq!(latencies.last_copy.unwrap().len(), 1);
    }
}
