//! `online_users` contains exactly the users with a connection on a live instance; `presence` publishes each change.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Client, Gateway, Options, RedisServer, Subscription, eventually, eventually_within};

const LEASE: Duration = Duration::from_secs(2);
const OFFLINE_DELAY: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);

fn options(redis: &RedisServer) -> Options {
    Options::redis(redis).set("presence.lease", "2s").set("presence.offline_delay", "500ms")
}

async fn two(redis: &RedisServer) -> (Gateway, Gateway) {
    tokio::join!(options(redis).start(), options(redis).start())
}

async fn online_within(limit: Duration, redis: &RedisServer, users: &[&str]) {
    eventually_within(limit, &format!("online are {users:?}"), async || redis.online().await == users).await;
}

/// The next event: the user and the status.
async fn next(events: &mut Subscription) -> (String, String) {
    let event = events.next().await;
    assert!(event["at"].as_u64().is_some_and(|at| at > 1_700_000_000_000), "milliseconds since 1970: {event}");
    let text = |field: &Value| field.as_str().unwrap().to_owned();
    (text(&event["user"]), text(&event["status"]))
}

/// The next events are exactly these, such as `+42` and `-42`.
async fn told(events: &mut Subscription, expected: &[&str]) {
    for expected in expected {
        let (user, status) = next(events).await;
        let sign = if status == "online" { '+' } else { '-' };
        assert!(status == "online" || status == "offline", "{status}");
        assert_eq!(format!("{sign}{user}"), *expected);
    }
}

/// A user who connects and disconnects: once these events are published, all earlier ones have been published too.
async fn marker(gateway: &Gateway, events: &mut Subscription) {
    let client = Client::connect(gateway, "marker").await;
    told(events, &["+marker"]).await;
    client.close().await;
    told(events, &["-marker"]).await;
}

#[tokio::test]
async fn a_first_connection_shows_within_a_second_and_the_last_one_s_end_after_the_delay() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis).start().await;
    let mut events = redis.subscribe("presence").await;
    let phone = Client::connect(&gateway, "42").await;
    online_within(SECOND, &redis, &["42"]).await;
    let laptop = Client::connect(&gateway, "42").await;
    phone.close().await;
    told(&mut events, &["+42"]).await;
    marker(&gateway, &mut events).await;
    assert_eq!(redis.online().await, ["42"]);

    let left = Instant::now();
    laptop.close().await;
    told(&mut events, &["-42"]).await;
    let lag = left.elapsed();
    assert!((OFFLINE_DELAY..OFFLINE_DELAY + SECOND).contains(&lag), "{lag:?}");
    assert!(redis.online().await.is_empty());
}

#[tokio::test]
async fn a_reload_within_the_delay_is_not_told() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis).set("presence.offline_delay", "2s").start().await;
    let mut events = redis.subscribe("presence").await;
    let mut page = Client::connect(&gateway, "42").await;
    told(&mut events, &["+42"]).await;
    let mut others = Vec::new();
    for other in ["1", "2", "3"] {
        page.close().await;
        eventually("the page is gone", async || gateway.metric("tidings_users").await == others.len() as f64).await;
        // A later event is published, so the end of the page has been processed by then.
        others.push(Client::connect(&gateway, other).await);
        told(&mut events, &[&format!("+{other}")]).await;
        page = Client::connect(&gateway, "42").await;
    }
    marker(&gateway, &mut events).await;
    assert_eq!(redis.online().await, ["1", "2", "3", "42"]);
}

#[tokio::test]
async fn a_client_that_vanishes_counts_as_gone() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis).start().await;
    let mut events = redis.subscribe("presence").await;
    let mut client = Client::connect(&gateway, "42").await;
    told(&mut events, &["+42"]).await;
    client.tcp().set_zero_linger().unwrap();
    drop(client);
    told(&mut events, &["-42"]).await;
}

#[tokio::test]
async fn a_connection_that_has_not_said_who_it_is_is_nobody() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis).start().await;
    let mut events = redis.subscribe("presence").await;
    let _anonymous = Client::anonymous(&gateway).await;
    marker(&gateway, &mut events).await;
    assert!(redis.online().await.is_empty());
}

