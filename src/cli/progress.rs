//! The progress of `tidings load`, on standard error if that is a terminal: per cent, count, rate and the time left.

use std::cell::Cell;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use tidings_load::Progress;

const BAR: usize = 20;

/// Before this time of an activity, the time left is not known.
const SOON: Duration = Duration::from_millis(200);

/// A line that is drawn over the last.
#[derive(Default)]
pub(super) struct ProgressLine {
    /// When the current activity began, and its last progress.
    current: Cell<Option<(Instant, Progress)>>,
    /// The longest line so far.
    width: Cell<usize>,
}

impl ProgressLine {
    pub(super) fn draw(&self, progress: Progress) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let continues = |last: Progress| last.activity == progress.activity && last.share <= progress.share;
        let known = self.current.get().filter(|(_, last)| continues(*last));
        let since = known.map_or_else(Instant::now, |(since, _)| since);
        self.current.set(Some((since, progress)));
        self.show(&line(progress, since.elapsed()));
    }

    /// Removes the line.
    pub(super) fn clear(&self) {
        if self.width.get() > 0 {
            self.show("");
            // A failed write only loses the line.
            write!(std::io::stderr(), "\r").ok();
        }
    }

    fn show(&self, line: &str) {
        let width = self.width.get().max(line.chars().count());
        self.width.set(width);
        write!(std::io::stderr(), "\r{line:<width$}").ok();
    }
}

/// After this time of the activity.
fn line(Progress { activity, share, count }: Progress, elapsed: Duration) -> String {
    let (share, seconds) = (share.clamp(0.0, 1.0), elapsed.as_secs_f64());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the width of the bar")]
    let done = (share * BAR as f64) as usize;
    #[allow(clippy::cast_precision_loss, reason = "a rate for a person")]
    let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let counted = count.map_or_else(String::new, |count| format!(", {count}, {:.0} /s", rate(count)));
    // Of the first moment nothing can be told.
    let known = share > 0.0 && elapsed >= SOON;
    let left = if known { format!(", {:.0} s left", seconds * (1.0 - share) / share) } else { String::new() };
    format!("{activity} [{:<BAR$}] {:3.0} %{counted}{left}", "#".repeat(done), share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_per_cent_count_rate_and_time_left() {
        let at = |share, seconds| {
            line(Progress { activity: "publishing", share, count: Some(5_000) }, Duration::from_secs(seconds))
        };
        assert_eq!(at(0.25, 10), "publishing [#####               ]  25 %, 5000, 500 /s, 30 s left");
        assert_eq!(at(1.5, 10), "publishing [####################] 100 %, 5000, 500 /s, 0 s left");
        assert_eq!(at(0.0, 0), "publishing [                    ]   0 %, 5000, 0 /s");
        assert_eq!(
            at(0.1, 0),
            "publishing [##                  ]  10 %, 5000, 0 /s",
            "too early to tell the time left"
        );
        let waiting = Progress { activity: "settling", share: 0.5, count: None };
        assert_eq!(line(waiting, Duration::from_secs(1)), "settling [##########          ]  50 %, 1 s left");
    }
}
