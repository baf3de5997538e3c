//! `redis.subscribe = "sharded"`: besides the classic channels of its own users, an instance subscribes to their sharded
//! ones, wherever their slots are.

use std::time::Duration;

use serde_json::{Value, json};

use crate::redis_link::reason;
use crate::support::{Client, Cluster, Gateway, Options, eventually, eventually_within, key_slot};

async fn sharded(cluster: &Cluster) -> Gateway {
    Options::redis_at(&cluster.url()).set("redis.subscribe", "sharded").start().await
}

/// Publishes at the owner of the sharded channel's slot; returns how many subscribers received it. A replica would accept
/// it too, but count only its own subscribers.
async fn spublish(cluster: &Cluster, user: &str, payload: &Value) -> u64 {
    let channel = format!("user:{user}");
    let owner = cluster.owner_of(&channel).await;
    cluster.node(owner).command(&["SPUBLISH", &channel, &payload.to_string()]).await
}

/// How many subscribers the user's sharded channel has at a node.
async fn subscribers(cluster: &Cluster, node: usize, user: &str) -> u64 {
    let counts: Vec<(String, u64)> =
        cluster.node(node).command(&["PUBSUB", "SHARDNUMSUB", &format!("user:{user}")]).await;
    counts[0].1
}

/// Publishes until it is received, and takes it from the client; returns how many gaps the client was told of before.
async fn heard(cluster: &Cluster, client: &mut Client, user: &str, payload: Value) -> usize {
    eventually("the channel has a subscriber", async || spublish(cluster, user, &payload).await == 1).await;
    let mut gaps = 0;
    loop {
        let frame = client.frame().await;
        match frame["type"].as_str() {
            Some("gap") => gaps += 1,
            Some("event") if frame["data"] == payload => return gaps,
            // Published before, and received although the node counted no subscriber: another node passed it on.
            Some("event") => {}
            _ => panic!("{frame}"),
        }
    }
}

/// A user whose sharded channel is at the same node as that of another, or at another node.
async fn user_at(cluster: &Cluster, node: usize) -> String {
    for number in 0.. {
        let user = format!("at{number}");
        if cluster.owner_of(&format!("user:{user}")).await == node {
            return user;
        }
    }
    unreachable!()
}

#[tokio::test]
async fn what_is_published_on_a_sharded_channel_after_the_welcome_arrives_at_instances_with_that_user_only() {
    let cluster = Cluster::start().await;
    let (one, two) = tokio::join!(sharded(&cluster), sharded(&cluster));
    for (number, user) in ["a", "b", "x{tag}y", "{}", "42}"].into_iter().enumerate() {
        let gateway = if number % 2 == 0 { &one } else { &two };
        let mut client = Client::connect(gateway, user).await;
        assert_eq!(spublish(&cluster, user, &json!(number)).await, 1, "{user}");
        assert_eq!(client.event().await, number);
        cluster.publish_at(number, user, "\"classic\"").await;
        assert_eq!(client.event().await, "classic");
    }
    for (gateway, received) in [(&one, 6.0), (&two, 4.0)] {
        assert_eq!(gateway.metric("tidings_messages_received_total").await, received);
        assert_eq!(gateway.metric("tidings_messages_missed_total").await, 0.0);
        assert_eq!(gateway.metric("tidings_sharded_gaps_total").await, 0.0);
    }
}

#[tokio::test]
async fn a_sharded_channel_is_left_after_the_last_connection() {
    let cluster = Cluster::start().await;
    let gateway =
        Options::redis_at(&cluster.url()).set("redis.subscribe", "sharded").set("presence.offline_delay", "1s");
    let gateway = gateway.start().await;
    let client = Client::connect(&gateway, "42").await;
    let owner = cluster.owner_of("user:42").await;
    assert_eq!(subscribers(&cluster, owner, "42").await, 1);
    assert_eq!(gateway.metric("tidings_subscribed_channels").await, 2.0);
    client.close().await;
    eventually("the channel is left", async || subscribers(&cluster, owner, "42").await == 0).await;
    eventually("it is counted", async || gateway.metric("tidings_subscribed_channels").await == 0.0).await;
}