#[tokio::test]
async fn a_user_on_two_instances_stays_online_when_one_of_the_connections_ends() {
    let redis = RedisServer::start().await;
    let (one, other) = two(&redis).await;
    let mut events = redis.subscribe("presence").await;
    let [phone, laptop] = [Client::connect(&one, "42").await, Client::connect(&other, "42").await];
    told(&mut events, &["+42"]).await;
    marker(&one, &mut events).await;
    phone.close().await;
    marker(&one, &mut events).await;
    assert_eq!(redis.online().await, ["42"]);
    laptop.close().await;
    told(&mut events, &["-42"]).await;
    assert!(redis.online().await.is_empty());
}

#[tokio::test]
async fn a_killed_instance_s_users_go_offline_unless_another_holds_them() {
    let redis = RedisServer::start().await;
    let (mut doomed, other) = two(&redis).await;
    let mut events = redis.subscribe("presence").await;
    let _both = [Client::connect(&doomed, "both").await, Client::connect(&other, "both").await];
    told(&mut events, &["+both"]).await;
    let _single = Client::connect(&doomed, "single").await;
    told(&mut events, &["+single"]).await;
    marker(&other, &mut events).await;
    doomed.kill().await;
    online_within(LEASE + 2 * SECOND, &redis, &["both"]).await;
    told(&mut events, &["-single"]).await;
    marker(&other, &mut events).await;
    assert_eq!(redis.online().await, ["both"]);
    assert_eq!(keys_of(&redis, &doomed).await, [""; 0], "nothing is left of it");
}

#[tokio::test]
async fn an_instance_paused_past_its_lease_is_fenced_and_its_users_come_back() {
    let redis = RedisServer::start().await;
    let (paused, other) = two(&redis).await;
    let mut events = redis.subscribe("presence").await;
    let _both = [Client::connect(&paused, "both").await, Client::connect(&other, "both").await];
    told(&mut events, &["+both"]).await;
    let mut single = Client::connect(&paused, "single").await;
    told(&mut events, &["+single"]).await;
    let leaver = Client::connect(&paused, "leaver").await;
    told(&mut events, &["+leaver"]).await;

    paused.signal("STOP");
    drop(leaver);
    online_within(LEASE + 2 * SECOND, &redis, &["both"]).await;
    let _newer = Client::connect(&other, "newer").await;
    paused.signal("CONT");
    online_within(5 * SECOND, &redis, &["both", "newer", "single"]).await;
    assert_eq!(paused.metric("tidings_presence_incarnations_total").await, 2.0);
    assert_eq!(other.metric("tidings_presence_incarnations_total").await, 1.0);
    redis.publish("single", "1").await;
    assert_eq!(single.event().await, 1, "its connections have outlived it");
    let now = up_to_now(&redis, &mut events).await;
    for (user, status) in [("single", "offline"), ("leaver", "offline"), ("newer", "online"), ("single", "online")] {
        assert!(now.contains(&(user.to_owned(), status.to_owned())), "{user} {status} is not among {now:?}");
    }
}

/// Every event published until now.
async fn up_to_now(redis: &RedisServer, events: &mut Subscription) -> Vec<(String, String)> {
    redis.publish_bytes(b"presence", br#"{"user":"","status":"now","at":1800000000000}"#).await;
    let mut until_now = Vec::new();
    loop {
        match next(events).await {
            (_, status) if status == "now" => return until_now,
            event => until_now.push(event),
        }
    }
}

#[tokio::test]
async fn the_set_is_exact_again_after_a_flush() {
    let redis = RedisServer::start().await;
    let (one, other) = two(&redis).await;
    let _clients = [
        Client::connect(&one, "1").await,
        Client::connect(&one, "both").await,
        Client::connect(&other, "2").await,
        Client::connect(&other, "both").await,
    ];
    for _ in 0..3 {
        online_within(5 * SECOND, &redis, &["1", "2", "both"]).await;
        let () = redis.command(&["FLUSHALL"]).await;
        assert!(redis.online().await.is_empty());
    }
    online_within(5 * SECOND, &redis, &["1", "2", "both"]).await;
}

#[tokio::test]
async fn the_set_is_exact_5_s_after_a_flush_however_long_the_lease() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("presence.lease", "60s").start().await;
    let _client = Client::connect(&gateway, "42").await;
    online_within(SECOND, &redis, &["42"]).await;
    let () = redis.command(&["FLUSHALL"]).await;
    online_within(5 * SECOND, &redis, &["42"]).await;
}

