//! Checks that hold for any input. The random tests, which run everywhere, and the fuzz targets (`fuzz/`), which run for
//! long, share them: a new parser gets a function here and a line in each.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::header::{COOKIE, FORWARDED, HeaderMap, HeaderName, HeaderValue};
use jsonwebtoken::{EncodingKey, Header, encode};
use redis::Value;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use tidings::internals::PageCursor;
use tidings::internals::resp::{self, Reply};
use tidings::internals::socketio::{Action, Auth, ClientPacket, RESERVED_EVENTS, SEPARATOR, Session, packets};
use tidings::internals::{
    BadPageRequest, ClientFrame, Command, Cursor, Dialect, Envelope, Event, FrameError, Identity, MAX_JTI_BYTES,
    MAX_PAGE_ENTRIES, Notice, PageRequest, Revocation, Start, TokenError, UserId, Verifier, client_address, cookie,
    is_json, read_header, text_frame,
};
use tidings::{Config, Layers};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// What our reader takes from a subscription, the `redis` crate's takes too, with the same bytes and meaning; and where
/// ours asks for more, there is no whole reply yet. (Ours knows a smaller language: what it refuses may be more of RESP.)
pub fn resp(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        match resp::read(rest, usize::MAX) {
            Err(_) => return,
            Ok(None) => {
                let whole = redis::parse_redis_value(rest).is_ok();
                assert!(!whole, "it requires more than {:?}", String::from_utf8_lossy(rest));
                return;
            }
            Ok(Some((reply, consumed))) => {
                assert!(consumed > 0 && consumed <= rest.len());
                let (whole, after) = rest.split_at(consumed);
                assert_eq!(resp::read(&whole[..consumed - 1], usize::MAX), Ok(None), "fewer bytes would be sufficient");
                same_reply(&reply, whole);
                passed_over(whole);
                rest = after;
            }
        }
    }
}

fn same_reply(reply: &Reply<'_>, bytes: &[u8]) {
    let shown = String::from_utf8_lossy(bytes);
    // A push of RESP3 is an array of another type; the library makes its first part a name, which may be no Unicode.
    let array = bytes.strip_prefix(b">").map(|rest| [b"*", rest].concat());
    let bytes = array.as_deref().unwrap_or(bytes);
    // The library's statuses and errors are Unicode.
    let other = match (redis::parse_redis_value(bytes), reply) {
        (Ok(other), _) => other,
        (Err(_), Reply::Status(line) | Reply::Error(line)) if std::str::from_utf8(line).is_err() => return,
        // An integer of more than 64 bits stands as its digits with us.
        (Err(_), Reply::Push(parts)) if parts.as_slice().iter().any(|part| part.len() > 18 && is_integer(part)) => {
            return;
        }
        (Err(error), _) => panic!("{shown:?} is {reply:?}, but {error}"),
    };
    match (reply, &other) {
        (Reply::Status(b"OK"), Value::Okay) | (Reply::Error(_), Value::ServerError(_)) => {}
        (Reply::Status(status), Value::SimpleString(text)) => assert_eq!(*status, text.as_bytes()),
        (Reply::Push(parts), Value::Array(values)) => {
            assert_eq!(parts.as_slice().len(), values.len(), "{shown:?}");
            for (part, value) in parts.as_slice().iter().zip(values) {
                match value {
                    Value::BulkString(bytes) => assert_eq!(*part, bytes),
                    Value::Int(number) => {
                        assert_eq!(std::str::from_utf8(part).ok().and_then(|text| text.parse().ok()), Some(*number));
                    }
                    Value::Nil => assert!(part.is_empty()),
                    other => panic!("{shown:?} has {other:?}"),
                }
            }
        }
        _ => panic!("{shown:?} is {reply:?}, and {other:?}"),
    }
}

fn is_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

/// However small the largest part may be, the next reply begins at the same byte.
fn passed_over(whole: &[u8]) {
    for max_part in [0, 1, 5] {
        let (reply, mut consumed) = resp::read(whole, max_part).unwrap().unwrap();
        if let Reply::Oversize(_, unwanted) = reply {
            for _ in 0..unwanted {
                consumed += resp::read_unwanted(&whole[consumed..]).unwrap().unwrap();
            }
        }
        assert_eq!(consumed, whole.len(), "{:?}", String::from_utf8_lossy(whole));
    }
}

