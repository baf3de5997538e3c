//! The frames of `tidings.v1`, and the WebSocket frame around them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::page::{self, BadPageRequest, PageRequest};
use super::{BadCursorText, BadDevice, Cursor, Dialect, Start, sse};

/// The code of an `error` frame that answers a malformed frame.
pub const BAD_FRAME: u16 = 4000;

/// Frames of the server, except events (see [`super::Event`]).
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ServerFrame<'a> {
    /// Always the first frame.
    Welcome {
        connection: &'a str,
        user: &'a str,
        instance: &'a str,
        /// The position in the user's stored history from which the client starts; `None` if it cannot be read.
        cursor: Option<Cursor>,
        /// Whether every event stored since the requested cursor follows.
        recovered: bool,
        /// Stored notifications that the device has not acknowledged; `None` if that cannot be read.
        unread: Option<u64>,
        /// The remaining lifetime of the token, by this clock and without the leeway; `None` if it has no end.
        expires_in_ms: Option<u64>,
        /// How long a client may be silent before it is pinged, in milliseconds.
        heartbeat_ms: u64,
    },
    /// Requests a `pong`.
    Ping,
    /// The fresh token of an `auth` was accepted.
    Authenticated {
        /// When it expires, in seconds since 1970.
        expires: u64,
        /// As in the welcome.
        expires_in_ms: Option<u64>,
    },
    /// A frame of the client was refused; the connection stays open.
    Error {
        /// A code in the range of the close codes.
        code: u16,
        message: &'a str,
        /// Of the refused request, if it had one.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a str>,
    },
    /// The read position of the client's device was moved elsewhere.
    Read { device: &'a str, id: Cursor, unread: u64 },
    /// A stored notification was retracted, or all of them were erased.
    Retracted(Retracted),
    /// The instance had no subscription for this long: events that are not stored may be missing.
    Gap { since_ms: u64 },
    /// The instance is stopping: reconnect after this delay.
    Reconnect { after_ms: u64 },
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retracted {
    Id(Cursor),
    /// Always true.
    All(bool),
}

/// How long the client of a stream waits before it reconnects, unless it is told otherwise: random, so that not all come at
/// once.
pub const RETRY_MS: std::ops::RangeInclusive<u64> = 1_000..=3_000;

impl ServerFrame<'_> {
    /// The bytes for the socket, as [`super::Event::encode`]; `None` if the dialect has no such frames.
    pub fn encode(&self, dialect: Dialect) -> Option<Bytes> {
        match (dialect, self) {
            (Dialect::TidingsV1 | Dialect::Plain, _) => Some(text_frame(&[&self.json()])),
            // A client that has recovered keeps its own position.
            (Dialect::Sse, Self::Welcome { cursor, recovered, .. }) => {
                Some(self.to_block(Some(fastrand::u64(RETRY_MS)), cursor.filter(|_| !recovered)))
            }
            (Dialect::Sse, Self::Reconnect { after_ms }) => Some(self.to_block(Some(*after_ms), None)),
            (Dialect::Sse, _) => Some(self.to_block(None, None)),
            (Dialect::Raw | Dialect::SseRaw | Dialect::SocketIo, _) => None,
        }
    }

    /// A block of Server-Sent Events.
    pub fn to_block(&self, retry_ms: Option<u64>, id: Option<Cursor>) -> Bytes {
        sse::block(retry_ms, id, &[&self.json()])
    }

    fn json(&self) -> Vec<u8> {
        // These frames always serialise: they have no map, float or foreign type.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Frames of the client.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Authenticates a connection whose handshake had no credential.
    Hello { token: String, start: Start },
    /// A fresh token for the same user.
    Auth { token: String },
    /// The answer to a `ping`.
    Pong,
    /// The client has handled every stored event up to this position.
    Ack(Cursor),
    /// Requests stored notifications, newest first.
    History(PageRequest),
}

/// Why a text of a client is refused, worded for the client's developer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("expected a JSON object with a \"type\"{0}")]
    NoObject(String),
    #[error("unknown frame type {0}; expected \"hello\", \"auth\", \"pong\", \"ack\" or \"history\"")]
    UnknownType(Quoted),
    #[error("\"{0}\" requires a string \"{1}\"")]
    Field(&'static str, &'static str),
    #[error("\"ack\": {0}")]
    Cursor(#[from] BadCursorText),
    #[error("\"hello\": {0}")]
    Device(#[from] BadDevice),
    #[error("\"history\": {problem}")]
    History {
        /// Of the request.
        reference: Option<String>,
        problem: BadPageRequest,
    },
}

impl FrameError {
    /// The `ref` of the refused request, if it had a valid one.
    pub fn reference(&self) -> Option<&str> {
        match self {
            Self::History { reference, .. } => reference.as_deref(),
            _ => None,
        }
    }
}

/// A peer's text, quoted and truncated for an error message or a log line.
#[derive(Debug, PartialEq, Eq)]
pub struct Quoted(pub(super) String);

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.chars().take(40).collect::<String>())
    }
}

#[derive(Deserialize)]
struct Fields {
    r#type: String,
    token: Option<serde_json::Value>,
    id: Option<serde_json::Value>,
    resume: Option<serde_json::Value>,
    device: Option<serde_json::Value>,
    before: Option<serde_json::Value>,
    limit: Option<serde_json::Value>,
    r#ref: Option<serde_json::Value>,
}

