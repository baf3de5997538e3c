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
use tidings::internals::{
    ClientFrame, Command, Cursor, Envelope, FrameError, Identity, MAX_JTI_BYTES, Revocation, Start, TokenError, UserId,
    Verifier, client_address, cookie, read_header, text_frame,
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
    let known = ["type", "token", "id", "resume", "device"];
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
            _ => return assert!(matches!(parsed, Err(FrameError::UnknownType(_))), "{parsed:?}: {text}"),
        }),
    };
    match (&parsed, expected) {
        (Err(FrameError::NoObject(_)), None)
        | (Err(FrameError::Field(..) | FrameError::Cursor(_) | FrameError::Device(_)), Some(None)) => {}
        (Ok(frame), Some(Some(expected))) => assert_eq!(*frame, expected, "{text}"),
        (_, expected) => panic!("{parsed:?}, not {expected:?}: {text}"),
    }
}

/// A parsed envelope, written as the scripts write it, gives the same text; a cursor is accepted only in that form.
pub fn envelope(text: &str) {
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string(), text);
    }
    let Some(Envelope { stored, event, data }) = Envelope::parse(text) else { return };
    let stored = stored.map_or_else(String::new, |(count, cursor)| format!("{count} {cursor} "));
    let rest = text.strip_prefix(&format!("~{stored}")).unwrap_or_else(|| panic!("{stored}: {text}"));
    let name = rest.strip_suffix(&format!(" {data}")).unwrap_or_else(|| panic!("{data}: {text}"));
    // Any escaping of its characters is allowed, but it must be exactly one JSON string.
    assert_eq!(serde_json::from_str::<String>(name).unwrap(), event, "{text}");
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
        assert!(value.is_none_or(|value| !value.is_empty() && value.len() < list.len()), "{name:?} in {list:?}");
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
        let trusted = &CONFIG.limits.trusted_proxies;
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