/// A client's frame is parsed as serde_json reads it, and only an invalid one is refused.
pub fn client_frame(text: &str) {
    let parsed = ClientFrame::parse(text);
    let Ok(Fields(fields)) = serde_json::from_str(text) else {
        assert!(matches!(parsed, Err(FrameError::NoObject(_))), "{parsed:?}: {text}");
        return;
    };
    let values = |name: &str| {
        let named = fields.iter().filter(move |(other, _)| other == name);
        named.map(|(_, raw)| serde_json::from_str::<serde_json::Value>(raw.get()).ok()).collect::<Vec<_>>()
    };
    let string = |name: &str| match values(name).as_slice() {
        [Some(serde_json::Value::String(text))] => Some(text.clone()),
        _ => None,
    };
    let known = ["type", "token", "id", "resume", "device", "before", "limit", "ref"];
    let readable = known.iter().all(|name| matches!(values(name).as_slice(), [] | [Some(_)]));
    // Null counts as absent, and a value that is not a string as a cursor that was never issued.
    let given = |name: &str| values(name).into_iter().flatten().find(|value| !value.is_null());
    let start = || {
        let resume = given("resume").map(|value| value.as_str().unwrap_or_default().to_owned());
        let device = given("device").map(|value| value.as_str().unwrap_or_default().to_owned());
        Start::new(resume.as_deref(), device.as_deref()).ok()
    };
    let expected = match string("type").filter(|_| readable) {
        None => None,
        Some(kind) => Some(match kind.as_str() {
            "hello" => start().and_then(|start| Some(ClientFrame::Hello { token: string("token")?, start })),
            "auth" => string("token").map(|token| ClientFrame::Auth { token }),
            "pong" => Some(ClientFrame::Pong),
            "ack" => string("id").and_then(|id| id.parse().ok()).map(ClientFrame::Ack),
            "history" => page_request(given("before"), given("limit"), given("ref")).map(ClientFrame::History),
            _ => return assert!(matches!(parsed, Err(FrameError::UnknownType(_))), "{parsed:?}: {text}"),
        }),
    };
    match (&parsed, expected) {
        (Err(FrameError::NoObject(_)), None)
        | (Err(FrameError::Field(..) | FrameError::Cursor(_) | FrameError::Device(_)), Some(None)) => {}
        (Err(error @ FrameError::History { problem, .. }), Some(None)) => {
            let reference = given("ref").and_then(|value| value.as_str().map(str::to_owned));
            let expected = reference.filter(|_| *problem != BadPageRequest::Reference);
            assert_eq!(error.reference(), expected.as_deref(), "{text}");
        }
        (Ok(frame), Some(Some(expected))) => assert_eq!(*frame, expected, "{text}"),
        (_, expected) => panic!("{parsed:?}, not {expected:?}: {text}"),
    }
}

/// The request that these values make; `None` if one of them is refused.
fn page_request(
    before: Option<serde_json::Value>,
    limit: Option<serde_json::Value>,
    reference: Option<serde_json::Value>,
) -> Option<PageRequest> {
    let before = match before {
        Some(before) => Some(before.as_str()?.parse().ok()?),
        None => None,
    };
    let limit = usize::try_from(limit.map_or(Some(20), |limit| limit.as_u64())?).ok()?;
    let reference = match reference {
        Some(reference) => Some(reference.as_str().filter(|text| text.len() <= 128)?.to_owned()),
        None => None,
    };
    (1..=MAX_PAGE_ENTRIES).contains(&limit).then_some(PageRequest { before, limit, reference })
}

