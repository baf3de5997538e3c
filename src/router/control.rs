//! The control channel, on which backends disconnect users and revoke tokens.

use std::sync::Arc;

use tracing::{debug, warn};

use crate::delivery::{ConnectionHandle, Registry};
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Close, Command, CommandError, UserId};
use crate::revocation::RevocationList;

#[derive(Debug)]
pub struct Control {
    registry: Arc<Registry>,
    revocations: Arc<RevocationList>,
    metrics: Arc<Metrics>,
    warnings: LogRate,
}

impl Control {
    pub fn new(registry: Arc<Registry>, revocations: Arc<RevocationList>, metrics: Arc<Metrics>) -> Self {
        Self { registry, revocations, metrics, warnings: LogRate::new() }
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
        debug!(closed = closed.unwrap_or_default(), "disconnected by a command");
    }
}
