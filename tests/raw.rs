//! `?format=raw`: for a page that only runs `JSON.parse(e.data)`.

use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Gateway, Options, RedisServer, handshake, token};

#[tokio::test]
async fn a_raw_client_gets_the_bare_json_byte_for_byte_and_no_frame_of_ours() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::raw(&gateway, "42").await;
    gateway.connections(1).await;
    for (published, received) in [
        (r#"{ "n" : 123456789012345678901234567890, "é":"\u00e9" }"#, None),
        (r#"{"a":1,"a":2}"#, None),
        ("null", None),
        ("\"text\"", None),
        ("1e400", None),
        (" \r\n\t[1, 2]\n", Some("[1, 2]")),
    ] {
        redis.publish("42", published).await;
        // The first text of all is the first notification: there was no welcome before it.
        assert_eq!(client.text().await, received.unwrap_or(published));
    }
}

#[tokio::test]
async fn whatever_a_raw_client_says_is_ignored() {
    let gateway = Gateway::dev().await;
    let mut client = Client::raw(&gateway, "42").await;
    gateway.connections(1).await;
    for text in ["", "hi", "[]", r#"{"type":"shout"}"#, r#"{"type":"auth","token":"bad"}"#, r#"{"type":"pong"}"#] {
        client.send(text).await;
    }
    // Answered after everything above was read.
    client.send_message(Message::Ping("done".into())).await;
    assert_eq!(client.message().await, Some(Message::Pong("done".into())));
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":1}"#).await;
    assert_eq!(client.text().await, "1");
}

#[tokio::test]
async fn raw_wins_over_an_offered_subprotocol_which_is_selected_all_the_same() {
    let gateway = Options::dev().set("server.heartbeat", "200ms").start().await;
    let protocols = format!("tidings.v1, bearer.{}", token("42"));
    let headers = [("Sec-WebSocket-Protocol", protocols.as_str())];
    let mut client = handshake(gateway.public, "/ws?format=raw", &headers).await.expect("admitted");
    assert_eq!(client.response.headers()["sec-websocket-protocol"], "tidings.v1");
    // Its first message is a ping of the WebSocket's own: neither a welcome nor a ping in JSON.
    assert!(matches!(client.message().await, Some(Message::Ping(_))));
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":{"bare":true}}"#).await;
    assert_eq!(client.text().await, r#"{"bare":true}"#);
}

#[tokio::test]
async fn a_drain_closes_a_raw_client_with_4200_and_no_frame() {
    let gateway = Gateway::dev().await;
    let mut client = Client::raw(&gateway, "42").await;
    gateway.connections(1).await;
    gateway.signal("TERM");
    match client.message().await {
        Some(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 4200),
        other => panic!("a close was expected, not {other:?}"),
    }
}
