//! Long-polling of Engine.IO 4: packets of both sides, the heartbeat, the limits, and what counts as one connection.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::{Client, Gateway, Kept, Options, POLLING, Polling, RedisServer, eventually, token, within};

const UNKNOWN: (u16, u64) = (400, 1);

#[tokio::test]
async fn the_open_packet_of_polling_has_exactly_its_fields_and_offers_the_upgrade() {
    let gateway = Options::dev().set("server.heartbeat", "7s").set("server.pong_timeout", "3s").start().await;
    let client = Polling::open(&gateway).await;
    let sid = client.open["sid"].as_str().unwrap();
    assert_eq!(sid.len(), 32);
    let expected = json!({
        "sid": sid, "upgrades": ["websocket"], "pingInterval": 7_000, "pingTimeout": 3_000, "maxPayload": 16_384,
    });
    assert_eq!(client.open, expected);
    assert_ne!(Polling::open(&gateway).await.open["sid"], sid);
}

#[tokio::test]
async fn a_get_is_held_until_there_is_something_to_send() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (mut client, answer) = Polling::connect(&gateway, "42").await;
    assert!(answer["pid"].is_string() && answer["sid"].is_string(), "{answer}");
    client.poll().await;
    client.get.silent().await;
    redis.publish("42", r#"{"n": 1}"#).await;
    assert_eq!(client.body().await, r#"42["notification",{"n": 1}]"#);
}

#[tokio::test]
async fn what_waits_for_a_get_is_joined_by_0x1e_in_one_body_up_to_the_limit() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("send_queue.max_bytes", "100").start().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    // 20 bytes each, as a frame 22.
    for number in 1..=4 {
        redis.publish("42", &number.to_string()).await;
    }
    eventually("all are queued", async || gateway.metric("tidings_deliveries_total").await >= 4.0).await;
    client.poll().await;
    let packets = [1, 2, 3, 4].map(|number| format!("42[\"notification\",{number}]"));
    assert_eq!(client.body().await, packets.join("\u{1e}"));
}

#[tokio::test]
async fn a_post_of_packets_is_answered_ok_once_they_are_handled() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Polling::open_with(gateway.public, "&device=tv", &[]).await;
    let connect = format!("40{}", json!({"token": token("42")}));
    client
        .say(&format!(
            "{connect}\u{1e}42[\"a\"]\u{1e}422[\"b\",1]\u{1e}451-[\"c\",{{\"_placeholder\":true}}]\u{1e}bAQ=="
        ))
        .await;
    assert_eq!(gateway.metric("tidings_socketio_ignored_total").await, 3.0);
    assert!(client.packet().await.starts_with("40"));
    let cursor = gateway.store("42", 1).await;
    assert_eq!(client.event().await, [json!("notification"), json!(1), json!(cursor)]);
    client.say(&format!("42[\"ack\",\"{cursor}\"]")).await;
    eventually("the read position moved", async || {
        let (_, position) = gateway.get(gateway.admin, "/v1/users/42/read-position?device=tv").await;
        position.contains(&cursor)
    })
    .await;
}

#[tokio::test]
async fn a_ping_ends_a_held_get_at_the_interval_and_is_answered_in_a_post() {
    let redis = RedisServer::start().await;
    let gateway =
        Options::redis(&redis).set("server.heartbeat", "300ms").set("server.pong_timeout", "3s").start().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    for _ in 0..4 {
        assert_eq!(client.any_packet().await, "2");
        client.say("3").await;
    }
    redis.publish("42", "1").await;
    assert_eq!(client.event().await.len(), 2);
    // A client that polls and does not answer.
    eventually("a ping", async || client.any_packet().await == "2").await;
    client.is_over().await;
    assert_eq!(gateway.metric("tidings_connections_closed_total{code=\"4201\"}").await, 1.0);
}

#[tokio::test]
async fn a_client_that_posts_but_never_polls_is_closed_after_interval_and_timeout() {
    let gateway = Options::dev().set("server.heartbeat", "1s").set("server.pong_timeout", "1s").start().await;
    // The session's time begins before its open packet arrives.
    let begun = Instant::now();
    let client = &mut Polling::open(&gateway).await;
    client.say(&format!("40{}", json!({"token": token("42")}))).await;
    eventually("the end", async || client.post("3").await.status != 200).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(gateway.metric("tidings_connections_closed_total{code=\"4201\"}").await, 1.0);
}

#[tokio::test]
async fn a_client_is_not_judged_slow_for_the_time_between_its_requests() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("send_queue.write_timeout", "200ms").start().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    redis.publish("42", "1").await;
    client.get.silent().await;
    client.get.silent().await;
    assert_eq!(client.event().await, [json!("notification"), json!(1)]);
}

#[tokio::test]
async fn a_second_get_at_once_ends_the_session() {
    let gateway = Gateway::dev().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    client.poll().await;
    client.get.silent().await;
    assert_eq!(client.refused("GET").await, (400, 3));
    assert_eq!(client.body().await, "1");
    assert_eq!(client.refused("GET").await, UNKNOWN);
    assert_eq!(client.refused("POST").await, UNKNOWN);
}

