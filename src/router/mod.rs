//! From what the backplane heard to the connections it is for: look the user up, encode once, queue for each.

mod unwritten;

use std::sync::Arc;
use std::thread::available_parallelism;

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::warn;

use crate::backplane::{Heard, USER_CHANNEL};
use crate::config::SendQueue as Bound;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, DEFAULT_EVENT, Encoded, Event, STAMP, Stamped, UserId, is_json};
use crate::registry::{Member, Pushed, Registry};
use crate::shutdown::Shutdown;
use unwritten::Unwritten;

/// See the module.
#[derive(Debug)]
pub struct Router {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    bound: Bound,
    max_payload_bytes: usize,
    unwritten: Mutex<Unwritten>,
    drops: LogRate,
    slow: LogRate,
}

/// Why a message is nobody's.
#[derive(Debug, Clone, Copy)]
enum Drop {
    Json,
    Utf8,
    Stamp,
    Size,
    UserId,
}

impl Drop {
    fn label(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Utf8 => "utf8",
            Self::Stamp => "stamp",
            Self::Size => "size",
            Self::UserId => "user_id",
        }
    }
}

impl Router {
    /// Routes to the connections of this registry.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        bound: Bound,
        max_payload_bytes: usize,
        shutdown: Shutdown,
    ) -> Self {
        let threads = available_parallelism().map_or(1, usize::from);
        Self {
            registry,
            metrics,
            bound,
            max_payload_bytes,
            unwritten: Mutex::new(Unwritten::new(threads, shutdown)),
            drops: LogRate::new(),
            slow: LogRate::new(),
        }
    }

    /// Takes one thing heard. Never waits: what a socket does not take is its connection's affair.
    pub fn take(&self, heard: Heard<'_>) {
        match heard {
            Heard::Message { channel, payload } => {
                self.metrics.messages_received.inc();
                if let Err(drop) = self.route(channel, payload) {
                    self.count_drop(drop, payload.len());
                }
            }
            Heard::Oversize { channel } => {
                self.metrics.messages_received.inc();
                // Whoever it was for: what was not kept is dropped for everybody.
                let drop = if channel.is_empty() { Drop::UserId } else { Drop::Size };
                self.count_drop(drop, channel.len());
            }
            // No user's: who starts this router gives it to another.
            Heard::Control { .. } => {}
            Heard::Pause => self.unwritten.lock().write(),
        }
    }

    fn route(&self, channel: &[u8], payload: &[u8]) -> Result<(), Drop> {
        let id = channel.strip_prefix(USER_CHANNEL.as_bytes()).ok_or(Drop::UserId)?;
        let user = str::from_utf8(id).map_err(|_| Drop::UserId)?;
        let mut unwritten = self.unwritten.lock();
        if unwritten.user != user {
            unwritten.write();
        }
        // Where nobody is here, the payload is not touched.
        let handed = self.registry.with(user, |members| {
            let text = str::from_utf8(payload).map_err(|_| Drop::Utf8)?;
            // JSON never begins like this: it is a notification with a name or a place.
            let stamped =
                if payload.starts_with(&[STAMP]) { Some(Stamped::parse(text).ok_or(Drop::Stamp)?) } else { None };
            let event = match &stamped {
                None => self.event(DEFAULT_EVENT, text, None)?,
                Some(Stamped { stored, event, data }) => self.event(event, data, stored.map(|(_, cursor)| cursor))?,
            };
            self.hand_to(members, event, &mut unwritten.members);
            Ok(())
        });
        match handed {
            Some(handed) => {
                handed?;
                user.clone_into(&mut unwritten.user);
            }
            None => {
                UserId::check(user).map_err(|_| Drop::UserId)?;
                self.metrics.messages_missed.inc();
            }
        }
        Ok(())
    }

    fn event<'a>(&self, name: &'a str, text: &'a str, cursor: Option<Cursor>) -> Result<Event<'a>, Drop> {
        if text.len() > self.max_payload_bytes {
            return Err(Drop::Size);
        }
        let data = text.trim_matches([' ', '\t', '\r', '\n']);
        if is_json(data) { Ok(Event { name, data, cursor }) } else { Err(Drop::Json) }
    }

    fn hand_to(&self, members: &[Arc<Member>], event: Event<'_>, unwritten: &mut Vec<Arc<Member>>) {
        let Some((last, others)) = members.split_last() else { return };
        let (mut encoded, stored, mut handed) = (Encoded::new(event), event.cursor, 0);
        for member in others {
            handed += self.push(member, encoded.frame(member.dialect), stored.as_ref(), unwritten);
        }
        handed += self.push(last, encoded.last_frame(last.dialect), stored.as_ref(), unwritten);
        self.metrics.deliveries.inc_by(handed);
    }

    /// Gives how many events were taken by the connection: 1, or 0 by one that is being closed, has it already, or is not level with the history.
    fn push(
        &self,
        member: &Arc<Member>,
        frame: Bytes,
        stored: Option<&Cursor>,
        unwritten: &mut Vec<Arc<Member>>,
    ) -> u64 {
        match member.outbox.push(frame, stored, &self.bound) {
            Pushed::First => unwritten.push(Arc::clone(member)),
            Pushed::Behind => {}
            Pushed::Displaced(lost) | Pushed::Full(lost) => self.count_slow(member, lost),
            // Counted when it is sent.
            Pushed::Waiting | Pushed::Known | Pushed::Closed => return 0,
        }
        1
    }

    fn count_drop(&self, drop: Drop, bytes: usize) {
        self.metrics.messages_dropped.with_label_values(&[drop.label()]).inc();
        if let Some(held_back) = self.drops.admit() {
            warn!(reason = drop.label(), bytes, held_back, "message dropped");
        }
    }

    fn count_slow(&self, member: &Member, lost: usize) {
        self.metrics.deliveries_dropped.inc_by(lost as u64);
        if let Some(held_back) = self.slow.admit() {
            warn!(connection = %member.id, lost, held_back, "slow connection: its outbox is full");
        }
    }
}
