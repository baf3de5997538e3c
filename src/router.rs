//! From what the backplane heard to the connections it is for: look the user up, encode once, queue for each.

use std::sync::Arc;

use parking_lot::Mutex;
use tracing::warn;

use crate::backplane::{Heard, USER_CHANNEL};
use crate::config::Outbox as Bound;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Encoded, Event, UserId, is_json};
use crate::registry::{Member, Pushed, Registry};

/// The event's name where the backend named none.
pub const DEFAULT_EVENT: &str = "notification";

/// See the module.
#[derive(Debug)]
pub struct Router {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    bound: Bound,
    max_payload_bytes: usize,
    /// Connections that got something since the last pause and whose outbox was empty before it.
    to_flush: Mutex<Vec<Arc<Member>>>,
    drops: LogRate,
    slow: LogRate,
}

/// Why a message is nobody's.
#[derive(Debug, Clone, Copy)]
enum Drop {
    Json,
    Utf8,
    Size,
    UserId,
}

impl Drop {
    fn label(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Utf8 => "utf8",
            Self::Size => "size",
            Self::UserId => "user_id",
        }
    }
}

impl Router {
    /// Routes to the connections of this registry.
    #[must_use]
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>, bound: Bound, max_payload_bytes: usize) -> Self {
        Self {
            registry,
            metrics,
            bound,
            max_payload_bytes,
            to_flush: Mutex::default(),
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
            Heard::Pause => self.flush(),
        }
    }

    fn route(&self, channel: &[u8], payload: &[u8]) -> Result<(), Drop> {
        let id = channel.strip_prefix(USER_CHANNEL.as_bytes()).ok_or(Drop::UserId)?;
        let user = str::from_utf8(id).map_err(|_| Drop::UserId)?;
        // Made for the first connection: where nobody is here, the payload is not touched.
        let mut encoded: Option<Result<Encoded<'_>, Drop>> = None;
        let mut to_flush = self.to_flush.lock();
        let is_here = self.registry.each_of(user, |member| {
            if let Ok(encoded) = encoded.get_or_insert_with(|| self.event(payload).map(Encoded::new)) {
                self.hand_to(member, encoded, &mut to_flush);
            }
        });
        if !is_here {
            UserId::check(user).map_err(|_| Drop::UserId)?;
            self.metrics.messages_missed.inc();
        }
        encoded.map_or(Ok(()), |encoded| encoded.map(|_| ()))
    }

    fn event<'a>(&self, payload: &'a [u8]) -> Result<Event<'a>, Drop> {
        if payload.len() > self.max_payload_bytes {
            return Err(Drop::Size);
        }
        let text = str::from_utf8(payload).map_err(|_| Drop::Utf8)?;
        let data = text.trim_matches([' ', '\t', '\r', '\n']);
        if is_json(data) { Ok(Event { name: DEFAULT_EVENT, data }) } else { Err(Drop::Json) }
    }

    fn hand_to(&self, member: &Arc<Member>, encoded: &mut Encoded<'_>, to_flush: &mut Vec<Arc<Member>>) {
        let lost = match member.outbox.push(encoded.frame(member.dialect), &self.bound) {
            Pushed::First => {
                to_flush.push(Arc::clone(member));
                0
            }
            Pushed::Behind => 0,
            Pushed::Closed => return,
            Pushed::Displaced(lost) | Pushed::Full(lost) => lost,
        };
        self.metrics.deliveries.inc();
        if lost > 0 {
            self.count_slow(member, lost);
        }
    }

    /// Writes what was queued since the last pause: several events for one connection are one write.
    fn flush(&self) {
        for member in self.to_flush.lock().drain(..) {
            member.outbox.flush();
        }
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
