//! Routes each received message to its user's connections: looks up the user, encodes once, queues for each connection.

mod control;
mod write_batch;

use std::sync::Arc;
use std::thread::available_parallelism;

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::warn;

use crate::backplane::{BackplaneEvent, USER_CHANNEL};
use crate::config::SendQueue as Bound;
use crate::delivery::{ConnectionHandle, Pushed, Registry};
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, DEFAULT_EVENT, ENVELOPE_START, Encoded, Envelope, Event, UserId, is_json};
use crate::shutdown::Shutdown;
pub use control::Control;
use write_batch::WriteBatch;

#[derive(Debug)]
pub struct Router {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    bound: Bound,
    max_payload_bytes: usize,
    batch: Mutex<WriteBatch>,
    drops: LogRate,
    slow: LogRate,
}

#[derive(Debug, Clone, Copy)]
enum DropReason {
    Json,
    Utf8,
    Envelope,
    Size,
    UserId,
}

impl DropReason {
    fn label(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Utf8 => "utf8",
            Self::Envelope => "stamp",
            Self::Size => "size",
            Self::UserId => "user_id",
        }
    }
}

impl Router {
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
            batch: Mutex::new(WriteBatch::new(threads, shutdown)),
            drops: LogRate::new(),
            slow: LogRate::new(),
        }
    }

    /// Handles one event. Never blocks: the connection's task writes the bytes that its socket does not accept.
    pub fn take(&self, event: BackplaneEvent<'_>) {
        match event {
            BackplaneEvent::Message { channel, payload } => {
                self.metrics.messages_received.inc();
                if let Err(drop) = self.route(channel, payload) {
                    self.count_drop(drop, payload.len());
                }
            }
            BackplaneEvent::Oversize { channel } => {
                self.metrics.messages_received.inc();
                let drop = if channel.is_empty() { DropReason::UserId } else { DropReason::Size };
                self.count_drop(drop, channel.len());
            }
            // Handled elsewhere: see `gateway`.
            BackplaneEvent::Subscribed | BackplaneEvent::Control { .. } | BackplaneEvent::Presence { .. } => {}
            BackplaneEvent::Pause => self.batch.lock().write(),
        }
    }

    fn route(&self, channel: &[u8], payload: &[u8]) -> Result<(), DropReason> {
        let id = channel.strip_prefix(USER_CHANNEL.as_bytes()).ok_or(DropReason::UserId)?;
        let user = str::from_utf8(id).map_err(|_| DropReason::UserId)?;
        let mut batch = self.batch.lock();
        if batch.user != user {
            batch.write();
        }
        // If the user is not connected here, the payload is not read.
        let routed = self.registry.with(user, |handles| {
            let text = str::from_utf8(payload).map_err(|_| DropReason::Utf8)?;
            // JSON never starts with this byte: the payload is an envelope with an event name or a position.
            let envelope = if payload.starts_with(&[ENVELOPE_START]) {
                Some(Envelope::parse(text).ok_or(DropReason::Envelope)?)
            } else {
                None
            };
            let event = match &envelope {
                None => self.event(DEFAULT_EVENT, text, None)?,
                Some(Envelope { stored, event, data }) => self.event(event, data, stored.map(|(_, cursor)| cursor))?,
            };
            self.push_to_all(handles, event, &mut batch.handles);
            Ok(())
        });
        match routed {
            Some(routed) => {
                routed?;
                user.clone_into(&mut batch.user);
            }
            None => {
                UserId::check(user).map_err(|_| DropReason::UserId)?;
                self.metrics.messages_missed.inc();
            }
        }
        Ok(())
    }

    fn event<'a>(&self, name: &'a str, text: &'a str, cursor: Option<Cursor>) -> Result<Event<'a>, DropReason> {
        if text.len() > self.max_payload_bytes {
            return Err(DropReason::Size);
        }
        let data = text.trim_matches([' ', '\t', '\r', '\n']);
        if is_json(data) { Ok(Event { name, data, cursor }) } else { Err(DropReason::Json) }
    }

    fn push_to_all(&self, handles: &[Arc<ConnectionHandle>], event: Event<'_>, batch: &mut Vec<Arc<ConnectionHandle>>) {
        let Some((last, others)) = handles.split_last() else { return };
        let (mut encoded, stored, mut delivered) = (Encoded::new(event), event.cursor, 0);
        for handle in others {
            delivered += self.push(handle, encoded.frame(handle.dialect), stored.as_ref(), batch);
        }
        delivered += self.push(last, encoded.last_frame(last.dialect), stored.as_ref(), batch);
        self.metrics.deliveries.inc_by(delivered);
    }

    /// Returns the events delivered: 0 if the connection is closing, has the event already or has not caught up.
    fn push(
        &self,
        handle: &Arc<ConnectionHandle>,
        frame: Bytes,
        stored: Option<&Cursor>,
        batch: &mut Vec<Arc<ConnectionHandle>>,
    ) -> u64 {
        match handle.queue.push(frame, stored, &self.bound) {
            Pushed::First => batch.push(Arc::clone(handle)),
            Pushed::Behind => {}
            Pushed::Displaced(lost) | Pushed::Full(lost) => self.count_slow(handle, lost),
            // A pending event is counted when it is sent.
            Pushed::Pending | Pushed::Known | Pushed::Closed => return 0,
        }
        1
    }

    fn count_drop(&self, drop: DropReason, bytes: usize) {
        self.metrics.messages_dropped.with_label_values(&[drop.label()]).inc();
        if let Some(held_back) = self.drops.admit() {
            warn!(reason = drop.label(), bytes, held_back, "message dropped");
        }
    }

    fn count_slow(&self, handle: &ConnectionHandle, lost: usize) {
        self.metrics.deliveries_dropped.inc_by(lost as u64);
        if let Some(held_back) = self.slow.admit() {
            warn!(connection = %handle.id, lost, held_back, "slow connection: its send queue is full");
        }
    }
}
