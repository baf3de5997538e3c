//! A connection's deadlines: the end of its token, a silent client, a stalled socket.

use tokio::time::Instant;

use super::Context;
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
    /// Since when the socket accepts no bytes.
    pub(super) stalled_since: Option<Instant>,
}

impl Clock {
    pub(super) fn set_expiry(&mut self, at: Option<Instant>) {
        self.expires_at = at;
    }

    /// The client sent bytes at this moment; part of a message counts as a pong.
    pub(super) fn received(&mut self, at: Instant) {
        self.pinged_at = self.pinged_at.filter(|pinged_at| at <= *pinged_at);
    }

    /// When [`Clock::due`] next returns an action, unless bytes are received or written before.
    pub(super) fn next(&self, last_read: Instant, context: &Context) -> Instant {
        let silence = match (self.stalled_since, self.pinged_at) {
            (Some(since), _) => since + context.send_queue.write_timeout,
            (None, Some(pinged_at)) => pinged_at + context.server.pong_timeout,
            (None, None) => last_read + context.server.heartbeat,
        };
        self.expires_at.map_or(silence, |expires_at| silence.min(expires_at))
    }

    /// The action that is due now. A ping that it returns counts as sent.
    pub(super) fn due(&mut self, now: Instant, last_read: Instant, context: &Context) -> Due {
        if self.expires_at.is_some_and(|expires_at| now >= expires_at) {
            return Due::Close(Close::TokenExpired);
        }
        match (self.stalled_since, self.pinged_at) {
            (Some(since), _) if now >= since + context.send_queue.write_timeout => Due::Close(Close::WriteTimeout),
            (Some(_), _) => Due::Nothing,
            (None, Some(pinged_at)) if now >= pinged_at + context.server.pong_timeout => Due::Close(Close::NoPong),
            (None, None) if now >= last_read + context.server.heartbeat => {
                self.pinged_at = Some(now);
                Due::Ping
            }
            (None, _) => Due::Nothing,
        }
    }
}