#[tokio::test]
async fn a_sharded_channel_follows_its_slot_there_and_back_and_its_user_alone_is_told() {
    let cluster = Cluster::start().await;
    let gateway = sharded(&cluster).await;
    let (mut client, mut other) = (Client::connect(&gateway, "{42}").await, Client::connect(&gateway, "7").await);
    let slot = key_slot("42");
    let first = cluster.owner_of_slot(slot).await;
    for (round, to) in [(first + 1) % 3, first, (first + 2) % 3, first].into_iter().enumerate() {
        cluster.migrate_slot(slot, to).await;
        assert!(heard(&cluster, &mut client, "{42}", json!(round)).await >= 1, "the client is told of the gap");
        assert_eq!(heard(&cluster, &mut other, "7", json!(round)).await, 0, "nothing happened to the other");
        eventually("no subscription is lost", async || gateway.get(gateway.public, "/readyz").await.0 == 200).await;
    }
    assert!(gateway.metric("tidings_sharded_gaps_total").await >= 4.0);
    assert_eq!(gateway.metric("tidings_subscribed_channels").await, 4.0);
}

#[tokio::test]
async fn what_was_stored_unheard_while_a_sharded_channel_moved_is_found() {
    let cluster = Cluster::start().await;
    let options = Options::redis_at(&cluster.url()).set("redis.subscribe", "sharded");
    // No audit finds it.
    let gateway = options.set("redis.probe_interval", "1h").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    gateway.store("42", 1).await;
    assert_eq!(client.stored_event().await.1, 1);
    let key = format!("tidings:{{b{}}}:history:42", key_slot("42") % 256);
    let last: Vec<(String, Vec<String>)> = cluster.command(&["XREVRANGE", &key, "+", "-", "COUNT", "1"]).await;
    let (ms, number) = last[0].0.split_once('-').unwrap();
    let id = format!("{ms}-{}", number.parse::<u64>().unwrap() + 1);
    let entry = ["XADD", key.as_str(), &id, "event", "\"notification\"", "data", "2"];
    let _: String = cluster.command(&entry).await;
    let _: u64 = cluster.command(&["HSET", &key.replace(":history:42", ":history"), ":42", &id]).await;
    let from = cluster.owner_of("user:42").await;
    cluster.migrate_slot(key_slot("user:42"), (from + 1) % 3).await;
    loop {
        let frame = client.frame().await;
        if frame["type"] != "gap" {
            assert_eq!(frame["data"], 2);
            break;
        }
    }
}

#[tokio::test]
async fn a_sharded_channel_follows_an_orderly_failover() {
    let cluster = Cluster::start().await;
    let gateway = sharded(&cluster).await;
    let owner = cluster.owner_of("user:42").await;
    let other = user_at(&cluster, (owner + 1) % 3).await;
    let (mut client, mut other_client) =
        (Client::connect(&gateway, "42").await, Client::connect(&gateway, &other).await);
    for round in 0..2 {
        let owner = cluster.owner_of("user:42").await;
        cluster.failover(owner).await;
        assert!(heard(&cluster, &mut client, "42", json!(round)).await >= 1, "the client is told of the gap");
    }
    assert_eq!(heard(&cluster, &mut other_client, &other, json!("x")).await, 0);
}

#[tokio::test]
async fn a_sharded_channel_follows_the_promotion_after_its_node_was_killed() {
    let mut cluster = Cluster::start().await;
    let gateway = sharded(&cluster).await;
    let mut client = Client::connect(&gateway, "42").await;
    let owner = cluster.owner_of("user:42").await;
    let replica = cluster.replica_of(owner).await;
    cluster.kill(owner).await;
    gateway.not_ready().await;
    cluster.promoted(replica).await;
    assert!(heard(&cluster, &mut client, "42", json!(1)).await >= 1, "the client is told of the gap");
    gateway.ready().await;
}

#[tokio::test]
async fn a_script_that_runs_at_the_target_of_a_slot_on_its_way_is_heard_and_so_is_the_source() {
    const SCRIPT: &str = "redis.call('SET', KEYS[1], 1) return redis.call('SPUBLISH', ARGV[1], ARGV[2])";
    let cluster = Cluster::start().await;
    let gateway = sharded(&cluster).await;
    let mut client = Client::connect(&gateway, "42").await;
    let from = cluster.owner_of("user:42").await;
    let to = (from + 1) % 3;
    let migration = cluster.begin_migration(key_slot("user:42"), to).await;
    eventually_within(Duration::from_secs(5), "the target has the channel, too", async || {
        subscribers(&cluster, to, "42").await == 1
    })
    .await;
    // Who connects meanwhile, too.
    let mut late = Client::connect(&gateway, "x{user:42}").await;
    let script = ["EVAL", SCRIPT, "1", "{user:42}new", "user:42", "1"];
    assert_eq!(cluster.command::<u64>(&script).await, 1, "it runs at the target");
    let frame = client.frame().await;
    assert_eq!(frame["type"], "gap", "an earlier one may have been missed: {frame}");
    assert_eq!(client.frame().await["data"], 1);
    assert_eq!(spublish(&cluster, "42", &json!(2)).await, 1, "the source");
    assert_eq!(client.frame().await["data"], 2);
    eventually("the target has it", async || subscribers(&cluster, to, "x{user:42}").await == 1).await;
    cluster.move_keys(migration).await;
    cluster.end_migration(migration).await;
    // The target had the channel before the move was noticed: the message may come first.
    if heard(&cluster, &mut client, "42", json!(3)).await == 0 {
        assert_eq!(client.frame().await["type"], "gap");
    }
    heard(&cluster, &mut late, "x{user:42}", json!(4)).await;
}