impl ClientFrame {
    /// Parses one text frame; ignores unknown fields.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        // Serde would accept an array of the fields too.
        if !text.trim_start().starts_with('{') {
            return Err(FrameError::NoObject(String::new()));
        }
        let fields: Fields = serde_json::from_str(text).map_err(|error| FrameError::NoObject(format!(": {error}")))?;
        let string = |value: Option<serde_json::Value>, frame, field| match value {
            Some(serde_json::Value::String(text)) => Ok(text),
            _ => Err(FrameError::Field(frame, field)),
        };
        match fields.r#type.as_str() {
            "hello" => {
                // A `resume` that is not a string counts as an unknown cursor, which never fails a `hello`.
                let resume = fields.resume.map(|value| value.as_str().unwrap_or_default().to_owned());
                let device = fields.device.map(|value| string(Some(value), "hello", "device")).transpose()?;
                let start = Start::new(resume.as_deref(), device.as_deref())?;
                Ok(Self::Hello { token: string(fields.token, "hello", "token")?, start })
            }
            "auth" => Ok(Self::Auth { token: string(fields.token, "auth", "token")? }),
            "pong" => Ok(Self::Pong),
            "ack" => Ok(Self::Ack(string(fields.id, "ack", "id")?.parse()?)),
            "history" => {
                let (reference, bad_reference) = match fields.r#ref.as_ref().map(page::reference).transpose() {
                    Ok(reference) => (reference, None),
                    Err(problem) => (None, Some(problem)),
                };
                let request = match bad_reference {
                    Some(problem) => Err(problem),
                    None => PageRequest::new(fields.before.as_ref(), fields.limit.as_ref(), reference.clone()),
                };
                request.map(Self::History).map_err(|problem| FrameError::History { reference, problem })
            }
            _ => Err(FrameError::UnknownType(Quoted(fields.r#type))),
        }
    }
}

/// Concatenates these parts into an unmasked, unfragmented WebSocket text frame (RFC 6455, section 5.2).
pub fn text_frame(parts: &[&[u8]]) -> Bytes {
    const FIN_TEXT: u8 = 0x81;
    let len: usize = parts.iter().map(|part| part.len()).sum();
    // Exact capacity: spare capacity would cost another allocation when the frame is shared.
    let head = if len < 126 {
        2
    } else if len <= usize::from(u16::MAX) {
        4
    } else {
        10
    };
    let mut frame = Vec::with_capacity(head + len);
    frame.push(FIN_TEXT);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short), _) if short < 126 => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(126);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame.into()
}

/// The payload of a frame of [`text_frame`].
pub(super) fn frame_payload(frame: &[u8]) -> &[u8] {
    let head = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    frame.get(head..).unwrap_or_default()
}

/// Whether a text is one JSON value (RFC 8259) of any size and depth.
pub fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Resume;

    #[test]
    fn every_known_frame_is_read_and_unknown_fields_are_ignored() {
        let hello = ClientFrame::parse(r#"{"type":"hello","token":"t","resume":"c","device":"tv","new":[1]}"#);
        let start = Start { resume: Some(Resume::Unknown), device: Some("tv".into()), ..Start::default() };
        assert_eq!(hello, Ok(ClientFrame::Hello { token: "t".into(), start }));
        assert_eq!(ClientFrame::parse(r#" {"type":"pong"} "#), Ok(ClientFrame::Pong));
        let cursor = "0000000000000abc-1795000000123-17";
        let ack = ClientFrame::parse(&format!(r#"{{"type":"ack","id":"{cursor}"}}"#));
        assert_eq!(ack, Ok(ClientFrame::Ack(cursor.parse().unwrap())));
    }

    #[test]
    fn a_malformed_frame_is_refused_with_the_reason() {
        for text in ["", "[]", r#"["pong",null,null]"#, "42", "{", r#"{"type":5}"#, "{}"] {
            let error = ClientFrame::parse(text).unwrap_err();
            assert!(matches!(error, FrameError::NoObject(_)), "{text}: {error}");
        }
        let error = ClientFrame::parse(r#"{"type":"shout"}"#).unwrap_err();
        assert!(error.to_string().contains("\"shout\""));
        let error = ClientFrame::parse(r#"{"type":"auth","token":5}"#).unwrap_err();
        assert_eq!(error, FrameError::Field("auth", "token"));
        let error = ClientFrame::parse(r#"{"type":"ack","id":"x"}"#).unwrap_err();
        assert_eq!(error, FrameError::Cursor(BadCursorText));
        let error = ClientFrame::parse(r#"{"type":"hello","token":"t","device":""}"#).unwrap_err();
        assert_eq!(error, FrameError::Device(BadDevice));
    }

    #[test]
    fn a_deeply_nested_payload_is_json_and_does_not_overflow_the_stack() {
        let depth = 200_000;
        let nested = "[".repeat(depth) + &"]".repeat(depth);
        assert!(is_json(&nested));
        assert!(!is_json(&nested[1..]));
    }

    #[test]
    fn the_header_has_the_three_lengths_of_rfc_6455() {
        assert_eq!(text_frame(&[b"hi"]).as_ref(), b"\x81\x02hi");
        assert_eq!(&text_frame(&[&[b'x'; 125]])[..2], b"\x81\x7d");
        assert_eq!(&text_frame(&[&[b'x'; 126]])[..4], b"\x81\x7e\x00\x7e");
        assert_eq!(&text_frame(&[&[b'x'; 65_535]])[..4], b"\x81\x7e\xff\xff");
        assert_eq!(&text_frame(&[&[b'x'; 65_536]])[..10], b"\x81\x7f\0\0\0\0\0\x01\0\0");
    }
}
