//! The frames of `tidings.v1` that a listener receives.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::cli::note;

#[derive(Debug, Deserialize)]
pub(super) struct Welcome {
    pub(super) connection: String,
    pub(super) user: String,
    pub(super) instance: String,
    pub(super) cursor: Option<String>,
    pub(super) recovered: bool,
    pub(super) unread: u64,
    pub(super) heartbeat_ms: u64,
}

pub(super) enum Frame<'a> {
    Event {
        id: Option<&'a str>,
        data: &'a RawValue,
    },
    Ping,
    Gap {
        since_ms: u64,
    },
    Retracted {
        id: Option<&'a str>,
    },
    Error {
        code: u16,
        message: String,
    },
    /// One that has no meaning here.
    Other,
}

/// Every field of every frame.
#[derive(Deserialize)]
struct Fields<'a> {
    r#type: &'a str,
    id: Option<&'a str>,
    #[serde(borrow, default, deserialize_with = "given")]
    data: Option<&'a RawValue>,
    since_ms: Option<u64>,
    code: Option<u16>,
    message: Option<String>,
}

/// `null` is data, too.
fn given<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> Frame<'a> {
    /// `None`: it is not a frame of `tidings.v1`.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let Fields { r#type, id, data, since_ms, code, message } = serde_json::from_str(text).ok()?;
        Some(match r#type {
            "event" => Self::Event { id, data: data? },
            "ping" => Self::Ping,
            "gap" => Self::Gap { since_ms: since_ms? },
            "retracted" => Self::Retracted { id },
            "error" => Self::Error { code: code?, message: message? },
            _ => Self::Other,
        })
    }

    /// Says on standard error what is no event, and still concerns them.
    pub(super) fn report(&self) {
        match self {
            Self::Gap { since_ms } => {
                note(&format!(
                    "the instance lost its subscription {since_ms} ms ago: events that are not stored may be missing"
                ));
            }
            Self::Retracted { id: Some(id) } => note(&format!("the notification {id} was retracted")),
            Self::Retracted { id: None } => note("the user's stored notifications were erased"),
            Self::Error { code, message } => note(&format!("error {code}: {message}")),
            Self::Event { .. } | Self::Ping | Self::Other => {}
        }
    }
}
