//! The frames of `tidings.v1`, and the WebSocket frame around them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{BadCursorText, BadDevice, Cursor, Start};

/// The code of an `error` frame that answers a frame nobody understands.
pub const BAD_FRAME: u16 = 4000;

/// What the server says, apart from events (see [`super::Event`]).
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ServerFrame<'a> {
    /// First, always.
    Welcome {
        /// This connection's id.
        connection: &'a str,
        /// Whose connection it is.
        user: &'a str,
        /// The instance that holds it.
        instance: &'a str,
        /// The place in the user's stored history that the client starts from; none while it cannot be read.
        cursor: Option<&'a str>,
        /// Whether everything stored since the asked-for cursor follows.
        recovered: bool,
        /// How many stored notifications the device has not acknowledged; none while that cannot be read.
        unread: Option<u64>,
        /// How long a client may be silent before it is pinged, in milliseconds.
        heartbeat_ms: u64,
    },
    /// Asks for a `pong`.
    Ping,
    /// A fresh token was taken.
    Authenticated {
        /// When that token ends, in seconds since 1970.
        expires: u64,
    },
    /// Something the client sent was refused; the connection lives on.
    Error {
        /// A code in the range of the close codes.
        code: u16,
        /// For the client's developer.
        message: &'a str,
    },
    /// The instance stops: connect again after this while.
    Reconnect {
        /// Milliseconds.
        after_ms: u64,
    },
}

impl ServerFrame<'_> {
    /// The whole WebSocket frame, ready for the socket.
    pub fn encode(&self) -> Bytes {
        // Nothing in these frames can fail to serialise: no map, no float, no foreign type.
        let json = serde_json::to_vec(self).unwrap_or_default();
        text_frame(&[&json])
    }
}

/// What a client may say.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Who it is, where the handshake carried no token.
    Hello {
        /// A JWT.
        token: String,
        /// Where to start.
        start: Start,
    },
    /// A fresh token for the same user.
    Auth {
        /// A JWT.
        token: String,
    },
    /// The answer to a `ping`.
    Pong,
    /// Everything stored up to this place is handled.
    Ack(Cursor),
}

/// Why a client's text is no frame.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No JSON object with a `type`.
    #[error("a frame is a JSON object with a \"type\": {0}")]
    NoObject(String),
    /// A `type` that the protocol does not have.
    #[error("unknown frame type {0}; known are \"hello\", \"auth\", \"pong\" and \"ack\"")]
    UnknownType(Quoted),
    /// A field is missing or of the wrong type.
    #[error("\"{0}\" needs a string \"{1}\"")]
    Field(&'static str, &'static str),
    /// An `ack` of what was never given out.
    #[error("\"ack\": {0}")]
    Cursor(#[from] BadCursorText),
    /// A `hello` of a device without a proper name.
    #[error("\"hello\": {0}")]
    Device(#[from] BadDevice),
}

/// A peer's own text, quoted and cut short for an answer or a log line.
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
}

impl ClientFrame {
    /// Reads one text frame of a client. Unknown fields are ignored.
    ///
    /// # Errors
    /// [`FrameError`], worded for the client's developer.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        // An array would deserialise into a struct too: only an object is a frame.
        if !text.trim_start().starts_with('{') {
            return Err(FrameError::NoObject("this is none".into()));
        }
        let fields: Fields = serde_json::from_str(text).map_err(|error| FrameError::NoObject(error.to_string()))?;
        let string = |value: Option<serde_json::Value>, frame, field| match value {
            Some(serde_json::Value::String(text)) => Ok(text),
            _ => Err(FrameError::Field(frame, field)),
        };
        match fields.r#type.as_str() {
            "hello" => {
                // What is no text is no cursor either, and fails nothing.
                let resume = fields.resume.map(|value| value.as_str().unwrap_or_default().to_owned());
                let device = fields.device.map(|value| string(Some(value), "hello", "device")).transpose()?;
                let start = Start::new(resume.as_deref(), device.as_deref())?;
                Ok(Self::Hello { token: string(fields.token, "hello", "token")?, start })
            }
            "auth" => Ok(Self::Auth { token: string(fields.token, "auth", "token")? }),
            "pong" => Ok(Self::Pong),
            "ack" => Ok(Self::Ack(string(fields.id, "ack", "id")?.parse()?)),
            _ => Err(FrameError::UnknownType(Quoted(fields.r#type))),
        }
    }
}

/// An unmasked, unfragmented WebSocket text frame (RFC 6455, section 5.2) of these parts.
pub fn text_frame(parts: &[&[u8]]) -> Bytes {
    const FIN_TEXT: u8 = 0x81;
    let len: usize = parts.iter().map(|part| part.len()).sum();
    // Exactly as long as it will be: room to spare would cost an allocation more when the frame is shared.
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

/// Whether a text is one JSON value (RFC 8259), whatever its size and depth.
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
        let start = Start { resume: Some(Resume::Unknown), device: Some("tv".into()) };
        assert_eq!(hello, Ok(ClientFrame::Hello { token: "t".into(), start }));
        assert_eq!(ClientFrame::parse(r#" {"type":"pong"} "#), Ok(ClientFrame::Pong));
        let cursor = "0000000000000abc-1795000000123-17";
        let ack = ClientFrame::parse(&format!(r#"{{"type":"ack","id":"{cursor}"}}"#));
        assert_eq!(ack, Ok(ClientFrame::Ack(cursor.parse().unwrap())));
    }

    #[test]
    fn what_is_no_frame_is_named() {
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