/// A parsed envelope, written as the scripts write it, gives the same text; a cursor is accepted only in that form.
pub fn envelope(text: &str) {
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string(), text);
    }
    let Some(Envelope { stored, collapse, event, trace, data }) = Envelope::parse(text) else { return };
    let stored = stored.map_or_else(String::new, |stored| {
        let term = stored.term.map_or_else(String::new, |term| format!("@{term}"));
        format!("{}{term} {} ", stored.count, stored.cursor)
    });
    let rest = text.strip_prefix(&format!("~{stored}")).unwrap_or_else(|| panic!("{stored}: {text}"));
    let mut names = rest.strip_suffix(&format!(" {data}")).unwrap_or_else(|| panic!("{data}: {text}"));
    // Any escaping of its characters is allowed, but it must be exactly one JSON string.
    if let Some(key) = collapse {
        let keyed = names.strip_prefix('=').unwrap_or_else(|| panic!("{key}: {text}"));
        let mut strings = serde_json::Deserializer::from_str(keyed).into_iter::<String>();
        assert_eq!(strings.next().unwrap().unwrap(), key, "{text}");
        names = keyed[strings.byte_offset()..].strip_prefix(' ').unwrap_or_else(|| panic!("{key}: {text}"));
    }
    let names: Vec<String> = serde_json::from_str(&format!("[{names}]")).unwrap();
    assert_eq!(names, [event].into_iter().chain(trace).collect::<Vec<_>>(), "{text}");
}

/// A parsed notice, written again, is the same notice.
pub fn notice(text: &str) {
    if let Some(notice) = Notice::parse(text) {
        assert!(text.starts_with("~!{"), "{text}");
        assert_eq!(Notice::parse(&notice.write()), Some(notice), "{text}");
    }
}

/// The fields of a JSON object, each as often as it stands there.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

const SECRET: &str = "a secret of the fuzzers, long enough";
const LEEWAY: u64 = 30;

fn verify(token: &str) -> Result<Identity, TokenError> {
    static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
        let env = vec![("TIDINGS_AUTH__HMAC_SECRET".into(), SECRET.into())];
        Verifier::new(&Config::load(Layers { env, ..Layers::default() }).unwrap().auth).unwrap()
    });
    VERIFIER.verify_now(token).unwrap()
}

/// No text is a token unless it is signed; of signed claims, only those with a user and a future are taken.
pub fn token(text: &str) {
    assert!(verify(text).is_err(), "forged: {text}");
    let Some(identity) = verify_signed(text) else { return };
    let Fields(fields) = serde_json::from_str(text).expect("claims are an object");
    let claim = |name: &str| fields.iter().rev().find(|(other, _)| other == name).map(|(_, raw)| raw.get()).unwrap();
    let user = serde_json::from_str(claim("sub")).unwrap_or_else(|_| claim("sub").to_owned());
    assert!(claim("sub").starts_with('"') || is_integer(claim("sub").as_bytes()), "neither string nor integer: {text}");
    assert_eq!(identity.user.as_str(), user, "{text}");
    assert!(user.len() <= 256 && !user.is_empty() && !user.chars().any(char::is_control), "{user:?}");
    assert!(identity.expires.is_some_and(|expires| expires + LEEWAY + 1 >= now()), "over: {text}");
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Signs JSON and verifies it.
pub fn verify_signed(claims: &str) -> Option<Identity> {
    let claims = serde_json::from_str::<&RawValue>(claims).ok()?;
    let signed = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes()).unwrap()).unwrap();
    verify(&signed).ok()
}

/// What we frame, a client of the WebSocket library reads as we meant it, and no more.
pub fn server_text(text: &str) {
    let mut bytes = text_frame(&[text.as_bytes()]).to_vec();
    bytes.extend_from_slice(&text_frame(&[b"next"]));
    let config = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
    let mut client =
        WebSocket::from_partially_read(std::io::Cursor::new(Vec::new()), bytes, Role::Client, Some(config));
    assert_eq!(client.read().unwrap(), Message::Text(Utf8Bytes::from(text)));
    assert_eq!(client.read().unwrap(), Message::text("next"));
}

