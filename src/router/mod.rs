//! Routes each received message to its user's connections: looks up the user, encodes once, queues for each connection.
//! A broadcast goes to all connections.

mod broadcast;
mod control;
mod sampler;
mod write_batch;

use std::sync::Arc;
use std::thread::available_parallelism;

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::field::display;
use tracing::{debug, warn};

use crate::backplane::BackplaneEvent;
use crate::config::{LiveLimits, SendQueue as Bound};
use crate::delivery::{ConnectionHandle, Pushed, Registry};
use crate::history::PendingAcks;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{
    Cursor, DEFAULT_EVENT, ENVELOPE_START, Encoded, Envelope, Event, NOTICE_START, Notice, Retracted, ServerFrame,
    UserId, is_json,
};
use crate::shutdown::Shutdown;
use broadcast::Broadcasts;
pub use control::Control;
use write_batch::WriteBatch;

/// How much of a channel's name is logged, in bytes: more than the longest user id needs.
const MAX_CHANNEL: usize = 320;

#[derive(Debug)]
pub struct Router {
    registry: Arc<Registry>,
    acks: Arc<PendingAcks>,
    metrics: Arc<Metrics>,
    bound: Bound,
    user_channel: Box<str>,
    limits: LiveLimits,
    batch: Mutex<WriteBatch>,
    broadcasts: Broadcasts,
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
    /// Clients of one dialect keep the event's name for themselves; the others receive it.
    ReservedEvent,
    /// Too many broadcasts wait.
    Overflow,
}

impl DropReason {
    fn label(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Utf8 => "utf8",
            Self::Envelope => "stamp",
            Self::Size => "size",
            Self::UserId => "user_id",
            Self::ReservedEvent => "reserved_event",
            Self::Overflow => "overflow",
        }
    }
}

