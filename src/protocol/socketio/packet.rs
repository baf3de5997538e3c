//! The packets of clients.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

use super::{Auth, SEPARATOR};
use crate::protocol::Cursor;

/// Names of events that clients keep for themselves: one that receives such an event disconnects, or acts on a fake one.
pub const RESERVED_EVENTS: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// The event by which a client moves the read position of its device.
const READ_EVENT: &str = "ack";

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a packet that a client of Engine.IO 4 and Socket.IO 5 may send")]
pub struct BadPacket;

/// One packet, as a WebSocket frame or a part of a polling body carries it.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientPacket<'a> {
    /// `1`: the client leaves.
    Close,
    /// `2probe`: whether a new WebSocket works, before an upgrade.
    Probe,
    /// `3`: the answer to a ping.
    Pong,
    /// `5`: the session continues on this WebSocket.
    Upgrade,
    /// `6`
    Noop,
    /// `b…`: an attachment in a polling body, in base64. Its content is not looked at.
    Attachment,
    /// `40`
    Connect { namespace: &'a str, auth: Auth },
    /// `41`
    Disconnect { namespace: &'a str },
    /// `42` and `45`, with an ack id or without. `read` is the cursor of an event that moves the read position.
    Event { namespace: &'a str, read: Option<Cursor>, attachments: u32 },
    /// `43` and `46`
    Ack { namespace: &'a str, attachments: u32 },
}

/// The packets of a polling body.
pub fn packets(body: &str) -> impl Iterator<Item = Result<ClientPacket<'_>, BadPacket>> {
    body.split(SEPARATOR).map(ClientPacket::parse)
}

impl<'a> ClientPacket<'a> {
    pub fn parse(text: &'a str) -> Result<Self, BadPacket> {
        // Cuts only after ASCII.
        let rest = text.get(1..).ok_or(BadPacket)?;
        match text.as_bytes().first() {
            Some(b'1') => Ok(Self::Close),
            Some(b'2') if rest == "probe" => Ok(Self::Probe),
            Some(b'3') => Ok(Self::Pong),
            Some(b'4') => parse_message(rest),
            Some(b'5') => Ok(Self::Upgrade),
            Some(b'6') => Ok(Self::Noop),
            Some(b'b') => Ok(Self::Attachment),
            _ => Err(BadPacket),
        }
    }
}

/// A packet of Socket.IO: its type, the number of attachments, the namespace, an ack id, JSON.
fn parse_message(text: &str) -> Result<ClientPacket<'_>, BadPacket> {
    let (kind, rest) = text.split_at_checked(1).ok_or(BadPacket)?;
    let (attachments, rest) = if matches!(kind, "5" | "6") {
        let (count, rest) = rest.split_once('-').ok_or(BadPacket)?;
        (count.bytes().all(|byte| byte.is_ascii_digit()).then(|| count.parse().ok()).flatten(), rest)
    } else {
        (Some(0), rest)
    };
    let attachments = attachments.ok_or(BadPacket)?;
    let (namespace, rest) =
        if rest.starts_with('/') { rest.split_once(',').unwrap_or((rest, "")) } else { ("/", rest) };
    let json = rest.trim_start_matches(|character: char| character.is_ascii_digit());
    match kind {
        "0" => Ok(ClientPacket::Connect { namespace, auth: Auth::parse(json)? }),
        "1" if rest.is_empty() => Ok(ClientPacket::Disconnect { namespace }),
        "2" | "5" => {
            let event = parse_array(json)?;
            let read = event.position().filter(|_| attachments == 0);
            event.has_name().then_some(ClientPacket::Event { namespace, read, attachments }).ok_or(BadPacket)
        }
        "3" | "6" => parse_array(json).map(|_| ClientPacket::Ack { namespace, attachments }),
        _ => Err(BadPacket),
    }
}

fn parse_array(json: &str) -> Result<Array<'_>, BadPacket> {
    let mut deserializer = Deserializer::from_str(json);
    let array = deserializer.deserialize_seq(Elements).map_err(|_| BadPacket)?;
    deserializer.end().map_err(|_| BadPacket)?;
    Ok(array)
}

/// The first two elements of a JSON array, and the number of all.
struct Array<'a> {
    first: Option<&'a RawValue>,
    second: Option<&'a RawValue>,
    len: usize,
}

impl Array<'_> {
    /// As clients' own parser has it: a number, or a string that is not reserved.
    fn has_name(&self) -> bool {
        match self.first.map(|name| name.get().as_bytes()) {
            Some([b'"', ..]) => self.first.and_then(string).is_none_or(|name| !RESERVED_EVENTS.contains(&&*name)),
            Some([b'-' | b'0'..=b'9', ..]) => true,
            _ => false,
        }
    }

    fn position(&self) -> Option<Cursor> {
        let is_read = self.len == 2 && self.first.and_then(string).is_some_and(|name| name == READ_EVENT);
        self.second.filter(|_| is_read).and_then(string)?.parse().ok()
    }
}

