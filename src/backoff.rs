//! Exponential backoff with full jitter, for reconnecting.

use std::time::Duration;

/// A connection that lasted this long counts as a success.
const LASTING: Duration = Duration::from_secs(10);

/// Delays drawn uniformly between zero and a ceiling that doubles with each attempt.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// The first ceiling is `base`, the last `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0 }
    }

    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(fastrand::f64())
    }

    /// Restarts at `base`, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Restarts at `base` if what was established lasted: a connection that is lost again at once is no success.
    pub fn reset_if_lasting(&mut self, lasted: Duration) {
        if lasted >= LASTING {
            self.reset();
        }
    }

    fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.attempt).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_resets() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(base, cap);
        let mut ceilings = Vec::new();
        for _ in 0..40 {
            ceilings.push(backoff.ceiling().as_millis());
            assert!(backoff.next_delay() <= cap);
        }
        assert_eq!(ceilings[..6], [100, 200, 400, 800, 1600, 2000]);
        assert_eq!(ceilings[39], 2000);
        backoff.reset_if_lasting(LASTING / 2);
        assert_eq!(backoff.ceiling(), cap);
        backoff.reset_if_lasting(LASTING);
        assert_eq!(backoff.ceiling(), base);
    }

    #[test]
    fn delays_are_spread() {
        let delay = || Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).next_delay();
        let delays: Vec<_> = (0..100).map(|_| delay()).collect();
        assert!(delays.iter().any(|d| d.as_millis() < 400) && delays.iter().any(|d| d.as_millis() > 600));
    }
}
