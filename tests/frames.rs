//! The frames of `tidings.v1`, the life of a connection, and the rules of the WebSocket around them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{Client, Gateway, Options, handshake, masked, now, sign, token, token_for};

/// Whosever place that is.
const ACK: &str = r#"{"type":"ack","id":"0123456789abcdef-1795000000123-17"}"#;

/// Shows that the connection of user 42 lives and that nothing but pings was on its way: what it said so far has been
/// read and answered, and what is published arrives next.
async fn still_lives(gateway: &Gateway, client: &mut Client) {
    let next = async |client: &mut Client| loop {
        match client.message().await {
            Some(Message::Ping(_)) => {}
            Some(Message::Text(text)) if text == r#"{"type":"ping"}"# => {}
            other => return other,
        }
    };
    client.send_message(Message::Ping("alive?".into())).await;
    assert_eq!(next(client).await, Some(Message::Pong("alive?".into())));
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":"alive?"}"#).await;
    let event = json!({"type": "event", "event": "notification", "data": "alive?"});
    match next(client).await {
        Some(Message::Text(text)) => assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), event),
        other => panic!("an event was expected, not {other:?}"),
    }
}

/// Asserts the remaining lifetime in a frame: this many seconds when the token was signed, a moment ago.
fn assert_lifetime(frame: &Value, seconds: u64) {
    let remaining = frame["expires_in_ms"].as_u64().unwrap_or_else(|| panic!("no lifetime: {frame}"));
    let since_signed = (seconds * 1_000).checked_sub(remaining).unwrap_or_else(|| panic!("too long: {frame}"));
    assert!(since_signed < 30_000, "{frame}");
}

async fn refresh(client: &mut Client, token: &str) -> Value {
    client.send(&json!({"type": "auth", "token": token}).to_string()).await;
    client.frame().await
}

#[tokio::test]
async fn the_welcome_comes_first_and_has_exactly_the_promised_fields() {
    let gateway = Options::dev().set("server.heartbeat", "7s").start().await;
    let (_client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    let (_second, other) = Client::connect_with_welcome(&gateway, "42").await;
    let connection = welcome["connection"].as_str().expect("a connection id");
    assert!(!connection.is_empty());
    assert_ne!(other["connection"], connection, "each connection has an id of its own");
    let cursor = &welcome["cursor"];
    assert!(cursor.is_string(), "{welcome}");
    assert_lifetime(&welcome, 3_600);
    let expected = json!({
        "type": "welcome", "connection": connection, "user": "42", "instance": gateway.instance,
        "cursor": cursor, "recovered": false, "unread": 0, "expires_in_ms": welcome["expires_in_ms"],
        "heartbeat_ms": 7_000,
    });
    assert_eq!(welcome, expected);
}

#[tokio::test]
async fn text_that_is_no_known_frame_is_answered_by_an_error_and_the_connection_lives_on() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    let wrong = [
        "",
        "hi",
        "[]",
        "42",
        "null",
        "\"pong\"",
        "{",
        "{}",
        r#"{"type":5}"#,
        r#"{"type":"shout"}"#,
        r#"{"type":"auth"}"#,
        r#"{"type":"auth","token":5}"#,
        r#"{"type":"ack"}"#,
        r#"{"type":"ack","id":"x"}"#,
        r#"["pong",null,null]"#,
        "{\"type\":\"pong\"} {}",
    ];
    for text in wrong {
        client.send(text).await;
        let error = client.frame().await;
        assert_eq!(error["type"], "error", "{text}: {error}");
        assert!(error["code"].as_u64().is_some_and(|code| (4_000..5_000).contains(&code)), "{text}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}: {error}");
    }
    for text in [r#"{"type":"pong","unknown":[1]}"#, &format!(" {ACK} ")] {
        client.send(text).await;
    }
    still_lives(&gateway, &mut client).await;
}

