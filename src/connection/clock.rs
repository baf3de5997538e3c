//! When a connection's time is up: its token, a silent client, a socket that takes nothing.

use tokio::time::Instant;

use super::Context;
use crate::protocol::Close;

/// What the clock asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Ping,
    Close(Close),
}

/// What is waited for.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// When the token ends, leeway included.
    ends_at: Option<Instant>,
    /// When the ping was sent that nothing has answered yet.
    pinged_at: Option<Instant>,
    /// Since when the socket takes nothing.
    pub(super) stalled_since: Option<Instant>,
}

impl Clock {
    pub(super) fn token_ends(&mut self, at: Option<Instant>) {
        self.ends_at = at;
    }

    /// The client sent something at this moment: part of a message is a sign of life too.
    pub(super) fn heard(&mut self, at: Instant) {
        self.pinged_at = self.pinged_at.filter(|pinged_at| at <= *pinged_at);
    }

    /// When [`Clock::due`] has something next, unless more is heard or written until then.
    pub(super) fn next(&self, last_heard: Instant, context: &Context) -> Instant {
        let silence = match (self.stalled_since, self.pinged_at) {
            (Some(since), _) => since + context.send_queue.write_timeout,
            (None, Some(pinged_at)) => pinged_at + context.server.pong_timeout,
            (None, None) => last_heard + context.server.heartbeat,
        };
        self.ends_at.map_or(silence, |ends_at| silence.min(ends_at))
    }

    /// What has to be done now. A ping that it asks for counts as sent.
    pub(super) fn due(&mut self, now: Instant, last_heard: Instant, context: &Context) -> Due {
        if self.ends_at.is_some_and(|ends_at| now >= ends_at) {
            return Due::Close(Close::TokenExpired);
        }
        match (self.stalled_since, self.pinged_at) {
            (Some(since), _) if now >= since + context.send_queue.write_timeout => Due::Close(Close::WriteTimeout),
            (Some(_), _) => Due::Nothing,
            (None, Some(pinged_at)) if now >= pinged_at + context.server.pong_timeout => Due::Close(Close::NoPong),
            (None, None) if now >= last_heard + context.server.heartbeat => {
                self.pinged_at = Some(now);
                Due::Ping
            }
            (None, _) => Due::Nothing,
        }
    }
}
