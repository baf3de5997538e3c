//! What is logged of a server that does not reply to calls: one line once that lasts, another every ten seconds, and one with
//! its duration when it replies again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::log::OUTAGE_EVERY;

/// A shorter failure is counted only, and leaves time for the subscription to report the server.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Outage {
    is_failing: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    /// When the last line of this outage was due.
    logged: Option<Instant>,
    /// When the subscription last failed at the same server, of which it logs the lines.
    reported: Option<Instant>,
}

impl State {
    fn is_reported(&self) -> bool {
        self.reported.is_some_and(|reported| reported.elapsed() < OUTAGE_EVERY)
    }
}

impl Outage {
    /// A call had no reply. Returns how long this has lasted if a line is due.
    pub(super) fn fail(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        self.is_failing.store(true, Ordering::Relaxed);
        let lasted = state.since.get_or_insert_with(Instant::now).elapsed();
        let is_recent = state.logged.is_some_and(|logged| logged.elapsed() < OUTAGE_EVERY);
        if lasted < GRACE || is_recent || state.is_reported() {
            return None;
        }
        state.logged = Some(Instant::now());
        Some(lasted)
    }

    /// A call had a reply, or none is awaited any more. Returns how long there was none, if a line said so.
    pub(super) fn end(&self) -> Option<Duration> {
        if !self.is_failing.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state.lock();
        self.is_failing.store(false, Ordering::Relaxed);
        let (since, logged) = (state.since.take(), state.logged.take());
        logged.and(since).map(|since| since.elapsed())
    }

    /// The subscription failed at this server.
    pub(super) fn report(&self) {
        self.state.lock().reported = Some(Instant::now());
    }

    /// Whether the subscription logs the lines.
    pub(super) fn is_reported(&self) -> bool {
        self.state.lock().is_reported()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_has_a_line_once_it_lasts_another_every_10_s_and_one_at_its_end() {
        let (outage, second) = (Outage::default(), Duration::from_secs(1));
        assert_eq!((outage.fail(), outage.end()), (None, None), "a short failure has no line");
        let mut lines = Vec::new();
        for _ in 0..25 {
            lines.extend(outage.fail());
            advance(second).await;
        }
        assert_eq!(lines, [second, 11 * second, 21 * second]);
        assert_eq!((outage.end(), outage.end()), (Some(25 * second), None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_the_subscription_reports_has_no_line_of_its_own() {
        let (outage, second) = (Outage::default(), Duration::from_secs(1));
        for _ in 0..25 {
            outage.report();
            assert_eq!(outage.fail(), None);
            advance(second).await;
        }
        assert_eq!(outage.end(), None);
        outage.fail();
        advance(OUTAGE_EVERY).await;
        assert_eq!(outage.fail(), Some(OUTAGE_EVERY), "it subscribed elsewhere");
    }
}
