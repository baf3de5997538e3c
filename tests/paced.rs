//! The subscription is read at intervals while frequent messages are for the users of other instances.

use std::time::Duration;

use redis::pipe;
use tokio::time::interval;

use crate::support::{Client, Gateway, Options, RedisServer, eventually};

const PACED: &str = "is_paced=true";
const NOT_PACED: &str = "is_paced=false";

/// 12,000 messages a second, one in forty for the client, until the log has this text; returns how many those were.
async fn flood_until(redis: &RedisServer, gateway: &Gateway, text: &str) -> u32 {
    let (mut connection, mut ticks) = (redis.connection().await, interval(Duration::from_millis(10)));
    for round in 0..1_000 {
        ticks.tick().await;
        let mut messages = pipe();
        for other in 0..117 {
            messages.publish(format!("user:other{other}"), "0").ignore();
        }
        for number in 0..3 {
            messages.publish("user:42", round * 3 + number).ignore();
        }
        messages.exec_async(&mut connection).await.unwrap();
        if gateway.log().contains(text) {
            return round * 3 + 3;
        }
    }
    panic!("{text}: {}", gateway.log());
}

#[tokio::test]
async fn messages_among_frequent_ones_for_others_arrive_in_order_each_once() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("log.level", "debug").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let sent = flood_until(&redis, &gateway, PACED).await;
    eventually("the end of the interval", async || gateway.log().contains(NOT_PACED)).await;
    redis.publish("42", "\"last\"").await;
    for number in 0..sent {
        assert_eq!(client.event().await, number);
    }
    assert_eq!(client.event().await, "last");
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0);
}

#[tokio::test]
async fn each_message_is_read_at_once_where_the_operator_wants_no_interval() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("log.level", "debug").set("redis.batch_reads", "false").start().await;
    let other = Options::redis(&redis).set("log.level", "debug").start().await;
    flood_until(&redis, &other, PACED).await;
    assert!(!gateway.log().contains(PACED), "{}", gateway.log());
}
