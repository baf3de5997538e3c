//! How polling sessions end, and what their clients are told; and the cases of the official suites of Engine.IO and
//! Socket.IO that apply to polling, one row a case.

use futures::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Gateway, Kept, Options, POLLING, Polling, RedisServer, eventually, now, sign, token};

/// One step of a client.
#[derive(Debug)]
enum Step {
    /// A POST that is answered with `ok`.
    Say(&'static str),
    /// A POST that is refused.
    Refused(&'static str),
    /// Sends a CONNECT with a good token, and reads its answer.
    Join,
    /// Sends a GET that is held.
    Poll,
    /// The body of the response to it begins so.
    Body(&'static str),
    /// The next packet begins so.
    Receive(&'static str),
    /// A published event arrives: the session lives.
    Lives,
    /// The session is unknown.
    Over,
}
use Step::{Body, Join, Lives, Over, Poll, Receive, Refused, Say};

const CASES: &[(&str, &[Step])] = &[
    // Engine.IO.
    ("a pong is accepted", &[Say("3"), Join, Lives]),
    ("a forced close ends the held request with a noop", &[Poll, Say("1"), Body("6"), Over]),
    ("a forced close of a joined session", &[Join, Poll, Say("1"), Body("6"), Over]),
    ("an invalid packet closes", &[Poll, Refused("abc"), Body("1"), Over]),
    ("an empty body closes", &[Refused(""), Over]),
    ("an empty packet closes", &[Refused("3\u{1e}"), Over]),
    ("a probe outside an upgrade closes", &[Join, Refused("2probe"), Over]),
    // Socket.IO: connect.
    ("connects to the main namespace", &[Join, Lives]),
    ("a custom namespace is refused", &[Say("40/custom,"), Receive("44/custom,{"), Join, Lives]),
    ("an invalid handshake closes", &[Refused("4abc"), Over]),
    ("a second connect closes", &[Join, Refused("40"), Over]),
    ("no handshake in time closes", &[Poll, Body("1"), Over]),
    // Socket.IO: disconnect.
    ("a disconnect ends the session", &[Join, Poll, Say("41"), Body("6"), Over]),
    // Socket.IO: messages, which have no recipient.
    ("a plain event is ignored", &[Join, Say("42[\"message\",1,\"2\"]"), Lives]),
    ("an event with an ack id is ignored", &[Join, Say("42456[\"message-with-ack\",1]"), Lives]),
    ("several packets are ignored", &[Join, Say("42[\"a\"]\u{1e}427[\"b\"]\u{1e}43[]\u{1e}3"), Lives]),
    (
        "a binary event is ignored",
        &[Join, Say("452-[\"m\",{\"_placeholder\":true,\"num\":0}]\u{1e}bAQID\u{1e}bBAUG"), Lives],
    ),
    ("a binary event may come in two bodies", &[Join, Say("451-[\"m\",1]"), Say("bAQID"), Lives]),
    // Socket.IO: invalid formats.
    ("an unknown packet type closes", &[Join, Poll, Refused("4abc"), Body("1"), Over]),
    ("an invalid payload closes", &[Join, Refused("42{}"), Over]),
    ("an empty payload closes", &[Join, Refused("42[]"), Over]),
    ("a reserved event closes", &[Join, Refused("42[\"connect\"]"), Over]),
    ("an attachment that was not announced closes", &[Join, Refused("bAQID"), Over]),
    ("an event before the connect closes", &[Poll, Refused("42[\"message\"]"), Body("1"), Over]),
    ("an event for a namespace that was not joined closes", &[Join, Refused("42/custom,[\"a\"]"), Over]),
];

async fn run(gateway: &Gateway, redis: &RedisServer, user: &str, (name, steps): &(&str, &[Step])) {
    let mut client = Polling::open(gateway).await;
    for step in *steps {
        match step {
            Say(packets) => client.say(packets).await,
            Refused(packets) => assert_eq!(client.post(packets).await.status, 400, "{name}: {step:?}"),
            Join => drop(client.join(&json!({"token": token(user)})).await),
            Poll => {
                client.poll().await;
                client.get.silent().await;
            }
            Body(expected) => {
                let body = client.body().await;
                assert!(body.starts_with(expected), "{name}: {body}");
            }
            Receive(expected) => {
                let packet = client.packet().await;
                assert!(packet.starts_with(expected), "{name}: {packet}");
            }
            Lives => {
                redis.publish(user, "1").await;
                assert_eq!(client.packet().await, r#"42["notification",1]"#, "{name}");
            }
            Over => client.is_over().await,
        }
    }
}

#[tokio::test]
async fn the_cases_of_the_official_suites_hold_for_polling() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("server.hello_timeout", "4s").start().await;
    let (gateway, redis) = (&gateway, &redis);
    for (from, cases) in (0..).step_by(5).zip(CASES.chunks(5)) {
        let numbered = (from..).zip(cases);
        join_all(numbered.map(async |(user, case): (i32, _)| run(gateway, redis, &user.to_string(), case).await)).await;
    }
}

#[tokio::test]
async fn a_post_to_a_session_that_is_ending_is_answered_and_leaves_nothing_behind() {
    let gateway = Options::dev().set("limits.max_connections_per_ip", "1").start().await;
    for round in 1..=3_u8 {
        let (mut client, _) = Polling::connect(&gateway, "42").await;
        assert_eq!(gateway.ask_admin("DELETE", "/v1/users/42/connections", &[], "").await.status, 202);
        let closed = r#"tidings_connections_closed_total{code="4011"}"#;
        eventually("the session is ending", async || gateway.metric(closed).await == f64::from(round)).await;
        let answer = client.post("42[\"x\"]").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{answer:?}");
        assert_eq!(client.packet().await, "41");
        assert_eq!(client.packet().await, "1");
        client.is_over().await;
    }
}

#[tokio::test]
async fn a_client_that_is_disconnected_gets_41_and_then_the_end() {
    let gateway = Gateway::dev().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    client.poll().await;
    client.get.silent().await;
    assert_eq!(gateway.ask_admin("DELETE", "/v1/users/42/connections", &[], "").await.status, 202);
    assert_eq!(client.packet().await, "41");
    assert_eq!(client.packet().await, "1");
    client.is_over().await;
    // Also between two requests.
    let (mut client, _) = Polling::connect(&gateway, "43").await;
    assert_eq!(gateway.ask_admin("DELETE", "/v1/users/43/connections", &[], "").await.status, 202);
    eventually("closed", async || gateway.metric("tidings_connections_closed_total{code=\"4011\"}").await == 2.0).await;
    client.poll().await;
    assert_eq!(client.packet().await, "41");
    assert_eq!(client.packet().await, "1");
}

#[tokio::test]
async fn a_session_whose_token_ends_is_closed_and_a_revoked_one_disconnected() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("auth.leeway", "0s").start().await;
    let mut ending = Polling::open(&gateway).await;
    ending.join(&json!({"token": sign(&json!({"sub": "42", "exp": now() + 4}))})).await;
    let mut revoked = Polling::open(&gateway).await;
    revoked.join(&json!({"token": sign(&json!({"sub": "43", "exp": now() + 99, "jti": "j"}))})).await;
    revoked.poll().await;
    redis
        .publish_bytes(b"tidings:control", format!(r#"{{"revoke":{{"jti":"j","until":{}}}}}"#, now() + 99).as_bytes())
        .await;
    assert_eq!(revoked.packet().await, "41");
    assert_eq!(ending.packet().await, "1");
    assert_eq!(gateway.metric("tidings_connections_closed_total{code=\"4010\"}").await, 1.0);
}

#[tokio::test]
async fn a_drain_ends_each_session_with_1_within_its_window() {
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).set("drain.window", "1s").start().await;
    let mut clients = Vec::new();
    for user in 0..5 {
        let (mut client, _) = Polling::connect(&gateway, &user.to_string()).await;
        client.poll().await;
        clients.push(client);
    }
    // One that has no request open, and one that never connected.
    let (_silent, _) = Polling::connect(&gateway, "silent").await;
    let mut unjoined = Polling::open(&gateway).await;
    unjoined.poll().await;
    clients.push(unjoined);
    clients[0].get.silent().await;
    let begun = Instant::now();
    gateway.signal("TERM");
    eventually("new sessions are refused", async || {
        let answer = Kept::open(gateway.public).await.ask("GET", POLLING, &[], "").await;
        answer.status == 503 && answer.header("retry-after") == "1"
    })
    .await;
    // A proxy passes it to another instance, which may know it.
    let unknown =
        Kept::open(gateway.public).await.ask("GET", &format!("{POLLING}&sid={}", "0".repeat(32)), &[], "").await;
    assert_eq!(unknown.status, 503, "{unknown:?}");
    for client in &mut clients {
        assert_eq!(client.body().await, "1");
    }
    assert!(gateway.exit().await.success());
    assert!(begun.elapsed().as_secs() < 6, "{:?}", begun.elapsed());
}
