//! The in-process backplane: one instance, nothing to install, nothing survives the process.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::{Batch, Heard, Sink, USER_CHANNEL};
use crate::protocol::UserId;

/// Presence events that a slow reader may lag behind before it is told to start over.
pub(super) const EVENTS_KEPT: usize = 256;

/// See the module.
pub struct Memory {
    /// Locked while it delivers, which keeps the publishing order.
    sink: Mutex<Option<Sink>>,
    online: Mutex<BTreeSet<UserId>>,
    events: broadcast::Sender<Arc<str>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Memory {
    /// Nobody is online, nobody hears.
    #[must_use]
    pub fn new() -> Self {
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        Self { sink: Mutex::default(), online: Mutex::default(), events }
    }

    pub(super) fn subscribe(&self, sink: Sink) {
        *self.sink.lock() = Some(sink);
    }

    pub(super) fn publish(&self, user: &UserId, json: &str) {
        let channel = format!("{USER_CHANNEL}{user}");
        if let Some(sink) = self.sink.lock().as_ref() {
            sink(Heard::Message { channel: channel.as_bytes(), payload: json.as_bytes() });
            sink(Heard::Pause);
        }
    }

    pub(super) fn apply(&self, batch: &Batch) {
        let mut online = self.online.lock();
        for user in &batch.online {
            if online.insert(user.clone()) {
                self.tell(user, "online");
            }
        }
        for user in &batch.offline {
            if online.remove(user) {
                self.tell(user, "offline");
            }
        }
    }

    fn tell(&self, user: &UserId, status: &str) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let event = serde_json::json!({"user": user.as_str(), "status": status, "at": u64::try_from(at).ok()});
        // Nobody listening is fine.
        self.events.send(event.to_string().into()).ok();
    }

    pub(super) fn online(&self, limit: usize) -> (Vec<String>, u64) {
        let online = self.online.lock();
        (online.iter().take(limit).map(ToString::to_string).collect(), online.len() as u64)
    }

    pub(super) fn presence_events(&self) -> broadcast::Receiver<Arc<str>> {
        self.events.subscribe()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}