impl Router {
    pub fn new(
        registry: Arc<Registry>,
        acks: Arc<PendingAcks>,
        metrics: Arc<Metrics>,
        bound: Bound,
        user_channel: &str,
        limits: LiveLimits,
        shutdown: Shutdown,
    ) -> Self {
        let threads = available_parallelism().map_or(1, usize::from);
        Self {
            registry,
            acks,
            metrics,
            bound,
            user_channel: user_channel.into(),
            limits,
            batch: Mutex::new(WriteBatch::new(threads, shutdown)),
            broadcasts: Broadcasts::default(),
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
                    self.count_drop(drop, Some(channel), Some(payload.len()));
                }
            }
            BackplaneEvent::Broadcast { payload } => {
                self.metrics.messages_received.inc();
                if let Err(drop) = self.broadcast(payload) {
                    self.count_drop(drop, None, Some(payload.len()));
                }
            }
            BackplaneEvent::Oversize { channel } => {
                self.metrics.messages_received.inc();
                let drop = if channel.is_empty() { DropReason::UserId } else { DropReason::Size };
                self.count_drop(drop, Some(channel), None);
            }
            // Handled elsewhere: see `gateway`.
            BackplaneEvent::Subscribed { .. }
            | BackplaneEvent::UserMissed { .. }
            | BackplaneEvent::Control { .. }
            | BackplaneEvent::Answer { .. }
            | BackplaneEvent::Presence { .. } => {}
            BackplaneEvent::Read { at } => self.batch.lock().sampler.begin(at),
            BackplaneEvent::Pause => self.batch.lock().write(),
        }
    }

    fn route(&self, channel: &[u8], payload: &[u8]) -> Result<(), DropReason> {
        let id = channel.strip_prefix(self.user_channel.as_bytes()).ok_or(DropReason::UserId)?;
        let user = str::from_utf8(id).map_err(|_| DropReason::UserId)?;
        let mut batch = self.batch.lock();
        if batch.user != user {
            batch.write();
        }
        let mut traced = None;
        // If the user is not connected here, the payload is not read.
        let routed = self.registry.with(user, |handles| {
            let text = str::from_utf8(payload).map_err(|_| DropReason::Utf8)?;
            // JSON never starts with this byte: the payload is a notice, or an envelope with an event name or a position.
            let envelope = if payload.first() != Some(&ENVELOPE_START) {
                None
            } else if text.starts_with(NOTICE_START) {
                let notice = Notice::parse(text).ok_or(DropReason::Envelope)?;
                self.push_notice(user, handles, &notice, &mut batch.handles);
                return Ok(());
            } else {
                Some(Envelope::parse(text).ok_or(DropReason::Envelope)?)
            };
            let event = match &envelope {
                None => self.event(DEFAULT_EVENT, text)?,
                Some(Envelope { stored, collapse, event, trace, data }) => {
                    let (cursor, collapse) = (stored.map(|stored| stored.cursor), collapse.as_deref());
                    Event { cursor, collapse, trace: trace.as_deref(), ..self.event(event, data)? }
                }
            };
            self.push_to_all(handles, event, Some(channel), &mut batch.handles);
            if let (Some(read_at), Some(handle)) = (batch.sampler.next(), handles.first()) {
                handle.queue.measure(read_at);
            }
            traced = envelope.and_then(|Envelope { trace, stored, .. }| Some((trace?, stored, handles.len())));
            Ok(())
        });
        // Not under the lock of the map: the log may block.
        if let Some((traceparent, stored, connections)) = traced {
            let cursor = stored.map(|stored| display(stored.cursor));
            debug!(traceparent, user, connections, cursor, "notification routed");
        }
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

    fn event<'a>(&self, name: &'a str, text: &'a str) -> Result<Event<'a>, DropReason> {
        if text.len() > self.limits.max_payload_bytes() {
            return Err(DropReason::Size);
        }
        let data = text.trim_matches([' ', '\t', '\r', '\n']);
        if is_json(data) { Ok(Event::ephemeral(name, data)) } else { Err(DropReason::Json) }
    }

    /// Pushes the frame of a notice like an event that is not stored: it keeps its place among the events.
    fn push_notice(
        &self,
        user: &str,
        handles: &[Arc<ConnectionHandle>],
        notice: &Notice,
        batch: &mut Vec<Arc<ConnectionHandle>>,
    ) {
        if let Notice::Read { read, device, by, .. } = notice
            && !self.acks.gives_way(user, device, read, *by)
        {
            return;
        }
        let frame = match notice {
            Notice::Retracted { retracted } => ServerFrame::Retracted(Retracted::Id(*retracted)),
            Notice::Erased { .. } => ServerFrame::Retracted(Retracted::All(true)),
            Notice::Read { read, device, unread, .. } => ServerFrame::Read { device, id: *read, unread: *unread },
        };
        let concerns = |handle: &Arc<ConnectionHandle>| match notice {
            Notice::Read { by, device, .. } => *by != Some(handle.id) && self.registry.is_of_device(handle.id, device),
            Notice::Retracted { .. } | Notice::Erased { .. } => true,
        };
        let mut encoded = None;
        for handle in handles.iter().filter(|handle| concerns(handle)) {
            let (_, bytes) = match encoded.take() {
                Some((dialect, bytes)) if dialect == handle.dialect => encoded.insert((dialect, bytes)),
                _ => encoded.insert((handle.dialect, frame.encode(handle.dialect))),
            };
            if !matches!(notice, Notice::Read { .. }) {
                handle.note_retraction();
            }
            match (notice, bytes.clone()) {
                (Notice::Erased { erased }, bytes) => handle.queue.erase(*erased, bytes),
                (_, Some(bytes)) => {
                    self.push(handle, bytes, None, batch);
                }
                (_, None) => {}
            }
        }
    }

    /// `channel`: of one user; `None` for a broadcast.
    fn push_to_all(
        &self,
        handles: &[Arc<ConnectionHandle>],
        event: Event<'_>,
        channel: Option<&[u8]>,
        batch: &mut Vec<Arc<ConnectionHandle>>,
    ) {
        let Some((last, others)) = handles.split_last() else { return };
        let (mut encoded, stored, mut delivered, mut empty) = (Encoded::new(event), event.cursor, 0, false);
        for handle in others {
            let frame = encoded.frame(handle.dialect);
            empty |= frame.is_empty();
            delivered += self.push(handle, frame, stored.as_ref(), batch);
        }
        let frame = encoded.last_frame(last.dialect);
        empty |= frame.is_empty();
        delivered += self.push(last, frame, stored.as_ref(), batch);
        self.metrics.deliveries.inc_by(delivered);
        if empty {
            self.count_drop(DropReason::ReservedEvent, channel, Some(event.data.len()));
        }
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
            Pushed::Displaced(lost) => self.count_displaced(handle, lost),
            // The connection logs its own end.
            Pushed::Full(lost) => self.metrics.deliveries_dropped.inc_by(lost as u64),
            // A pending event is counted when it is sent.
            Pushed::Pending | Pushed::Known | Pushed::Closed => return 0,
        }
        1
    }

    /// `channel`: of one user, whom the log thereby names; `None` for a broadcast.
    fn count_drop(&self, drop: DropReason, channel: Option<&[u8]>, bytes: Option<usize>) {
        self.metrics.messages_dropped.with_label_values(&[drop.label()]).inc();
        if let Some(held_back) = self.drops.admit() {
            let channel = channel.map(|name| String::from_utf8_lossy(name.get(..MAX_CHANNEL).unwrap_or(name)));
            warn!(reason = drop.label(), channel = channel.as_deref(), bytes, held_back, "message dropped");
        }
    }

    fn count_displaced(&self, handle: &ConnectionHandle, lost: usize) {
        self.metrics.deliveries_dropped.inc_by(lost as u64);
        if let Some(held_back) = self.slow.admit() {
            let (connection, address) = (&handle.id, handle.address());
            warn!(%connection, %address, lost, held_back, "slow connection: its oldest events were dropped");
        }
    }
}
