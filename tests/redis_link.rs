//! The link to Redis is lost and restored; connections stay open, and `/readyz` reports the state.

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::{Client, Gateway, Options, RedisServer, eventually, eventually_within, handshake, token};

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
    assert_eq!(client.frame().await["data"], 1, "the first subscription is announced to no client");
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
async fn an_outage_has_few_lines_at_debug() {
    let mut redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("log.level", "debug").set("limits.max_connections_per_user", "5");
    let gateway = options.start().await;
    let _client = Client::connect(&gateway, "42").await.answering();
    eventually("presence is written", async || redis.online().await == ["42"]).await;
    let before = gateway.log().len();
    redis.kill().await;
    let again = "not subscribed to redis";
    eventually_within(Duration::from_secs(20), "it has lasted 10 s", async || {
        gateway.log()[before..].matches(again).count() == 2
    })
    .await;
    // Of presence, the reaper and the permits, at the loss and 10 s later.
    let log = gateway.log();
    let lines: Vec<&str> = log[before..].lines().filter(|line| line.contains("DEBUG")).collect();
    assert!((1..=8).contains(&lines.len()), "{}", lines.join("\n"));
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

/// The next frame, which must be a `gap`: the time without a message from Redis.
pub async fn gap(client: &mut Client) -> Duration {
    let frame = client.frame().await;
    let since_ms = frame["since_ms"].as_u64().unwrap_or_else(|| panic!("no gap: {frame}"));
    assert_eq!(frame, json!({"type": "gap", "since_ms": since_ms}));
    Duration::from_millis(since_ms)
}

#[tokio::test]
async fn every_client_of_an_instance_is_told_of_each_gap_once_and_a_raw_client_is_not() {
    let redis = RedisServer::start().await;
    // Without a probe, which is the only message while no notification is published.
    let gateway = Options::redis(&redis).set("redis.probe_interval", "1h").start().await;
    let bearer = format!("Bearer {}", token("42"));
    let plain = handshake(gateway.public, "/ws", &[("Authorization", &bearer)]).await.expect("admitted");
    let mut framed = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "43").await, plain];
    assert_eq!(framed[2].frame().await["type"], "welcome");
    let mut raw = Client::raw(&gateway, "42").await;
    gateway.connections(4).await;
    for round in 1..=3 {
        redis.publish("42", &round.to_string()).await;
        redis.publish("43", &round.to_string()).await;
        for client in &mut framed {
            assert_eq!(client.frame().await["data"], round);
        }
        assert_eq!(raw.text().await, round.to_string());
        let received = Instant::now();
        let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        for client in &mut framed {
            let since = gap(client).await;
            assert!(since <= received.elapsed() + Duration::from_secs(1), "{since:?}");
        }
    }
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 3.0);
    let lines: Vec<_> = gateway.log().lines().filter(|line| line.contains("gap_ms=")).map(str::to_owned).collect();
    assert!(lines.len() == 3 && lines.iter().all(|line| line.contains("cause=")), "{lines:?}");
    // A client that connects afterwards missed nothing.
    let mut late = Client::connect(&gateway, "42").await;
    redis.publish("42", "4").await;
    assert_eq!(late.frame().await["data"], 4);
    assert_eq!(raw.text().await, "4");
}

#[tokio::test]
async fn a_gap_lasts_from_the_last_message_of_redis() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.kill().await;
    let lost = Instant::now();
    gateway.not_ready().await;
    let mut newcomer = Client::connect(&gateway, "42").await;
    tokio::time::sleep_until(lost + Duration::from_secs(1)).await;
    redis.restart().await;
    for client in [&mut client, &mut newcomer] {
        let since = gap(client).await;
        assert!(since >= Duration::from_secs(1) && since < lost.elapsed() + Duration::from_secs(5), "{since:?}");
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

/// Answers as Redis 8.6 does at its `maxmemory`: a subscription is refused.
async fn refuse_subscriptions(listener: &TcpListener) {
    let (socket, _) = listener.accept().await.unwrap();
    let mut lines = BufStream::new(socket).lines();
    // Each command is a line with the number of its words, and two lines for each word.
    while let Ok(Some(count)) = lines.next_line().await {
        let mut words = Vec::new();
        for _ in 0..count[1..].parse().unwrap() {
            lines.next_line().await.unwrap();
            words.push(lines.next_line().await.unwrap().unwrap());
        }
        let answer: &[u8] = match words[0].as_str() {
            "PSUBSCRIBE" | "SUBSCRIBE" => b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
            "INFO" => b"$0\r\n\r\n",
            _ => b"+OK\r\n",
        };
        let socket = lines.get_mut();
        if socket.write_all(answer).await.and(socket.flush().await).is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_subscription_that_a_full_redis_refuses_is_logged_with_its_cause() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Options::redis_at(&format!("redis://{}", listener.local_addr().unwrap())).start_unready().await;
    let refusing = async {
        // More connections than one: for commands and for the subscription.
        futures::future::join_all((0..4).map(async |_| {
            loop {
                refuse_subscriptions(&listener).await;
            }
        }))
        .await;
    };
    let reported = async {
        eventually("the refusal is logged with its cause", async || {
            gateway.log().lines().any(|line| {
                line.contains("not subscribed to redis")
                    && line.contains("kind=\"OOM\"")
                    && line.contains("likely_cause=\"redis has reached its maxmemory")
            })
        })
        .await;
        eventually("readyz says so", async || reason(&gateway).await.contains("'maxmemory'")).await;
    };
    tokio::select! {
        _ = refusing => unreachable!("it goes on"),
        () = reported => {}
    }
    assert!(gateway.metric("tidings_backplane_errors_total{kind=\"OOM\"}").await >= 1.0);
}