/// A string of JSON; `None` also for one that is not Unicode.
fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Array<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Array<'de>, A::Error> {
        let (first, second) = (seq.next_element()?, seq.next_element()?);
        let mut len = usize::from(first.is_some()) + usize::from(second.is_some());
        while seq.next_element::<IgnoredAny>()?.is_some() {
            len = len.checked_add(1).ok_or_else(|| A::Error::custom("too long"))?;
        }
        Ok(Array { first, second, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: &str = "0000000000000abc-1795000000123-17";

    fn event(namespace: &str) -> ClientPacket<'_> {
        ClientPacket::Event { namespace, read: None, attachments: 0 }
    }

    #[test]
    fn each_packet_of_engine_io_is_parsed() {
        let cases = [
            ("1", ClientPacket::Close),
            ("2probe", ClientPacket::Probe),
            ("3", ClientPacket::Pong),
            ("5", ClientPacket::Upgrade),
            ("6", ClientPacket::Noop),
            ("bAQID", ClientPacket::Attachment),
        ];
        for (text, packet) in cases {
            assert_eq!(ClientPacket::parse(text), Ok(packet), "{text}");
        }
    }

    #[test]
    fn each_packet_of_socket_io_is_parsed() {
        let connect = |namespace| ClientPacket::Connect { namespace, auth: Auth::default() };
        let token = Auth { token: Some("T".into()), ..Auth::default() };
        let attached = |attachments| ClientPacket::Event { namespace: "/", read: None, attachments };
        let cases = [
            ("40", connect("/")),
            ("40{}", connect("/")),
            ("40/,{}", connect("/")),
            ("40/admin,", connect("/admin")),
            ("40/admin", connect("/admin")),
            (r#"40{"token":"T"}"#, ClientPacket::Connect { namespace: "/", auth: token }),
            ("41", ClientPacket::Disconnect { namespace: "/" }),
            ("41/admin,", ClientPacket::Disconnect { namespace: "/admin" }),
            (r#"42["hey",1]"#, event("/")),
            (r#"42 [ "hey" , 1 ] "#, event("/")),
            (r#"4212345678901234567890123["hey"]"#, event("/")),
            (r#"42/admin,7["hey"]"#, event("/admin")),
            ("42[7]", event("/")),
            (r#"42["\ud800"]"#, event("/")),
            (r#"42["auth",{"token":"T"}]"#, event("/")),
            (r#"42["hey",{"_placeholder":true,"num":0}]"#, event("/")),
            (r#"451-["hey",{"_placeholder":true,"num":0}]"#, attached(1)),
            (r#"450-/,7["hey"]"#, attached(0)),
            ("43[]", ClientPacket::Ack { namespace: "/", attachments: 0 }),
            (r#"437["ok"]"#, ClientPacket::Ack { namespace: "/", attachments: 0 }),
            ("462-/a,7[1]", ClientPacket::Ack { namespace: "/a", attachments: 2 }),
        ];
        for (text, packet) in cases {
            assert_eq!(ClientPacket::parse(text), Ok(packet), "{text}");
        }
    }

    #[test]
    fn only_an_ack_with_one_cursor_moves_the_read_position() {
        let read = |text: &str| match ClientPacket::parse(text) {
            Ok(ClientPacket::Event { read, .. }) => read.map(|cursor| cursor.to_string()),
            other => panic!("{text}: {other:?}"),
        };
        for text in [format!(r#"42["ack","{CURSOR}"]"#), format!(r#"421["\u0061ck","{CURSOR}"]"#)] {
            assert_eq!(read(&text).as_deref(), Some(CURSOR), "{text}");
        }
        for text in [
            r#"42["ack"]"#.to_owned(),
            r#"42["ack","x"]"#.to_owned(),
            r#"42["ack",null]"#.to_owned(),
            format!(r#"42["ack","{CURSOR}",1]"#),
            format!(r#"42["read","{CURSOR}"]"#),
            format!(r#"451-["ack","{CURSOR}"]"#),
        ] {
            assert_eq!(read(&text), None, "{text}");
        }
    }

    #[test]
    fn any_other_text_is_refused() {
        let reserved = RESERVED_EVENTS.map(|name| format!(r#"42["{name}"]"#));
        let other = [
            "",
            "0",
            "0{}",
            "2",
            "2x",
            "2probes",
            "7",
            "9",
            "hello",
            "é",
            "\u{1e}",
            "4",
            "4abc",
            "47[]",
            "44",
            r#"44{"message":"x"}"#,
            "40[]",
            "40null",
            r#"40"T""#,
            "40{",
            "40{}x",
            "4x",
            "41x",
            "41[]",
            "42",
            "42{}",
            "42[]",
            "42null",
            r#"42"hey""#,
            "42[null]",
            "42[true]",
            "42[[1]]",
            r#"42["hey""#,
            r#"42["hey"]x"#,
            r#"42abc["hey"]"#,
            r#"42-7["hey"]"#,
            r#"42["\u0063onnect"]"#,
            "43",
            "431",
            "43{}",
            "43abc",
            "45[1]",
            r#"45-["hey"]"#,
            r#"45x-["hey"]"#,
            r#"45+1-["hey"]"#,
            r#"4599999999999-["hey"]"#,
            "451-",
            "46[]",
            "42/a",
        ];
        for text in other.iter().copied().chain(reserved.iter().map(String::as_str)) {
            assert_eq!(ClientPacket::parse(text), Err(BadPacket), "{text:?}");
        }
    }

    #[test]
    fn deep_json_does_not_overflow_the_stack() {
        let depth = 200_000;
        let text = format!("42[\"hey\",{}{}]", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(ClientPacket::parse(&text), Ok(event("/")));
        let text = format!("40{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(ClientPacket::parse(&text).is_ok());
    }

    #[test]
    fn a_body_is_several_packets() {
        let parsed: Vec<_> = packets("3\u{1e}42[\"a\"]\u{1e}bAQ==").collect();
        assert_eq!(parsed, [Ok(ClientPacket::Pong), Ok(event("/")), Ok(ClientPacket::Attachment)]);
        assert!(packets("").eq([Err(BadPacket)]));
        assert!(packets("3\u{1e}").eq([Ok(ClientPacket::Pong), Err(BadPacket)]));
    }
}
