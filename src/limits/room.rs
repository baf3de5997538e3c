//! Makes room for a user who has as many connections as are allowed: every instance pings the user's connections, and those
//! that do not answer are closed. If all of them answer, the oldest may be replaced (`limits.over_user`).
//!
//! The instances exchange [`RoomMessage`]s on the control channel. If one is lost, the new connection is refused as if all
//! others had answered.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::fleet::{FleetPermit, FleetPermits};
use crate::backplane::Backplane;
use crate::config::{Config, LiveLimits, OverUser};
use crate::delivery::{ConnectionHandle, PROBE_TIMEOUT, Registry};
use crate::protocol::{Close, OldConnection, RoomMessage, UserId};

/// Added to [`PROBE_TIMEOUT`], for the messages there and the permits back.
const LATENCY: Duration = Duration::from_millis(500);

/// How long a message may take to be published: less than [`LATENCY`].
const PUBLISH_DEADLINE: Duration = Duration::from_millis(200);

/// How often a waiting connection tries to take a permit.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// Attempts to replace a connection: others of the user may be waiting too, and take the place of the first one.
const REPLACE_ATTEMPTS: u32 = 3;

/// Maximum number of connections of one user that wait; further ones are refused at once.
const MAX_WAITING: u32 = 8;

/// Messages that wait to be published; further ones are dropped.
const OUTGOING: usize = 1_024;

#[derive(Debug)]
pub struct Room {
    backplane: Backplane,
    registry: Arc<Registry>,
    limits: LiveLimits,
    patience: Duration,
    /// The users with connections that wait here.
    waiting: Mutex<HashMap<UserId, Waiting, RandomState>>,
    outgoing: mpsc::Sender<RoomMessage>,
    /// Until the task takes it.
    outgoing_rx: Mutex<Option<mpsc::Receiver<RoomMessage>>>,
}

#[derive(Debug, Default)]
struct Waiting {
    connections: u32,
    probed_at: Option<Instant>,
    /// Of those reported since the last probe.
    oldest: Option<OldConnection>,
}

impl Room {
    pub(super) fn new(config: &Config, backplane: &Backplane, registry: Arc<Registry>) -> Arc<Self> {
        let (outgoing, outgoing_rx) = mpsc::channel(OUTGOING);
        Arc::new(Self {
            backplane: backplane.clone(),
            registry,
            limits: config.limits.clone(),
            // A handshake must still be answered.
            patience: (PROBE_TIMEOUT + LATENCY).min(config.server.handshake_timeout / 2),
            waiting: Mutex::default(),
            outgoing,
            outgoing_rx: Mutex::new(Some(outgoing_rx)),
        })
    }

    /// A permit for a user at the limit, once there is room; `None` if no room was made in time.
    pub(super) async fn make(&self, user: &UserId, permits: &Arc<FleetPermits>) -> Option<FleetPermit> {
        let _waits = Waits::begin(self, user)?;
        self.probe(user);
        if let Some(permit) = retry(permits, user, self.patience).await {
            return Some(permit);
        }
        if self.limits.get().over_user == OverUser::Refuse {
            return None;
        }
        for _ in 0..REPLACE_ATTEMPTS {
            self.replace_oldest(user);
            if let Some(permit) = retry(permits, user, LATENCY).await {
                return Some(permit);
            }
        }
        None
    }

    /// Has the user's connections pinged, unless they are being pinged for another one that waits here.
    fn probe(&self, user: &UserId) {
        let mut waiting = self.waiting.lock();
        let Some(entry) = waiting.get_mut(user) else { return };
        if entry.probed_at.is_none_or(|at| at.elapsed() >= PROBE_TIMEOUT) {
            (entry.probed_at, entry.oldest) = (Some(Instant::now()), None);
            drop(waiting);
            let oldest = self.limits.get().over_user == OverUser::ReplaceOldest;
            self.send(RoomMessage::Probe { user: user.to_string(), oldest });
        }
    }

    /// Has the oldest connection closed; if it is not known, asks for it.
    fn replace_oldest(&self, user: &UserId) {
        let oldest = self.waiting.lock().get_mut(user).and_then(|waiting| waiting.oldest.take());
        let user = user.to_string();
        self.send(match oldest {
            Some(OldConnection { id: connection, .. }) => RoomMessage::Replace { user, connection },
            None => RoomMessage::Probe { user, oldest: true },
        });
    }

    /// Handles a message of an instance, possibly this one. Never blocks.
    pub fn take(&self, message: RoomMessage) {
        match message {
            RoomMessage::Probe { user, oldest } => {
                let connection = self.registry.with(&user, probe_all).flatten();
                if let Some(connection) = connection.filter(|_| oldest) {
                    self.send(RoomMessage::Oldest { user, connection });
                }
            }
            RoomMessage::Oldest { user, connection } => {
                if let Some(Waiting { oldest, .. }) = self.waiting.lock().get_mut(user.as_str())
                    && oldest.as_ref().is_none_or(|oldest| connection < *oldest)
                {
                    *oldest = Some(connection);
                }
            }
            RoomMessage::Replace { user, connection } => {
                self.registry.with(&user, |handles| {
                    let replaced = handles.iter().find(|handle| handle.id.to_string() == connection);
                    replaced.map(|handle| handle.queue.close(Close::Replaced))
                });
            }
        }
    }

    fn send(&self, message: RoomMessage) {
        // Full: as if the message were lost.
        if let Err(error) = self.outgoing.try_send(message) {
            debug!(%error, "message between instances dropped");
        }
    }

    /// Publishes the messages. Runs until dropped.
    pub(super) async fn run(&self) {
        let Some(mut outgoing) = self.outgoing_rx.lock().take() else { return };
        while let Some(message) = outgoing.recv().await {
            // An error is counted and logged. This instance's own connections are handled even then, and while Redis does not
            // answer: in time for the connection that waits.
            let command = message.encode();
            match timeout(PUBLISH_DEADLINE, self.backplane.publish_command(&command)).await {
                Ok(Ok(())) => {}
                _ => self.take(message),
            }
        }
    }
}

/// Returns the oldest.
fn probe_all(handles: &[Arc<ConnectionHandle>]) -> Option<OldConnection> {
    handles.iter().for_each(|handle| handle.probe());
    let oldest = handles.iter().min_by_key(|handle| handle.opened())?;
    Some(OldConnection { opened: oldest.opened(), id: oldest.id.to_string() })
}

async fn retry(permits: &Arc<FleetPermits>, user: &UserId, patience: Duration) -> Option<FleetPermit> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        sleep(RETRY_EVERY).await;
        let permit = permits.take(user).await;
        if permit.is_some() {
            return permit;
        }
    }
    None
}

/// Counts a waiting connection until it is dropped.
struct Waits<'a> {
    room: &'a Room,
    user: &'a UserId,
}

impl<'a> Waits<'a> {
    /// `None` if too many of this user wait already.
    fn begin(room: &'a Room, user: &'a UserId) -> Option<Self> {
        let mut waiting = room.waiting.lock();
        let entry = waiting.entry(user.clone()).or_default();
        if entry.connections >= MAX_WAITING {
            return None;
        }
        entry.connections += 1;
        Some(Self { room, user })
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.room.waiting.lock().entry(self.user.clone()) {
            match entry.get().connections {
                0..=1 => drop(entry.remove()),
                _ => entry.get_mut().connections -= 1,
            }
        }
    }
}
