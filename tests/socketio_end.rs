//! How a socket.io session over a WebSocket ends: each end makes clients stop, or come back, as its reason requires.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    Gateway, Issuer, Options, RedisServer, SocketIo, eventually, free_port, now, sign, token, token_for,
};

const NOTHING: Vec<String> = Vec::new();

fn auth(token: &str) -> String {
    json!({"token": token}).to_string()
}

async fn command(redis: &RedisServer, command: &Value) {
    let received: u64 = redis.command(&["PUBLISH", "tidings:control", &command.to_string()]).await;
    assert!(received > 0);
}

#[tokio::test]
async fn a_refused_connect_gets_a_44_with_the_code_and_the_close_is_left_to_the_client() {
    let redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("server.hello_timeout", "1s").set("limits.max_connections_per_user", "1");
    let gateway = options.start().await;
    let revoked = sign(&json!({"sub": "42", "exp": now() + 60, "jti": "a"}));
    command(&redis, &json!({"revoke": {"jti": "a", "until": now() + 60}})).await;
    let revocations = async || gateway.metric("tidings_control_messages_total{command=\"revoke\"}").await;
    eventually("it is in force", async || revocations().await == 1.0).await;
    let (_first, _) = SocketIo::connect(&gateway, "full").await;
    let refused = async |(token, code): (String, u64)| {
        let mut client = SocketIo::open(&gateway).await;
        assert_eq!(client.refused(&token).await, code, "{token}");
        // Old clients come back after a close that follows a 44, unless they were told to stay away.
        let (packets, closed) = client.end().await;
        assert_eq!((packets, u64::from(closed)), (vec!["41".to_owned()], code), "{token}");
    };
    let cases = [
        (String::new(), 4009),
        (auth("rubbish"), 4009),
        (auth(&token_for("42", -100)), 4010),
        (auth(&revoked), 4009),
        (auth(&sign(&json!({"sub": "", "exp": now() + 60}))), 4009),
    ];
    join_all(cases.map(refused)).await;
    assert_eq!(gateway.metric(r#"tidings_refusals_total{code="4009"}"#).await, 4.0);
    assert!(gateway.log().contains("hello refused"), "{}", gateway.log());
}

#[tokio::test]
async fn one_connection_too_many_of_a_user_is_refused_with_4004_after_the_others_were_asked() {
    let gateway = Options::dev().set("limits.max_connections_per_user", "1").start().await;
    let (first, _) = SocketIo::connect(&gateway, "42").await;
    let mut second = SocketIo::open(&gateway).await;
    let answering = async {
        let mut first = first;
        assert_eq!(first.any_packet().await, "2", "it is asked whether it lives");
        first.send("3").await;
        first
    };
    let (code, mut first) = tokio::join!(async { second.refused(&auth(&token("42"))).await }, answering);
    assert_eq!(code, 4004);
    // One that does not answer makes room.
    let mut third = SocketIo::open(&gateway).await;
    let fields = json!({"token": token("42")});
    let (_, (packets, closed)) = tokio::join!(third.join(&fields), first.end());
    assert_eq!((packets, closed), (vec!["2".to_owned()], 4201));
}

#[tokio::test]
async fn a_replaced_connection_is_told_to_stay_away() {
    let options = Options::dev().set("limits.max_connections_per_user", "1");
    let gateway = options.set("limits.over_user", "replace_oldest").start().await;
    let (mut first, _) = SocketIo::connect(&gateway, "42").await;
    let mut second = SocketIo::open(&gateway).await;
    let replaced = async {
        assert_eq!(first.packet().await, "41", "after a ping that is answered");
        first.closed().await
    };
    let fields = json!({"token": token("42")});
    let (_, code) = tokio::join!(second.join(&fields), replaced);
    assert_eq!(code, 4004);
}

#[tokio::test]
async fn a_refused_client_may_send_another_token_but_not_stay_by_bad_ones() {
    let options = Options::dev().set("server.hello_timeout", "3s").set("limits.inbound_frames_per_second", "100000");
    let gateway = options.start().await;
    let mut client = SocketIo::open(&gateway).await;
    assert_eq!(client.refused(&auth("rubbish")).await, 4009);
    client.join(&json!({"token": token("42")})).await;
    // The second refusal does not put off the close that follows the first.
    let mut client = SocketIo::open(&gateway).await;
    let mut refusals = 0;
    let code = loop {
        client.send("40").await;
        match client.packet().await {
            packet if packet == "41" => break client.closed().await,
            packet => assert!(packet.starts_with("44"), "{packet}"),
        }
        refusals += 1;
        assert!(refusals < 1_000_000, "it stays by bad tokens");
    };
    assert_eq!(code, 4009);
}

/// Sends a CONNECT that is closed later: the code, and how long it took.
async fn closed_later(gateway: &Gateway, auth: &Value) -> (u16, Duration) {
    let mut client = SocketIo::open(gateway).await;
    let begun = Instant::now();
    client.send(&format!("40{auth}")).await;
    (client.closed().await, begun.elapsed())
}

#[tokio::test]
async fn a_client_that_has_to_come_back_later_is_closed_one_to_five_seconds_after_its_connect() {
    const SECOND: Duration = Duration::from_secs(1);
    let mut redis = RedisServer::start().await;
    let jwks = format!("http://127.0.0.1:{}/keys", free_port());
    let options = Options::redis(&redis).set("limits.connects_per_second_per_user", "2").set("auth.jwks_url", &jwks);
    let gateway = options.start().await;
    let auth = json!({"token": token("42")});

    let many = join_all((0..5).map(|_| async {
        let mut client = SocketIo::open(&gateway).await;
        let begun = Instant::now();
        client.send(&format!("40{auth}")).await;
        let accepted = client.packet_or_close().await;
        (accepted, begun.elapsed())
    }))
    .await;
    let closed: Vec<_> =
        many.iter().filter_map(|(end, elapsed)| end.as_ref().err().map(|code| (*code, *elapsed))).collect();
    assert!(!closed.is_empty());
    assert!(closed.iter().all(|(code, elapsed)| *code == 4101 && *elapsed >= SECOND), "{closed:?}");

    // Its key set is unavailable.
    let (code, elapsed) = closed_later(&gateway, &json!({"token": Issuer::new("EdDSA").token("44")})).await;
    assert!(code == 4100 && elapsed >= SECOND, "{code} {elapsed:?}");

    // The history from which it resumes cannot be read.
    let (client, answer) = SocketIo::connect(&gateway, "43").await;
    client.leave().await;
    redis.kill().await;
    let (code, elapsed) = closed_later(&gateway, &json!({"token": token("43"), "pid": answer["pid"]})).await;
    assert!(code == 4102 && elapsed >= SECOND, "{code} {elapsed:?}");
}

#[tokio::test]
async fn a_disconnected_user_and_a_revoked_token_get_a_41_before_the_close() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut named = SocketIo::open(&gateway).await;
    named.join(&json!({"token": sign(&json!({"sub": "42", "exp": now() + 60, "jti": "a"}))})).await;
    command(&redis, &json!({"revoke": {"jti": "a", "until": now() + 60}})).await;
    assert_eq!(named.end().await, (vec!["41".to_owned()], 4009));
    let (mut client, _) = SocketIo::connect(&gateway, "42").await;
    command(&redis, &json!({"disconnect": {"user": "42"}})).await;
    assert_eq!(client.end().await, (vec!["41".to_owned()], 4011));
}

#[tokio::test]
async fn a_token_that_ends_closes_with_4010_alone_so_that_the_client_returns_with_another() {
    let gateway = Options::dev().set("auth.leeway", "0s").start().await;
    let mut client = SocketIo::open(&gateway).await;
    client.join(&json!({"token": token_for("42", 4)})).await;
    assert_eq!(client.end().await, (NOTHING, 4010));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_with_4203_and_delays_no_other() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut slow = SocketIo::connect_narrow(&gateway, "42").await;
    let (mut other, _) = SocketIo::connect(&gateway, "42").await;
    let event = json!("x".repeat(100_000));
    let mut count = 0;
    while gateway.metric("tidings_connections_closed_total{code=\"4203\"}").await == 0.0 {
        redis.publish("42", &event.to_string()).await;
        assert_eq!(other.event().await[1], event);
        count += 1;
        assert!(count < 1_000, "100 MB later it is still connected");
    }
    let (_, code) = slow.end().await;
    // A client that reads nothing at all may see only the end.
    assert!([4203, 1006].contains(&code), "{code}");
}

#[tokio::test]
async fn a_drain_closes_with_4200_alone_and_ends_a_session_that_has_not_joined() {
    let mut gateway = Gateway::dev().await;
    let (mut joined, _) = SocketIo::connect(&gateway, "42").await;
    let mut waiting = SocketIo::open(&gateway).await;
    gateway.signal("TERM");
    assert_eq!((joined.end().await, waiting.end().await), ((NOTHING, 4200), (NOTHING, 4200)));
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_says_that_it_leaves_is_closed_and_its_user_is_offline() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("presence.offline_delay", "50ms").start().await;
    for packet in ["41", "1", "41/,"] {
        let (mut client, _) = SocketIo::connect(&gateway, "42").await;
        eventually("online", async || redis.online().await == ["42"]).await;
        client.send(packet).await;
        assert_eq!(client.end().await, (NOTHING, 1000), "{packet}");
        eventually("offline", async || redis.online().await.is_empty()).await;
    }
    let mut waiting = SocketIo::open(&gateway).await;
    waiting.send("1").await;
    assert_eq!(waiting.end().await, (NOTHING, 1000));
}
