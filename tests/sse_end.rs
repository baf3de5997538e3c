//! How a stream of events stays open, and how it ends: heartbeats, limits, and the reason in its last block.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use socket2::{SockFilter, SockRef};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::support::{
    Client, Gateway, Options, RedisServer, SseClient, Store, eventually, eventually_within, now, sign, token_for,
};

const SECOND: Duration = Duration::from_secs(1);

/// As if the client's machine were gone: the system drops what arrives for its socket, and acknowledges nothing.
#[cfg(target_os = "linux")]
fn cut_off(socket: &TcpStream) {
    const BPF_RET: u16 = 0x06;
    SockRef::from(socket).attach_filter(&[SockFilter::new(BPF_RET, 0, 0, 0)]).unwrap();
}

async fn closed(gateway: &Gateway, code: u16) -> f64 {
    gateway.metric(&format!("tidings_connections_closed_total{{code=\"{code}\"}}")).await
}

async fn stream_with(gateway: &Gateway, token: &str) -> SseClient {
    let bearer = format!("Bearer {token}");
    let mut client = SseClient::request(gateway.public, "/events", &[("Authorization", &bearer)]).await;
    assert_eq!(client.frame().await["type"], "welcome");
    client
}

// Open.

#[tokio::test]
async fn a_comment_is_sent_after_a_heartbeat_without_other_output() {
    let gateway = Options::dev().set("server.heartbeat", "1s").start().await;
    let mut client = SseClient::connect(&gateway, "42").await.0;
    let mut raw = SseClient::ungreeted(&gateway, "42", "?format=raw", &[]).await;
    assert_eq!(raw.block().await.unwrap().text, ":\n\n");
    for client in [&mut client, &mut raw] {
        let mut last = Instant::now();
        for _ in 0..2 {
            assert_eq!(client.block().await.unwrap().text, ":\n\n");
            let waited = std::mem::replace(&mut last, Instant::now());
            assert!(waited.elapsed() < 10 * SECOND);
        }
    }
}

#[tokio::test]
async fn other_output_takes_the_place_of_the_comment() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("server.heartbeat", "4s").start().await;
    let mut client = SseClient::connect(&gateway, "42").await.0;
    let begun = Instant::now();
    for number in 0.. {
        redis.publish("42", &number.to_string()).await;
        let block = client.block().await.unwrap();
        assert_eq!(block.json()["data"], number, "{block:?}");
        let more = timeout(SECOND / 4, client.block()).await;
        assert!(more.is_err(), "a comment beside output: {more:?}");
        if begun.elapsed() > 7 * SECOND {
            break;
        }
    }
}

#[tokio::test]
async fn a_user_is_online_while_a_stream_is_open() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("presence.offline_delay", "300ms").start().await;
    let mut presence = redis.subscribe("presence").await;
    let one = SseClient::connect(&gateway, "42").await.0;
    let mut other = SseClient::ungreeted(&gateway, "42", "?format=raw", &[]).await;
    other.block().await;
    assert_eq!(presence.next().await["status"], "online");
    eventually("42 is online", async || redis.online().await == ["42"]).await;
    drop(one);
    eventually("one is left", async || gateway.metric("tidings_connections").await == 1.0).await;
    assert_eq!(redis.online().await, ["42"]);
    drop(other);
    assert_eq!(presence.next().await["status"], "offline");
    eventually("42 is offline", async || redis.online().await.is_empty()).await;
}

// The end.

#[tokio::test]
async fn a_disconnected_stream_ends_with_4011_and_the_user_may_come_back() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (mut client, welcome) = SseClient::connect(&gateway, "42").await;
    let (mut raw, mut other) =
        (SseClient::ungreeted(&gateway, "42", "?format=raw", &[]).await, SseClient::connect(&gateway, "42").await.0);
    gateway.connections(3).await;
    let one = json!({"disconnect": {"user": "42", "connection": welcome["connection"]}});
    redis.command::<u64>(&["PUBLISH", "tidings:control", &one.to_string()]).await;
    assert_eq!(client.last_code().await, 4011);
    let all = json!({"disconnect": {"user": "42"}});
    redis.command::<u64>(&["PUBLISH", "tidings:control", &all.to_string()]).await;
    assert_eq!(other.last_code().await, 4011);
    while let Some(block) = raw.block().await {
        assert_eq!(block.text, ":\n\n", "no frame of ours in a raw stream");
    }
    assert_eq!(closed(&gateway, 4011).await, 3.0);
    SseClient::connect(&gateway, "42").await;
}

