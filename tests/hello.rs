//! A client whose handshake carried no token authenticates in its first frame, before a deadline.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Gateway, Options, handshake, masked, sign, sign_with, token, token_for, within};

fn hello(token: &str) -> String {
    json!({"type": "hello", "token": token, "resume": "no cursor of ours", "unknown": 1}).to_string()
}

#[tokio::test]
async fn a_good_hello_is_welcomed_and_then_gets_what_is_published() {
    let gateway = Gateway::dev().await;
    for protocols in ["tidings.v1", ""] {
        let headers: &[_] = if protocols.is_empty() { &[] } else { &[("Sec-WebSocket-Protocol", protocols)] };
        let mut client = handshake(gateway.public, "/ws", headers).await.expect("admitted");
        client.send(&hello(&token("42"))).await;
        let welcome = client.frame().await;
        assert_eq!((&welcome["type"], &welcome["user"]), (&"welcome".into(), &"42".into()), "{welcome}");
        assert_eq!(welcome["recovered"], false, "a cursor that means nothing recovers nothing");
        gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":1}"#).await;
        assert_eq!(client.event().await, 1);
    }
}

#[tokio::test]
async fn a_refused_hello_is_closed_with_the_code_that_says_why() {
    let gateway = Gateway::dev().await;
    let foreign = sign_with(jsonwebtoken::Algorithm::HS256, "another secret", &json!({"sub": "42", "exp": 4e9}));
    let refused = [
        (Message::text(hello("no.such.token")), 4009),
        (Message::text(hello("")), 4009),
        (Message::text(hello(&foreign)), 4009),
        (Message::text(hello(&sign(&json!({"sub": "42"})))), 4009),
        (Message::text(hello(&token(""))), 4009),
        (Message::text(hello(&token_for("42", -60))), 4010),
        (Message::text(r#"{"type":"pong"}"#), 4012),
        (Message::text(json!({"type": "auth", "token": token("42")}).to_string()), 4012),
        (Message::text(r#"{"type":"shout"}"#), 4012),
        (Message::text(r#"{"type":"hello","token":5}"#), 4012),
        (Message::text(r#"{"type":"hello","token":null}"#), 4012),
        (Message::text(json!({"type": "hello", "token": token("42"), "device": 5}).to_string()), 4012),
        (Message::text("[]"), 4012),
        (Message::text("hello"), 4012),
        (Message::text(""), 4012),
        (Message::binary(hello(&token("42"))), 1003),
        (Message::text("x".repeat(16_385)), 1009),
    ];
    for (first, code) in refused {
        let mut client = Client::anonymous(&gateway).await;
        client.send_message(first.clone()).await;
        assert_eq!(client.close_code().await, code, "{first:?}");
    }
}

#[tokio::test]
async fn a_client_that_says_no_hello_in_time_is_closed_with_4012() {
    let gateway = Options::dev().set("server.hello_timeout", "300ms").start().await;
    let mut silent = Client::anonymous(&gateway).await;
    assert_eq!(silent.close_code().await, 4012);

    // Pings are no hello, however many: each is answered, and none buys time.
    let mut chatty = Client::anonymous(&gateway).await;
    let code = loop {
        chatty.send_message(Message::Ping("the connection is open".into())).await;
        match chatty.message().await {
            Some(Message::Pong(pong)) => assert_eq!(pong, "the connection is open"),
            Some(Message::Close(Some(frame))) => break u16::from(frame.code),
            other => panic!("a pong or the close was expected, not {other:?}"),
        }
    };
    assert_eq!(code, 4012);
}

#[tokio::test]
async fn pings_before_the_hello_are_answered_and_do_not_count_as_the_first_frame() {
    let gateway = Gateway::dev().await;
    let mut client = Client::anonymous(&gateway).await;
    client.send_message(Message::Ping("early".into())).await;
    assert_eq!(client.message().await, Some(Message::Pong("early".into())));
    client.send_message(Message::Pong("unasked".into())).await;
    client.send(&hello(&token("42"))).await;
    assert_eq!(client.frame().await["type"], "welcome");
}

#[tokio::test]
async fn a_token_in_the_handshake_leaves_nothing_to_say_hello_for() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    client.send(&hello(&token("43"))).await;
    assert_eq!(client.frame().await["type"], "error");
    gateway.post(gateway.admin, "/v1/users/43/notifications", r#"{"data":"not mine"}"#).await;
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":"mine"}"#).await;
    assert_eq!(client.event().await, "mine");
}

#[tokio::test]
async fn a_raw_client_says_hello_too_and_its_errors_are_close_codes() {
    let gateway = Options::dev().set("server.hello_timeout", "4s").start().await;
    let mut client = handshake(gateway.public, "/ws?format=raw", &[]).await.expect("admitted");
    client.send(&hello(&token("42"))).await;
    gateway.connections(1).await;
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":{"n":1}}"#).await;
    assert_eq!(client.text().await, r#"{"n":1}"#);

    for (first, code) in [(hello("bad"), 4009), (hello(&token_for("42", -60)), 4010), ("hi".into(), 4012)] {
        let mut client = handshake(gateway.public, "/ws?format=raw", &[]).await.expect("admitted");
        client.send(&first).await;
        match client.message().await {
            Some(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), code, "{first}"),
            other => panic!("the close alone was expected, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_a_client_says_on_the_heels_of_its_handshake_is_heard() {
    let gateway = Gateway::dev().await;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {}\r\n\r\n",
        token("42")
    );
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    // In one piece, before the 101.
    socket.write_all(&[request.as_bytes(), &masked(0x89, b"early")].concat()).await.unwrap();
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("\u{5}early") {
        assert_ne!(within("the pong", socket.read_buf(&mut heard)).await.unwrap(), 0, "the end came before the pong");
    }
    assert!(String::from_utf8_lossy(&heard).contains("\"welcome\""));
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_hello() {
    let mut gateway = Options::dev().set("server.hello_timeout", "10m").start().await;
    let mut client = Client::anonymous(&gateway).await;
    client.send_message(Message::Ping("there?".into())).await;
    assert_eq!(client.message().await, Some(Message::Pong("there?".into())));
    gateway.signal("TERM");
    assert_eq!(client.close_code().await, 4200);
    assert!(gateway.exit().await.success());
}
