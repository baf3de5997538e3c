//! Messages between instances about the connections of a user.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// On the control channel: `{"connections":{"user":"42","question":"…","instance":"…"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterQuestion {
    pub user: String,
    /// A random text that the answer repeats.
    pub question: String,
    /// The instance that asks.
    pub instance: String,
}

impl RosterQuestion {
    pub fn encode(&self) -> String {
        serde_json::json!({ "connections": self }).to_string()
    }
}

/// A part of one instance's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterAnswer {
    pub question: String,
    /// The instance that answers.
    pub instance: String,
    /// The number of parts.
    pub parts: usize,
    /// The user's connections on that instance, including those beyond the maximum that is listed.
    pub total: u64,
    pub connections: Vec<OpenConnection>,
}

impl RosterAnswer {
    pub fn encode(&self) -> String {
        // It always serialises: it has no map or float.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// One connection, as backends see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenConnection {
    pub id: String,
    pub instance: String,
    pub device: String,
    /// Without the port.
    pub address: IpAddr,
    /// In ms since 1970, by the clock of its instance.
    pub connected_at: u64,
    pub dialect: DialectName,
}

/// The dialects that backends tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DialectName {
    #[serde(rename = "tidings.v1")]
    TidingsV1,
    Raw,
    Sse,
    SocketIo,
}

impl DialectName {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TidingsV1 => "tidings.v1",
            Self::Raw => "raw",
            Self::Sse => "sse",
            Self::SocketIo => "socketio",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_has_one_name() {
        for name in [DialectName::TidingsV1, DialectName::Raw, DialectName::Sse, DialectName::SocketIo] {
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
        }
    }
}
