//! Errors of Redis operations, and the kind under which each is counted.

use std::time::Duration;

use super::Malformed;
use super::tls::with_advice;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Config(String),
    #[error("redis: {}", with_advice(without_arguments(&.0.to_string())))]
    Redis(redis::RedisError),
    /// An error reply: its code, such as `NOAUTH`, and the rest of the line.
    #[error("redis: {code} {message}")]
    Refused { code: String, message: String },
    #[error("redis: {}", with_advice(&.0.to_string()))]
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
    /// The connection was closed for it.
    #[error("redis: the address leads to another server")]
    Moved,
    #[error("redis: the server is a replica; redis.url must lead to the master")]
    Replica,
    #[error("redis: the server is a node of a cluster; redis.url must begin with redis+cluster://")]
    Cluster,
    #[error("redis: the server has version {0}; expected Redis 6.2 or later, or a compatible server")]
    Unsupported(String),
    #[error("redis: the server is no node of a cluster; redis.url must not begin with redis+cluster://")]
    NoCluster,
    /// A reply that this script or command never sends.
    #[error("redis: unexpected reply {0}")]
    UnexpectedReply(String),
}

/// Error codes of Redis that have a metric label of their own.
const KNOWN_CODES: [&str; 15] = [
    "ASK",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
    "WRONGPASS",
];

/// Codes with which a cluster says that no node serves the slot now.
const UNSERVED: [&str; 4] = ["ASK", "CLUSTERDOWN", "MOVED", "TRYAGAIN"];

const WRONG_TYPE: &str = "WRONGTYPE";
/// The code of a call that succeeded, but that too few replicas have.
pub(super) const NOT_REPLICATED: &str = "NOTREPLICATED";

/// What follows in the error for an unknown command are its arguments, which may be a password or a notification.
const ARGUMENTS: &str = ", with args beginning with";

/// The start of the error when a script lacks a permission, in Redis up to 7.0 and later.
const SCRIPT_RIGHTS: [&str; 2] = ["The user executing the script can't ", "ACL failure in script: "];

impl From<redis::RedisError> for Error {
    fn from(error: redis::RedisError) -> Self {
        if let Some(line) = raised_in_script(&error) {
            return Self::raised(line);
        }
        if error.code().is_some() {
            return Self::Redis(error);
        }
        // A pipeline has the errors of its commands, whose codes redis-rs does not show.
        let errors = error.clone().into_server_errors();
        match errors.as_ref().and_then(|errors| errors.first()) {
            Some((_, first)) => Self::refused(&format!("{} {}", first.code(), first.details().unwrap_or_default())),
            None => Self::Redis(error),
        }
    }
}

impl Error {
    /// The same error for another caller.
    pub fn again(&self) -> Self {
        Self::Unreachable { kind: self.kind(), why: self.to_string() }
    }

    /// Keeps the first 80 characters of the reply.
    pub fn unexpected(reply: impl AsRef<str>) -> Self {
        Self::UnexpectedReply(reply.as_ref().chars().take(80).collect())
    }

    /// The error of one of its commands that a script replied with, as text after a `-`; `None` for another reply.
    pub fn of_reply(reply: &str) -> Option<Self> {
        let line = reply.strip_prefix('-')?;
        // Redis 6.2 names the line of the script.
        let raised = line.strip_prefix("@user_script: ").and_then(|rest| Some(rest.split_once(": ")?.1));
        Some(Self::raised(raised.map_or(line, |raised| raised.strip_prefix('-').unwrap_or(raised))))
    }

    /// Of a command of a script, which may have no code.
    fn raised(line: &str) -> Self {
        let coded = line.split(' ').next().is_some_and(|code| code.bytes().all(|byte| byte.is_ascii_uppercase()));
        if coded { Self::refused(line) } else { Self::refused(&format!("ERR {line}")) }
    }

    /// Parses the line of an error reply.
    pub(super) fn refused(line: &str) -> Self {
        let (code, message) = without_arguments(line).split_once(' ').unwrap_or((line, ""));
        Self::Refused { code: code.to_owned(), message: message.to_owned() }
    }

    /// Whether Redis replied with an error, as opposed to being unreachable.
    pub fn is_refusal(&self) -> bool {
        let kind = self.kind();
        let is_code = ["refused", "unknown_command"].contains(&kind) || KNOWN_CODES.contains(&kind);
        is_code && !is_unserved(kind)
    }

    /// Whether the server did not reply, could not be reached, or cannot be used: it has lines of its own in the log.
    pub(super) fn is_outage(&self) -> bool {
        !matches!(self, Self::Moved) && (self.is_unusable() || ["connection", "timeout"].contains(&self.kind()))
    }

    /// Whether the server replies, and no connection to it can be used.
    pub(super) fn is_unusable(&self) -> bool {
        ["cluster", "NOAUTH", "replica", "unsupported", "WRONGPASS"].contains(&self.kind())
    }

    /// Whether there is no server to execute the operation now.
    pub(super) fn is_unserved(&self) -> bool {
        UNSERVED.contains(&self.kind()) || self.kind() == "sentinel"
    }

    /// Whether this server can never be used with the configured URL.
    pub fn is_unsuitable(&self) -> bool {
        matches!(self, Self::Cluster | Self::NoCluster | Self::Unsupported(_))
    }

    /// Whether Redis will refuse this until someone changes its configuration or its users' rights.
    pub fn is_lasting_refusal(&self) -> bool {
        ["CROSSSLOT", "NOPERM", "unknown_command"].contains(&self.kind())
    }

