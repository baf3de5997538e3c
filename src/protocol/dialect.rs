//! The dialects that clients speak, and the encoding of an event in each.

use bytes::Bytes;

use super::Cursor;
use super::frame::text_frame;
use super::id::is_name;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The client offered `tidings.v1`: JSON frames, including pings.
    TidingsV1,
    /// The client offered no subprotocol: the same JSON frames, with WebSocket pings.
    Plain,
    /// `?format=raw`: the bare published JSON, without other frames.
    Raw,
}

impl Dialect {
    /// Whether the client receives `welcome`, `error` and the other frames of `tidings.v1`.
    pub fn has_frames(self) -> bool {
        self != Self::Raw
    }

    /// Whether pings are `{"type":"ping"}` rather than WebSocket pings.
    pub fn pings_in_json(self) -> bool {
        self == Self::TidingsV1
    }
}

/// The name of an event that the backend did not name.
pub const DEFAULT_EVENT: &str = "notification";

const MAX_EVENT_BYTES: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event name has 1 to {MAX_EVENT_BYTES} bytes and no control characters")]
pub struct BadEventName;

pub fn check_event_name(name: &str) -> Result<(), BadEventName> {
    if is_name(name, MAX_EVENT_BYTES) { Ok(()) } else { Err(BadEventName) }
}

/// One notification.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// `notification` unless the backend set another.
    pub name: &'a str,
    /// The published JSON, byte for byte, without surrounding whitespace.
    pub data: &'a str,
    /// Its position, if it is stored.
    pub cursor: Option<Cursor>,
}

/// One event as WebSocket frames: each is encoded once, on first use, and then shared.
#[derive(Debug)]
pub struct Encoded<'a> {
    event: Event<'a>,
    framed: Option<Bytes>,
    raw: Option<Bytes>,
}

impl<'a> Encoded<'a> {
    pub fn new(event: Event<'a>) -> Self {
        Self { event, framed: None, raw: None }
    }

    /// The whole WebSocket frame for this dialect.
    pub fn frame(&mut self, dialect: Dialect) -> Bytes {
        let event = self.event;
        self.slot(dialect).get_or_insert_with(|| event.encode(dialect)).clone()
    }

    /// Like [`Encoded::frame`], for the last recipient: a frame with a single recipient needs no reference count.
    pub fn last_frame(mut self, dialect: Dialect) -> Bytes {
        let event = self.event;
        self.slot(dialect).take().unwrap_or_else(|| event.encode(dialect))
    }

    fn slot(&mut self, dialect: Dialect) -> &mut Option<Bytes> {
        if dialect.has_frames() { &mut self.framed } else { &mut self.raw }
    }
}

impl Event<'_> {
    /// The whole WebSocket frame for this dialect.
    pub fn encode(self, dialect: Dialect) -> Bytes {
        let Self { name, data, cursor } = self;
        if !dialect.has_frames() {
            return text_frame(&[data.as_bytes()]);
        }
        let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
        let escaped;
        let name = if plain {
            name
        } else {
            // A string always serialises; only the name may need escaping, and rarely does.
            escaped = serde_json::to_string(name).unwrap_or_default();
            escaped.get(1..escaped.len() - 1).unwrap_or_default()
        };
        let position = cursor.map(|cursor| format!(r#"","id":"{cursor}","ts":{},"data":"#, cursor.ms));
        let position = position.as_deref().unwrap_or(r#"","data":"#);
        text_frame(&[br#"{"type":"event","event":""#, name.as_bytes(), position.as_bytes(), data.as_bytes(), b"}"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_carried_byte_for_byte_in_each_dialect() {
        let data = r#"{ "n": 9007199254740993, "s":"é\u00e9" }"#;
        let mut encoded = Encoded::new(Event { name: "notification", data, cursor: None });
        let framed = encoded.frame(Dialect::TidingsV1);
        let expected = format!(r#"{{"type":"event","event":"notification","data":{data}}}"#);
        assert_eq!(&framed[2..], expected.as_bytes());
        assert_eq!(&encoded.frame(Dialect::Raw)[2..], data.as_bytes());
    }

    #[test]
    fn a_frame_is_encoded_once_and_shared() {
        let mut encoded = Encoded::new(Event { name: "n", data: "1", cursor: None });
        let (a, b) = (encoded.frame(Dialect::TidingsV1), encoded.frame(Dialect::Plain));
        assert_eq!(a.as_ptr(), b.as_ptr());
    }

    #[test]
    fn an_event_name_is_escaped() {
        let frame = Event { name: "a\"b", data: "1", cursor: None }.encode(Dialect::Plain);
        assert_eq!(&frame[2..], br#"{"type":"event","event":"a\"b","data":1}"#);
    }

    #[test]
    fn a_stored_event_has_its_position_and_time() {
        let cursor = "0000000000000abc-1795000000123-17".parse().ok();
        let frame = Event { name: "paid", data: "1", cursor }.encode(Dialect::TidingsV1);
        let expected =
            br#"{"type":"event","event":"paid","id":"0000000000000abc-1795000000123-17","ts":1795000000123,"data":1}"#;
        assert_eq!(&frame[2..], expected);
    }
}
