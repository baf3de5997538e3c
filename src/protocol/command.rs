//! What a backend may command on the control channel.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::frame::Quoted;
use super::{UserId, UserIdError};

/// Longest `jti` of a token.
pub const MAX_JTI_BYTES: usize = 256;

/// Longest revocation. What ends later was counted in milliseconds.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

/// A command to every instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Close all of a user's connections, or one of them.
    Disconnect {
        /// Whose.
        user: UserId,
        /// That one alone, by its id in `welcome`.
        connection: Option<String>,
    },
    /// Let a token in no more, and close what it let in.
    Revoke(Revocation),
}

/// A token that is refused before its own end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The token's `jti`.
    pub jti: String,
    /// For how long, in seconds since 1970.
    pub until: u64,
}

/// Why a message on the control channel is no command. No `jti` is in it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not one JSON object with one command in it.
    #[error("accepted is a JSON object with one command: \"disconnect\" or \"revoke\"")]
    NoObject,
    /// A command that this version does not have.
    #[error("unknown command {0}; known are \"disconnect\" and \"revoke\"")]
    Unknown(Quoted),
    /// What it needs is missing, of the wrong type, or beside what it does not know.
    #[error("accepted is {{\"disconnect\":{{\"user\":\"…\",\"connection\":\"…\"}}}}, the connection optional")]
    Disconnect,
    /// Its user cannot be one.
    #[error("\"disconnect\": {0}")]
    User(#[from] UserIdError),
    /// As for `disconnect`.
    #[error(
        "accepted is {{\"revoke\":{{\"jti\":\"…\",\"until\":<s since 1970>}}}}, the jti of 1 to {MAX_JTI_BYTES} bytes"
    )]
    Revoke,
    /// It would hold nearly for ever, and never leave the list.
    #[error("\"revoke\": \"until\" is more than ten years ahead; accepted are seconds since 1970, not milliseconds")]
    TooLong,
}

// A field that is not known is refused: a misspelt "connection" must not end all of a user's.

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disconnect {
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    jti: String,
    until: f64,
}

/// The only entry of an object. A map would take the last of several that have the same name.
struct Entry<'a> {
    name: String,
    body: &'a RawValue,
}

impl<'de> Deserialize<'de> for Entry<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Entry<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry<'de>, A::Error> {
                let (name, body) = map.next_entry()?.ok_or_else(|| A::Error::custom("no entry"))?;
                match map.next_key::<IgnoredAny>()? {
                    None => Ok(Entry { name, body }),
                    Some(_) => Err(A::Error::custom("another entry")),
                }
            }
        }
        deserializer.deserialize_map(One)
    }
}

impl Command {
    /// Reads one message of the control channel.
    ///
    /// # Errors
    /// [`CommandError`], worded for the backend's developer.
    pub fn parse(message: &[u8]) -> Result<Self, CommandError> {
        let Entry { name, body } = serde_json::from_slice(message).map_err(|_| CommandError::NoObject)?;
        // An array would do for a struct's fields in order.
        let body = if body.get().starts_with('{') { body.get() } else { "" };
        match name.as_str() {
            "disconnect" => {
                let Disconnect { user, connection } =
                    serde_json::from_str(body).map_err(|_| CommandError::Disconnect)?;
                Ok(Self::Disconnect { user: UserId::new(&user)?, connection })
            }
            "revoke" => {
                let Revoke { jti, until } = serde_json::from_str(body).map_err(|_| CommandError::Revoke)?;
                if !(1..=MAX_JTI_BYTES).contains(&jti.len()) || until < 0.0 {
                    return Err(CommandError::Revoke);
                }
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
                let until = until.ceil() as u64;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                if until > (now + LONGEST).as_secs() {
                    return Err(CommandError::TooLong);
                }
                Ok(Self::Revoke(Revocation { jti, until }))
            }
            _ => Err(CommandError::Unknown(Quoted(name))),
        }
    }

    /// What disconnects a user, as it is published.
    pub fn disconnect(user: &UserId) -> String {
        let body = Disconnect { user: user.to_string(), connection: None };
        serde_json::json!({ "disconnect": body }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Command, CommandError> {
        Command::parse(text.as_bytes())
    }

    #[test]
    fn each_command_is_read_and_a_disconnection_as_it_was_written() {
        let user = UserId::new("tenant:\"42\"").unwrap();
        let all = Command::Disconnect { user: user.clone(), connection: None };
        assert_eq!(parse(&Command::disconnect(&user)), Ok(all));
        let one = Command::Disconnect { user: UserId::new("42").unwrap(), connection: Some("ab".into()) };
        assert_eq!(parse(r#" {"disconnect":{"connection":"ab","user":"42"}} "#), Ok(one));
        for (until, seconds) in [("7", 7), ("7.5", 8), ("0", 0), ("18e8", 1_800_000_000)] {
            let revoke = Command::Revoke(Revocation { jti: "a".into(), until: seconds });
            assert_eq!(parse(&format!(r#"{{"revoke":{{"jti":"a","until":{until}}}}}"#)), Ok(revoke));
        }
    }

    #[test]
    fn what_is_no_command_says_what_would_be() {
        const TWICE: &str = r#"{"jti":"a","jti":"b","until":1}"#;
        for text in ["", "[]", "{}", "null", "\"disconnect\"", r#"{"disconnect":{"user":"1"},"revoke":{}}"#, "\u{1}"] {
            assert_eq!(parse(text), Err(CommandError::NoObject), "{text}");
        }
        for name in ["disconnect", r"\u0064isconnect"] {
            let twice = format!(r#"{{"disconnect":{{"user":"1"}},"{name}":{{"user":"2"}}}}"#);
            assert_eq!(parse(&twice), Err(CommandError::NoObject), "{twice}");
        }
        for body in [r#""42""#, "{}", r#"["42"]"#, r#"{"user":42}"#, r#"{"user":"42","conection":"a"}"#, "null"] {
            assert_eq!(parse(&format!(r#"{{"disconnect":{body}}}"#)), Err(CommandError::Disconnect), "{body}");
        }
        let empty = parse(r#"{"disconnect":{"user":""}}"#);
        assert_eq!(empty, Err(CommandError::User(UserIdError::Empty)));
        let long = format!(r#"{{"jti":"{}","until":1}}"#, "x".repeat(257));
        for body in
            [r#"{"jti":"a"}"#, r#"{"jti":"","until":1}"#, r#"{"jti":"a","until":-1}"#, &long, r#"["a",1]"#, TWICE]
        {
            assert_eq!(parse(&format!(r#"{{"revoke":{body}}}"#)), Err(CommandError::Revoke), "{body}");
        }
        for until in ["1795000000000", "1e300"] {
            assert_eq!(parse(&format!(r#"{{"revoke":{{"jti":"a","until":{until}}}}}"#)), Err(CommandError::TooLong));
        }
        let unknown = parse(r#"{"explode\n":{"jti":"hidden"}}"#).unwrap_err().to_string();
        assert!(unknown.contains(r"explode\n") && !unknown.contains("hidden"), "{unknown}");
    }
}