#[tokio::test]
async fn a_stream_of_a_revoked_token_ends_with_4009_and_gets_401_from_then_on() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let stolen = sign(&json!({"sub": "42", "exp": now() + 3_600, "jti": "stolen"}));
    let mut client = stream_with(&gateway, &stolen).await;
    let revoke = json!({"revoke": {"jti": "stolen", "until": now() + 600}}).to_string();
    redis.command::<u64>(&["PUBLISH", "tidings:control", &revoke]).await;
    assert_eq!(client.last_code().await, 4009);
    let bearer = format!("Bearer {stolen}");
    let again = SseClient::request(gateway.public, "/events", &[("Authorization", &bearer)]).await;
    assert_eq!(again.status, 401);
}

#[tokio::test]
async fn a_stream_ends_with_its_token_with_4010() {
    let gateway = Options::dev().set("auth.leeway", "0s").start().await;
    let mut client = stream_with(&gateway, &token_for("42", 4)).await;
    assert_eq!(client.last_code().await, 4010);
}

#[tokio::test]
async fn a_gap_that_cannot_be_repaired_ends_a_stream_with_4205_and_the_resume_reports_it() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let mut client = SseClient::connect(&gateway, "42").await.0;
    let first = store.publish("42", [1]).await.remove(0);
    assert_eq!(client.stored_event().await, (first.clone(), json!(1)));
    redis.store_unheard(2).await;
    // Trimmed before any client read it.
    redis.store_unheard(3).await;
    redis.command::<u64>(&["XTRIM", "tidings:history:{42}", "MAXLEN", "1"]).await;
    store.publish("42", [4]).await;
    assert_eq!(client.last_code().await, 4205);
    let (_, welcome) = SseClient::with(&gateway, "42", "", &[("Last-Event-ID", &first)]).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
}

#[tokio::test]
async fn a_drain_tells_each_stream_when_to_come_back_and_ends_it_with_4200() {
    const COUNT: usize = 60;
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).set("drain.window", "4s").start().await;
    let names: Vec<String> = (0..COUNT).map(|number| number.to_string()).collect();
    let mut clients = join_all(names.iter().map(|name| SseClient::connect(&gateway, name))).await;
    let mut raw = SseClient::ungreeted(&gateway, "raw", "?format=raw", &[]).await;
    gateway.connections(COUNT as u64 + 1).await;
    let begun = Instant::now();
    gateway.signal("TERM");
    let ends = join_all(clients.iter_mut().map(async |(client, _)| {
        let block = client.message().await;
        let frame = block.json();
        assert_eq!((&frame["type"], &block.id), (&json!("reconnect"), &None), "{frame}");
        assert_eq!(block.retry, frame["after_ms"].as_u64(), "the browser's own wait");
        assert_eq!(client.last_code().await, 4200);
        (block.retry.unwrap(), begun.elapsed())
    }))
    .await;
    while let Some(block) = raw.block().await {
        assert_eq!(block.text, ":\n\n");
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(ends.iter().all(|(after_ms, _)| (500..=4_000).contains(after_ms)), "{ends:?}");
    let late = |after: u64| ends.iter().filter(|(after_ms, _)| *after_ms > after).count();
    assert!(late(1_000) > COUNT / 4 && late(2_500) > COUNT / 10 && late(2_500) < COUNT, "spread: {ends:?}");
    assert!(ends.iter().any(|(_, end)| *end < 3 * SECOND), "not all at the end: {ends:?}");
}

// Clients that are gone, and users at their limit.

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dead_peer_is_detected_by_the_write_timeout_after_a_heartbeat() {
    let options = Options::dev().set("server.heartbeat", "1s").set("send_queue.write_timeout", "1s");
    let gateway = options.start().await;
    let mut alive = SseClient::connect(&gateway, "42").await.0;
    let dead = SseClient::connect(&gateway, "43").await.0;
    cut_off(dead.tcp());
    // Far less than the minute after which any connection ends.
    eventually_within(15 * SECOND, "it is gone", async || closed(&gateway, 4203).await == 1.0).await;
    assert_eq!(gateway.metric("tidings_connections").await, 1.0);
    assert_eq!(alive.block().await.unwrap().text, ":\n\n");
}