/// What an `EventSource` makes of a stream (HTML standard, section 9.2.6): the data of each event, and the last id.
fn interpret(stream: &str) -> (Vec<String>, String) {
    let (mut events, mut data, mut id) = (Vec::new(), None::<String>, String::new());
    // A CRLF, a LF or a CR ends a line.
    for line in stream.replace("\r\n", "\n").split(['\n', '\r']) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match (line, field) {
            ("", _) => events.extend(data.take()),
            (_, "data") => data = Some(data.map_or(value.to_owned(), |data| data + "\n" + value)),
            (_, "id") if !value.contains('\0') => value.clone_into(&mut id),
            _ => {}
        }
    }
    (events, id)
}

/// Any JSON text is read back from a stream as the same text, with a line feed for each line break in it, and so as the same
/// JSON: alone, and as the data of a frame.
pub fn event_block(text: &str) {
    let data = text.trim_matches([' ', '\t', '\n', '\r']);
    if !is_json(data) {
        return;
    }
    let expected = data.replace("\r\n", "\n").replace('\r', "\n");
    const CURSOR: &str = "a1b2c3d4e5f60718-1795000000123-17";
    for (cursor, id) in [(None, ""), (CURSOR.parse().ok(), CURSOR)] {
        for dialect in [Dialect::Sse, Dialect::SseRaw] {
            let block = Event { cursor, ..Event::ephemeral("n", data) }.encode(dialect);
            let block = std::str::from_utf8(&block).expect("UTF-8");
            let (events, last_id) = interpret(&format!("{block}data: next\n\n"));
            assert_eq!((events.len(), events[1].as_str(), last_id.as_str()), (2, "next", id), "{data:?}: {block:?}");
            let read = match dialect {
                Dialect::Sse => {
                    let Fields(fields) = serde_json::from_str(&events[0]).expect("a frame");
                    fields.into_iter().find(|(name, _)| name == "data").expect("data").1.get().to_owned()
                }
                _ => events[0].clone(),
            };
            assert_eq!(read, expected, "{data:?}: {block:?}");
        }
    }
}

/// A command is parsed as serde_json reads it, and an invalid one has no effect.
pub fn command(message: &[u8]) {
    let shown = String::from_utf8_lossy(message);
    let expected = serde_json::from_slice(message).ok().and_then(|Fields(commands)| {
        let [(name, body)] = commands.as_slice() else { return None };
        let Fields(fields) = serde_json::from_str(body.get()).ok()?;
        let mut names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let field = |name: &str| fields.iter().find(|(other, _)| other == name).map_or("null", |(_, raw)| raw.get());
        match (name.as_str(), names.as_slice()) {
            ("disconnect", ["user"] | ["connection", "user"]) => {
                let user = serde_json::from_str::<String>(field("user")).ok()?;
                let connection = serde_json::from_str(field("connection")).ok()?;
                Some(Command::Disconnect { user: UserId::new(&user).ok()?, connection })
            }
            ("revoke", ["jti", "until"]) => {
                let jti = serde_json::from_str::<String>(field("jti")).ok()?;
                let until = serde_json::from_str::<f64>(field("until")).ok().filter(|until| *until >= 0.0)?;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
                let until = Some(until.ceil() as u64).filter(|until| *until <= now() + 10 * 366 * 86_400)?;
                (1..=MAX_JTI_BYTES).contains(&jti.len()).then_some(Command::Revoke(Revocation { jti, until }))
            }
            ("probe" | "oldest" | "replace", _) => serde_json::from_slice(message).ok().map(Command::Room),
            ("connections", _) => serde_json::from_str(body.get()).ok().map(Command::Roster),
            _ => None,
        }
    });
    assert_eq!(Command::parse(message).ok(), expected, "{shown:?}");
}

/// A cursor is a position and a user in hexadecimal, and is written as it was read.
pub fn page_cursor(text: &str) {
    let (position, user) = text.split_once('.').unwrap_or((text, ""));
    let is_hex = user.len() % 2 == 0 && user.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bytes = (0..user.len() / 2).map_while(|at| u8::from_str_radix(user.get(at * 2..at * 2 + 2)?, 16).ok());
    let good = is_hex && position.parse::<u64>().is_ok() && String::from_utf8(bytes.collect()).is_ok();
    let parsed = text.parse::<PageCursor>();
    assert_eq!(parsed.is_ok(), good, "{text:?}");
    let Ok(cursor) = parsed else { return };
    let written = cursor.to_string();
    assert_eq!(written.parse(), Ok(cursor), "{text:?}");
    let suffix = |text: &str| text.split_once('.').map(|(_, user)| user.to_lowercase());
    assert_eq!(suffix(&written), suffix(text), "{text:?}");
}

