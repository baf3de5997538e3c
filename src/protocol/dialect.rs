//! The tongues that a client may speak, and one event said in each.

use bytes::Bytes;

use super::Cursor;
use super::frame::text_frame;
use super::id::is_name;

/// How a client is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The client offered `tidings.v1`: JSON frames, pings among them.
    TidingsV1,
    /// The client offered no subprotocol: the same JSON frames, but WebSocket pings.
    Plain,
    /// `?format=raw`: the bare published JSON, and no frame of ours.
    Raw,
}

impl Dialect {
    /// Whether the client gets `welcome`, `error` and the other frames of `tidings.v1`.
    pub fn has_frames(self) -> bool {
        self != Self::Raw
    }

    /// Whether the client answers `{"type":"ping"}`; else it gets WebSocket pings.
    pub fn pings_in_json(self) -> bool {
        self == Self::TidingsV1
    }
}

/// The event's name where the backend named none.
pub const DEFAULT_EVENT: &str = "notification";

/// Most bytes of an event's name.
const MAX_EVENT_BYTES: usize = 128;

/// A text that names no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event's name is 1 to {MAX_EVENT_BYTES} bytes of text without control characters")]
pub struct BadEventName;

/// Checks an event's name.
///
/// # Errors
/// [`BadEventName`].
pub fn check_event_name(name: &str) -> Result<(), BadEventName> {
    if is_name(name, MAX_EVENT_BYTES) { Ok(()) } else { Err(BadEventName) }
}

/// One notification.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// `notification`, unless the backend named another.
    pub name: &'a str,
    /// The published JSON, byte for byte, without the white space around it.
    pub data: &'a str,
    /// Its place, where it is stored.
    pub cursor: Option<Cursor>,
}

/// One event as WebSocket frames: each dialect's is made once, when first asked for, and then shared.
#[derive(Debug)]
pub struct Encoded<'a> {
    event: Event<'a>,
    framed: Option<Bytes>,
    raw: Option<Bytes>,
}

impl<'a> Encoded<'a> {
    /// Nothing is encoded yet.
    pub fn new(event: Event<'a>) -> Self {
        Self { event, framed: None, raw: None }
    }

    /// The whole WebSocket frame for this dialect.
    pub fn frame(&mut self, dialect: Dialect) -> Bytes {
        let event = self.event;
        self.slot(dialect).get_or_insert_with(|| event.encode(dialect)).clone()
    }

    /// As [`Encoded::frame`], for the last who asks: a frame for one alone is never counted.
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
            // A text always serialises; the name is the only part that may need escaping, and hardly ever does.
            escaped = serde_json::to_string(name).unwrap_or_default();
            escaped.get(1..escaped.len() - 1).unwrap_or_default()
        };
        let place = cursor.map(|cursor| format!(r#"","id":"{cursor}","ts":{},"data":"#, cursor.ms));
        let place = place.as_deref().unwrap_or(r#"","data":"#);
        text_frame(&[br#"{"type":"event","event":""#, name.as_bytes(), place.as_bytes(), data.as_bytes(), b"}"])
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
    fn a_stored_event_tells_its_place_and_time() {
        let cursor = "0000000000000abc-1795000000123-17".parse().ok();
        let frame = Event { name: "paid", data: "1", cursor }.encode(Dialect::TidingsV1);
        let expected =
            br#"{"type":"event","event":"paid","id":"0000000000000abc-1795000000123-17","ts":1795000000123,"data":1}"#;
        assert_eq!(&frame[2..], expected);
    }
}
