//! Messages between instances about a user who has as many connections as are allowed.

use serde::{Deserialize, Serialize};

/// On the control channel, encoded like a command: `{"probe":{"user":"42","oldest":true}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum RoomMessage {
    /// Ping the user's connections, and release those that do not answer. With `oldest`, reply with the oldest one.
    Probe { user: String, oldest: bool },
    /// The oldest connection of the user on one instance.
    Oldest { user: String, connection: OldConnection },
    /// Close this connection: a new one takes its place.
    Replace { user: String, connection: String },
}

/// Ordered by age, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OldConnection {
    /// In ms since 1970, by the clock of its instance.
    pub opened: u64,
    pub id: String,
}

impl RoomMessage {
    pub fn encode(&self) -> String {
        // It always serialises: it has no map or float.
        serde_json::to_string(self).unwrap_or_default()
    }
}
