//! Publishes on a thread of its own, so that receiving does not delay the schedule.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::LoadError;
use crate::args::{Mode, Pace, Phase, Plan};
use crate::plan::SentCounts;
use crate::sender::{Message, Sender};
use crate::tally::Tally;

/// Maximum number of messages sent before their replies are read.
const BATCH: u64 = 256;

/// How long to sleep if no message is due.
const IDLE: Duration = Duration::from_micros(200);

/// With [`Mode::Miss`], one message in this many goes to a connected user.
const MARKER_INTERVAL: u64 = 1_000;

pub(crate) struct Publisher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<SentCounts, LoadError>>,
}

impl Publisher {
    /// Continues the numbering after `sent`.
    pub(crate) fn start(plan: &Plan, phase: &Phase, sender: Sender, tally: &Arc<Tally>, sent: SentCounts) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut task = PublishLoop {
            phase: phase.clone(),
            connections: plan.connections_per_user().collect(),
            outstanding: Outstanding { expected: tally.delivered(), until: VecDeque::new() },
            tally: Arc::clone(tally),
            stop: Arc::clone(&stop),
            random: fastrand::Rng::with_seed(plan.seed),
            sent,
            scheduled: 0,
            last_user: 0,
            sender,
        };
        let thread = std::thread::spawn(move || task.run().map(|()| task.sent));
        Self { stop, thread }
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Stops the thread, and returns its counts or the error that ended it.
    pub(crate) async fn stop(self) -> Result<SentCounts, LoadError> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        joined.map_err(|_| LoadError::Publisher)?.map_err(|_| LoadError::Publisher)?
    }
}

struct PublishLoop {
    phase: Phase,
    /// The number of connections of each user.
    connections: Vec<u64>,
    outstanding: Outstanding,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    random: fastrand::Rng,
    sent: SentCounts,
    /// Messages published or about to be published.
    scheduled: u64,
    /// The user of the latest message.
    last_user: usize,
    sender: Sender,
}

impl PublishLoop {
    fn run(&mut self) -> Result<(), LoadError> {
        let start = self.tally.epoch.elapsed();
        while !self.stop.load(Ordering::Relaxed) {
            let now = self.tally.epoch.elapsed();
            let (count, first_due, interval) = match self.phase.pace() {
                Pace::OpenLoop(rate) => {
                    let (count, first_due, interval) = due(now - start, rate, self.phase.burst, self.scheduled);
                    (count, start + first_due, interval)
                }
                Pace::FlatOut(window) => {
                    let free = window.saturating_sub(self.outstanding.count(self.tally.delivered()));
                    (fitting(free, window, self.phase.burst), now, Duration::ZERO)
                }
            };
            if count == 0 {
                std::thread::sleep(IDLE);
            } else {
                self.publish(count, first_due, interval)?;
            }
        }
        Ok(())
    }

    fn publish(&mut self, count: u64, first_due: Duration, interval: Duration) -> Result<(), LoadError> {
        let (mut messages, mut due) = (Vec::new(), first_due);
        for _ in 0..count {
            let (user, number, copies) = self.next();
            self.scheduled += 1;
            if self.phase.flat_out {
                self.outstanding.add(copies);
            }
            messages.push(Message { user, number, due });
            due += interval;
        }
        self.sender.send(&messages, self.phase.payload)?;
        self.tally.record_published(count);
        Ok(())
    }

    /// Returns the next message's user, its number, and how many connections receive it.
    fn next(&mut self) -> (String, u64, u64) {
        // The window must contain a message to a connected user: only a delivery frees space in it.
        let interval = if let Pace::FlatOut(window) = self.phase.pace() { window } else { MARKER_INTERVAL };
        let index = match self.phase.mode {
            Mode::Miss if !(self.scheduled + 1).is_multiple_of(interval.min(MARKER_INTERVAL)) => {
                return (format!("elsewhere-{}", self.random.u32(..1_000_000)), 0, 0);
            }
            Mode::Unicast if !self.scheduled.is_multiple_of(u64::from(self.phase.burst.max(1))) => self.last_user,
            Mode::Unicast | Mode::Miss => self.random.usize(..self.sent.len().max(1)),
            Mode::Turn => usize::try_from(self.scheduled).unwrap_or_default() % self.sent.len().max(1),
            Mode::Fanout | Mode::Broadcast | Mode::Reconnect | Mode::Resume | Mode::Refill => 0,
        };
        self.last_user = index;
        let number = self.sent.get_mut(index).map_or(0, |sent| {
            *sent += 1;
            *sent
        });
        (index.to_string(), number, self.connections.get(index).copied().unwrap_or_default())
    }
}

