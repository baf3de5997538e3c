//! Closes the connections of a stopping instance one by one.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::delivery::{ConnectionHandle, Registry};
use crate::protocol::{Close, Dialect, ServerFrame, millis};

/// The longest time between a client's `after_ms` and its close.
const MOST_GRACE: Duration = Duration::from_secs(2);

/// The shortest delay after the end of a stream.
const LEAST_DELAY: Duration = Duration::from_millis(500);

/// Tells each client when to reconnect, then closes the connections evenly over `window`, in random order. Each close comes
/// a little later than was said, so that a client can open its next connection while this one still delivers.
pub async fn drain(registry: &Registry, window: Duration) {
    // Weak: an ended connection must not be kept in memory until the last one has ended.
    let mut handles: Vec<Weak<ConnectionHandle>> = registry.handles().iter().map(Arc::downgrade).collect();
    fastrand::shuffle(&mut handles);
    let begun = Instant::now();
    let count = u32::try_from(handles.len()).unwrap_or(u32::MAX);
    info!(connections = count, window_ms = millis(window), "draining");
    let grace = (window / 8).min(MOST_GRACE);
    let offset = |index: u32| (window - grace).mul_f64(f64::from(index) / f64::from(count.max(1)));
    for (index, handle) in (0..).zip(&handles) {
        if let Some(handle) = handle.upgrade() {
            let after_ms = after_ms(handle.dialect, offset(index), window);
            handle.tell_while_open(&ServerFrame::Reconnect { after_ms });
        }
    }
    for (index, handle) in (0..).zip(&handles) {
        // Connections that are gone take no time: without clients, the instance stops at once.
        if handle.strong_count() > 0 {
            sleep_until(begun + grace + offset(index)).await;
        }
        if let Some(handle) = handle.upgrade() {
            handle.queue.close(Close::Draining);
        }
    }
}

/// When a client that is closed after `offset` reconnects. That of a stream waits so long after its end: not too shortly, but
/// not all equally long.
fn after_ms(dialect: Dialect, offset: Duration, window: Duration) -> u64 {
    let least = if dialect == Dialect::Sse { LEAST_DELAY.min(window) } else { Duration::ZERO };
    let share = offset.as_secs_f64() / window.as_secs_f64().max(f64::MIN_POSITIVE);
    millis(least + (window - least).mul_f64(share.min(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_come_back_spread_over_the_window_and_not_at_once() {
        let window = Duration::from_secs(8);
        let after = |dialect, share: u32, window: Duration| after_ms(dialect, window / 8 * share, window);
        assert_eq!([0, 4, 8].map(|share| after(Dialect::Sse, share, window)), [500, 4_250, 8_000]);
        assert_eq!([0, 4, 8].map(|share| after(Dialect::TidingsV1, share, window)), [0, 4_000, 8_000]);
        let (short, none) = (Duration::from_millis(300), Duration::ZERO);
        assert_eq!([0, 8].map(|share| after(Dialect::Sse, share, short)), [300, 300]);
        assert_eq!(after(Dialect::Sse, 0, none), 0);
    }
}
