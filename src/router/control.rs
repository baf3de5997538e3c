//! The control channel, on which backends disconnect users and revoke tokens, and instances make room for users at a limit, or
//! ask for the connections of a user.

use std::sync::Arc;

use tracing::{debug, info, warn};

use crate::delivery::{ConnectionHandle, Registry};
use crate::limits::Room;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Close, Command, CommandError, UserId};
use crate::revocation::RevocationList;
use crate::roster::Roster;

#[derive(Debug)]
pub struct Control {
    registry: Arc<Registry>,
    revocations: Arc<RevocationList>,
    room: Arc<Room>,
    roster: Arc<Roster>,
    metrics: Arc<Metrics>,
    warnings: LogRate,
    disconnects: LogRate,
}

impl Control {
    pub fn new(
        registry: Arc<Registry>,
        revocations: Arc<RevocationList>,
        room: Arc<Room>,
        roster: Arc<Roster>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (warnings, disconnects) = (LogRate::new(), LogRate::new());
        Self { registry, revocations, room, roster, metrics, warnings, disconnects }
    }

    /// Executes one control message. Never blocks.
    pub fn take(&self, payload: &[u8]) {
        let command = match Command::parse(payload) {
            Ok(Command::Disconnect { user, connection }) => {
                self.disconnect(&user, connection.as_deref());
                "disconnect"
            }
            Ok(Command::Revoke(revocation)) => {
                self.revocations.revoke(revocation);
                "revoke"
            }
            Ok(Command::Room(message)) => {
                self.room.take(message);
                "room"
            }
            Ok(Command::Roster(question)) => {
                self.roster.note(question);
                "connections"
            }
            Err(error) => {
                let command = if matches!(error, CommandError::Unknown(_)) { "unknown" } else { "bad" };
                if let Some(held_back) = self.warnings.admit() {
                    warn!(%error, bytes = payload.len(), held_back, "control message dropped");
                }
                command
            }
        };
        self.metrics.control_messages.with_label_values(&[command]).inc();
    }

    fn disconnect(&self, user: &UserId, connection: Option<&str>) {
        let is_target = |handle: &&Arc<ConnectionHandle>| connection.is_none_or(|id| handle.id.to_string() == id);
        let closed = self.registry.with(user.as_str(), |handles| {
            let targets = handles.iter().filter(is_target);
            targets.map(|handle| handle.queue.close(Close::Disconnected)).count()
        });
        let (user, closed, code) = (user.as_str(), closed.unwrap_or_default(), Close::Disconnected.code());
        // Every instance receives the command; one without a connection of the user has nothing to report.
        let line = if closed > 0 { self.disconnects.admit() } else { None };
        match line {
            Some(held_back) => info!(user, connection, closed, code, held_back, "disconnected by a command"),
            None => debug!(user, connection, closed, code, "disconnected by a command"),
        }
    }
}
