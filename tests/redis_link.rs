//! The link to Redis is lost and restored; connections stay open, and `/readyz` reports the state.

use std::time::Duration;

use tempfile::TempDir;

use crate::support::{Client, Gateway, Options, RedisServer, eventually, eventually_within};

/// The reason that `/readyz` gives, which must be 503.
pub async fn reason(gateway: &Gateway) -> String {
    let (status, body) = gateway.get(gateway.public, "/readyz").await;
    assert_eq!(status, 503, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    body["reason"].as_str().expect("a reason").to_owned()
}

/// Publishes numbers, one at a time, until one arrives.
pub async fn delivered_within(limit: Duration, redis: &RedisServer, client: &mut Client) {
    let publishing = async {
        loop {
            redis.publish("42", "1").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let arrival = async {
        tokio::select! {
            () = publishing => {}
            data = client.event() => assert_eq!(data, 1),
        }
    };
    tokio::time::timeout(limit, arrival).await.expect("delivery is back in time");
}

#[tokio::test]
async fn an_instance_that_starts_before_redis_accepts_and_is_ready_once_redis_comes() {
    let mut redis = RedisServer::start().await;
    redis.kill().await;
    let gateway = Options::redis(&redis).start_unready().await;
    let why = reason(&gateway).await;
    assert!(why.contains("redis"), "{why}");
    assert_eq!(gateway.get(gateway.admin, "/readyz").await.0, 503);
    assert_eq!(gateway.get(gateway.public, "/healthz").await.0, 200);
    let mut client = Client::connect(&gateway, "42").await;
    client.send(r#"{"type":"what"}"#).await;
    assert_eq!(client.frame().await["type"], "error", "the connection is live");
    assert_eq!(gateway.metric("tidings_backplane_up").await, 0.0);

    redis.restart().await;
    gateway.ready().await;
    assert_eq!(gateway.metric("tidings_backplane_up").await, 1.0);
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0, "no gap before the first subscription");
}

#[tokio::test]
async fn connections_outlive_a_restart_of_redis_and_delivery_is_back_within_10_s() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.kill().await;
    gateway.not_ready().await;
    assert!(!reason(&gateway).await.is_empty());
    let mut newcomer = Client::connect(&gateway, "42").await;
    redis.restart().await;
    delivered_within(Duration::from_secs(10), &redis, &mut client).await;
    assert_eq!(newcomer.event().await, 1);
    gateway.ready().await;
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 1.0);
    assert_eq!(gateway.metric("tidings_connections").await, 2.0);
}

#[tokio::test]
async fn a_killed_subscription_is_back_within_5_s_and_counted_as_a_gap() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    for gaps in 1..=3 {
        let killed: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        assert_eq!(killed, 1);
        eventually_within(Duration::from_secs(5), "the subscription is back", async || {
            redis.publish("42", &gaps.to_string()).await == 1
        })
        .await;
        assert_eq!(client.event().await, gaps);
        assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, f64::from(gaps));
    }
}

#[tokio::test]
async fn a_killed_command_connection_loses_nothing() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut first = Client::connect(&gateway, "42").await;
    eventually("42 is online", async || redis.online().await == ["42"]).await;
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    redis.publish("42", "1").await;
    assert_eq!(first.event().await, 1);
    let _second = Client::connect(&gateway, "43").await;
    eventually_within(Duration::from_secs(5), "both are online", async || redis.online().await == ["42", "43"]).await;
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0);
}

#[tokio::test]
async fn a_link_that_fell_silent_is_noticed_within_15_s_and_one_that_is_quiet_is_not_mistaken_for_it() {
    tokio::join!(a_silent_link_is_noticed(), a_quiet_link_stays_ready());
}

async fn a_silent_link_is_noticed() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.freeze();
    eventually_within(Duration::from_secs(15), "it is not ready", async || {
        gateway.get(gateway.public, "/readyz").await.0 == 503
    })
    .await;
    assert!(!reason(&gateway).await.is_empty());
    client.send(r#"{"type":"what"}"#).await;
    assert_eq!(client.frame().await["type"], "error", "the connection is live");
    redis.thaw();
    delivered_within(Duration::from_secs(10), &redis, &mut client).await;
    gateway.ready().await;
}

async fn a_quiet_link_stays_ready() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut probes = redis.subscribe(&format!("tidings:probe:{}", gateway.instance)).await;
    // Each comes some seconds after the other: together, longer than silence is borne.
    for _ in 0..5 {
        probes.next_bytes().await;
        assert_eq!(gateway.get(gateway.public, "/readyz").await.0, 200);
    }
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0);
}

#[tokio::test]
async fn a_wrong_password_is_told_without_it() {
    let redis = RedisServer::start_with(&["--requirepass", "right"]).await;
    let url = format!("redis://:wrong-hunter2@127.0.0.1:{}", redis.port());
    let gateway = Options::bare().env("TIDINGS_REDIS__URL", &url).set("log.level", "trace").start_unready().await;
    eventually("it says so", async || reason(&gateway).await.to_lowercase().contains("password")).await;
    eventually("it logs so", async || gateway.log().to_lowercase().contains("password")).await;
    assert!(!reason(&gateway).await.contains("hunter2"));
    assert!(!gateway.log().contains("hunter2"), "{}", gateway.log());
}

#[tokio::test]
async fn the_password_and_the_database_of_the_url_are_used() {
    let redis = RedisServer::start_with(&["--requirepass", "p/w d"]).await;
    let url = format!("redis://:p%2Fw%20d@127.0.0.1:{}/3", redis.port());
    let gateway = Options::bare().arg("--redis-url").arg(&url).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    // Channels know no database, presence does.
    eventually("42 is online in that database", async || redis.online_in(3).await == ["42"]).await;
    assert!(redis.online().await.is_empty());
    assert!(!gateway.log().contains("p%2Fw") && !gateway.log().contains("p/w d"), "{}", gateway.log());
}

#[tokio::test]
async fn a_unix_socket_will_do() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redis.sock");
    let redis = RedisServer::start_with(&["--unixsocket", path.to_str().unwrap()]).await;
    let gateway = Options::bare().arg("--redis-url").arg(&format!("unix://{}", path.display())).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    assert_eq!(redis.publish("42", "1").await, 1);
    assert_eq!(client.event().await, 1);
    eventually("42 is online", async || redis.online().await == ["42"]).await;
}
