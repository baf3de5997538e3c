//! A connection's deadlines: the end of its token, a silent client, a stalled socket.

use tokio::time::Instant;

use super::Context;
use crate::delivery::PROBE_TIMEOUT;
use crate::protocol::Close;

/// The action that is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Ping,
    Close(Close),
}

#[derive(Debug, Default)]
pub(super) struct Clock {
    /// When the token expires, leeway included.
    expires_at: Option<Instant>,
    /// When the unanswered ping was sent.
    pinged_at: Option<Instant>,
    /// Whether another connection of the user waits for the answer.
    probed: bool,
    /// Since when the socket accepts no bytes.
    pub(super) stalled_since: Option<Instant>,
}

impl Clock {
    pub(super) fn set_expiry(&mut self, at: Option<Instant>) {
        self.expires_at = at;
    }

    /// The client sent bytes at this moment; part of a message counts as a pong.
    pub(super) fn received(&mut self, at: Instant) {
        if self.pinged_at.is_some_and(|pinged_at| at > pinged_at) {
            (self.pinged_at, self.probed) = (None, false);
        }
    }

    /// From now on an answer must come within [`PROBE_TIMEOUT`] of the ping. Returns whether the client must be pinged.
    pub(super) fn probe(&mut self, now: Instant) -> bool {
        self.probed = true;
        let is_pinged = self.pinged_at.is_some();
        self.pinged_at.get_or_insert(now);
        !is_pinged
    }

    /// When [`Clock::due`] next returns an action, unless bytes are received or written before.
    pub(super) fn next(&self, last_read: Instant, context: &Context) -> Instant {
        let (silence, _) = self.silence_ends(last_read, context);
        self.expires_at.map_or(silence, |expires_at| silence.min(expires_at))
    }

    /// The action that is due now. A ping that it returns counts as sent.
    pub(super) fn due(&mut self, now: Instant, last_read: Instant, context: &Context) -> Due {
        if self.expires_at.is_some_and(|expires_at| now >= expires_at) {
            return Due::Close(Close::TokenExpired);
        }
        let (silence, due) = self.silence_ends(last_read, context);
        if now < silence {
            return Due::Nothing;
        }
        if due == Due::Ping {
            self.pinged_at = Some(now);
        }
        due
    }

    /// As [`Clock::next`], for a stream of events: at `check_at` its output is checked.
    pub(super) fn next_of_stream(&self, check_at: Instant, context: &Context) -> Instant {
        let (at, _) = self.stream_due(check_at, context);
        self.expires_at.map_or(at, |expires_at| at.min(expires_at))
    }

    /// As [`Clock::due`], for a stream of events: [`Due::Ping`] at `check_at`.
    pub(super) fn due_of_stream(&self, now: Instant, check_at: Instant, context: &Context) -> Due {
        if self.expires_at.is_some_and(|expires_at| now >= expires_at) {
            return Due::Close(Close::TokenExpired);
        }
        let (at, due) = self.stream_due(check_at, context);
        if now < at { Due::Nothing } else { due }
    }

    /// Why a stream ends whose client acknowledges no written data.
    pub(super) fn unacknowledged(&self) -> Close {
        if self.probed { Close::Unanswered } else { Close::WriteTimeout }
    }

    /// Ends a stream's probe once its client has had time enough to acknowledge it. Returns whether it did so.
    pub(super) fn end_probe(&mut self, now: Instant) -> bool {
        let ends = self.pinged_at.is_some_and(|pinged_at| now >= pinged_at + 2 * PROBE_TIMEOUT);
        if ends {
            (self.pinged_at, self.probed) = (None, false);
        }
        ends
    }

    fn stream_due(&self, check_at: Instant, context: &Context) -> (Instant, Due) {
        match (self.stalled_since, self.pinged_at) {
            (Some(since), Some(probed_at)) if since <= probed_at + PROBE_TIMEOUT => {
                (since.max(probed_at) + PROBE_TIMEOUT, Due::Close(self.unacknowledged()))
            }
            // A stall that began after an answered probe is that of a slow client.
            (Some(since), _) => (since + context.send_queue.write_timeout, Due::Close(Close::WriteTimeout)),
            (None, Some(probed_at)) => (check_at.min(probed_at + 2 * PROBE_TIMEOUT), Due::Ping),
            (None, None) => (check_at, Due::Ping),
        }
    }

    fn silence_ends(&self, last_read: Instant, context: &Context) -> (Instant, Due) {
        match (self.stalled_since, self.pinged_at) {
            // A client that is not read from, because it does not read, may have answered: its socket shows whether it lives.
            (stalled_since, Some(pinged_at)) if self.probed => {
                let from = stalled_since.map_or(pinged_at, |since| since.max(pinged_at));
                (from + PROBE_TIMEOUT.min(context.server.pong_timeout), Due::Close(Close::Unanswered))
            }
            (Some(since), _) => (since + context.send_queue.write_timeout, Due::Close(Close::WriteTimeout)),
            (None, Some(pinged_at)) => (pinged_at + context.server.pong_timeout, Due::Close(Close::NoPong)),
            (None, None) => (last_read + context.server.heartbeat, Due::Ping),
        }
    }
}
