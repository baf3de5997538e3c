//! Why an operation on Redis failed, and the kind under which it is counted.

use std::time::Duration;

use super::Malformed;

/// Why Redis did not carry out an operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// The error of the client library.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Redis replied with an error: its code, and the rest of the line.
    #[error("redis: {code} {message}")]
    Refused {
        /// Such as `NOAUTH`.
        code: String,
        /// For the operator.
        message: String,
    },
    /// The connection could not be made, or broke.
    #[error("redis: {0}")]
    Io(#[from] std::io::Error),
    /// Redis closed the connection.
    #[error("redis: the connection ended")]
    Ended,
    /// A subscription received nothing for so long that it must be dead.
    #[error("redis: nothing received for {0:?}")]
    Silent(Duration),
    /// The last connect failed a moment ago; the next one has to wait.
    #[error("{why}")]
    Unreachable {
        /// The kind of that failure.
        kind: &'static str,
        /// Its text.
        why: String,
    },
    /// The bytes received are not the protocol of a subscription.
    #[error("redis: {0}")]
    Malformed(#[from] Malformed),
    /// No reply before the deadline.
    #[error("redis: no reply within {0:?}")]
    Timeout(Duration),
    /// A reply that a script or command never gives.
    #[error("redis: unexpected reply {0}")]
    UnexpectedReply(String),
}

/// Error codes of Redis that have a metric label of their own.
const KNOWN_CODES: [&str; 10] =
    ["LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM", "NOREPLICAS", "OOM", "READONLY", "UNBLOCKED", "WRONGPASS"];

/// The start of Redis 7.0's error when a script lacks a permission.
const SCRIPT_RIGHTS: &str = "The user executing the script can't ";

impl Error {
    /// A reply that is not understood; its first 80 characters are kept.
    pub fn unexpected(reply: impl AsRef<str>) -> Self {
        Self::UnexpectedReply(reply.as_ref().chars().take(80).collect())
    }

    /// From the line of an error reply.
    pub(super) fn refused(line: &str) -> Self {
        let (code, message) = line.split_once(' ').unwrap_or((line, ""));
        Self::Refused { code: code.to_owned(), message: message.to_owned() }
    }

    /// Whether Redis replied and refused, as opposed to being unreachable.
    pub fn is_refusal(&self) -> bool {
        let kind = self.kind();
        kind == "refused" || KNOWN_CODES.contains(&kind)
    }

    /// The label in metrics and logs: an error code of Redis, or one of our own words in lower case.
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
            // The library drops the code of a refused AUTH, and Redis 7.0 gives a missing script permission no code.
            Self::Redis(error) if error.kind() == redis::ErrorKind::AuthenticationFailed => "WRONGPASS",
            Self::Redis(error) if error.detail().is_some_and(|detail| detail.starts_with(SCRIPT_RIGHTS)) => "NOPERM",
            Self::Redis(error) => error.code().map_or("refused", known),
            Self::Refused { code, .. } => known(code),
        }
    }
}
