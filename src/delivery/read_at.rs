//! When the message of a measured delivery was read.

use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// In microseconds, modulo 71 minutes, which no event waits for; never 0. Each queued frame has room for one.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadAt(NonZeroU32);

impl ReadAt {
    pub(super) fn new(at: Instant) -> Self {
        Self(NonZeroU32::new(micros(at)).unwrap_or(NonZeroU32::MIN))
    }

    pub(super) fn elapsed(self) -> Duration {
        Duration::from_micros(micros(Instant::now()).wrapping_sub(self.0.get()).into())
    }
}

#[allow(clippy::cast_possible_truncation, reason = "modulo 2^32")]
fn micros(at: Instant) -> u32 {
    match at.checked_duration_since(*ORIGIN) {
        Some(later) => later.as_micros() as u32,
        None => (ORIGIN.duration_since(at).as_micros() as u32).wrapping_neg(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_delivery_is_measured_at_every_time_of_the_clock() {
        let _ = *ORIGIN;
        for _ in 0..40 {
            let read_at = ReadAt::new(Instant::now());
            advance(Duration::from_millis(3)).await;
            let elapsed = read_at.elapsed();
            assert!(elapsed.abs_diff(Duration::from_millis(3)) <= Duration::from_micros(1), "{elapsed:?}");
            advance(Duration::from_secs(300)).await;
        }
    }
}
