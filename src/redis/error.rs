//! Errors of Redis operations, and the kind under which each is counted.

use std::time::Duration;

use super::Malformed;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Config(String),
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// An error reply: its code, such as `NOAUTH`, and the rest of the line.
    #[error("redis: {code} {message}")]
    Refused { code: String, message: String },
    #[error("redis: {0}")]
    Io(#[from] std::io::Error),
    #[error("redis: connection closed by the server")]
    Ended,
    /// The subscription is dead: not even the probes arrived.
    #[error("redis: no message received for {0:?}")]
    Silent(Duration),
    /// The last connection attempt failed with this error, and the retry pause is not over.
    #[error("{why}")]
    Unreachable { kind: &'static str, why: String },
    #[error("redis: {0}")]
    Malformed(#[from] Malformed),
    #[error("redis: no reply within {0:?}")]
    Timeout(Duration),
    /// A reply that this script or command never sends.
    #[error("redis: unexpected reply {0}")]
    UnexpectedReply(String),
}

/// Error codes of Redis that have a metric label of their own.
const KNOWN_CODES: [&str; 10] =
    ["LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM", "NOREPLICAS", "OOM", "READONLY", "UNBLOCKED", "WRONGPASS"];

/// The start of Redis 7.0's error when a script lacks a permission.
const SCRIPT_RIGHTS: &str = "The user executing the script can't ";

impl Error {
    /// Keeps the first 80 characters of the reply.
    pub fn unexpected(reply: impl AsRef<str>) -> Self {
        Self::UnexpectedReply(reply.as_ref().chars().take(80).collect())
    }

    /// Parses the line of an error reply.
    pub(super) fn refused(line: &str) -> Self {
        let (code, message) = line.split_once(' ').unwrap_or((line, ""));
        Self::Refused { code: code.to_owned(), message: message.to_owned() }
    }

    /// Whether Redis replied with an error, as opposed to being unreachable.
    pub fn is_refusal(&self) -> bool {
        let kind = self.kind();
        kind == "refused" || KNOWN_CODES.contains(&kind)
    }

    /// The label in metrics and logs: an error code of Redis in upper case, or one of tidings in lower case.
    pub fn kind(&self) -> &'static str {
        let known = |code: &str| KNOWN_CODES.into_iter().find(|known| *known == code).unwrap_or("refused");
        match self {
            Self::Config(_) => "config",
            Self::Timeout(_) => "timeout",
            Self::Silent(_) => "silent",
            Self::UnexpectedReply(_) | Self::Malformed(_) => "malformed",
            Self::Io(_) | Self::Ended => "connection",
            Self::Unreachable { kind, .. } => kind,
            Self::Redis(error) if error.is_timeout() => "timeout",
            Self::Redis(error) if error.is_io_error() || error.is_connection_dropped() => "connection",
            // redis-rs drops the code of a refused AUTH, and Redis 7.0 reports a missing script permission without one.
            Self::Redis(error) if error.kind() == redis::ErrorKind::AuthenticationFailed => "WRONGPASS",
            Self::Redis(error) if error.detail().is_some_and(|detail| detail.starts_with(SCRIPT_RIGHTS)) => "NOPERM",
            Self::Redis(error) => error.code().map_or("refused", known),
            Self::Refused { code, .. } => known(code),
        }
    }
}
