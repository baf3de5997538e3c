//! `redis.subscribe = "exact"`: an instance subscribes to the channels of its own users, and receives nothing else.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::redis_link::{gap, reason};
use crate::rights::{documented_rules, with_user};
use crate::support::{
    Client, Gateway, Light, Options, Proxy, RedisServer, Store, Way, Whose, eventually, eventually_within,
};

/// Counts the clients that were greeted before their subscription was confirmed.
const LATE: &str = "tidings_subscriptions_late_total";

fn exact(redis: &RedisServer) -> Options {
    exact_at(&redis.url())
}

fn exact_at(url: &str) -> Options {
    Options::redis_at(url).set("redis.subscribe", "exact")
}

/// How many subscribers the channels of these users have.
async fn subscribers<const N: usize>(redis: &RedisServer, users: [&str; N]) -> [u64; N] {
    let names = users.map(|user| format!("user:{user}"));
    let words: Vec<&str> = ["PUBSUB", "NUMSUB"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let counts: Vec<(String, u64)> = redis.command(&words).await;
    counts.into_iter().map(|(_, count)| count).collect::<Vec<_>>().try_into().unwrap()
}

/// The channels of users that have a subscriber.
async fn channels(redis: &RedisServer) -> usize {
    redis.command::<Vec<String>>(&["PUBSUB", "CHANNELS", "user:*"]).await.len()
}

/// The data of an event that comes with a `gap`, in either order.
async fn gap_and_event(client: &mut Client) -> Value {
    let mut frames = [client.frame().await, client.frame().await];
    frames.sort_by_key(|frame| frame["type"] == "event");
    assert_eq!((&frames[0]["type"], &frames[1]["type"]), (&json!("gap"), &json!("event")), "{frames:?}");
    frames[1]["data"].take()
}

/// How many times Redis has executed a command.
async fn calls(redis: &RedisServer, command: &str) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let start = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(start.as_str()));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn an_instance_hears_its_own_users_and_nothing_else() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(exact(&redis).start(), exact(&redis).start());
    let mut clients = [Client::connect(&one, "a").await, Client::connect(&two, "b").await];
    let mut both = [Client::connect(&one, "c").await, Client::connect(&two, "c").await];
    assert_eq!(redis.command::<u64>(&["PUBSUB", "NUMPAT"]).await, 0);
    assert_eq!(subscribers(&redis, ["a", "b", "c", "absent"]).await, [1, 1, 2, 0]);
    for (user, subscribers) in [("a", 1), ("b", 1), ("c", 2), ("absent", 0)] {
        assert_eq!(redis.publish(user, &json!(user).to_string()).await, subscribers);
    }
    assert_eq!((clients[0].event().await, clients[1].event().await), (json!("a"), json!("b")));
    for client in &mut both {
        assert_eq!(client.event().await, "c");
    }
    for gateway in [&one, &two] {
        assert_eq!(gateway.metric("tidings_messages_received_total").await, 2.0);
        assert_eq!(gateway.metric("tidings_messages_missed_total").await, 0.0);
        assert_eq!(gateway.metric("tidings_subscribed_channels").await, 2.0);
    }
}

#[tokio::test]
async fn everything_published_after_the_welcome_arrives_in_exact_mode() {
    let redis = RedisServer::start().await;
    let gateway = exact(&redis).start().await;
    let users: Vec<_> = (0..200).map(|user| format!("u{user}")).collect();
    let all = users.iter().map(async |user| {
        let mut client = Client::connect(&gateway, user).await;
        assert_eq!(redis.publish(user, &json!(user).to_string()).await, 1, "subscribed before the welcome");
        assert_eq!(client.event().await, json!(user));
    });
    join_all(all).await;
    assert_eq!(gateway.metric(LATE).await, 0.0);
}

#[tokio::test]
async fn the_welcome_waits_for_the_subscription_to_be_confirmed() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let gateway = exact_at(&proxy.url()).start().await;
    let _present = Client::connect(&gateway, "1").await;
    proxy.blackhole(Whose::Subscribers, Way::ToRedis);
    let connecting = Client::connect(&gateway, "42");
    tokio::pin!(connecting);
    let early = timeout(Duration::from_millis(300), &mut connecting).await;
    assert!(early.is_err(), "a welcome without a subscription");
    proxy.heal();
    let mut client = connecting.await;
    assert_eq!(redis.publish("42", "1").await, 1);
    assert_eq!(client.event().await, 1);
    // The channel is known already: a second connection waits for nothing.
    proxy.blackhole(Whose::Subscribers, Way::ToRedis);
    let late = gateway.metric(LATE).await;
    Client::connect(&gateway, "42").await;
    assert_eq!(gateway.metric(LATE).await, late);
}

