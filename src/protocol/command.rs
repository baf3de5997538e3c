//! Commands of backends on the control channel.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::frame::Quoted;
use super::{RoomMessage, RosterQuestion, UserId, UserIdError};

/// Maximum length of a token's `jti`.
pub const MAX_JTI_BYTES: usize = 256;

/// Maximum duration of a revocation. A later end is probably in milliseconds.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

/// A command to every instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Close all connections of a user, or one of them.
    Disconnect {
        user: UserId,
        /// Only this one, by its id in `welcome`.
        connection: Option<String>,
    },
    /// Refuse a token from now on, and close its connections.
    Revoke(Revocation),
    /// Sent by an instance, not by a backend.
    Room(RoomMessage),
    /// Sent by an instance, which lists the connections of a user.
    Roster(RosterQuestion),
}

/// The revocation of a token before it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub jti: String,
    /// The end of the revocation, in seconds since 1970.
    pub until: u64,
}

/// Why a control message is refused, worded for the backend's developer. The message never quotes a `jti`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("expected a JSON object with one command: \"disconnect\" or \"revoke\"")]
    NoObject,
    #[error("unknown command {0}; expected \"disconnect\" or \"revoke\"")]
    Unknown(Quoted),
    /// A field is missing, unknown or of the wrong type.
    #[error("expected {{\"disconnect\":{{\"user\":\"…\",\"connection\":\"…\"}}}}; \"connection\" is optional")]
    Disconnect,
    #[error("\"disconnect\": {0}")]
    User(#[from] UserIdError),
    /// A field is missing, unknown or of the wrong type.
    #[error(
        "expected {{\"revoke\":{{\"jti\":\"…\",\"until\":<s since 1970>}}}}, with a jti of 1 to {MAX_JTI_BYTES} bytes"
    )]
    Revoke,
    /// It would never leave the list.
    #[error("\"revoke\": \"until\" is more than ten years ahead; expected seconds since 1970, not milliseconds")]
    TooLong,
    #[error("{0}: malformed; only instances send it")]
    OfInstance(Quoted),
}

// Unknown fields are refused: a misspelt "connection" must not close all connections of a user.

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

/// The only entry of an object. A map would silently keep the last of several entries with the same name.
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
    pub fn parse(message: &[u8]) -> Result<Self, CommandError> {
        let Entry { name, body } = serde_json::from_slice(message).map_err(|_| CommandError::NoObject)?;
        // Serde would accept an array of the fields too.
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
            "probe" | "oldest" | "replace" => {
                let message = serde_json::from_slice(message);
                message.map(Self::Room).map_err(|_| CommandError::OfInstance(Quoted(name)))
            }
            "connections" => {
                serde_json::from_str(body).map(Self::Roster).map_err(|_| CommandError::OfInstance(Quoted(name)))
            }
            _ => Err(CommandError::Unknown(Quoted(name))),
        }
    }

    /// The message that disconnects a user.
    pub fn disconnect(user: &UserId) -> String {
        let body = Disconnect { user: user.to_string(), connection: None };
        serde_json::json!({ "disconnect": body }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OldConnection;

    fn parse(text: &str) -> Result<Command, CommandError> {
        Command::parse(text.as_bytes())
    }

    #[test]
    fn each_command_is_parsed_and_a_disconnect_round_trips() {
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
    fn a_message_between_instances_round_trips_and_a_malformed_one_is_refused() {
        let user = || "tenant:\"42\"".to_owned();
        let connection = OldConnection { opened: 1_795_000_000_123, id: "ab".into() };
        for message in [
            RoomMessage::Probe { user: user(), oldest: true },
            RoomMessage::Oldest { user: user(), connection },
            RoomMessage::Replace { user: user(), connection: "ab".into() },
        ] {
            assert_eq!(parse(&message.encode()), Ok(Command::Room(message)));
        }
        for text in [r#"{"probe":{"user":"42"}}"#, r#"{"replace":{"user":"42"}}"#, r#"{"oldest":["42",{}]}"#] {
            assert!(matches!(parse(text), Err(CommandError::OfInstance(_))), "{text}");
        }
        let question = RosterQuestion { user: user(), question: "ab".into(), instance: "cd".into() };
        assert_eq!(parse(&question.encode()), Ok(Command::Roster(question)));
        let text = r#"{"connections":{"user":"42"}}"#;
        assert!(matches!(parse(text), Err(CommandError::OfInstance(_))), "{text}");
    }

    #[test]
    fn a_malformed_command_is_refused_with_the_expected_form() {
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
