//! The control channel: backends disconnect a user or revoke a token.

use std::sync::Arc;

use tracing::{debug, warn};

use crate::delivery::{ConnectionHandle, Registry};
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Close, Command, CommandError, UserId};
use crate::revocation::RevocationList;

/// Carries out commands on this instance.
#[derive(Debug)]
pub struct Control {
    registry: Arc<Registry>,
    revocations: Arc<RevocationList>,
    metrics: Arc<Metrics>,
    refusals: LogRate,
}

impl Control {
    /// For the connections of this registry.
    pub fn new(registry: Arc<Registry>, revocations: Arc<RevocationList>, metrics: Arc<Metrics>) -> Self {
        Self { registry, revocations, metrics, refusals: LogRate::new() }
    }

    /// Carries out one message of the control channel. Never waits.
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
            Err(error) => {
                let command = if matches!(error, CommandError::Unknown(_)) { "unknown" } else { "bad" };
                if let Some(held_back) = self.refusals.admit() {
                    warn!(%error, bytes = payload.len(), held_back, "control message dropped");
                }
                command
            }
        };
        self.metrics.control_messages.with_label_values(&[command]).inc();
    }

    fn disconnect(&self, user: &UserId, connection: Option<&str>) {
        let is_meant = |handle: &&Arc<ConnectionHandle>| connection.is_none_or(|id| handle.id.to_string() == id);
        let closed = self.registry.with(user.as_str(), |handles| {
            let meant = handles.iter().filter(is_meant);
            meant.map(|handle| handle.queue.close(Close::Disconnected)).count()
        });
        debug!(closed = closed.unwrap_or_default(), "disconnected by a command");
    }
}
