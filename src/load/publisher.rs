//! Publishes on a thread of its own, so that receivers do not slow its schedule.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::sender::{Message, Sender};
use super::tally::Tally;
use super::{LoadError, Mode, Pace, Phase, Plan};

/// Most messages sent before their answers are read.
const BATCH: u64 = 256;

/// How long to leave Redis alone when nothing is due.
const REST: Duration = Duration::from_micros(200);

/// Among messages for nobody here, every so many-th is for somebody who is.
const MARKER: u64 = 1_000;

/// How many messages each user was sent.
pub(super) type Sent = Vec<u64>;

pub(super) struct Publisher {
    published: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Sent, LoadError>>,
}

impl Publisher {
    /// Goes on where `sent` ends, so that no number comes twice.
    pub(super) fn start(plan: &Plan, phase: Phase, tally: &Arc<Tally>, sent: Sent) -> Result<Self, LoadError> {
        let published = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work {
            phase,
            connections: plan.connections_of_users().collect(),
            outstanding: Outstanding::default(),
            delivered_before: tally.delivered(),
            tally: Arc::clone(tally),
            published: Arc::clone(&published),
            stop: Arc::clone(&stop),
            random: fastrand::Rng::with_seed(plan.seed),
            sent,
            due: 0,
            latest: 0,
            sender: Sender::new(plan, phase.way)?,
        };
        let thread = std::thread::spawn(move || work.run().map(|()| work.sent));
        Ok(Self { published, stop, thread })
    }

    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    pub(super) fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends it, and says why if it has ended by itself.
    pub(super) async fn stop(self) -> Result<Sent, LoadError> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        joined.map_err(|_| LoadError::Publisher)?.map_err(|_| LoadError::Publisher)?
    }
}

struct Work {
    phase: Phase,
    /// Of each user.
    connections: Vec<u64>,
    outstanding: Outstanding,
    tally: Arc<Tally>,
    /// In the phases before.
    delivered_before: u64,
    published: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    random: fastrand::Rng,
    sent: Sent,
    /// Messages published or about to be.
    due: u64,
    /// Whom the latest was for.
    latest: usize,
    sender: Sender,
}

impl Work {
    fn run(&mut self) -> Result<(), LoadError> {
        let begun = self.tally.epoch.elapsed();
        while !self.stop.load(Ordering::Relaxed) {
            let now = self.tally.epoch.elapsed();
            let (count, first_due, step) = match self.phase.pace {
                Pace::OpenLoop(rate) => {
                    let (count, first_due, step) = owed(now - begun, rate, self.phase.burst, self.due);
                    (count, begun + first_due, step)
                }
                Pace::FlatOut(window) => {
                    let outstanding = self.outstanding.count(self.tally.delivered() - self.delivered_before);
                    (room(window.saturating_sub(outstanding), window, self.phase.burst), now, Duration::ZERO)
                }
            };
            if count == 0 {
                std::thread::sleep(REST);
            } else {
                self.publish(count, first_due, step)?;
            }
        }
        Ok(())
    }

    fn publish(&mut self, count: u64, first_due: Duration, step: Duration) -> Result<(), LoadError> {
        let (mut messages, mut due) = (Vec::new(), first_due);
        for _ in 0..count {
            let (user, number, copies) = self.next();
            self.due += 1;
            if matches!(self.phase.pace, Pace::FlatOut(_)) {
                self.outstanding.add(copies);
            }
            messages.push(Message { user, number, due });
            due += step;
        }
        self.sender.send(&messages, self.phase.payload)?;
        self.published.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Whom the next message is for, its number, and how many connections get it.
    fn next(&mut self) -> (String, u64, u64) {
        // Where everything outstanding is for nobody, nothing tells that the server has passed it.
        let marker = if let Pace::FlatOut(window) = self.phase.pace { MARKER.min(window) } else { MARKER };
        let index = match self.phase.mode {
            Mode::Miss if !(self.due + 1).is_multiple_of(marker) => {
                return (format!("elsewhere-{}", self.random.u32(..1_000_000)), 0, 0);
            }
            Mode::Unicast if !self.due.is_multiple_of(u64::from(self.phase.burst.max(1))) => self.latest,
            Mode::Unicast | Mode::Miss => self.random.usize(..self.sent.len().max(1)),
            Mode::Turn => usize::try_from(self.due).unwrap_or_default() % self.sent.len().max(1),
            Mode::Fanout | Mode::Reconnect | Mode::Resume | Mode::Refill => 0,
        };
        self.latest = index;
        let number = self.sent.get_mut(index).map_or(0, |sent| {
            *sent += 1;
            *sent
        });
        (index.to_string(), number, self.connections.get(index).copied().unwrap_or_default())
    }
}

/// Messages on their way.
#[derive(Debug, Default)]
struct Outstanding {
    /// Deliveries that all messages so far should make.
    expected: u64,
    /// For each message under way, after how many deliveries it no longer is.
    until: VecDeque<u64>,
}

impl Outstanding {
    /// One more, for so many connections. One for nobody has been passed over once one behind it comes back.
    fn add(&mut self, copies: u64) {
        self.expected += copies;
        self.until.push_back(self.expected + u64::from(copies == 0));
    }