    /// The label in metrics and logs: an error code of Redis in upper case, or one of tidings in lower case.
    pub fn kind(&self) -> &'static str {
        let known = |code: &str| KNOWN_CODES.into_iter().find(|known| *known == code).unwrap_or("refused");
        match self {
            Self::Config(_) => "config",
            Self::Timeout(_) => "timeout",
            Self::Replica => "replica",
            Self::Unsupported(_) => "unsupported",
            Self::Cluster | Self::NoCluster => "cluster",
            Self::Silent(_) => "silent",
            Self::UnexpectedReply(_) | Self::Malformed(_) => "malformed",
            Self::Io(_) | Self::Ended | Self::Moved => "connection",
            Self::Unreachable { kind, .. } => kind,
            Self::Redis(error) if error.code() == Some(NOT_REPLICATED) => "not_replicated",
            Self::Redis(error) if error.is_timeout() => "timeout",
            Self::Redis(error) if error.is_io_error() || error.is_connection_dropped() => "connection",
            // redis-rs drops the code of a refused AUTH, and a missing permission of a script is reported without one.
            Self::Redis(error) if error.kind() == redis::ErrorKind::AuthenticationFailed => "WRONGPASS",
            Self::Redis(error) if error.detail().is_some_and(lacks_script_rights) => "NOPERM",
            Self::Redis(error) if error.detail().is_some_and(is_unknown_command) => "unknown_command",
            Self::Redis(error) => error.code().map_or("refused", known),
            Self::Refused { message, .. } if is_unknown_command(message) => "unknown_command",
            Self::Refused { message, .. } if lacks_script_rights(message) => "NOPERM",
            Self::Refused { code, .. } => known(code),
        }
    }
}

/// Whether an error of this kind says that no node serves the slot now.
pub(super) fn is_unserved(kind: &str) -> bool {
    UNSERVED.contains(&kind)
}

fn lacks_script_rights(message: &str) -> bool {
    SCRIPT_RIGHTS.iter().any(|start| message.starts_with(start))
}

/// Also inside a script: "Unknown Redis command called from script".
fn is_unknown_command(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.starts_with("unknown command") || message.starts_with("unknown redis command")
}

fn without_arguments(message: &str) -> &str {
    message.find(ARGUMENTS).and_then(|end| message.get(..end)).unwrap_or(message)
}

/// The line of the error that a command of a script raised: Redis 6.2 replies with one of its own around it.
fn raised_in_script(error: &redis::RedisError) -> Option<&str> {
    let (around, raised) = error.detail()?.rsplit_once("@user_script:")?;
    let (_line_number, raised) = raised.split_once(": ")?;
    around.starts_with("Error running script").then_some(raised.strip_prefix('-').unwrap_or(raised))
}

/// Whether a command, or one of a script, met a key of another type.
pub fn is_wrong_type(error: &redis::RedisError) -> bool {
    error.code() == Some(WRONG_TYPE) || raised_in_script(error).is_some_and(|line| line.starts_with(WRONG_TYPE))
}

pub(super) fn is_missing_script(error: &redis::RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

/// Whether Redis does not know `EVALSHA`, or the user has no right to it.
pub(super) fn refuses_hashes(error: &redis::RedisError) -> bool {
    let refused = error.code() == Some("NOPERM") || error.detail().is_some_and(is_unknown_command);
    refused && error.detail().is_some_and(|detail| without_arguments(detail).to_ascii_lowercase().contains("evalsha"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_line(line: &str) -> redis::RedisError {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap().extract_error().unwrap_err()
    }

    #[test]
    fn a_right_that_a_script_lacks_is_noperm_in_every_version() {
        for line in [
            "ERR The user executing the script can't run this command or subcommand script: a5, on @user_script:1.",
            "ERR ACL failure in script: User default has no permissions to run the 'zadd' command script: a5, on @user_script:1.",
            "ERR ACL failure in script: No permissions to access a key script: a5, on @user_script:1.",
            "NOPERM User default has no permissions to run the 'evalsha' command",
        ] {
            assert_eq!(Error::from(from_line(line)).kind(), "NOPERM", "{line}");
        }
    }

    #[test]
    fn an_error_within_a_script_has_the_kind_of_the_command_that_raised_it_also_in_redis_6_2() {
        let around = "ERR Error running script (call to f_89234c72f0f53d49ac59de2bbfc2a600d047f4a6): @user_script:1: ";
        for (raised, kind) in [
            ("@user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
            ("@user_script: 1: -READONLY You can't write against a read only replica.", "READONLY"),
            ("@user_script: 1: The user executing the script can't run this command or subcommand", "NOPERM"),
            ("@user_script: 1: Unknown Redis command called from Lua script", "unknown_command"),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", "refused"),
            ("user_script:1: attempt to compare nil with number", "refused"),
        ] {
            let error = from_line(&format!("{around}{raised}"));
            assert_eq!(is_wrong_type(&error), raised.starts_with("WRONGTYPE"), "{raised}");
            let error = Error::from(error);
            assert_eq!(error.kind(), kind, "{error}");
        }
        for (reply, kind) in [
            ("-WRONGTYPE Operation against a key holding the wrong kind of value", "refused"),
            ("-@user_script: 12: -OOM command not allowed", "OOM"),
            ("-user_script:12: attempt to compare nil with number", "refused"),
        ] {
            assert_eq!(Error::of_reply(reply).map(|error| error.kind()), Some(kind), "{reply}");
        }
        assert!(Error::of_reply("0123456789abcdef-1-1").is_none());
        let plain = from_line("WRONGTYPE Operation against a key holding the wrong kind of value");
        assert!(is_wrong_type(&plain));
        assert_eq!(Error::from(from_line("OOM command not allowed")).kind(), "OOM");
    }
}
