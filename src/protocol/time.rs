//! Times on the wire: whole milliseconds or seconds, and the Unix time in either.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub fn unix_ms() -> u64 {
    millis(since_1970())
}

pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}
