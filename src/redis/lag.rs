//! The delay with which this instance receives from Redis, measured by probes that carry the time of their sending.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Probes kept while none returns; the age of the oldest counts.
const MAX_WAITING: usize = 16;

#[derive(Debug)]
pub struct Lag {
    origin: Instant,
    /// Whether probes arrive in the order of their sending; not in a cluster, where each passes through another node.
    ordered: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the last probe that returned.
    last: Duration,
    /// When the others were sent.
    waiting: BTreeSet<Duration>,
}

impl Lag {
    pub(super) fn new(ordered: bool) -> Self {
        Self { origin: Instant::now(), ordered, state: Mutex::default() }
    }

    /// Returns the probe to publish: this instance's time, in microseconds.
    pub fn send(&self) -> String {
        let mut now = Duration::from_micros(micros(self.origin.elapsed()));
        let mut state = self.state.lock();
        while state.waiting.contains(&now) {
            now += Duration::from_micros(1);
        }
        if state.waiting.len() < MAX_WAITING {
            state.waiting.insert(now);
        }
        micros(now).to_string()
    }

    /// A probe that was received.
    pub fn receive(&self, probe: &[u8]) {
        if let Some(sent) = sent_at(probe) {
            let mut state = self.state.lock();
            state.last = self.origin.elapsed().saturating_sub(sent);
            state.waiting.retain(|other| *other > sent || (!self.ordered && *other != sent));
        }
    }

    /// A probe that Redis refused to publish: it never returns.
    pub fn forget(&self, probe: &str) {
        if let Some(sent) = sent_at(probe.as_bytes()) {
            self.state.lock().waiting.remove(&sent);
        }
    }

    /// The age of the oldest probe that has not returned, though Redis published it.
    pub(super) fn oldest(&self) -> Duration {
        let oldest = self.state.lock().waiting.first().map(|sent| self.origin.elapsed().saturating_sub(*sent));
        oldest.unwrap_or_default()
    }

    /// A new subscription receives no earlier probe.
    pub(super) fn restart(&self) {
        *self.state.lock() = State::default();
    }

    /// The delay of the last probe, or the age of one that has not returned if that is more.
    pub fn current(&self) -> Duration {
        self.oldest().max(self.state.lock().last)
    }
}

fn sent_at(probe: &[u8]) -> Option<Duration> {
    str::from_utf8(probe).ok()?.parse().ok().map(Duration::from_micros)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_has_not_returned_counts_with_its_age() {
        let lag = Lag::new(true);
        assert_eq!(lag.current(), Duration::ZERO);
        let first = lag.send();
        advance(SECOND).await;
        lag.receive(first.as_bytes());
        assert_eq!(lag.current(), SECOND);
        let second = lag.send();
        advance(SECOND * 3).await;
        let third = lag.send();
        advance(SECOND * 2).await;
        assert_eq!(lag.current(), SECOND * 5);
        lag.receive(third.as_bytes());
        assert_eq!(lag.current(), SECOND * 2, "the second was lost");
        lag.receive(second.as_bytes());
        lag.forget(&lag.send());
        lag.receive(b"no probe");
        assert_eq!(lag.current(), SECOND * 5);
        lag.restart();
        assert_eq!(lag.current(), Duration::ZERO);
        for _ in 0..100 {
            lag.send();
            advance(SECOND).await;
        }
        assert_eq!(lag.current(), SECOND * 100);
    }
    #[tokio::test(start_paused = true)]
    async fn a_probe_through_one_node_does_not_stand_for_one_through_another() {
        let lag = Lag::new(false);
        let (first, second) = (lag.send(), lag.send());
        assert_ne!(first, second);
        advance(SECOND).await;
        lag.receive(second.as_bytes());
        assert_eq!(lag.oldest(), SECOND);
        lag.receive(first.as_bytes());
        assert_eq!(lag.oldest(), Duration::ZERO);
    }
}