#[tokio::test]
async fn a_channel_is_kept_over_a_reload_and_left_after_the_last_connection() {
    let redis = RedisServer::start().await;
    let gateway = exact(&redis).set("presence.offline_delay", "2s").start().await;
    let before = calls(&redis, "subscribe").await;
    for round in 0..5 {
        let mut client = Client::connect(&gateway, "42").await;
        redis.publish("42", &round.to_string()).await;
        assert_eq!(client.event().await, round);
        client.close().await;
        gateway.connections(0).await;
    }
    assert_eq!(calls(&redis, "subscribe").await, before + 1, "a reload costs nothing");
    assert_eq!(calls(&redis, "unsubscribe").await, 0);
    eventually("the channel is left", async || subscribers(&redis, ["42"]).await == [0]).await;
    eventually("it is counted", async || gateway.metric("tidings_subscribed_channels").await == 0.0).await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.publish("42", "9").await;
    assert_eq!(client.event().await, 9);
}

#[tokio::test]
async fn an_instance_is_ready_again_only_once_every_channel_is_subscribed_to() {
    const USERS: usize = 2_500;
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let (gateway, other) = tokio::join!(exact_at(&proxy.url()).start(), Gateway::redis(&redis));
    let users: Vec<_> = (0..USERS).map(|user| format!("u{user}")).collect();
    let connecting = users[1..].iter().map(async |user| Light::connect(gateway.public, user).await.unwrap());
    let _others = join_all(connecting).await;
    let mut client = Client::connect(&gateway, "u0").await;
    for round in 0..3 {
        proxy.refuse();
        gateway.not_ready().await;
        other.store("u0", round).await;
        eventually("no channel is subscribed to", async || channels(&redis).await == 0).await;
        proxy.heal();
        // Each byte is late, so that a chunk is confirmed long after the one before it.
        proxy.delay(Duration::from_millis(50));
        let healed = Instant::now();
        gateway.ready().await;
        assert_eq!(channels(&redis).await, USERS);
        assert_eq!(gap_and_event(&mut client).await, round);
        assert!(healed.elapsed() < Duration::from_secs(10), "{:?}", healed.elapsed());
        assert_eq!(redis.publish("u7", "1").await, 2);
    }
}

#[tokio::test]
async fn a_killed_subscription_of_an_exact_instance_is_back_within_5_s_with_what_was_stored() {
    let redis = RedisServer::start().await;
    let gateway = exact(&redis).start().await;
    let store = Store::on(&redis);
    let users: Vec<_> = (0..50).map(|user| format!("u{user}")).collect();
    let mut clients = join_all(users.iter().map(|user| Client::connect(&gateway, user))).await;
    for round in 0..3 {
        let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        join_all(users.iter().map(|user| store.publish(user, [round]))).await;
        eventually_within(Duration::from_secs(5), "every channel is back", async || {
            channels(&redis).await == users.len()
        })
        .await;
        for client in &mut clients {
            assert_eq!(gap_and_event(client).await, round);
        }
    }
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 3.0);
}

#[tokio::test]
async fn a_client_whose_subscription_is_not_confirmed_is_greeted_and_gets_what_it_missed_later() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let gateway = exact_at(&proxy.url()).start().await;
    let store = Store::on(&redis);
    let mut present = Client::connect(&gateway, "1").await;
    proxy.blackhole(Whose::Subscribers, Way::ToRedis);
    let begun = Instant::now();
    let (mut late, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(welcome["cursor"].is_string(), "the history can be read: {welcome}");
    store.publish("42", [1]).await;
    redis.publish("42", "2").await;
    // The subscription works for those who have it.
    store.publish("1", [3]).await;
    assert_eq!(present.frame().await["data"], 3);
    proxy.heal();
    assert!(gap(&mut late).await >= Duration::from_secs(1));
    assert_eq!(late.frame().await["data"], 1);
    store.publish("42", [4]).await;
    assert_eq!(late.frame().await["data"], 4);
    store.publish("1", [5]).await;
    assert_eq!(present.frame().await["data"], 5, "no gap for the others");
    assert_eq!(gateway.metric(LATE).await, 1.0);
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0);
}