#[tokio::test]
async fn the_set_is_exact_again_after_a_restart_of_redis() {
    let mut redis = RedisServer::start().await;
    let (one, other) = two(&redis).await;
    let gone = Client::connect(&one, "gone").await;
    let _clients = [Client::connect(&one, "42").await, Client::connect(&other, "42").await];
    online_within(SECOND, &redis, &["42", "gone"]).await;
    redis.kill().await;
    one.not_ready().await;
    other.not_ready().await;
    gone.close().await;
    let _came = Client::connect(&other, "came").await;
    redis.restart().await;
    one.ready().await;
    other.ready().await;
    online_within(5 * SECOND, &redis, &["42", "came"]).await;
}

/// Reads past everything up to this.
async fn passed(events: &mut Subscription, user: &str, status: &str) {
    while next(events).await != (user.to_owned(), status.to_owned()) {}
}

/// Deletes one key: the set becomes exact again, and stays exact until all users have left.
async fn repaired_without(key: &str) {
    let redis = RedisServer::start().await;
    let (one, other) = two(&redis).await;
    let mut events = redis.subscribe("presence").await;
    let here = Client::connect(&one, "42").await;
    let there = Client::connect(&other, "42").await;
    let single = Client::connect(&other, "43").await;
    online_within(SECOND, &redis, &["42", "43"]).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.push(next(&mut events).await);
    }
    let keys: Vec<String> = redis.command(&["KEYS", key]).await;
    assert!(!keys.is_empty(), "there is no {key}");
    for key in keys {
        let _: u64 = redis.command(&["DEL", &key]).await;
    }
    here.close().await;
    let marker = Client::connect(&one, "marker").await;
    passed(&mut events, "marker", "online").await;
    marker.close().await;
    passed(&mut events, "marker", "offline").await;
    let exact = |what: &str| format!("without {key}, {what}");
    eventually_within(30 * SECOND, &exact("two are online"), async || redis.online().await == ["42", "43"]).await;
    there.close().await;
    single.close().await;
    eventually_within(30 * SECOND, &exact("no user is"), async || redis.online().await.is_empty()).await;
}

#[tokio::test]
async fn any_single_key_deleted_by_hand_leaves_the_set_exact_within_30_s() {
    let repaired = ["online_users", "*:count", "*:held:*", "*:instances", "*:seq"].map(repaired_without);
    futures::future::join_all(repaired).await;
}

#[tokio::test]
async fn events_alternate_per_user_and_add_up_to_the_set() {
    let redis = RedisServer::start().await;
    let start = || Options::redis(&redis).set("presence.offline_delay", "30ms").start();
    let (one, other) = tokio::join!(start(), start());
    let mut events = redis.subscribe("presence").await;
    let churn = ["a", "b", "c", "d", "e", "f"].map(async |user| {
        let mut kept = Vec::new();
        for _ in 0..15 {
            let gateway = if fastrand::bool() { &one } else { &other };
            kept.push(Client::connect(gateway, user).await);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..120))).await;
            while kept.len() > fastrand::usize(..3) {
                kept.remove(0).close().await;
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..120))).await;
        }
        (user, kept)
    });
    let mut left = futures::future::join_all(churn).await;
    left.retain(|(_, kept)| !kept.is_empty());
    let users: Vec<&str> = left.iter().map(|(user, _)| *user).collect();
    online_within(2 * SECOND, &redis, &users).await;

    let mut statuses: BTreeMap<String, String> = BTreeMap::new();
    let told = up_to_now(&redis, &mut events).await;
    assert!(told.len() > 12, "only {} changes", told.len());
    for (user, status) in &told {
        let before = statuses.insert(user.clone(), status.clone()).unwrap_or_else(|| "offline".to_owned());
        assert_ne!(before, *status, "{user} in {told:?}");
    }
    statuses.retain(|_, status| status == "online");
    assert_eq!(statuses.into_keys().collect::<Vec<_>>(), users);
}

