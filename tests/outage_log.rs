//! The log while Redis is lost: one line at the loss, another every 10 s, and one with the duration when it is back, each with
//! the address.

use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::{options, subscribe_at};
use crate::redis_link::delivered_within;
use crate::rights::with_user;
use crate::support::{Client, Cluster, Gateway, Options, RedisServer, eventually, lone_sentinel};

const EVERY: Duration = Duration::from_secs(10);

/// The lines about a lost or found server, without their times.
fn lines(gateway: &Gateway, parts: &[&str]) -> Vec<String> {
    let is_one = |line: &&str| parts.iter().any(|part| line.contains(part));
    gateway.log().lines().filter(is_one).map(str::to_owned).collect()
}

const LOSS: [&str; 4] =
    ["not subscribed to redis", "a redis server ", "redis command failed", "cannot check which server"];
const RETURN: [&str; 3] = ["subscribed to redis again", "replies again", "leads to a server again"];

/// The number that follows `name=` in a line.
fn field(line: &str, name: &str) -> u128 {
    let value = line.split(&format!("{name}=")).nth(1).unwrap_or_else(|| panic!("{name} in {line}"));
    value.split(' ').next().unwrap().parse().unwrap()
}

/// A server is killed and starts again once two lines have told of it.
async fn lost_and_found(redis: &mut RedisServer, gateway: &Gateway) {
    let mut client = Client::connect(gateway, "42").await;
    let address = format!("127.0.0.1:{}", redis.port());
    let lost = Instant::now();
    redis.kill().await;
    eventually("a line tells of the loss", async || !lines(gateway, &LOSS).is_empty()).await;
    eventually("another follows", async || lines(gateway, &LOSS).len() > 1).await;
    assert!(lost.elapsed() >= EVERY, "{:?}: {}", lost.elapsed(), gateway.log());
    redis.restart().await;
    delivered_within(EVERY, redis, &mut client).await;
    gateway.ready().await;
    eventually("a line tells of the return", async || !lines(gateway, &RETURN).is_empty()).await;
    let (losses, returns) = (lines(gateway, &LOSS), lines(gateway, &RETURN));
    assert_eq!((losses.len(), returns.len()), (2, 1), "{}", gateway.log());
    assert!(losses.iter().chain(&returns).all(|line| line.contains(&address)), "{}", gateway.log());
    assert!(field(&returns[0], "gap_ms") >= EVERY.as_millis(), "{returns:?}");
}

#[tokio::test]
async fn the_loss_of_redis_is_one_line_another_every_10_s_and_one_with_the_duration_when_it_is_back() {
    let mut redis = RedisServer::start_with(&["--requirepass", "hunter2"]).await;
    let gateway = Options::redis(&redis).start().await;
    lost_and_found(&mut redis, &gateway).await;
    assert!(!gateway.log().contains("hunter2"));
}

#[tokio::test]
async fn a_redis_that_refuses_the_login_is_told_as_one_that_is_lost() {
    let (redis, url) = with_user(&["~*", "&*", "+@all"]).await;
    let gateway = Options::redis_at(&url).start().await;
    let lost = Instant::now();
    let () = redis.command(&["ACL", "SETUSER", "app", "resetpass", ">another"]).await;
    let _: u64 = redis.command(&["CLIENT", "KILL", "USER", "app"]).await;
    eventually("two lines tell of it", async || lines(&gateway, &LOSS).len() > 1).await;
    assert!(lost.elapsed() >= EVERY, "{:?}: {}", lost.elapsed(), gateway.log());
    let () = redis.command(&["ACL", "SETUSER", "app", "resetpass", ">hunter2"]).await;
    gateway.ready().await;
    let (losses, address) = (lines(&gateway, &LOSS), format!("127.0.0.1:{}", redis.port()));
    assert_eq!(losses.len(), 2, "{}", gateway.log());
    assert!(losses.iter().all(|line| line.contains(&address)), "{losses:?}");
}

#[tokio::test]
async fn the_loss_of_a_master_under_sentinel_names_the_masters_address() {
    let mut master = RedisServer::start().await;
    let sentinel = lone_sentinel(&master).await;
    let gateway = Options::redis_at(&format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port())).start().await;
    lost_and_found(&mut master, &gateway).await;
}

#[tokio::test]
async fn the_loss_of_a_node_of_a_cluster_names_the_nodes_address_until_it_replies_again() {
    let mut cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    subscribe_at(&cluster, &[2]).await;
    gateway.ready().await;
    let replica = cluster.replica_of(1).await;
    let address = format!("127.0.0.1:{}", cluster.node(1).port());
    let of_node = |part: &str| lines(&gateway, &[part]).into_iter().filter(|line| line.contains(&address)).count();
    cluster.kill(replica).await;
    cluster.kill(1).await;
    eventually("a line tells of the loss", async || of_node("does not reply") == 1).await;
    eventually("another follows", async || of_node("does not reply") == 2).await;
    cluster.restart(1).await;
    eventually("a line tells of the return", async || of_node("replies again") == 1).await;
    let back = lines(&gateway, &["replies again"]).into_iter().find(|line| line.contains(&address)).unwrap();
    assert!(field(&back, "lasted_ms") >= EVERY.as_millis(), "{back}");
    assert_eq!(of_node("does not reply"), 2, "{}", gateway.log());
}

#[tokio::test]
async fn every_line_of_the_subscription_has_the_address_in_the_same_form() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let address = format!(" address=127.0.0.1:{} ", redis.port());
    for message in ["INFO", "not subscribed to redis", "subscribed to redis again"] {
        eventually(message, async || {
            let found = lines(&gateway, &["subscribed to redis"]);
            found.iter().any(|line| line.contains(message) && format!("{line} ").contains(&address))
        })
        .await;
    }
}

#[tokio::test]
async fn the_durations_in_lines_of_json_are_numbers() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("log.format", "json").start().await;
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    for (message, names) in
        [("not subscribed to redis", &["lag_ms", "retry_ms"][..]), ("subscribed to redis again", &["gap_ms"])]
    {
        eventually(message, async || !lines(&gateway, &[message]).is_empty()).await;
        let line: serde_json::Value = serde_json::from_str(&lines(&gateway, &[message])[0]).unwrap();
        assert!(names.iter().all(|name| line["fields"][name].is_u64()), "{line}");
    }
}