#[tokio::test]
async fn a_lost_backplane_delays_and_refuses_no_client_of_an_exact_instance() {
    let mut redis = RedisServer::start().await;
    let gateway = exact(&redis).start().await;
    redis.kill().await;
    gateway.not_ready().await;
    let (mut client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    assert!(welcome["cursor"].is_null(), "{welcome}");
    assert_eq!(gateway.metric(LATE).await, 0.0);
    redis.restart().await;
    gateway.ready().await;
    gap(&mut client).await;
    assert_eq!(redis.publish("42", "1").await, 1);
    assert_eq!(client.frame().await["data"], 1);
}

#[tokio::test]
async fn a_stored_event_that_an_exact_instance_did_not_hear_is_found_by_the_users_next() {
    let redis = RedisServer::start().await;
    let gateway = exact(&redis).set("redis.probe_interval", "1h").start().await;
    let store = Store::on(&redis);
    let mut client = Client::connect(&gateway, "42").await;
    redis.store_unheard(1).await;
    store.publish("42", [2]).await;
    assert_eq!((client.stored_event().await.1, client.stored_event().await.1), (json!(1), json!(2)));
}

#[tokio::test]
async fn the_last_stored_event_that_an_exact_instance_did_not_hear_is_found_by_the_audit() {
    let redis = RedisServer::start().await;
    let gateway = exact(&redis).set("redis.probe_interval", "200ms").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    for number in 1..=2 {
        redis.store_unheard(number).await;
        assert_eq!(client.stored_event().await.1, number);
    }
    assert_eq!(gateway.metric("tidings_gaps_found_total").await, 2.0);
}

#[tokio::test]
async fn the_notifications_of_others_are_no_gap_and_the_audit_finds_no_false_one() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(
        exact(&redis).set("redis.probe_interval", "100ms").set("log.level", "debug").start(),
        exact(&redis).set("redis.probe_interval", "100ms").set("log.level", "debug").start()
    );
    let mut clients = [Client::connect(&one, "a").await, Client::connect(&two, "b").await];
    let began = Instant::now();
    let mut number = 0;
    // Three audits, under load.
    while began.elapsed() < Duration::from_secs(4) {
        for (client, user) in clients.iter_mut().zip(["a", "b"]) {
            one.store(user, number).await;
            assert_eq!(client.stored_event().await.1, number);
        }
        number += 1;
    }
    for gateway in [&one, &two] {
        assert_eq!(gateway.metric("tidings_gaps_found_total").await, 0.0);
        assert_eq!(gateway.metric("tidings_replayed_total").await, 0.0);
        let log = gateway.log();
        let [comparisons, audits] =
            ["no client is behind", "audit: no client is behind"].map(|line| log.matches(line).count());
        // At the start of the subscription, and with each audit, whose line contains the other's.
        assert!(audits >= 2 && comparisons - audits <= 2, "{comparisons} comparisons, {audits} audits");
    }
}

#[tokio::test]
async fn many_users_who_connect_share_few_subscribe_commands() {
    const USERS: u32 = 2_000;
    let redis = RedisServer::start().await;
    let gateway = exact(&redis).start().await;
    let before = calls(&redis, "subscribe").await;
    let users: Vec<_> = (0..USERS).map(|user| format!("u{user}")).collect();
    let clients = join_all(users.iter().map(async |user| Light::connect(gateway.public, user).await.unwrap())).await;
    assert_eq!(clients.len(), channels(&redis).await);
    let commands = calls(&redis, "subscribe").await - before;
    assert!(commands * 5 <= u64::from(USERS), "{commands} commands for {USERS} users");
}

#[tokio::test]
async fn a_refused_subscription_is_reported_and_tried_again_and_harms_no_other_user() {
    let redis = RedisServer::start().await;
    let set_user = async |rules: &[&str]| {
        let () = redis.command(&[&["ACL", "SETUSER", "app"], rules].concat()).await;
    };
    set_user(&["on", ">hunter2", "~*", "+@all", "resetchannels", "&tidings:*", "&presence", "&user:1*"]).await;
    let gateway = exact_at(&format!("redis://app:hunter2@127.0.0.1:{}", redis.port())).start().await;
    let mut allowed = Client::connect(&gateway, "1").await;
    let mut refused = Client::connect(&gateway, "2").await;
    gateway.not_ready().await;
    let why = reason(&gateway).await;
    assert!(why.contains("subscribe") && why.contains("NOPERM"), "{why}");
    redis.publish("1", "1").await;
    assert_eq!(allowed.frame().await["data"], 1);
    set_user(&["&user:*"]).await;
    gateway.ready().await;
    gap(&mut refused).await;
    redis.publish("2", "2").await;
    assert_eq!(refused.frame().await["data"], 2);
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0);
    assert!(gateway.metric("tidings_backplane_errors_total{kind=\"NOPERM\"}").await > 0.0);
}

#[tokio::test]
async fn the_documented_rights_suffice_in_exact_mode() {
    let rules = documented_rules();
    let (redis, url) = with_user(&rules.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let gateway = exact_at(&url).set("presence.offline_delay", "100ms").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    client.close().await;
    eventually("the channel is left", async || subscribers(&redis, ["42"]).await == [0]).await;
    assert!(!gateway.log().contains("NOPERM"), "{}", gateway.log());
}

#[tokio::test]
async fn a_message_that_is_too_large_is_dropped_and_counted_in_exact_mode() {
    let redis = RedisServer::start().await;
    let gateway = exact(&redis).set("limits.max_payload_bytes", "1024").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.publish("42", &format!("\"{}\"", "x".repeat(100_000))).await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    assert_eq!(gateway.metric("tidings_messages_dropped_total{reason=\"size\"}").await, 1.0);
}
