//! Closes the connections of a stopping instance one by one.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::delivery::{ConnectionHandle, Registry};
use crate::protocol::{Close, ServerFrame, millis};

/// Tells each client when to reconnect, then closes the connections evenly over `window`, in random order.
pub async fn drain(registry: &Registry, window: Duration) {
    // Weak: an ended connection must not be kept in memory until the last one has ended.
    let mut handles: Vec<Weak<ConnectionHandle>> = registry.handles().iter().map(Arc::downgrade).collect();
    fastrand::shuffle(&mut handles);
    let begun = Instant::now();
    let count = u32::try_from(handles.len()).unwrap_or(u32::MAX);
    info!(connections = count, window_ms = window.as_millis(), "draining");
    let offset = |index: u32| window.mul_f64(f64::from(index) / f64::from(count.max(1)));
    for (index, handle) in (0..).zip(&handles) {
        if let Some(handle) = handle.upgrade()
            && handle.dialect.has_frames()
        {
            let after_ms = millis(offset(index));
            handle.queue.send_while_open(ServerFrame::Reconnect { after_ms }.encode());
        }
    }
    for (index, handle) in (0..).zip(&handles) {
        // Connections that are gone take no time: without clients, the instance stops at once.
        if handle.strong_count() > 0 {
            sleep_until(begun + offset(index)).await;
        }
        if let Some(handle) = handle.upgrade() {
            handle.queue.close(Close::Draining);
        }
    }
}
