//! Presence while Redis or an instance stands still, refuses writes, or its clock steps: only an instance that is gone
//! takes its users offline, and within `presence.lease` plus 2 s.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use crate::support::{Client, Gateway, Options, RedisServer, Subscription, eventually, eventually_within};

const LEASE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

/// Renewals of a lease in more than the lease and a second: who is thought dead has been reaped by then.
const SETTLED: u64 = 6;

const YEAR: i64 = 365 * 86_400_000;

async fn start(redis: &RedisServer) -> Gateway {
    Options::redis(redis).set("presence.lease", "2s").set("presence.offline_delay", "500ms").start().await
}

async fn two(redis: &RedisServer) -> (Gateway, Gateway) {
    tokio::join!(start(redis), start(redis))
}

async fn online_within(limit: Duration, redis: &RedisServer, users: &[&str]) {
    eventually_within(limit, &format!("online are {users:?}"), async || redis.online().await == users).await;
}

/// Each incarnation with its last batch.
async fn sequences(redis: &RedisServer) -> BTreeMap<String, u64> {
    redis.command(&["HGETALL", "{online_users}:seq"]).await
}

/// Each incarnation is still there, and has renewed its lease so often that no wrong verdict is to come.
async fn settled(redis: &RedisServer, before: &BTreeMap<String, u64>) {
    let from = sequences(redis).await;
    eventually("the leases are renewed", async || {
        let now = sequences(redis).await;
        assert_eq!(now.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "an incarnation was lost");
        from.iter().all(|(name, sequence)| now[name] >= sequence + SETTLED)
    })
    .await;
}

/// Some incarnation renews its lease, twice.
async fn any_renewed(redis: &RedisServer) {
    let before = sequences(redis).await;
    eventually("a lease is renewed", async || {
        let now = sequences(redis).await;
        now.iter().any(|(name, sequence)| before.get(name).is_none_or(|before| *sequence >= before + 2))
    })
    .await;
}

