//! What the log has of each connection at `debug`: a line at its start, a line at its end, and a span for those between;
//! and a line for each client that is closed as too slow.

use serde_json::Value;

use crate::support::{Client, Gateway, Options, RedisServer, eventually};

/// The lines with this message, once there are so many.
async fn lines(gateway: &Gateway, message: &str, count: usize) -> Vec<Value> {
    let found = || -> Vec<Value> {
        let log = gateway.log();
        let all = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        all.filter(|line| line["fields"]["message"] == message).collect()
    };
    eventually(message, async || found().len() == count).await;
    found()
}

#[tokio::test]
async fn each_connection_has_a_line_at_its_start_and_one_at_its_end_at_debug() {
    let gateway = Options::dev().set("log.format", "json").set("log.level", "debug").start().await;
    let (mut client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    let opened = lines(&gateway, "connection opened", 1).await.remove(0);
    for (name, value) in [("user", "42"), ("address", "127.0.0.1"), ("dialect", "tidings.v1")] {
        assert_eq!(opened["fields"][name], value, "{opened}");
    }
    assert_eq!(
        (&opened["level"], &opened["fields"]["connection"]),
        (&"DEBUG".into(), &welcome["connection"]),
        "{opened}"
    );

    gateway.ask_admin("DELETE", "/v1/users/42/connections", &[], "").await;
    assert_eq!(client.close_code().await, 4011);
    let closed = lines(&gateway, "connection closed", 1).await.remove(0);
    for name in ["connection", "user", "address", "dialect"] {
        assert_eq!(closed["fields"][name], opened["fields"][name], "{closed}");
    }
    assert_eq!((&closed["fields"]["code"], &closed["fields"]["reason"]), (&4011.into(), &"disconnected".into()));
    assert!(closed["fields"]["lasted_ms"].is_u64(), "{closed}");
}

#[tokio::test]
async fn the_log_names_the_user_and_the_cause_of_a_client_that_is_closed_as_too_slow() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("send_queue.max_messages", "1").start().await;
    let _slow = Client::connect_narrow(&gateway, "42").await;
    let payload = format!("\"{}\"", "x".repeat(100_000));
    eventually("the line", async || {
        redis.publish("42", &payload).await;
        let log = gateway.log();
        log.lines().any(|line| {
            line.contains("WARN")
                && line.contains("slow connection closed")
                && line.contains("user=\"42\" address=127.0.0.1")
                && line.contains("reason=\"too slow: the send queue is full\"")
        })
    })
    .await;
    assert!(!gateway.log().contains("DEBUG"), "at the default level");
}
