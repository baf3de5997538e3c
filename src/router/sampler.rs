//! Chooses the deliveries that are measured: few enough that the others cost nothing more.

use std::time::Duration;

use tokio::time::Instant;

/// One message of so many is measured.
const EVERY: u32 = 32;

/// Where messages are few, each is that comes so long after the last one measured.
const AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// When the messages that follow were read.
    read_at: Option<Instant>,
    /// Messages since the last one measured.
    passed: u32,
    measured: Option<Instant>,
}

impl Sampler {
    /// The messages that follow were read at this moment.
    pub(super) fn begin(&mut self, read_at: Instant) {
        if self.measured.is_none_or(|measured| read_at.saturating_duration_since(measured) >= AFTER) {
            self.passed = EVERY;
        }
        self.read_at = Some(read_at);
    }

    /// Counts a message that was routed; returns when it was read if it is to be measured.
    pub(super) fn next(&mut self) -> Option<Instant> {
        self.passed = self.passed.saturating_add(1);
        if self.passed < EVERY {
            return None;
        }
        self.measured = self.read_at;
        self.passed = 0;
        self.read_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_of_32_is_measured_and_the_first_after_a_second_without_one() {
        let (mut sampler, begun) = (Sampler::default(), Instant::now());
        assert_eq!(sampler.next(), None, "no read is known");
        sampler.begin(begun);
        let measured = (0..100).filter(|_| sampler.next().is_some()).count();
        assert_eq!(measured, 4);
        sampler.begin(begun + AFTER / 2);
        assert_eq!(sampler.next(), None);
        sampler.begin(begun + AFTER);
        assert_eq!(sampler.next(), Some(begun + AFTER));
    }
}