#[tokio::test]
async fn a_field_of_the_wrong_type_gets_an_error_4000_and_the_connection_lives_on() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    for value in ["5", "1.5", "null", "true", "[]", "{}", r#"["a"]"#, r#"{"a":1}"#] {
        for (frame, named) in [
            (format!(r#"{{"type":"auth","token":{value}}}"#), r#""token""#),
            (format!(r#"{{"token":{value},"type":"auth"}}"#), r#""token""#),
            (format!(r#"{{"type":"ack","id":{value}}}"#), r#""id""#),
            (format!(r#"{{"type":"hello","token":{value}}}"#), r#""token""#),
            (format!(r#"{{"type":"hello","token":"t","resume":{value}}}"#), "already authenticated"),
            (format!(r#"{{"type":{value},"token":"t"}}"#), r#""type""#),
        ] {
            client.send(&frame).await;
            let error = client.frame().await;
            assert_eq!((&error["type"], &error["code"]), (&"error".into(), &4000.into()), "{frame}: {error}");
            assert!(error["message"].as_str().is_some_and(|message| message.contains(named)), "{frame}: {error}");
        }
    }
    client.send(r#"{"type":"auth","token":"a","token":5}"#).await;
    assert_eq!(client.frame().await["code"], 4000, "which of the two?");
    still_lives(&gateway, &mut client).await;
}

#[tokio::test]
async fn a_fresh_token_of_the_same_user_is_taken_and_a_refused_one_says_why() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    let expires = now() + 7_200;
    let fresh = sign(&json!({"sub": "42", "exp": expires}));
    let authenticated = refresh(&mut client, &fresh).await;
    assert_lifetime(&authenticated, 7_200);
    let remaining = &authenticated["expires_in_ms"];
    assert_eq!(authenticated, json!({"type": "authenticated", "expires": expires, "expires_in_ms": remaining}));
    let integer = sign(&json!({"sub": 42, "exp": expires}));
    assert_eq!(refresh(&mut client, &integer).await["type"], "authenticated", "42 is \"42\"");

    for (token, code) in [
        ("bad.bad.bad".to_owned(), 4009),
        (String::new(), 4009),
        (sign(&json!({"sub": "42"})), 4009),
        (token_for("42", -60), 4010),
        (token("43"), 4003),
    ] {
        let error = refresh(&mut client, &token).await;
        assert_eq!((&error["type"], &error["code"]), (&"error".into(), &code.into()), "{token}: {error}");
        assert!(error["message"].is_string(), "{error}");
    }
    still_lives(&gateway, &mut client).await;
}

#[tokio::test]
async fn a_connection_ends_with_its_token_unless_it_is_refreshed() {
    let gateway = Options::dev().set("auth.leeway", "0s").start().await;
    let exp = now() + 5;
    let ends = |at: u64| sign(&json!({"sub": "42", "exp": at}));
    let (mut ending, _) = Client::connect_with_token(&gateway, &ends(exp)).await;
    let (mut refused, _) = Client::connect_with_token(&gateway, &ends(exp)).await;
    let (mut refreshed, _) = Client::connect_with_token(&gateway, &ends(exp)).await;
    let (mut after, _) = Client::connect_with_token(&gateway, &ends(exp + 1)).await;
    assert_eq!(refresh(&mut refused, "bad.bad.bad").await["code"], 4009);
    assert_eq!(refresh(&mut refused, &token("43")).await["code"], 4003);
    assert_eq!(refresh(&mut refreshed, &token("42")).await["type"], "authenticated");

    for (name, client) in [("untouched", &mut ending), ("refused a refresh", &mut refused)] {
        assert_eq!(client.close_code().await, 4010, "{name}");
        let late = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - exp as f64;
        assert!((0.0..5.0).contains(&late), "{name}: closed {late} s after its end");
    }
    // A second later than the old token of the refreshed one would have ended it.
    assert_eq!(after.close_code().await, 4010);
    still_lives(&gateway, &mut refreshed).await;
}

#[tokio::test]
async fn a_connection_lives_through_the_leeway_of_its_token() {
    let gateway = Options::dev().set("auth.leeway", "3s").start().await;
    let exp = now() - 1;
    let (mut client, welcome) = Client::connect_with_token(&gateway, &sign(&json!({"sub": "42", "exp": exp}))).await;
    assert_eq!(welcome["expires_in_ms"], 0, "the leeway is not part of the lifetime");
    assert_eq!(client.close_code().await, 4010);
    let late = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - exp as f64;
    assert!((3.0..8.0).contains(&late), "closed {late} s after exp with a leeway of 3 s");
}

const BEAT: Duration = Duration::from_millis(150);
const PONG: Duration = Duration::from_millis(1_500);

async fn beating() -> Gateway {
    Options::dev().set("server.heartbeat", "150ms").set("server.pong_timeout", "1500ms").start().await
}

#[tokio::test]
async fn a_client_that_answers_pings_lives() {
    let gateway = beating().await;
    let mut framed = Client::connect(&gateway, "42").await;
    let begun = Instant::now();
    while begun.elapsed() < BEAT + PONG * 2 {
        assert_eq!(framed.frame().await, json!({"type": "ping"}));
        framed.send(r#"{"type":"pong"}"#).await;
    }
    still_lives(&gateway, &mut framed).await;
}

#[tokio::test]
async fn a_client_without_the_subprotocol_is_pinged_by_the_websocket() {
    let gateway = beating().await;
    let bearer = format!("Bearer {}", token("42"));
    let mut plain = handshake(gateway.public, "/ws", &[("Authorization", &bearer)]).await.expect("admitted");
    assert_eq!(plain.frame().await["type"], "welcome");
    let begun = Instant::now();
    while begun.elapsed() < BEAT + PONG * 2 {
        // Reading it answers it, as a browser does.
        assert!(matches!(plain.message().await, Some(Message::Ping(_))));
    }
    still_lives(&gateway, &mut plain).await;
}

#[tokio::test]
async fn any_traffic_counts_as_life() {
    let gateway = beating().await;
    let mut client = Client::connect(&gateway, "42").await;
    let signs_of_life = [
        Message::text(r#"{"type":"ack","id":"x"}"#),
        Message::text("no frame at all"),
        Message::Ping("me too".into()),
        Message::Pong("unasked".into()),
    ];
    let (begun, mut pings) = (Instant::now(), 0);
    while begun.elapsed() < BEAT + PONG * 2 {
        if client.frame().await["type"] == "ping" {
            client.send_message(signs_of_life[pings % signs_of_life.len()].clone()).await;
            pings += 1;
        }
    }
    assert!(pings > signs_of_life.len(), "only {pings} pings");
}

#[tokio::test]
async fn a_message_on_its_slow_way_is_life_too() {
    let gateway = beating().await;
    let mut client = Client::connect(&gateway, "42").await;
    // Between the fragments of one message no pong can be said.
    client.write(&masked(0x01, br#"{"type":"pong""#)).await;
    let begun = Instant::now();
    while begun.elapsed() < BEAT + PONG * 2 {
        client.write(&masked(0x00, b" ")).await;
        tokio::time::sleep(BEAT / 3).await;
    }
    client.write(&masked(0x80, b"}")).await;
    still_lives(&gateway, &mut client).await;
}

#[tokio::test]
async fn a_client_that_answers_nothing_is_closed_with_4201() {
    let gateway = Options::dev().set("server.heartbeat", "200ms").set("server.pong_timeout", "300ms").start().await;
    let mut framed = Client::connect(&gateway, "42").await;
    assert_eq!(framed.frame().await, json!({"type": "ping"}));
    match framed.message().await {
        Some(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 4201),
        other => panic!("one ping and then the close were expected, not {other:?}"),
    }

    let mut raw = Client::raw(&gateway, "42").await;
    // A ping without payload, then a close, its length left aside.
    let [ping, none, close, _, high, low] = raw.bytes().await;
    assert_eq!((ping, none, close), (0x89, 0, 0x88));
    assert_eq!(u16::from_be_bytes([high, low]), 4201);
}

#[tokio::test]
async fn a_message_may_have_16384_bytes_and_no_more() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    let padded = |len: usize| format!("{ACK}{}", " ".repeat(len - ACK.len()));
    client.send(&padded(16_384)).await;
    still_lives(&gateway, &mut client).await;
    client.send(&padded(16_385)).await;
    assert_eq!(client.close_code().await, 1009);

    // It is the message that counts, however many frames it comes in.
    let mut client = Client::connect(&gateway, "42").await;
    let (first, part, last) = (masked(0x01, ACK.as_bytes()), masked(0x00, &[b' '; 100]), masked(0x80, b""));
    client.write(&[&first[..], &part, &last].concat()).await;
    still_lives(&gateway, &mut client).await;
    client.write(&[&first[..], &part.repeat(164), &last].concat()).await;
    assert_eq!(client.close_code().await, 1009);
}

#[tokio::test]
async fn the_limit_of_a_message_is_configurable() {
    let gateway = Options::dev().set("limits.max_inbound_bytes", "100").start().await;
    for (len, code) in [(100, None), (101, Some(1009))] {
        let mut client = Client::connect(&gateway, "42").await;
        client.send(&"x".repeat(len)).await;
        match code {
            None => assert_eq!(client.frame().await["type"], "error"),
            Some(code) => assert_eq!(client.close_code().await, code),
        }
    }
}

#[tokio::test]
async fn a_breach_of_the_protocol_is_closed_with_its_rfc_6455_code() {
    let gateway = Gateway::dev().await;
    let breaches: [(&str, Vec<u8>, u16); 13] = [
        ("binary", masked(0x82, b"hi"), 1003),
        ("empty binary", masked(0x82, b""), 1003),
        ("text that is no UTF-8", masked(0x81, b"\xff\xfe"), 1007),
        ("text cut inside a character", masked(0x81, b"\xc3"), 1007),
        ("a surrogate", masked(0x81, b"\xed\xa0\x80"), 1007),
        ("unmasked", b"\x81\x02hi".to_vec(), 1002),
        ("a reserved opcode", masked(0x83, b"hi"), 1002),
        ("a reserved bit", masked(0xc1, b"hi"), 1002),
        ("a continuation of nothing", masked(0x80, b"hi"), 1002),
        ("a text inside a fragmented one", [masked(0x01, b"a"), masked(0x81, b"b")].concat(), 1002),
        ("a fragmented ping", masked(0x09, b"hi"), 1002),
        ("a close of one byte", masked(0x88, b"\x03"), 1002),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 1002),
    ];
    for (what, bytes, code) in breaches {
        let mut client = Client::connect(&gateway, "42").await;
        client.write(&bytes).await;
        assert_eq!(client.close_code().await, code, "{what}");
    }
    let mut client = Client::connect(&gateway, "42").await;
    still_lives(&gateway, &mut client).await;
}

#[tokio::test]
async fn a_character_may_be_split_between_two_frames_of_a_message() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    // `{"type":"é"}`, with a ping between the two bytes of the é, as RFC 6455 allows.
    let bytes = [masked(0x01, b"{\"type\":\"\xc3"), masked(0x89, b"mid"), masked(0x80, b"\xa9\"}")].concat();
    client.write(&bytes).await;
    assert_eq!(client.message().await, Some(Message::Pong("mid".into())));
    let error = client.frame().await;
    assert!(error["message"].as_str().unwrap().contains('é'), "{error}");
    still_lives(&gateway, &mut client).await;
}

#[tokio::test]
async fn a_clients_ping_and_its_close_are_answered() {
    let gateway = Gateway::dev().await;
    let goodbye = CloseFrame { code: 1000.into(), reason: "bye".into() };
    for close in [Some(goodbye), None] {
        let mut client = Client::connect(&gateway, "42").await;
        client.send_message(Message::Ping("there?".into())).await;
        assert_eq!(client.message().await, Some(Message::Pong("there?".into())));
        client.send_message(Message::Close(close.clone())).await;
        match (close, client.message().await) {
            (Some(sent), Some(Message::Close(Some(answer)))) => assert_eq!(answer.code, sent.code),
            (None, Some(Message::Close(_))) => {}
            (_, other) => panic!("a close was expected, not {other:?}"),
        }
        assert_eq!(client.message().await, None, "and then the connection ends");
    }
    gateway.connections(0).await;
}