fn one_each(redis: &RedisServer) -> Options {
    Options::redis(redis).set("limits.max_connections_per_user", "1").set("presence.lease", "2s")
}

const RELEASED: &str = "tidings_connections_released_total";

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dead_stream_makes_room_for_its_user_within_seconds() {
    let redis = RedisServer::start().await;
    let (one, other) = tokio::join!(one_each(&redis).start(), one_each(&redis).start());
    let dead = SseClient::connect(&one, "42").await.0;
    cut_off(dead.tcp());
    let begun = Instant::now();
    // A busy machine may need more than the time for which a request waits.
    eventually_within(10 * SECOND, "room is made", async || {
        let mut next = SseClient::ungreeted(&other, "42", "", &[]).await;
        next.frame().await["type"] == "welcome"
    })
    .await;
    assert_eq!(one.metric(&format!("{RELEASED}{{reason=\"unanswered\"}}")).await, 1.0, "{:?}", begun.elapsed());
    assert_eq!(closed(&one, 4201).await, 1.0);
}

#[tokio::test]
async fn a_stream_that_is_alive_keeps_its_place_and_is_probed_with_a_comment() {
    let redis = RedisServer::start().await;
    let gateway = one_each(&redis).start().await;
    let mut kept = SseClient::connect(&gateway, "42").await.0;
    for _ in 0..2 {
        let mut refused = SseClient::ungreeted(&gateway, "42", "", &[]).await;
        assert_eq!(refused.last_code().await, 4004);
        assert_eq!(kept.block().await.unwrap().text, ":\n\n");
    }
    redis.publish("42", "1").await;
    assert_eq!(kept.event().await, 1);
}

#[tokio::test]
async fn a_stream_whose_socket_is_full_makes_room() {
    let options = Options::dev().set("limits.max_connections_per_user", "1").set("send_queue.write_timeout", "1h");
    let gateway = options.set("send_queue.max_messages", "100000").start().await;
    let _stalled = SseClient::narrow(&gateway, "42").await;
    let event = format!("{{\"data\":\"{}\"}}", "x".repeat(60_000));
    eventually("its socket is full", async || {
        gateway.post(gateway.admin, "/v1/users/42/notifications", &event).await;
        gateway.metric("tidings_backlog_bytes").await > 0.0
    })
    .await;
    eventually_within(10 * SECOND, "room is made", async || {
        let mut next = SseClient::ungreeted(&gateway, "42", "", &[]).await;
        next.frame().await["type"] == "welcome"
    })
    .await;
}

#[tokio::test]
async fn a_replaced_stream_ends_with_4004() {
    let redis = RedisServer::start().await;
    let gateway = one_each(&redis).set("limits.over_user", "replace_oldest").start().await;
    let mut oldest = SseClient::connect(&gateway, "42").await.0;
    let (next, code) = tokio::join!(Client::connect(&gateway, "42"), oldest.last_code());
    assert_eq!(code, 4004);
    let mut next = next.answering();
    let (_stream, code) = tokio::join!(SseClient::connect(&gateway, "42"), next.close_frame());
    assert_eq!(code, 4004);
}

#[tokio::test]
async fn a_slow_client_that_reads_in_time_is_told_4203_in_its_last_block() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let filling = json!(".".repeat(100_000)).to_string();
    // A busy machine may be too late for the two seconds in which the end is sent.
    for attempt in 1..=5 {
        // With room for all that the system holds for it, so that it soon reaches the end.
        let mut slow = SseClient::connect(&gateway, "42").await.0;
        eventually("its queue is full", async || {
            redis.publish_all("42", (0..10).map(|_| filling.clone())).await;
            closed(&gateway, 4203).await == f64::from(attempt)
        })
        .await;
        if slow.last_code().await == 4203 {
            return;
        }
    }
    panic!("never told");
}
