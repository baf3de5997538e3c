//! Times as they are sent: whole milliseconds or seconds, since 1970 where they are moments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Now, in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    millis(since_1970())
}

/// Now, in seconds since 1970.
pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}