    /// How many there are after so many deliveries.
    fn count(&mut self, delivered: u64) -> u64 {
        while self.until.front().is_some_and(|until| *until <= delivered) {
            self.until.pop_front();
        }
        self.until.len() as u64
    }
}

/// How many messages are owed after this while, when the first of them was due, and how far apart they are.
fn owed(elapsed: Duration, rate: u32, burst: u32, published: u64) -> (u64, Duration, Duration) {
    let step = Duration::from_secs(1) / rate.max(1);
    let due = u64::try_from(elapsed.as_nanos() / step.as_nanos().max(1)).unwrap_or(u64::MAX);
    let burst = u64::from(burst.max(1));
    // A burst goes out whole, once its last message is due.
    let count = due.saturating_sub(published).min(BATCH.max(burst)) / burst * burst;
    let first = u32::try_from(published + 1).unwrap_or(u32::MAX);
    (count, step.saturating_mul(first), step)
}

/// How many messages may go out where there is room for so many more. A burst goes out whole, the whole window at most.
fn room(left: u64, window: u64, burst: u32) -> u64 {
    let burst = u64::from(burst).clamp(1, window.max(1));
    left.min(BATCH.max(burst)) / burst * burst
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(500);

    #[test]
    fn a_message_is_sent_when_it_is_due_and_not_before() {
        assert_eq!(owed(STEP / 2, 2, 1, 0).0, 0);
        assert_eq!(owed(STEP, 2, 1, 0), (1, STEP, STEP));
        assert_eq!(owed(STEP * 5, 2, 1, 2), (3, STEP * 3, STEP));
    }

    #[test]
    fn a_message_is_outstanding_until_all_its_copies_have_come() {
        let mut outstanding = Outstanding::default();
        [3, 1, 2].into_iter().for_each(|copies| outstanding.add(copies));
        let counts = [0, 2, 3, 4, 5, 6].map(|delivered| outstanding.count(delivered));
        assert_eq!(counts, [3, 3, 2, 1, 1, 0]);
    }

    #[test]
    fn what_is_for_nobody_is_outstanding_until_one_behind_it_comes_back() {
        let mut outstanding = Outstanding::default();
        [0, 0, 2, 0].into_iter().for_each(|copies| outstanding.add(copies));
        assert_eq!([0, 1, 2, 3].map(|delivered| outstanding.count(delivered)), [4, 2, 1, 0]);
    }

    #[test]
    fn a_burst_goes_out_whole() {
        assert_eq!(owed(STEP * 7, 2, 8, 0).0, 0);
        assert_eq!(owed(STEP * 17, 2, 8, 0).0, 16);
        assert_eq!(owed(STEP * 1_000, 2, 300, 0).0, 300);
        assert_eq!([0, 7, 8, 23, 5_000].map(|left| room(left, 5_000, 8)), [0, 0, 8, 16, 256]);
        assert_eq!((room(4, 5, 8), room(5, 5, 8), room(299, 500, 300), room(500, 500, 300)), (0, 5, 0, 300));
    }
}
