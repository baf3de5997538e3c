//! The address in `redis.url` moves to another server, while the old one keeps its connections and answers.

use std::time::Duration;

use crate::redis_link::{delivered_within, gap};
use crate::support::{
    Client, Gateway, Options, Proxy, RedisServer, Way, Whose, eventually, eventually_within, free_port,
};

const MOVED: Duration = Duration::from_secs(3);
const PRESENT: Duration = Duration::from_secs(5);
const NOTIFY: &str = "/v1/users/42/notifications";

/// The purposes of the connections that an instance keeps.
const PURPOSES: [&str; 4] = ["commands", "history-commands", "subscriber", "outbox"];

/// An instance with every one of its connections to this server, behind an address that moves.
async fn connected(redis: &RedisServer) -> (Proxy, Gateway) {
    let address = Proxy::start(redis.port());
    // No probe finds anything out.
    let gateway = Options::redis_at(&address.url()).set("redis.probe_interval", "1h").start().await;
    gateway.store("43", 0).await;
    eventually("it is connected", async || purposes(redis, &gateway).await == PURPOSES).await;
    (address, gateway)
}

/// The purposes for which the instance has connections to this server.
async fn purposes(redis: &RedisServer, gateway: &Gateway) -> Vec<&'static str> {
    let mut used = Vec::new();
    for purpose in PURPOSES {
        if !redis.links_of(&gateway.instance, purpose).await.is_empty() {
            used.push(purpose);
        }
    }
    used
}

/// How often the instance has asked this server which one it is.
async fn checks(redis: &RedisServer) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let names = stats.lines().find_map(|line| line.strip_prefix("cmdstat_client|setname:calls="));
    names.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

async fn checked(redis: &RedisServer) {
    let before = checks(redis).await;
    eventually("the address is checked", async || checks(redis).await >= before + 3).await;
}

pub async fn follow(leader: &RedisServer, follower: &RedisServer) {
    leader.config_set("repl-diskless-sync-delay", "0").await;
    let () = follower.command(&["REPLICAOF", "127.0.0.1", &leader.port().to_string()]).await;
    eventually("it is a replica", async || {
        follower.command::<String>(&["INFO", "replication"]).await.contains("master_link_status:up")
    })
    .await;
}

#[tokio::test]
async fn an_address_that_moves_to_another_master_is_followed_within_3_s_by_every_connection() {
    let (old, new) = tokio::join!(RedisServer::start(), RedisServer::start());
    let (address, gateway) = connected(&old).await;
    let mut client = Client::connect(&gateway, "42").await;
    eventually("online at the old one", async || old.online().await == ["42"]).await;
    let mut published = new.subscribe("user:42").await;
    address.lead_to(new.port());
    eventually_within(MOVED, "subscribed at the new one", async || {
        !new.links_of(&gateway.instance, "subscriber").await.is_empty()
    })
    .await;
    eventually("no connection to the old one", async || purposes(&old, &gateway).await.is_empty()).await;
    gap(&mut client).await;
    gateway.ready().await;
    eventually_within(PRESENT, "online at the new one", async || new.online().await == ["42"]).await;
    let (status, answer) = gateway.post(gateway.admin, NOTIFY, r#"{"data":7}"#).await;
    assert_eq!((status, published.next().await), (202, 7.into()), "{answer}");
    assert_eq!(client.event().await, 7);
    let (status, answer) = gateway.post(gateway.admin, NOTIFY, r#"{"data":8,"durable":true}"#).await;
    assert_eq!(status, 202, "{answer}");
    eventually("every connection is at the new one", async || purposes(&new, &gateway).await == PURPOSES).await;
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 1.0);
    assert_eq!(gateway.log().lines().filter(|line| line.contains("replacing all connections")).count(), 1);
}

#[tokio::test]
async fn a_command_that_waits_for_the_old_server_fails_once_the_address_has_moved() {
    let (old, new) = tokio::join!(RedisServer::start(), RedisServer::start());
    let (address, gateway) = connected(&old).await;
    address.blackhole(Whose::Existing, Way::FromRedis);
    address.lead_to(new.port());
    let (status, answer) = gateway.post(gateway.admin, NOTIFY, r#"{"data":1}"#).await;
    assert_eq!(status, 503, "{answer}");
    let kinds = ["connection", "timeout"].map(|kind| format!("tidings_backplane_errors_total{{kind=\"{kind}\"}}"));
    let [connection, timeout] = [gateway.metric(&kinds[0]).await, gateway.metric(&kinds[1]).await];
    assert!(connection >= 1.0 && timeout == 0.0, "{connection} {timeout}: {}", gateway.log());
    let mut client = Client::connect(&gateway, "42").await;
    delivered_within(MOVED, &new, &mut client).await;
    // The reply of the old one arrives, and its connections are closed.
    address.heal();
    eventually("closed", async || purposes(&old, &gateway).await.is_empty()).await;
    gateway.ready().await;
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 1.0);
}

#[tokio::test]
async fn an_address_that_moves_to_a_replica_or_to_nothing_is_followed_only_once_a_master_is_there() {
    let (old, new) = tokio::join!(RedisServer::start(), RedisServer::start());
    follow(&old, &new).await;
    let (address, gateway) = connected(&old).await;
    let mut client = Client::connect(&gateway, "42").await;
    address.lead_to(new.port());
    checked(&new).await;
    let unserved = free_port();
    address.lead_to(unserved);
    let failing = "cannot check which server";
    eventually("it is said once", async || gateway.log().matches(failing).count() == 1).await;
    address.lead_to(new.port());
    checked(&new).await;
    assert_eq!((purposes(&old, &gateway).await, purposes(&new, &gateway).await.len()), (PURPOSES.to_vec(), 0));
    assert_eq!(gateway.get(gateway.public, "/readyz").await.0, 200);
    old.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0);

    let () = new.command(&["REPLICAOF", "NO", "ONE"]).await;
    eventually_within(MOVED, "followed", async || purposes(&old, &gateway).await.is_empty()).await;
    gap(&mut client).await;
    delivered_within(MOVED, &new, &mut client).await;
    assert_eq!(gateway.log().matches(failing).count(), 1, "{}", gateway.log());
}

#[tokio::test]
async fn an_address_whose_server_is_unknown_is_not_followed() {
    let (old, new) = tokio::join!(RedisServer::start(), RedisServer::start());
    for redis in [&old, &new] {
        let () = redis.command(&["ACL", "SETUSER", "default", "-info"]).await;
    }
    let (address, gateway) = connected(&old).await;
    address.lead_to(new.port());
    let () = new.command(&["ACL", "SETUSER", "default", "+info|commandstats"]).await;
    checked(&new).await;
    assert_eq!((purposes(&old, &gateway).await, purposes(&new, &gateway).await.len()), (PURPOSES.to_vec(), 0));
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0);
}
