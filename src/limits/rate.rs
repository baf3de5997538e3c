//! The rate of connects of a user or an address: counted in windows of a second, in Redis for the fleet, and in memory.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::{Common, Limit};

const REPLY_DEADLINE: Duration = Duration::from_secs(1);

/// The pause after Redis did not reply.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const WINDOW: Duration = Duration::from_secs(1);

/// Maximum number of keys counted in memory in one window. Only Redis counts the others; while it is away, they are
/// admitted.
const MOST_COUNTED: usize = 100_000;

/// A window's map that grew beyond this is shrunk for the next window.
const ROOM_KEPT: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct RateCounter {
    window: Mutex<Window>,
    failed_at: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Window {
    begun: Option<Instant>,
    counts: HashMap<String, u32, RandomState>,
}

impl RateCounter {
    /// Counts one connect; returns the number in this second. A key over `most` by the local count causes no request, so a
    /// flood does not reach Redis.
    pub(super) async fn count(&self, common: &Common, limit: Limit, key: &str, most: u32) -> u32 {
        let here = self.window.lock().count(key, Instant::now());
        let Some(fleet) = common.fleet.as_ref().filter(|_| here <= most) else { return here };
        let is_paused = self.failed_at.lock().is_some_and(|at| at.elapsed() < RETRY_AFTER);
        if !is_paused {
            if let Ok(Ok(everywhere)) = timeout(REPLY_DEADLINE, fleet.count_connect(key)).await {
                return everywhere.max(here);
            }
            *self.failed_at.lock() = Some(Instant::now());
        }
        common.count_unshared(limit);
        here
    }
}

impl Window {
    fn count(&mut self, key: &str, now: Instant) -> u32 {
        if self.begun.is_none_or(|begun| now.duration_since(begun) >= WINDOW) {
            self.begun = Some(now);
            self.counts.clear();
            self.counts.shrink_to(ROOM_KEPT);
        }
        if let Some(count) = self.counts.get_mut(key) {
            *count = count.saturating_add(1);
            return *count;
        }
        if self.counts.len() < MOST_COUNTED {
            self.counts.insert(key.to_owned(), 1);
        }
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_window_counts_each_key_and_starts_over_after_a_second() {
        let mut window = Window::default();
        let begun = Instant::now();
        assert_eq!((window.count("a", begun), window.count("a", begun), window.count("b", begun)), (1, 2, 1));
        let late = begun + Duration::from_millis(999);
        assert_eq!(window.count("a", late), 3);
        let next = begun + WINDOW;
        assert_eq!((window.count("a", next), window.count("a", next)), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_keys_fills_no_memory() {
        let (mut window, now) = (Window::default(), Instant::now());
        for key in 0..MOST_COUNTED * 2 {
            assert_eq!(window.count(&key.to_string(), now), 1);
        }
        assert_eq!(window.counts.len(), MOST_COUNTED);
        window.count("later", now + WINDOW);
        assert!(window.counts.len() == 1 && window.counts.capacity() < ROOM_KEPT * 4, "{}", window.counts.capacity());
    }
}