fn headers(lines: &[(HeaderName, &str)]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, line) in lines {
        headers.append(name, HeaderValue::from_bytes(line.as_bytes()).ok()?);
    }
    Some(headers)
}

/// A cookie has one value, in however many headers its list comes; and nothing behind the first of a name changes it.
pub fn cookies(list: &str) {
    let Some(whole) = headers(&[(COOKIE, list)]) else { return };
    let parts: Vec<_> = list.split(';').map(|pair| (COOKIE, pair)).collect();
    let parts = headers(&parts).expect("parts of a good header are good");
    for pair in list.split(';') {
        let name = pair.split('=').next().unwrap_or_default().trim_matches([' ', '\t']);
        let value = cookie(&whole, name);
        assert_eq!(value, cookie(&parts, name), "{name:?} in {list:?}");
        assert!(value.is_none_or(|value| value.chars().count() < list.len()), "{name:?} in {list:?}");
    }
    let behind = headers(&[(COOKIE, &format!("mine=a%20b; {list}"))]).expect("good before and behind");
    assert_eq!(cookie(&behind, "mine").as_deref(), Some("a b"), "{list:?}");
}

/// Whatever a client writes into both headers, a line each: what its proxy adds to one of them decides, or nothing does.
pub fn forwarded(lines: &str) {
    static CONFIG: LazyLock<Config> = LazyLock::new(|| {
        let env = vec![("TIDINGS_LIMITS__TRUSTED_PROXIES".into(), "10.0.0.0/8".into())];
        Config::load(Layers { env, ..Layers::default() }).unwrap()
    });
    let x_forwarded_for = HeaderName::from_static("x-forwarded-for");
    let (client, proxy) = (IpAddr::from([192, 0, 2, 7]), IpAddr::from([10, 0, 0, 1]));
    let (one, other) = lines.split_once('\n').unwrap_or((lines, ""));
    let ways = [(&x_forwarded_for, &FORWARDED, ", 192.0.2.7"), (&FORWARDED, &x_forwarded_for, ", for=192.0.2.7")];
    for (to, beside, added) in ways {
        let added = format!("{one}{added}");
        let Some(headers) = headers(&[(to.clone(), &added), (beside.clone(), other)]) else { return };
        let trusted = &CONFIG.limits.get().trusted_proxies;
        let found = client_address(proxy, &headers, trusted);
        assert!([client, proxy].contains(&found), "{found}: {lines:?}");
        if other.is_empty() && one.is_ascii() && !one.contains('"') {
            assert_eq!(found, client, "hops to the left of the client are ignored: {lines:?}");
        }
        assert_eq!(client_address(client, &headers, trusted), client, "no proxy: {lines:?}");
    }
}

/// A PROXY header is parsed as the protocol specifies, without a byte after it. Returns whether it was valid.
pub fn proxy_header(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let read = match pin!(read_header(&mut rest)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(read) => read,
        Poll::Pending => panic!("a read of available bytes is pending"),
    };
    let Ok(client) = read else { return false };
    let header = &bytes[..bytes.len() - rest.len()];
    let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    assert!(header.starts_with(b"\r\n\r\n\0\r\nQUIT\n") && header.len() == 16 + usize::from(number(14)), "{header:?}");
    let expected = match (header[12], header[13] >> 4) {
        (0x21, 1) => Some(SocketAddr::from((<[u8; 4]>::try_from(&header[16..20]).unwrap(), number(24)))),
        (0x21, 2) => Some(SocketAddr::from((<[u8; 16]>::try_from(&header[16..32]).unwrap(), number(48)))),
        (0x20 | 0x21, 0..=3) => None,
        _ => panic!("not a header: {header:?}"),
    };
    assert_eq!(client, expected, "{header:?}");
    true
}