#[tokio::test]
async fn a_silent_node_is_noticed_and_its_channels_are_back_when_it_is() {
    let cluster = Cluster::start().await;
    let gateway = sharded(&cluster).await;
    let owner = cluster.owner_of("user:42").await;
    let replica = cluster.replica_of(owner).await;
    let mut client = Client::connect(&gateway, "42").await;
    // No other node takes over.
    cluster.freeze(replica);
    cluster.freeze(owner);
    eventually("the connection is given up", async || {
        gateway.log().contains("not subscribed to sharded channels") && gateway.log().contains("silent")
    })
    .await;
    gateway.not_ready().await;
    cluster.thaw(owner);
    cluster.thaw(replica);
    assert!(heard(&cluster, &mut client, "42", json!(1)).await >= 1, "the client is told of the gap");
    gateway.ready().await;
}

#[tokio::test]
async fn a_refused_sharded_subscription_is_awaited_reported_tried_again_and_harms_no_other_user() {
    let cluster = Cluster::start().await;
    let set_user = async |rules: &[&str]| {
        for node in 0..6 {
            let () = cluster.node(node).command(&[&["ACL", "SETUSER", "app"], rules].concat()).await;
        }
    };
    set_user(&["on", ">hunter2", "~*", "&*", "+@all"]).await;
    let url = cluster.url().replace("://", "://app:hunter2@");
    let gateway = Options::redis_at(&url).set("redis.subscribe", "sharded").start().await;
    // At the same node.
    let mut allowed = Client::connect(&gateway, "x{user:42}").await;
    set_user(&["-ssubscribe"]).await;
    let mut client = Client::connect(&gateway, "42").await;
    assert_eq!(gateway.metric("tidings_subscriptions_late_total").await, 1.0, "the welcome waits for it");
    gateway.not_ready().await;
    let why = reason(&gateway).await;
    assert!(why.contains("sharded channels") && why.contains("NOPERM"), "{why}");
    cluster.publish_at(0, "42", "1").await;
    assert_eq!(client.frame().await["data"], 1, "the classic channel works");
    assert_eq!(heard(&cluster, &mut allowed, "x{user:42}", json!(1)).await, 0, "the other is not disturbed");
    set_user(&["+ssubscribe"]).await;
    assert_eq!(heard(&cluster, &mut client, "42", json!(2)).await, 1);
    gateway.ready().await;
}

#[tokio::test]
async fn a_message_on_a_sharded_channel_that_is_too_large_is_dropped_and_counted() {
    let cluster = Cluster::start().await;
    let options = Options::redis_at(&cluster.url()).set("redis.subscribe", "sharded");
    let gateway = options.set("limits.max_payload_bytes", "1024").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    assert_eq!(spublish(&cluster, "42", &json!("x".repeat(100_000))).await, 1);
    assert_eq!(spublish(&cluster, "42", &json!(1)).await, 1);
    assert_eq!(client.event().await, 1);
    assert_eq!(gateway.metric("tidings_messages_dropped_total{reason=\"size\"}").await, 1.0);
}

#[tokio::test]
async fn a_quiet_connection_for_sharded_channels_is_asked_and_kept() {
    let cluster = Cluster::start().await;
    let gateway = sharded(&cluster).await;
    let mut client = Client::connect(&gateway, "42").await;
    let owner = cluster.owner_of("user:42").await;
    let last_command = async || {
        let links = cluster.node(owner).links_of(&gateway.instance, "shard-subscriber").await;
        assert_eq!(links.len(), 1, "{links:?}");
        links[0].clone()
    };
    assert!(last_command().await.contains("cmd=ssubscribe"));
    eventually("it is asked whether it is alive", async || last_command().await.contains("cmd=ping")).await;
    assert_eq!(heard(&cluster, &mut client, "42", json!(1)).await, 0);
}