/// Messages that are published but not fully delivered.
#[derive(Debug, Default)]
struct Outstanding {
    /// The total number of deliveries once all messages so far are delivered.
    expected: u64,
    /// For each outstanding message, the total number of deliveries after which it no longer is.
    until: VecDeque<u64>,
}

impl Outstanding {
    /// Adds a message. One without copies is outstanding until a later message is delivered.
    fn add(&mut self, copies: u64) {
        self.expected += copies;
        self.until.push_back(self.expected + u64::from(copies == 0));
    }

    /// The number of outstanding messages after this total of deliveries.
    fn count(&mut self, delivered: u64) -> u64 {
        while self.until.front().is_some_and(|until| *until <= delivered) {
            self.until.pop_front();
        }
        self.until.len() as u64
    }
}

/// How many messages to publish after this time, the due time of the first, and the interval between them.
fn due(elapsed: Duration, rate: u32, burst: u32, published: u64) -> (u64, Duration, Duration) {
    let interval = Duration::from_secs(1) / rate.max(1);
    let due = u64::try_from(elapsed.as_nanos() / interval.as_nanos().max(1)).unwrap_or(u64::MAX);
    let burst = u64::from(burst.max(1));
    // A burst is published as a whole, when its last message is due.
    let count = due.saturating_sub(published).min(BATCH.max(burst)) / burst * burst;
    let first = u32::try_from(published + 1).unwrap_or(u32::MAX);
    (count, interval.saturating_mul(first), interval)
}

/// How many messages fit into the free part of the window. A burst is published as a whole, but is at most the window.
fn fitting(free: u64, window: u64, burst: u32) -> u64 {
    let burst = u64::from(burst).clamp(1, window.max(1));
    free.min(BATCH.max(burst)) / burst * burst
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(500);

    #[test]
    fn a_message_is_published_when_it_is_due_and_not_before() {
        assert_eq!(due(INTERVAL / 2, 2, 1, 0).0, 0);
        assert_eq!(due(INTERVAL, 2, 1, 0), (1, INTERVAL, INTERVAL));
        assert_eq!(due(INTERVAL * 5, 2, 1, 2), (3, INTERVAL * 3, INTERVAL));
    }

    #[test]
    fn a_message_is_outstanding_until_all_its_copies_are_delivered() {
        let mut outstanding = Outstanding::default();
        [3, 1, 2].into_iter().for_each(|copies| outstanding.add(copies));
        let counts = [0, 2, 3, 4, 5, 6].map(|delivered| outstanding.count(delivered));
        assert_eq!(counts, [3, 3, 2, 1, 1, 0]);
    }

    #[test]
    fn a_message_without_copies_is_outstanding_until_a_later_one_is_delivered() {
        let mut outstanding = Outstanding::default();
        [0, 0, 2, 0].into_iter().for_each(|copies| outstanding.add(copies));
        assert_eq!([0, 1, 2, 3].map(|delivered| outstanding.count(delivered)), [4, 2, 1, 0]);
    }

    #[test]
    fn a_burst_is_published_as_a_whole() {
        assert_eq!(due(INTERVAL * 7, 2, 8, 0).0, 0);
        assert_eq!(due(INTERVAL * 17, 2, 8, 0).0, 16);
        assert_eq!(due(INTERVAL * 1_000, 2, 300, 0).0, 300);
        assert_eq!([0, 7, 8, 23, 5_000].map(|free| fitting(free, 5_000, 8)), [0, 0, 8, 16, 256]);
        let counts = [(4, 5, 8), (5, 5, 8), (299, 500, 300), (500, 500, 300)];
        assert_eq!(counts.map(|(free, window, burst)| fitting(free, window, burst)), [0, 5, 0, 300]);
    }
}