#[tokio::test]
async fn a_client_that_closes_a_held_get_has_left() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("presence.offline_delay", "100ms").start().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    eventually("online", async || redis.online().await == ["42"]).await;
    client.poll().await;
    client.get.silent().await;
    client.get = Kept::open(gateway.public).await;
    eventually("offline", async || redis.online().await.is_empty()).await;
    assert_eq!(client.refused("POST").await, UNKNOWN);
}

#[tokio::test]
async fn polling_can_be_switched_off() {
    let gateway = Options::dev().set("server.socketio_polling", "false").start().await;
    let answer = Kept::open(gateway.public).await.ask("GET", POLLING, &[], "").await;
    assert_eq!((answer.status, answer.json()["code"].as_u64()), (400, Some(0)), "{answer:?}");
}

#[tokio::test]
async fn a_session_is_one_connection_of_its_user_and_of_its_address() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("limits.max_connections_per_ip", "1").start().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    eventually("it is one connection of its user", async || {
        let (_, presence) = gateway.get(gateway.admin, "/v1/users/42/presence").await;
        presence.contains(r#""connections":1"#)
    })
    .await;
    let refused = Kept::open(gateway.public).await.ask("GET", POLLING, &[], "").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "1"), "{refused:?}");
    redis.publish("42", "1").await;
    assert_eq!(client.event().await.len(), 2);
    client.say("1").await;
    eventually("its place is free", async || {
        Kept::open(gateway.public).await.ask("GET", POLLING, &[], "").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn the_limits_on_input_count_each_packet_of_a_post() {
    let gateway = Options::dev().set("limits.inbound_frames_per_second", "1").start().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    client.poll().await;
    let answer = client.post(&["3"; 200].join("\u{1e}")).await;
    assert_eq!(client.body().await, "1", "{answer:?}");
    assert_eq!(gateway.metric("tidings_connections_closed_total{code=\"4101\"}").await, 1.0);
}

#[tokio::test]
async fn a_body_over_the_payload_limit_is_refused_with_413() {
    let gateway = Options::dev().set("limits.max_inbound_bytes", "100").start().await;
    let mut client = Polling::open(&gateway).await;
    let answer = client.post(&format!("40{{\"x\":\"{}\"}}", "x".repeat(100))).await;
    assert_eq!((answer.status, answer.json()["code"].as_u64()), (413, Some(3)), "{answer:?}");
    client.is_over().await;
}

#[tokio::test]
async fn a_polling_client_that_fetches_nothing_is_bounded_and_told() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("send_queue.max_messages", "10").start().await;
    let (mut slow, _) = Polling::connect(&gateway, "42").await;
    let (mut other, _) = Client::connect_with_welcome(&gateway, "42").await;
    redis.publish_all("42", (0..11).map(|number| number.to_string())).await;
    eventually("it is closed", async || gateway.metric("tidings_connections_closed_total{code=\"4203\"}").await == 1.0)
        .await;
    slow.poll().await;
    assert_eq!(slow.body().await, "1");
    assert_eq!(gateway.metric("tidings_deliveries_dropped_total").await, 11.0);
    for number in 0..11 {
        assert_eq!(other.event().await, number);
    }
}

#[tokio::test]
async fn a_polling_client_that_does_not_read_a_response_is_closed_when_the_write_times_out() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis)
        .set("send_queue.write_timeout", "300ms")
        .set("send_queue.max_bytes", "20000000")
        .set("limits.max_payload_bytes", "20000000")
        .start()
        .await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    client.poll().await;
    redis.publish("42", &format!("\"{}\"", "x".repeat(15_000_000))).await;
    eventually("4203", async || gateway.metric("tidings_connections_closed_total{code=\"4203\"}").await == 1.0).await;
    eventually("nothing is kept of it", async || gateway.metric("tidings_backlog_bytes").await == 0.0).await;
    assert!(within("the end", client.get.answer_if_any()).await.is_none(), "half a response");
}

#[tokio::test]
async fn a_polling_client_recovers_on_another_instance() {
    let redis = RedisServer::start().await;
    let (one, other) = (Gateway::redis(&redis).await, Gateway::redis(&redis).await);
    let (mut client, joined) = Polling::connect(&one, "42").await;
    let seen = one.store("42", 1).await;
    assert_eq!(client.event().await, [json!("notification"), json!(1), json!(seen)]);
    drop(client);
    let missed = one.store("42", 2).await;
    let auth = json!({"pid": joined["pid"], "offset": seen});
    let (mut client, again) = Polling::connect_with(&other, "42", auth).await;
    assert_eq!(again["pid"], joined["pid"], "recovered");
    assert_eq!(client.event().await, [json!("notification"), json!(2), json!(missed)]);
    let next = other.store("42", 3).await;
    assert_eq!(client.event().await, [json!("notification"), json!(3), json!(next)]);
}

#[tokio::test]
async fn a_session_without_a_connect_is_closed_in_time() {
    let gateway = Options::dev().set("server.hello_timeout", "300ms").start().await;
    let mut client = Polling::open(&gateway).await;
    client.poll().await;
    assert_eq!(client.body().await, "1");
    client.is_over().await;
}
