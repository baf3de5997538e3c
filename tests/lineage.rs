//! Another server takes over: whether it continues what an instance has received, or lacks some of it.

use std::time::Duration;

use futures::future::join_all;

use crate::support::{
    Client, Gateway, Options, Proxy, RedisServer, Store, Way, Whose, eventually, eventually_within, free_port,
};

const TOLD: Duration = Duration::from_secs(5);
/// More than two probe intervals.
const LEFT: Duration = Duration::from_secs(8);

/// A master and its replica, each with a user without the right to `INFO` if `unknown`.
struct Pair {
    master: RedisServer,
    replica: RedisServer,
    /// From the replica to its master.
    link: Proxy,
}

async fn pair(unknown: bool) -> Pair {
    let (master, replica) = tokio::join!(
        RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]),
        RedisServer::start_with(&["--replica-serve-stale-data", "yes"])
    );
    let link = Proxy::start(master.port());
    let port = link.url().rsplit_once(':').unwrap().1.to_owned();
    let () = replica.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    if unknown {
        for redis in [&master, &replica] {
            let () = redis.command(&["ACL", "SETUSER", "default", "-info"]).await;
        }
    }
    Pair { master, replica, link }
}

async fn epoch(redis: &RedisServer) -> String {
    redis.command(&["HGET", "tidings:history", "epoch"]).await
}

async fn has_counted(redis: &RedisServer, count: u64) {
    eventually("it is replicated", async || {
        redis.command::<Option<u64>>(&["HGET", "tidings:history", "count"]).await == Some(count)
    })
    .await;
}

async fn numbers(client: &mut Client, count: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(client.stored_event().await.1.as_u64().unwrap());
    }
    numbers
}

/// The address of the instance leads to the promoted replica, where more was stored meanwhile.
async fn fail_over(pair: &mut Pair, address: &Proxy, gateway: &Gateway, stored: &[(&str, u32)]) {
    take_over(pair, address, gateway, stored).await;
    address.heal();
}

/// The same, but the address is out of use until it is healed.
async fn take_over(pair: &mut Pair, address: &Proxy, gateway: &Gateway, stored: &[(&str, u32)]) {
    address.refuse();
    pair.master.kill().await;
    gateway.not_ready().await;
    let () = pair.replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    let store = Store::on(&pair.replica);
    for (user, number) in stored {
        store.publish(user, [*number]).await;
    }
    address.lead_to(pair.replica.port());
}

#[tokio::test]
async fn a_lagging_replica_that_takes_over_begins_another_epoch_however_much_is_stored_there() {
    join_all([false, true].map(async |unknown| {
        let mut pair = pair(unknown).await;
        let address = Proxy::start(pair.master.port());
        let gateway = Options::redis_at(&address.url()).start().await;
        let store = Store::on(&pair.master);
        let mut client = Client::connect(&gateway, "42").await;
        let mut other = Client::connect(&gateway, "44").await;
        store.publish("42", 1..=5).await;
        store.publish("44", [1]).await;
        has_counted(&pair.replica, 6).await;
        pair.link.blackhole(Whose::All, Way::Both);
        let cursors = store.publish("42", 6..=7).await;
        assert_eq!(numbers(&mut client, 7).await, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers(&mut other, 1).await, [1]);
        let before = epoch(&pair.replica).await;

        fail_over(&mut pair, &address, &gateway, &[("42", 60), ("42", 70), ("42", 80), ("43", 1), ("43", 2)]).await;
        gateway.ready().await;
        eventually_within(TOLD, "another epoch", async || epoch(&pair.replica).await != before).await;
        assert_eq!(client.close_code().await, 4205);
        let (_, welcome) = Client::resume(&gateway, "42", &cursors[1]).await;
        assert_eq!(welcome["recovered"], false, "{welcome}");
        // Nothing of this user was lost.
        Store::on(&pair.replica).publish("44", [2]).await;
        assert_eq!(numbers(&mut other, 1).await, [2]);
    }))
    .await;
}

#[tokio::test]
async fn a_resume_at_a_lagging_replica_is_told_of_the_loss_before_the_instance_is_subscribed_there() {
    let mut pair = pair(false).await;
    let address = Proxy::start(pair.master.port());
    // No periodic check comes in between.
    let gateway = Options::redis_at(&address.url()).set("redis.probe_interval", "30s").start().await;
    let store = Store::on(&pair.master);
    let mut client = Client::connect(&gateway, "42").await;
    let cursors = store.publish("42", 1..=2).await;
    has_counted(&pair.replica, 2).await;
    pair.link.blackhole(Whose::All, Way::Both);
    store.publish("42", [3]).await;
    assert_eq!(numbers(&mut client, 3).await, [1, 2, 3]);
    take_over(&mut pair, &address, &gateway, &[("42", 30), ("42", 40)]).await;
    address.heal();
    address.blackhole(Whose::Subscribers, Way::FromRedis);
    let path = "/v1/users/44/notifications";
    eventually("it can be read", async || gateway.get(gateway.admin, path).await.0 == 200).await;
    let (_, welcome) = Client::resume(&gateway, "42", &cursors[1]).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    gateway.not_ready().await;
}