/// A packet of a socket.io client has the JSON that serde_json reads, and only a packet without valid JSON is refused; a body
/// is its packets, and a session takes nothing from a client that did not join.
pub fn socketio(text: &str) {
    for part in text.split(SEPARATOR) {
        match ClientPacket::parse(part) {
            Ok(ClientPacket::Event { namespace, read, attachments }) => {
                let array = elements(part, namespace).unwrap_or_else(|| panic!("an event without an array: {part}"));
                assert!(is_event(&array), "{part}");
                let counted = part.split_once('-').and_then(|(head, _)| head.get(2..)?.parse().ok());
                assert_eq!(attachments, if part.starts_with("45") { counted.unwrap() } else { 0 }, "{part}");
                let position = match array.as_slice() {
                    [name, position] if string(name).as_deref() == Some("ack") && attachments == 0 => string(position),
                    _ => None,
                };
                assert_eq!(read, position.and_then(|position| position.parse().ok()), "{part}");
            }
            Ok(ClientPacket::Ack { namespace, .. }) => assert!(elements(part, namespace).is_some(), "{part}"),
            Ok(ClientPacket::Connect { namespace, auth }) => {
                let json = after(part, namespace, '{').unwrap_or("{}");
                assert_eq!(auth, expected_auth(json), "{part}");
            }
            Ok(_) => {}
            Err(_) => {
                let array = part.strip_prefix("42").and_then(|json| serde_json::from_str(json).ok());
                assert!(!array.is_some_and(|array: Vec<Box<RawValue>>| is_event(&array)), "{part}");
                let is_object = |json: &str| serde_json::from_str::<Fields>(json).is_ok();
                assert!(!part.strip_prefix("40").is_some_and(|json| json.is_empty() || is_object(json)), "{part}");
            }
        }
    }
    assert_eq!(packets(text).count(), text.matches(SEPARATOR).count() + 1);
    let mut session = Session::default();
    for packet in packets(text) {
        let joined = session.has_joined();
        match session.handle(packet) {
            Ok(Action::Connect(_)) => assert!(!joined && session.has_joined(), "{text:?}"),
            Ok(Action::Ignored | Action::Read(_)) => assert!(joined, "{text:?}"),
            Ok(_) => assert_eq!(session.has_joined(), joined, "{text:?}"),
            Err(_) => return,
        }
    }
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// The text from the first of this character that follows the namespace, which a comma ends, or the packet.
fn after<'a>(packet: &'a str, namespace: &str, first: char) -> Option<&'a str> {
    if namespace != "/" && !packet.contains(&format!("{namespace},")) {
        return None;
    }
    let end = packet.find(&format!("{namespace},")).map_or(0, |at| at + namespace.len());
    packet.get(end..).and_then(|rest| rest.get(rest.find(first)?..))
}

fn elements(packet: &str, namespace: &str) -> Option<Vec<Box<RawValue>>> {
    serde_json::from_str(after(packet, namespace, '[')?).ok()
}

fn is_event(array: &[Box<RawValue>]) -> bool {
    let Some(first) = array.first() else { return false };
    let is_name = first.get().starts_with('"') && string(first).is_none_or(|name| !RESERVED_EVENTS.contains(&&*name));
    is_name || first.get().starts_with(|character: char| character == '-' || character.is_ascii_digit())
}

fn expected_auth(json: &str) -> Auth {
    let Fields(fields) = serde_json::from_str(json).unwrap();
    let last = |name: &str| fields.iter().rev().find(|(other, _)| other == name).map(|(_, raw)| &**raw);
    let text = |name: &str| last(name).and_then(string);
    let token = last("token").filter(|raw| raw.get() != "null").map(|raw| string(raw).unwrap_or_default());
    let bare = token.map(|token| match token.to_ascii_lowercase().strip_prefix("bearer ") {
        Some(rest) => token[token.len() - rest.len()..].trim().to_owned(),
        None => token,
    });
    // A client with an empty `pid` would not report a recovery.
    let pid = text("pid").filter(|pid| !pid.is_empty());
    Auth { token: bare, pid, offset: text("offset"), resume: text("resume") }
}
