//! Logging, and a rate limit for lines that a peer can cause.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::Log;

/// Starts logging to standard error: text, coloured on a terminal, or one JSON object per line.
///
/// Only tidings uses the configured level; libraries log at `warn`, because lower levels may show payloads and secrets.
pub fn init(log: Log) {
    let filter = Targets::new().with_target("tidings", log.level).with_default(tracing::Level::WARN);
    let ansi = std::io::stderr().is_terminal();
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = if log.json { layer.json().boxed() } else { layer.with_ansi(ansi).boxed() };
    // In tests, a second initialisation in one process keeps the first.
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().ok();
}

/// Admits one log line per second, and counts those held back.
#[derive(Debug)]
pub struct LogRate {
    last: Mutex<Option<Instant>>,
    held_back: AtomicU64,
}

impl LogRate {
    pub const fn new() -> Self {
        Self { last: Mutex::new(None), held_back: AtomicU64::new(0) }
    }

    /// `Some` if a line may be written now, with the number of lines held back before it.
    pub fn admit(&self) -> Option<u64> {
        const EVERY: Duration = Duration::from_secs(1);
        let now = Instant::now();
        let mut last = self.last.lock();
        if last.is_some_and(|last| now.duration_since(last) < EVERY) {
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
