//! The dialects that clients speak, and the encoding of an event in each.

use bytes::Bytes;

use super::Cursor;
use super::frame::{frame_payload, text_frame};
use super::id::is_name;
use super::roster::DialectName;
use super::{socketio, sse};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The client offered `tidings.v1`: JSON frames, including pings.
    TidingsV1,
    /// The client offered no subprotocol: the same JSON frames, with WebSocket pings.
    Plain,
    /// `?format=raw`: the bare published JSON, without other frames.
    Raw,
    /// Server-Sent Events: the JSON frames, one in each block.
    Sse,
    /// Server-Sent Events with `?format=raw`.
    SseRaw,
    /// Socket.IO 5 on Engine.IO 4. Its packets are queued as WebSocket frames, also while the client is polling.
    SocketIo,
}

impl Dialect {
    /// Whether the client receives `welcome`, `error` and the other frames of `tidings.v1`.
    pub fn has_frames(self) -> bool {
        matches!(self, Self::TidingsV1 | Self::Plain | Self::Sse)
    }

    /// The label in metrics.
    pub fn transport(self) -> &'static str {
        match self {
            Self::TidingsV1 | Self::Plain | Self::Raw => "websocket",
            Self::Sse | Self::SseRaw => "sse",
            Self::SocketIo => "socketio",
        }
    }

    /// The name in the list of a user's connections.
    pub fn name(self) -> DialectName {
        match self {
            Self::TidingsV1 | Self::Plain => DialectName::TidingsV1,
            Self::Raw => DialectName::Raw,
            Self::Sse | Self::SseRaw => DialectName::Sse,
            Self::SocketIo => DialectName::SocketIo,
        }
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
    /// Its collapse key, if it is stored with one.
    pub collapse: Option<&'a str>,
    /// The trace of its publication: a valid `traceparent` (W3C Trace Context).
    pub trace: Option<&'a str>,
    /// Whether it was stored before the client's welcome.
    pub replayed: bool,
}

/// One event in each dialect: encoded once, on first use, and then shared.
#[derive(Debug)]
pub struct Encoded<'a> {
    event: Event<'a>,
    framed: Option<Bytes>,
    raw: Option<Bytes>,
    sse: Option<Bytes>,
    sse_raw: Option<Bytes>,
    socketio: Option<Bytes>,
}

impl<'a> Encoded<'a> {
    pub fn new(event: Event<'a>) -> Self {
        Self { event, framed: None, raw: None, sse: None, sse_raw: None, socketio: None }
    }

    /// As [`Event::encode`].
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
        match dialect {
            Dialect::TidingsV1 | Dialect::Plain => &mut self.framed,
            Dialect::Raw => &mut self.raw,
            Dialect::Sse => &mut self.sse,
            Dialect::SseRaw => &mut self.sse_raw,
            Dialect::SocketIo => &mut self.socketio,
        }
    }
}

impl<'a> Event<'a> {
    pub fn ephemeral(name: &'a str, data: &'a str) -> Self {
        Self { name, data, cursor: None, collapse: None, trace: None, replayed: false }
    }

    pub fn stored(name: &'a str, data: &'a str, cursor: Cursor) -> Self {
        Self { cursor: Some(cursor), ..Self::ephemeral(name, data) }
    }

