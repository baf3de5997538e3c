//! Logging, and a rate limit for lines that a peer can cause.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::Log;

/// The interval between the lines about a lasting outage.
pub const OUTAGE_EVERY: Duration = Duration::from_secs(10);

/// Starts logging to standard error: text, coloured on a terminal, or one JSON object per line.
///
/// Only tidings uses the configured level; libraries log at `warn`, because lower levels may show payloads and secrets.
pub fn init(log: Log) {
    let (filter, handle) = reload::Layer::new(filter(log.level));
    let ansi = uses_colours(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = if log.json { layer.json().boxed() } else { layer.with_ansi(ansi).boxed() };
    // In tests, a second initialisation in one process keeps the first.
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
        FILTER.set(handle).ok();
    }
}

static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Changes the level of the lines that follow.
pub fn set_level(level: Level) {
    if let Some(handle) = FILTER.get() {
        // Fails only once the log is gone.
        handle.reload(filter(level)).ok();
    }
}

fn filter(level: Level) -> Targets {
    Targets::new().with_target("tidings", level).with_default(Level::WARN)
}

/// See <https://no-color.org>.
fn uses_colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Admits one log line per second, or in another interval, and counts those held back.
#[derive(Debug)]
pub struct LogRate {
    every: Duration,
    last: Mutex<Option<Instant>>,
    held_back: AtomicU64,
}

impl LogRate {
    pub const fn new() -> Self {
        Self::every(Duration::from_secs(1))
    }

    pub const fn every(every: Duration) -> Self {
        Self { every, last: Mutex::new(None), held_back: AtomicU64::new(0) }
    }

    /// `Some` if a line may be written now, with the number of lines held back before it.
    pub fn admit(&self) -> Option<u64> {
        let now = Instant::now();
        let mut last = self.last.lock();
        if last.is_some_and(|last| now.duration_since(last) < self.every) {
            self.held_back.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *last = Some(now);
        Some(self.held_back.swap(0, Ordering::Relaxed))
    }
}

impl Default for LogRate {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_is_honoured() {
        for (is_terminal, no_color, expected) in
            [(true, None, true), (true, Some(""), true), (true, Some("1"), false), (false, None, false)]
        {
            assert_eq!(uses_colours(is_terminal, no_color.map(OsStr::new)), expected, "{is_terminal} {no_color:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_line_per_second_is_admitted_and_counts_those_held_back() {
        let rate = LogRate::new();
        assert_eq!(rate.admit(), Some(0));
        assert_eq!(rate.admit(), None);
        assert_eq!(rate.admit(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(rate.admit(), Some(2));
    }
}