#[tokio::test]
async fn a_replica_that_has_everything_continues_the_epoch() {
    join_all([false, true].map(async |unknown| {
        let mut pair = pair(unknown).await;
        let address = Proxy::start(pair.master.port());
        let gateway = Options::redis_at(&address.url()).start().await;
        let store = Store::on(&pair.master);
        let mut client = Client::connect(&gateway, "42").await;
        let cursors = store.publish("42", 1..=5).await;
        assert_eq!(numbers(&mut client, 5).await, [1, 2, 3, 4, 5]);
        has_counted(&pair.replica, 5).await;
        let before = epoch(&pair.replica).await;

        fail_over(&mut pair, &address, &gateway, &[("42", 6), ("43", 1)]).await;
        gateway.ready().await;
        assert_eq!(numbers(&mut client, 1).await, [6]);
        let (mut again, welcome) = Client::resume(&gateway, "42", &cursors[2]).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        assert_eq!(numbers(&mut again, 3).await, [4, 5, 6]);
        // Through more than one check.
        let checks = gateway.metric("tidings_connections").await;
        assert_eq!((epoch(&pair.replica).await, checks), (before, 2.0));
    }))
    .await;
}

#[tokio::test]
async fn a_redis_that_restarts_with_everything_continues_the_epoch() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let gateway = Options::redis(&redis).set("redis.probe_interval", "200ms").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let cursors = Store::on(&redis).publish("42", 1..=2).await;
    let before = epoch(&redis).await;
    for number in 3..=5 {
        redis.restart().await;
        Store::on(&redis).publish("42", [number]).await;
    }
    assert_eq!(numbers(&mut client, 5).await, [1, 2, 3, 4, 5]);
    gateway.ready().await;
    let (mut again, welcome) = Client::resume(&gateway, "42", &cursors[0]).await;
    assert_eq!((&welcome["recovered"], epoch(&redis).await), (&true.into(), before), "{welcome}");
    assert_eq!(numbers(&mut again, 4).await, [2, 3, 4, 5]);
}

#[tokio::test]
async fn data_of_an_earlier_version_keeps_its_epoch() {
    let redis = RedisServer::start().await;
    let store = Store::on(&redis);
    let cursors = store.publish("42", 1..=3).await;
    let fields = ["HDEL", "tidings:history", "server", "term", "ended", ":42"];
    assert_eq!(redis.command::<u64>(&fields).await, 4);
    let gateway = Options::redis(&redis).set("redis.probe_interval", "100ms").start().await;
    let (mut client, welcome) = Client::resume(&gateway, "42", &cursors[1]).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    let before = epoch(&redis).await;
    store.publish("42", 4..=5).await;
    assert_eq!(numbers(&mut client, 3).await, [3, 4, 5]);
    let (_, welcome) = Client::resume(&gateway, "42", &cursors[2]).await;
    assert_eq!((&welcome["recovered"], epoch(&redis).await), (&true.into(), before), "{welcome}");
}

#[tokio::test]
async fn an_empty_history_that_begins_again_is_no_warning() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.probe_interval", "100ms").start().await;
    let begins = async |of: &str| {
        let () = redis.command(&["FLUSHALL"]).await;
        eventually("another epoch", async || {
            let epoch: Option<String> = redis.command(&["HGET", "tidings:history", "epoch"]).await;
            epoch.is_some_and(|epoch| epoch != of)
        })
        .await;
    };
    eventually("an epoch begins", async || redis.command::<u64>(&["EXISTS", "tidings:history"]).await == 1).await;
    begins(&epoch(&redis).await).await;
    let mut client = Client::connect(&gateway, "42").await;
    let warned = || gateway.log().contains("a new epoch begins");
    Store::on(&redis).publish("42", [1]).await;
    assert_eq!(numbers(&mut client, 1).await, [1]);
    assert!(!warned(), "{}", gateway.log());
    begins(&epoch(&redis).await).await;
    eventually("it is warned of", async || warned()).await;
}

#[tokio::test]
async fn every_connection_leaves_a_server_that_became_a_replica_though_it_closes_none() {
    let Pair { master, replica, link: _link } = pair(false).await;
    let addresses = [Proxy::start(master.port()), Proxy::start(master.port())];
    // One of them sends the outbox. The other writes nothing through its link for the history.
    let start = async |address: &Proxy| Options::redis_at(&address.url()).start().await;
    let gateways = [start(&addresses[0]).await, start(&addresses[1]).await];
    let links = async |redis: &RedisServer, gateway: &Gateway| {
        let mut found = Vec::new();
        for purpose in ["subscriber", "commands", "history-commands"] {
            found.push(redis.links_of(&gateway.instance, purpose).await.len());
        }
        found
    };
    Store::on(&master).publish("42", [1]).await;
    has_counted(&replica, 1).await;
    for gateway in &gateways {
        eventually("it is linked", async || links(&master, gateway).await == [1, 1, 1]).await;
    }
    addresses.iter().for_each(|address| address.lead_to(replica.port()));
    let () = replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    let () = master.command(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]).await;
    for gateway in &gateways {
        eventually_within(LEFT, "it has moved", async || {
            (links(&master, gateway).await, links(&replica, gateway).await) == (vec![0; 3], vec![1; 3])
        })
        .await;
    }
}