#[tokio::test]
async fn any_user_id_comes_through_the_set_and_the_events_unchanged() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis).set("presence.offline_delay", "50ms").start().await;
    let mut events = redis.subscribe("presence").await;
    let longest = "é".repeat(128);
    let users =
        ["it's", "a\"b", "a\\b", "a/b", "</x>", "Zoë ☂ 👩\u{200d}🚀", "\u{2028}", "a b", "user:42", "{42}", "*", "%s"];
    for user in users.into_iter().chain([longest.as_str()]) {
        let client = Client::connect(&gateway, user).await;
        assert_eq!(next(&mut events).await, (user.to_owned(), "online".to_owned()));
        let online: bool = redis.command(&["SISMEMBER", "online_users", user]).await;
        assert!(online, "{user}");
        client.close().await;
        assert_eq!(next(&mut events).await, (user.to_owned(), "offline".to_owned()));
        assert!(redis.online().await.is_empty(), "{user}");
    }
}

/// The keys in Redis whose names contain an instance.
async fn keys_of(redis: &RedisServer, gateway: &Gateway) -> Vec<String> {
    let mut names: Vec<String> = redis.command(&["KEYS", "*"]).await;
    names.extend(redis.command::<Vec<String>>(&["ZRANGE", "{online_users}:instances", "0", "-1"]).await);
    names.extend(redis.command::<Vec<String>>(&["HKEYS", "{online_users}:seq"]).await);
    names.retain(|name| name.contains(&gateway.instance));
    names
}

#[tokio::test]
async fn a_graceful_stop_gives_presence_up_at_once_and_leaves_no_key_behind() {
    let redis = RedisServer::start().await;
    let start = || Options::redis(&redis).set("presence.offline_delay", "1h").start();
    let (mut one, mut other) = tokio::join!(start(), start());
    let mut events = redis.subscribe("presence").await;
    let (mut both, _both) = (Client::connect(&one, "both").await, Client::connect(&other, "both").await);
    told(&mut events, &["+both"]).await;
    let leaver = Client::connect(&one, "leaver").await;
    told(&mut events, &["+leaver"]).await;
    let mut single = Client::connect(&one, "single").await;
    told(&mut events, &["+single"]).await;
    leaver.close().await;
    assert!(!keys_of(&redis, &one).await.is_empty());
    one.signal("TERM");
    tokio::join!(one.exit(), single.close_code(), both.close_code());
    assert_eq!(redis.online().await, ["both"]);
    assert_eq!(keys_of(&redis, &one).await, [""; 0]);
    let mut gone = up_to_now(&redis, &mut events).await;
    gone.sort();
    assert_eq!(gone, ["leaver", "single"].map(|user| (user.to_owned(), "offline".to_owned())));
    other.signal("TERM");
    other.exit().await;
    // The remaining keys belong to the fleet, not to an instance: last seen times, epochs, counters, and the fence of the outbox.
    let mut left: Vec<String> = redis.command(&["KEYS", "*"]).await;
    left.sort();
    left.retain(|name| name != "{online_users}:audits");
    let presence = ["epoch", "last_seen", "renewed", "total"].map(|name| format!("{{online_users}}:{name}"));
    let own = ["tidings:history", "tidings:outbox:fence"].map(str::to_owned);
    let kept: Vec<String> = own.into_iter().chain(presence).collect();
    assert_eq!(left, kept);
    assert_eq!(redis.command::<u64>(&["GET", "{online_users}:total"]).await, 0);
}

#[tokio::test]
async fn users_who_move_from_a_stopping_instance_to_another_never_flap() {
    let redis = RedisServer::start().await;
    let (mut stopping, other) = two(&redis).await;
    let mut events = redis.subscribe("presence").await;
    let users: Vec<String> = (0..5).map(|number| number.to_string()).collect();
    let mut clients = Vec::new();
    for user in &users {
        clients.push((user, Client::connect(&stopping, user).await));
        told(&mut events, &[&format!("+{user}")]).await;
    }
    stopping.signal("TERM");
    let moving = clients.into_iter().map(async |(user, mut client)| {
        assert_eq!(client.close_frame().await, 4200);
        Client::connect(&other, user).await
    });
    let _moved = futures::future::join_all(moving).await;
    stopping.exit().await;
    eventually("they are held there", async || other.metric("tidings_users").await == 5.0).await;
    marker(&other, &mut events).await;
    assert_eq!(redis.online().await, users);
}