/// The events since the subscription, or since last asked: `+42`, `-42`.
async fn told(redis: &RedisServer, events: &mut Subscription) -> Vec<String> {
    redis.publish_bytes(b"presence", br#"{"user":"","status":"now","at":1800000000000}"#).await;
    let mut told = Vec::new();
    loop {
        let event = events.next().await;
        let user = event["user"].as_str().unwrap();
        match event["status"].as_str().unwrap() {
            "now" => return told,
            "online" => told.push(format!("+{user}")),
            _ => told.push(format!("-{user}")),
        }
    }
}

/// Two instances with a user each and a subscription from after they came online.
async fn one_user_each(redis: &RedisServer) -> ((Gateway, Gateway), [Client; 2], Subscription) {
    let (one, other) = two(redis).await;
    let clients = [Client::connect(&one, "1").await, Client::connect(&other, "2").await];
    online_within(SECOND, redis, &["1", "2"]).await;
    let events = redis.subscribe("presence").await;
    ((one, other), clients, events)
}

#[tokio::test]
async fn a_redis_that_stands_still_for_longer_than_the_lease_takes_no_user_offline() {
    let redis = RedisServer::start().await;
    let (_gateways, _clients, mut events) = one_user_each(&redis).await;
    let before = sequences(&redis).await;
    redis.freeze();
    sleep(LEASE + SECOND).await;
    redis.thaw();
    settled(&redis, &before).await;
    assert_eq!(told(&redis, &mut events).await, [""; 0]);
    assert_eq!(redis.online().await, ["1", "2"]);
}

#[tokio::test]
async fn an_instance_that_stood_still_together_with_redis_has_time_to_renew_its_lease() {
    let redis = RedisServer::start().await;
    let ((_one, other), _clients, mut events) = one_user_each(&redis).await;
    let before = sequences(&redis).await;
    other.signal("STOP");
    // The first one has seen it alive for the last time.
    any_renewed(&redis).await;
    redis.freeze();
    sleep(LEASE + SECOND).await;
    redis.thaw();
    any_renewed(&redis).await;
    other.signal("CONT");
    settled(&redis, &before).await;
    assert_eq!(told(&redis, &mut events).await, [""; 0]);
    assert_eq!(redis.online().await, ["1", "2"]);
}

#[tokio::test]
async fn a_redis_that_refuses_writes_for_longer_than_the_lease_takes_no_user_offline() {
    let redis = RedisServer::start().await;
    let (_gateways, _clients, mut events) = one_user_each(&redis).await;
    let before = sequences(&redis).await;
    redis.config_set("min-replicas-to-write", "1").await;
    sleep(LEASE + SECOND).await;
    redis.config_set("min-replicas-to-write", "0").await;
    settled(&redis, &before).await;
    assert_eq!(told(&redis, &mut events).await, [""; 0]);
    assert_eq!(redis.online().await, ["1", "2"]);
}

#[tokio::test]
async fn an_instance_killed_as_redis_s_clock_steps_back_is_reaped_in_time() {
    let redis = RedisServer::with_stepped_clock().await;
    let ((mut doomed, _other), _clients, mut events) = one_user_each(&redis).await;
    doomed.kill().await;
    redis.step_clock(-120_000);
    online_within(LEASE + 2 * SECOND, &redis, &["2"]).await;
    assert_eq!(told(&redis, &mut events).await, ["-1"]);
}

#[tokio::test]
async fn a_step_of_redis_s_clock_takes_no_user_offline() {
    let redis = RedisServer::with_stepped_clock().await;
    let ((one, other), _clients, mut events) = one_user_each(&redis).await;
    let before = sequences(&redis).await;
    // A correction, one the other way, and a machine that started without knowing the date.
    for step in [120_000, -240_000, 30 * YEAR] {
        redis.step_clock(step);
        let (_, both) = one.post(one.admin, "/v1/presence", r#"{"users":["1","2"]}"#).await;
        let both: Value = serde_json::from_str(&both).unwrap();
        for user in both["users"].as_array().unwrap() {
            assert_eq!((&user["online"], &user["connections"]), (&true.into(), &1.into()), "{user} after {step} ms");
        }
        let (_, info) = one.get(one.admin, "/v1/info").await;
        let info: Value = serde_json::from_str(&info).unwrap();
        let [seen] = info["instances"].as_array().unwrap().as_slice() else { panic!("{info} after {step} ms") };
        assert_eq!(seen["instance"], other.instance);
        assert!(seen["lease_ms"].as_u64().is_some_and(|ms| (1..=2_000).contains(&ms)), "{seen} after {step} ms");
        settled(&redis, &before).await;
        assert_eq!(told(&redis, &mut events).await, [""; 0], "after {step} ms");
    }
    assert_eq!(redis.online().await, ["1", "2"]);
}

#[tokio::test]
async fn a_single_instance_paused_past_its_lease_renews_late() {
    let redis = RedisServer::start().await;
    let gateway = start(&redis).await;
    let _client = Client::connect(&gateway, "42").await;
    online_within(SECOND, &redis, &["42"]).await;
    let mut events = redis.subscribe("presence").await;
    let before = sequences(&redis).await;
    gateway.signal("STOP");
    sleep(LEASE + SECOND).await;
    gateway.signal("CONT");
    settled(&redis, &before).await;
    assert_eq!(told(&redis, &mut events).await, [""; 0]);
    assert_eq!(gateway.metric("tidings_presence_incarnations_total").await, 1.0);
}

#[tokio::test]
async fn who_was_left_by_a_killed_instance_goes_offline_a_lease_after_the_next_one_starts() {
    let redis = RedisServer::start().await;
    let mut gateway = start(&redis).await;
    let _client = Client::connect(&gateway, "42").await;
    online_within(SECOND, &redis, &["42"]).await;
    gateway.kill().await;
    let _next = start(&redis).await;
    // At its start the watch allows for others that are still reconnecting.
    online_within(LEASE + 3 * SECOND, &redis, &[]).await;
}
