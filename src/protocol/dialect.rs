//! The tongues that a client may speak, and one event said in each.

use bytes::Bytes;

use super::frame::text_frame;

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
    #[must_use]
    pub fn has_frames(self) -> bool {
        self != Self::Raw
    }

    /// Whether the client answers `{"type":"ping"}`; else it gets WebSocket pings.
    #[must_use]
    pub fn pings_in_json(self) -> bool {
        self == Self::TidingsV1
    }
}

/// One notification.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// `notification`, unless the backend named another.
    pub name: &'a str,
    /// The published JSON, byte for byte, without the white space around it.
    pub data: &'a str,
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
    #[must_use]
    pub fn new(event: Event<'a>) -> Self {
        Self { event, framed: None, raw: None }
    }

    /// The whole WebSocket frame for this dialect.
    pub fn frame(&mut self, dialect: Dialect) -> Bytes {
        let Event { name, data } = self.event;
        let (slot, encode): (_, fn(&str, &str) -> Bytes) = match dialect {
            Dialect::TidingsV1 | Dialect::Plain => (&mut self.framed, event_frame),
            Dialect::Raw => (&mut self.raw, |_, data| text_frame(&[data.as_bytes()])),
        };
        slot.get_or_insert_with(|| encode(name, data)).clone()
    }
}

fn event_frame(name: &str, data: &str) -> Bytes {
    // A text always serialises; the name is the only part that may need escaping.
    let name = serde_json::to_string(name).unwrap_or_default();
    text_frame(&[br#"{"type":"event","event":"#, name.as_bytes(), br#","data":"#, data.as_bytes(), b"}"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_carried_byte_for_byte_in_each_dialect() {
        let data = r#"{ "n": 9007199254740993, "s":"é\u00e9" }"#;
        let mut encoded = Encoded::new(Event { name: "notification", data });
        let framed = encoded.frame(Dialect::TidingsV1);
        let expected = format!(r#"{{"type":"event","event":"notification","data":{data}}}"#);
        assert_eq!(&framed[2..], expected.as_bytes());
        assert_eq!(&encoded.frame(Dialect::Raw)[2..], data.as_bytes());
    }

    #[test]
    fn a_frame_is_encoded_once_and_shared() {
        let mut encoded = Encoded::new(Event { name: "n", data: "1" });
        let (a, b) = (encoded.frame(Dialect::TidingsV1), encoded.frame(Dialect::Plain));
        assert_eq!(a.as_ptr(), b.as_ptr());
    }

    #[test]
    fn an_event_name_is_escaped() {
        let frame = event_frame("a\"b", "1");
        assert_eq!(&frame[2..], br#"{"type":"event","event":"a\"b","data":1}"#);
    }
}