    /// The bytes for the socket: a whole WebSocket frame or a whole block of Server-Sent Events. Empty if the dialect
    /// cannot carry the event: queued, it only moves the client's position.
    pub fn encode(self, dialect: Dialect) -> Bytes {
        let Self { name, data, cursor, .. } = self;
        match dialect {
            Dialect::Raw => return text_frame(&[data.as_bytes()]),
            Dialect::SseRaw => return sse::block(None, cursor, &[data.as_bytes()]),
            Dialect::TidingsV1 | Dialect::Plain | Dialect::Sse | Dialect::SocketIo => {}
        }
        let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
        let escaped;
        let quotable = if plain {
            name
        } else {
            // A string always serialises; only the name may need escaping, and rarely does.
            escaped = serde_json::to_string(name).unwrap_or_default();
            escaped.get(1..escaped.len() - 1).unwrap_or_default()
        };
        if dialect == Dialect::SocketIo {
            return socketio::event(name, quotable, data, cursor);
        }
        let fields = self.fields();
        let fields = fields.as_deref().unwrap_or(r#"","data":"#);
        let json = [EVENT_START.as_bytes(), quotable.as_bytes(), fields.as_bytes(), data.as_bytes(), b"}"];
        if dialect == Dialect::Sse { sse::block(None, cursor, &json) } else { text_frame(&json) }
    }

    /// What is between its name and its data, if it is stored or has a trace.
    fn fields(&self) -> Option<String> {
        let trace = self.trace.map(|trace| format!(r#","traceparent":"{trace}""#));
        let Some(cursor) = self.cursor else { return trace.map(|trace| format!(r#""{trace},"data":"#)) };
        let replayed = if self.replayed { REPLAYED } else { "" };
        // A string always serialises.
        let quoted = |key| serde_json::to_string(key).unwrap_or_default();
        let collapse = self.collapse.map(|key| format!(r#","collapse":{}"#, quoted(key))).unwrap_or_default();
        let trace = trace.unwrap_or_default();
        Some(format!(r#"","id":"{cursor}","ts":{}{replayed}{collapse}{trace},"data":"#, cursor.ms))
    }
}

const EVENT_START: &str = r#"{"type":"event","event":""#;

const REPLAYED: &str = r#","replayed":true"#;

/// The bytes of a stored event that was encoded before it was known to be stored before the client's welcome, as
/// [`Event::encode`] encodes it with `replayed`. Unchanged in a dialect without frames.
pub fn mark_replayed(bytes: &Bytes, dialect: Dialect) -> Bytes {
    let text = match dialect {
        Dialect::TidingsV1 | Dialect::Plain => frame_payload(bytes),
        Dialect::Sse => bytes.as_ref(),
        Dialect::Raw | Dialect::SseRaw | Dialect::SocketIo => return bytes.clone(),
    };
    let Some(split) = after_time(text).and_then(|at| text.split_at_checked(at)) else { return bytes.clone() };
    let marked = [split.0, REPLAYED.as_bytes(), split.1];
    if dialect == Dialect::Sse { marked.concat().into() } else { text_frame(&marked) }
}

/// The end of the field `ts` of an encoded event. No quote in a JSON string is bare, so its name cannot contain the field.
fn after_time(text: &[u8]) -> Option<usize> {
    const TIME: &[u8] = br#"","ts":"#;
    let start = text.windows(TIME.len()).position(|some| some == TIME)? + TIME.len();
    let digits = text.get(start..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some(start + digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_carried_byte_for_byte_in_each_dialect() {
        let data = r#"{ "n": 9007199254740993, "s":"é\u00e9" }"#;
        let mut encoded = Encoded::new(Event::ephemeral("notification", data));
        let framed = encoded.frame(Dialect::TidingsV1);
        let expected = format!(r#"{{"type":"event","event":"notification","data":{data}}}"#);
        assert_eq!(&framed[2..], expected.as_bytes());
        assert_eq!(&encoded.frame(Dialect::Raw)[2..], data.as_bytes());
    }

    #[test]
    fn a_frame_is_encoded_once_and_shared() {
        let mut encoded = Encoded::new(Event::ephemeral("n", "1"));
        let (a, b) = (encoded.frame(Dialect::TidingsV1), encoded.frame(Dialect::Plain));
        assert_eq!(a.as_ptr(), b.as_ptr());
    }

    #[test]
    fn an_event_stream_has_the_cursor_as_the_id_of_the_block() {
        let event = |cursor| Event { cursor, ..Event::ephemeral("n", "{\n\"a\":1}") };
        let text = |cursor, dialect| String::from_utf8(event(cursor).encode(dialect).to_vec()).unwrap();
        let cursor = "0000000000000abc-1795000000123-17".parse().ok();
        let plain = "data: {\"type\":\"event\",\"event\":\"n\",\"data\":{\ndata: \"a\":1}}\n\n";
        assert_eq!(text(None, Dialect::Sse), plain);
        assert!(text(cursor, Dialect::Sse).starts_with("id: 0000000000000abc-1795000000123-17\ndata: {"));
        assert_eq!(text(None, Dialect::SseRaw), "data: {\ndata: \"a\":1}\n\n");
        let stored = "id: 0000000000000abc-1795000000123-17\ndata: {\ndata: \"a\":1}\n\n";
        assert_eq!(text(cursor, Dialect::SseRaw), stored);
    }

    #[test]
    fn an_event_name_is_escaped() {
        let frame = Event::ephemeral("a\"b", "1").encode(Dialect::Plain);
        assert_eq!(&frame[2..], br#"{"type":"event","event":"a\"b","data":1}"#);
    }

    #[test]
    fn a_stored_event_has_its_position_and_time() {
        let event = Event::stored("paid", "1", "0000000000000abc-1795000000123-17".parse().unwrap());
        let position = r#""id":"0000000000000abc-1795000000123-17","ts":1795000000123"#;
        let text = |event: Event<'_>| {
            let frame = event.encode(Dialect::TidingsV1);
            String::from_utf8(frame_payload(&frame).to_vec()).unwrap()
        };
        assert_eq!(text(event), format!(r#"{{"type":"event","event":"paid",{position},"data":1}}"#));
        let kept = Event { collapse: Some("k\"1"), replayed: true, ..event };
        let fields = r#""replayed":true,"collapse":"k\"1""#;
        assert_eq!(text(kept), format!(r#"{{"type":"event","event":"paid",{position},{fields},"data":1}}"#));
    }

    #[test]
    fn an_encoded_event_is_marked_as_if_it_had_been_encoded_so() {
        let cursor = "0000000000000abc-1795000000123-17".parse().unwrap();
        let long = format!("{{\"text\":\"{}\n\"}}", "x".repeat(200)).replace("\\n", "\n");
        for (name, data) in [("paid", "1"), (r#"","ts":5"#, r#"{"type":"event","ts":1}"#), ("n", &long)] {
            for dialect in [Dialect::TidingsV1, Dialect::Plain, Dialect::Raw, Dialect::Sse, Dialect::SseRaw] {
                let event = Event { collapse: Some(r#"","ts":6"#), ..Event::stored(name, data, cursor) };
                let marked = mark_replayed(&event.encode(dialect), dialect);
                assert_eq!(marked, Event { replayed: true, ..event }.encode(dialect), "{dialect:?} {name}");
            }
        }
    }
}
