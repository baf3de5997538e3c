//! Backends add notifications to a stream; instances store and publish each once and in order, even if any of them is
//! killed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use redis::aio::PubSubStream;
use redis::{AsyncCommands, Pipeline, cmd};
use tidings::internals::{Backplane, Envelope, HistoryStore, InstanceId, Metrics, Publication, Stored, UserId};
use tidings::{Config, Layers};
use tokio::time::sleep;

use crate::support::{Client, Gateway, Options, RedisServer, eventually, within};

const OUTBOX: &str = "tidings:outbox";
const LOCK: &str = "tidings:outbox:lock";
const REJECTED: &str = "tidings:outbox:rejected";

const OOM: &str = "tidings_backplane_errors_total{kind=\"OOM\"}";

/// The fields of an entry.
type Fields = Vec<(String, Vec<u8>)>;

/// The user and the number of an entry.
type Numbered = (usize, u64);

/// The messages published on users' channels.
struct Published {
    messages: PubSubStream,
    /// Channel and payload of each so far, as far as they were waited for.
    heard: VecDeque<(String, String)>,
}

impl Published {
    async fn on(redis: &RedisServer) -> Self {
        let mut pubsub =
            within("a connection", redis::Client::open(redis.url()).unwrap().get_async_pubsub()).await.unwrap();
        pubsub.psubscribe("user:*").await.unwrap();
        Self { messages: pubsub.into_on_message(), heard: VecDeque::new() }
    }

    /// Waits until so many more were published than were waited for.
    async fn hear(&mut self, count: usize) {
        for _ in 0..count {
            let message = within("a message", self.messages.next()).await.expect("subscribed");
            self.heard.push_back((message.get_channel_name().to_owned(), message.get_payload().unwrap()));
        }
    }

    /// The next: channel and payload.
    async fn next(&mut self) -> (String, String) {
        if self.heard.is_empty() {
            self.hear(1).await;
        }
        self.heard.pop_front().unwrap()
    }

    /// So many of the fleet's stored notifications, from the first on: those of each user.
    async fn numbers(&mut self, count: u64) -> BTreeMap<String, Vec<u64>> {
        let mut numbers: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for expected in 1..=count {
            let (channel, payload) = self.next().await;
            let envelope = Envelope::parse(&payload).unwrap();
            assert_eq!(envelope.stored.unwrap().count, expected, "the count has no hole");
            numbers.entry(channel.replace("user:", "")).or_default().push(envelope.data.parse().unwrap());
        }
        numbers
    }
}

/// A Redis, and how its entries are relayed.
struct Home {
    redis: RedisServer,
    /// In two steps, as they are if a replica must have a notification before its entry is removed.
    replica: Option<RedisServer>,
}

impl Home {
    async fn one_step() -> Self {
        Self { redis: RedisServer::start().await, replica: None }
    }

    async fn two_steps() -> Self {
        let redis = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]).await;
        let replica = RedisServer::start().await;
        let () = replica.command(&["REPLICAOF", "127.0.0.1", &redis.port().to_string()]).await;
        eventually("it is a replica", async || {
            redis.command::<String>(&["INFO", "replication"]).await.contains("state=online")
        })
        .await;
        Self { redis, replica: Some(replica) }
    }

    fn options(&self) -> Options {
        let options = Options::redis(&self.redis);
        if self.replica.is_some() { options.set("redis.wait_replicas", "1") } else { options }
    }

    async fn gateway(&self) -> Gateway {
        self.options().start().await
    }
}

/// Adds one entry; returns its id.
pub async fn add(redis: &RedisServer, fields: &[&str]) -> String {
    redis.command(&[&["XADD", OUTBOX, "*"], fields].concat()).await
}

/// Adds the next numbers of some users, all in one step.
fn adds(numbers: &[Numbered]) -> Pipeline {
    let mut pipeline = redis::pipe();
    pipeline.atomic();
    for (user, number) in numbers {
        pipeline.cmd("XADD").arg(OUTBOX).arg("*").arg("user").arg(user).arg("data").arg(number).ignore();
    }
    pipeline
}

/// Entries of users drawn at random, numbered for each.
struct Writer {
    seed: u64,
    random: fastrand::Rng,
    next: Vec<u64>,
}

impl Writer {
    fn new(seed: u64, users: usize) -> Self {
        Self { seed, random: fastrand::Rng::with_seed(seed), next: vec![0; users] }
    }

    fn draw(&mut self, count: usize) -> Vec<Numbered> {
        let draw = |_| {
            let user = self.random.usize(..self.next.len());
            self.next[user] += 1;
            (user, self.next[user])
        };
        (0..count).map(draw).collect()
    }

    async fn add(&mut self, redis: &RedisServer, count: usize) {
        let pipeline = adds(&self.draw(count));
        let () = within("written", pipeline.query_async(&mut redis.connection().await)).await.unwrap();
    }

    fn count(&self) -> u64 {
        self.next.iter().sum()
    }

    /// Everything written is stored, each once and in its order.
    async fn all_stored(&self, redis: &RedisServer) {
        emptied(redis, OUTBOX).await;
        for (user, count) in self.next.iter().enumerate() {
            let stored: Vec<_> =
                stored(redis, &user.to_string()).await.into_iter().map(|entry| entry["data"].clone()).collect();
            let expected: Vec<_> = (1..=*count).map(|number| number.to_string()).collect();
            assert_eq!(stored, expected, "of user {user}, OUTBOX_SEED={}", self.seed);
        }
        assert_eq!(redis.command::<u64>(&["EXISTS", REJECTED]).await, 0);
    }

    /// Everything written was published, each once and in its order.
    async fn all_published(&self, published: &mut Published) {
        let numbers = published.numbers(self.count()).await;
        for (user, count) in self.next.iter().enumerate().filter(|(_, count)| **count > 0) {
            assert_eq!(
                numbers[&user.to_string()],
                (1..=*count).collect::<Vec<_>>(),
                "of user {user}, OUTBOX_SEED={}",
                self.seed
            );
        }
    }
}

/// A new seed for each run, unless a run is to be repeated.
fn seed() -> u64 {
    std::env::var("OUTBOX_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap())
}

pub async fn entries(redis: &RedisServer, stream: &str) -> Vec<BTreeMap<String, String>> {
    let entries: Vec<(String, BTreeMap<String, String>)> = redis.command(&["XRANGE", stream, "-", "+"]).await;
    entries.into_iter().map(|(_, fields)| fields).collect()
}

pub async fn stored(redis: &RedisServer, user: &str) -> Vec<BTreeMap<String, String>> {
    entries(redis, &format!("tidings:history:{{{user}}}")).await
}

pub async fn emptied(redis: &RedisServer, outbox: &str) {
    eventually("the outbox is empty", async || redis.command::<u64>(&["XLEN", outbox]).await == 0).await;
}

/// The id of the instance that relays.
async fn holder(redis: &RedisServer) -> Option<String> {
    let token: Option<String> = redis.command(&["GET", LOCK]).await;
    token.map(|token| token.split_once('-').expect("INSTANCE-RANDOM").0.to_owned())
}

/// Which of these relays, once one does.
async fn relaying(redis: &RedisServer, gateways: &[Gateway]) -> usize {
    let mut found = None;
    eventually("one relays", async || {
        let holder = holder(redis).await;
        found = gateways.iter().position(|gateway| Some(&gateway.instance) == holder.as_ref());
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// The test holds the lease: no instance relays until it is released.
async fn hold_up(redis: &RedisServer) {
    let () = redis.command(&["SET", LOCK, "a-test"]).await;
}

async fn let_go(redis: &RedisServer) {
    let () = redis.command(&["DEL", LOCK]).await;
}

#[tokio::test]
async fn an_entry_of_the_outbox_is_stored_and_then_delivered() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut published = Published::on(&redis).await;
    add(&redis, &["user", "tenant:42", "data", " {\"n\": 1.0}\n"]).await;
    add(&redis, &["ttl", "60", "data", "\"é\"", "event", "a \"b\"", "user", "tenant:42"]).await;

    let (channel, payload) = published.next().await;
    assert_eq!(channel, "user:tenant:42");
    let envelope = Envelope::parse(&payload).unwrap();
    let Stored { count: sequence, cursor: first, .. } = envelope.stored.unwrap();
    assert_eq!(
        (sequence, first.number, envelope.event.as_str(), envelope.data),
        (1, 1, "notification", "{\"n\": 1.0}")
    );
    let (_, payload) = published.next().await;
    let envelope = Envelope::parse(&payload).unwrap();
    let Stored { count: sequence, cursor: second, .. } = envelope.stored.unwrap();
    assert_eq!((sequence, second.number, envelope.event.as_str(), envelope.data), (2, 2, "a \"b\"", "\"é\""));

    let stored = stored(&redis, "tenant:42").await;
    assert_eq!((stored[0]["event"].as_str(), stored[0]["data"].as_str()), ("\"notification\"", "{\"n\": 1.0}"));
    assert!(!stored[0].contains_key("until"));
    assert_eq!(stored[1]["until"].parse::<u64>().unwrap(), second.ms + 60_000);
    emptied(&redis, OUTBOX).await;
    eventually("they are counted", async || gateway.metric("tidings_outbox_relayed_total").await == 2.0).await;
}

#[tokio::test]
async fn a_ttl_longer_than_what_is_stored_at_all_is_none() {
    let redis = RedisServer::start().await;
    let _gateway = Options::redis(&redis).set("history.ttl", "1h").start().await;
    for ttl in ["3600", "99999999999999999999999", "3599"] {
        add(&redis, &["user", "42", "data", "1", "ttl", ttl]).await;
    }
    emptied(&redis, OUTBOX).await;
    let stored = stored(&redis, "42").await;
    let limited: Vec<_> = stored.iter().map(|entry| entry.contains_key("until")).collect();
    assert_eq!(limited, [false, false, true]);
}

#[tokio::test]
async fn entries_keep_their_order_and_come_once_while_relaying_instances_are_killed() {
    relaying_instances_are_killed(Home::one_step().await).await;
}

#[tokio::test]
async fn entries_keep_their_order_and_come_once_while_relaying_instances_are_killed_in_two_steps() {
    relaying_instances_are_killed(Home::two_steps().await).await;
}

async fn relaying_instances_are_killed(home: Home) {
    let redis = &home.redis;
    let mut published = Published::on(redis).await;
    let mut gateways = vec![home.gateway().await, home.gateway().await];
    let mut writer = Writer::new(seed(), 20);
    for _ in 0..3 {
        let relaying = relaying(redis, &gateways).await;
        let mut victim = gateways.remove(relaying);
        writer.add(redis, 1_000).await;
        // It is relaying when it is killed.
        published.hear(writer.random.usize(1..900)).await;
        victim.kill().await;
        gateways.push(home.gateway().await);
    }
    writer.add(redis, 500).await;
    writer.all_stored(redis).await;
    writer.all_published(&mut published).await;
}

#[tokio::test]
async fn an_instance_that_was_paused_while_relaying_repeats_nothing_when_it_wakes() {
    a_relaying_instance_is_paused(Home::one_step().await).await;
}

#[tokio::test]
async fn an_instance_that_was_paused_while_relaying_repeats_nothing_when_it_wakes_in_two_steps() {
    a_relaying_instance_is_paused(Home::two_steps().await).await;
}

async fn a_relaying_instance_is_paused(home: Home) {
    let redis = &home.redis;
    let mut published = Published::on(redis).await;
    let gateways = [home.gateway().await, home.gateway().await];
    let mut writer = Writer::new(seed(), 5);
    let first = relaying(redis, &gateways).await;
    let (paused, other) = (&gateways[first], &gateways[1 - first]);
    writer.add(redis, 1_500).await;
    published.hear(writer.random.usize(1..1_000)).await;
    paused.signal("STOP");
    eventually("the other relays", async || holder(redis).await.as_ref() == Some(&other.instance)).await;
    writer.add(redis, 200).await;
    paused.signal("CONT");
    writer.add(redis, 200).await;
    writer.all_stored(redis).await;
    writer.all_published(&mut published).await;
    eventually("the paused one knows", async || paused.metric("tidings_outbox_holder").await == 0.0).await;
    assert_eq!(other.metric("tidings_outbox_holder").await, 1.0);
    assert_eq!(holder(redis).await.as_ref(), Some(&other.instance));
}

/// The scripts, as an instance assembles them.
const RELAY: &str = concat!(
    include_str!("../src/history/scripts/position.lua"),
    include_str!("../src/history/scripts/user.lua"),
    include_str!("../src/history/scripts/keys.lua"),
    include_str!("../src/history/scripts/publish.lua"),
    include_str!("../src/outbox/scripts/ids.lua"),
    include_str!("../src/outbox/scripts/relay.lua"),
);
const REJECT: &str =
    concat!(include_str!("../src/outbox/scripts/guard.lua"), include_str!("../src/outbox/scripts/reject.lua"),);

#[tokio::test]
async fn whoever_lost_the_lease_writes_nothing_and_whoever_has_it_takes_only_the_oldest() {
    let redis = RedisServer::start().await;
    let first = add(&redis, &["user", "42", "data", "1"]).await;
    let deleted = add(&redis, &["user", "42", "data", "0"]).await;
    let second = add(&redis, &["user", "42", "data", "2"]).await;
    let relay_all = async |token: &str, ids: &[&str]| {
        let of_user = ["history", "retracted", "expiring", "collapse"].map(|kind| format!("tidings:{kind}:{{42}}"));
        let count = (4 + 4 * ids.len()).to_string();
        let mut words = vec!["EVAL", RELAY, &count, LOCK, OUTBOX, "tidings:history", "tidings:escalations"];
        words.extend(ids.iter().flat_map(|_| of_user.iter().map(String::as_str)));
        words.extend(["0123456789abcdef", "1000", "3600000", "86400000", "5184000000", "user:", token]);
        words.extend(ids.iter().flat_map(|id| ["42", "d", id, "mark", "\"notification\"", "1"]));
        words.push("server");
        redis.command::<Vec<String>>(&words).await
    };
    let relay = async |token: &str, id: &str| relay_all(token, &[id]).await.remove(0);
    let reject = async |token: &str, id: &str| {
        let words = ["EVAL", REJECT, "3", LOCK, OUTBOX, REJECTED, token, id, "no_data", "10", "user", "42"];
        redis.command::<String>(&words).await
    };
    let read = async |token: &str| {
        let script = include_str!("../src/outbox/scripts/read.lua");
        let words = ["EVAL", script, "2", LOCK, OUTBOX, token, "3000", "500", "1000000", "1000", "100", "8", "-"];
        redis.command::<Option<Vec<Vec<redis::Value>>>>(&words).await
    };

    // No instance has the lease, then another has it.
    for _ in 0..2 {
        assert_eq!(relay("mine", &first).await, "FENCED");
        assert_eq!(reject("mine", &first).await, "FENCED");
        assert_eq!(read("mine").await, None);
        let () = redis.command(&["SET", LOCK, "another"]).await;
    }
    let () = redis.command(&["SET", LOCK, "mine"]).await;
    assert_eq!(relay("mine", &second).await, "BEHIND");
    assert_eq!(reject("mine", &second).await, "BEHIND");
    assert_eq!(redis.command::<Vec<String>>(&["KEYS", "*"]).await.into_iter().collect::<BTreeSet<_>>().len(), 2);
    assert_eq!(redis.command::<i64>(&["PTTL", LOCK]).await, -1, "it was not renewed");

    assert_eq!(read("mine").await.unwrap().len(), 3);
    assert!(redis.command::<i64>(&["PTTL", LOCK]).await > 0);
    let _: u64 = redis.command(&["XDEL", OUTBOX, &deleted]).await;
    let replies = relay_all("mine", &[&first, &deleted, &second]).await;
    assert!(replies[0].ends_with("-1") && replies[1..] == ["BEHIND", "BEHIND"], "{replies:?}");
    assert_eq!(relay("mine", &first).await, "BEHIND", "a repeated request");
    assert_eq!(reject("mine", &second).await, "REJECTED");
    assert_eq!(reject("mine", &second).await, "BEHIND", "a repeated request");
    assert_eq!(stored(&redis, "42").await.len(), 1);
    assert_eq!(entries(&redis, REJECTED).await.len(), 1);
}

#[tokio::test]
async fn entries_leave_the_outbox_whatever_their_ids_and_those_behind_them_stay() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    let ids = ["5-18446744073709551615", "6-0", "6-9007199254740993", "18446744073709551615-1"];
    for (number, id) in (1..).zip(ids) {
        let data = number.to_string();
        let _: String = redis.command(&["XADD", OUTBOX, id, "user", "42", "data", &data]).await;
        assert_eq!(client.event().await, number);
        emptied(&redis, OUTBOX).await;
    }
}

#[tokio::test]
async fn the_outbox_is_relayed_again_though_redis_s_clock_steps_back_as_the_relaying_instance_is_killed() {
    let redis = RedisServer::with_stepped_clock().await;
    let mut gateways = vec![Gateway::redis(&redis).await, Gateway::redis(&redis).await];
    let mut relay = gateways.remove(relaying(&redis, &gateways).await);
    relay.kill().await;
    redis.step_clock(-120_000);
    add(&redis, &["user", "42", "data", "1"]).await;
    emptied(&redis, OUTBOX).await;
}

#[tokio::test]
async fn a_step_of_redis_s_clock_repeats_and_reorders_nothing_in_the_outbox() {
    let redis = RedisServer::with_stepped_clock().await;
    let _gateways = [Gateway::redis(&redis).await, Gateway::redis(&redis).await];
    for number in 0..200 {
        let data = number.to_string();
        add(&redis, &["user", "42", "data", &data]).await;
        if number % 50 == 25 {
            redis.step_clock(if number == 75 { -7_000 } else { 5_000 });
        }
    }
    emptied(&redis, OUTBOX).await;
    let stored: Vec<String> = stored(&redis, "42").await.into_iter().map(|entry| entry["data"].clone()).collect();
    assert_eq!(stored, (0..200).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stopping_instance_hands_the_outbox_over_at_once() {
    let redis = RedisServer::start().await;
    let mut gateways = vec![Gateway::redis(&redis).await, Gateway::redis(&redis).await];
    let mut leaving = gateways.remove(relaying(&redis, &gateways).await);
    leaving.signal("TERM");
    assert!(leaving.exit().await.success());
    // Its lease did not have to end by itself.
    assert_ne!(holder(&redis).await.as_ref(), Some(&leaving.instance));
    relaying(&redis, &gateways).await;
    add(&redis, &["user", "42", "data", "1"]).await;
    emptied(&redis, OUTBOX).await;
}

#[tokio::test]
async fn a_key_is_published_once_to_a_user_whichever_way_it_comes() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let flags = vec![("--set".into(), "redis.url".into(), redis.url())];
    let config = Config::load(Layers { flags, ..Layers::default() }).unwrap();
    let metrics = Arc::new(Metrics::new());
    let backplane = Backplane::new(&config, &InstanceId::random(), &metrics).unwrap();
    let history = HistoryStore::new(&config, &backplane, &metrics);
    let publish = async |data: &str, durable: bool, key: &str| {
        let publication =
            Publication { event: "notification", data, durable, key: Some(key), ..Publication::default() };
        history.publish(&[UserId::new("42").unwrap()], &publication).await.remove(0).unwrap()
    };
    let mut published = Published::on(&redis).await;

    let first = publish("1", true, "by-hand").await;
    assert_eq!(publish("2", false, "unstored").await, None);
    for (user, data, key) in
        [("42", "3", "by-hand"), ("42", "4", "unstored"), ("42", "5", "k"), ("42", "6", "k"), ("43", "7", "k")]
    {
        add(&redis, &["user", user, "data", data, "key", key]).await;
    }
    emptied(&redis, OUTBOX).await;
    assert_eq!(publish("8", true, "by-hand").await, first);
    assert_eq!(publish("9", true, "k").await.unwrap().number, 2, "the position of the outbox entry");
    publish("10", true, "last").await;

    let mut heard = Vec::new();
    while heard.last().is_none_or(|(_, data)| data != "10") {
        let (channel, payload) = published.next().await;
        // An ephemeral notification has no envelope.
        let data = Envelope::parse(&payload).map_or(payload.as_str(), |envelope| envelope.data).to_owned();
        heard.push((channel, data));
    }
    let expected = [("user:42", "1"), ("user:42", "2"), ("user:42", "5"), ("user:43", "7"), ("user:42", "10")];
    assert_eq!(heard, expected.map(|(channel, data)| (channel.to_owned(), data.to_owned())));
    assert_eq!(gateway.metric("tidings_outbox_duplicates_total").await, 3.0);
    assert_eq!(gateway.metric("tidings_outbox_relayed_total").await, 2.0);
    let ttl: i64 = redis.command(&["PTTL", "tidings:key:2:{42}:k"]).await;
    assert!((86_000_000..=86_400_000).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn what_cannot_be_published_is_rejected_with_its_reason_and_the_rest_goes_on() {
    what_cannot_be_published_is_rejected(Home::one_step().await).await;
}

#[tokio::test]
async fn what_cannot_be_published_is_rejected_with_its_reason_and_the_rest_goes_on_in_two_steps() {
    what_cannot_be_published_is_rejected(Home::two_steps().await).await;
}

/// Entries that cannot be published, with the reason.
fn poison<'a>(long: &'a str, huge: &'a str, many: Vec<&'a str>) -> Vec<(&'static str, Vec<&'a str>)> {
    vec![
        ("no_user", vec!["data", "1"]),
        ("bad_user", vec!["user", "", "data", "1"]),
        ("bad_user", vec!["user", long, "data", "1"]),
        ("bad_user", vec!["user", "a\nb", "data", "1"]),
        ("no_data", vec!["user", "42"]),
        ("bad_json", vec!["user", "42", "data", "{"]),
        ("bad_json", vec!["user", "42", "data", ""]),
        ("bad_json", vec!["user", "42", "data", "1 2"]),
        ("too_large", vec!["user", "42", "data", huge]),
        ("bad_event", vec!["user", "42", "data", "1", "event", ""]),
        ("bad_event", vec!["user", "42", "data", "1", "event", "a\u{7}"]),
        ("bad_event", vec!["user", "42", "data", "1", "event", long]),
        ("bad_ttl", vec!["user", "42", "data", "1", "ttl", "0"]),
        ("bad_ttl", vec!["user", "42", "data", "1", "ttl", "1.5"]),
        ("bad_ttl", vec!["user", "42", "data", "1", "ttl", "5s"]),
        ("bad_escalate", vec!["user", "42", "data", "1", "escalate", "0"]),
        ("bad_escalate", vec!["user", "42", "data", "1", "escalate", "2592001"]),
        ("bad_key", vec!["user", "42", "data", "1", "key", ""]),
        ("bad_key", vec!["user", "42", "data", "1", "key", long]),
        ("bad_collapse", vec!["user", "42", "data", "1", "collapse", ""]),
        ("bad_collapse", vec!["user", "42", "data", "1", "collapse", long]),
        ("unknown_field", vec!["user", "42", "data", "1", "durable", "1"]),
        ("unknown_field", vec!["User", "42", "data", "1"]),
        ("unknown_field", many),
        ("repeated_field", vec!["data", "1", "user", "42", "user", "43"]),
        ("unstorable", vec!["user", "broken", "data", "1"]),
        ("unstorable", vec!["user", "42", "data", "1", "key", "broken"]),
    ]
}

async fn what_cannot_be_published_is_rejected(home: Home) {
    let redis = &home.redis;
    let gateway = home.options().set("limits.max_payload_bytes", "4096").start().await;
    let () = redis.command(&["RPUSH", "tidings:history:{broken}", "x"]).await;
    let () = redis.command(&["RPUSH", "tidings:key:2:{42}:broken", "x"]).await;
    let long = "x".repeat(257);
    let huge = format!("\"{}\"", "x".repeat(4_095));
    let largest = format!("\"{}\"", "x".repeat(4_094));
    let many: Vec<String> = (0..1_000).map(|field| format!("field{field}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let poison = poison(&long, &huge, many);
    // All at once: in runs, and each alone among good ones.
    hold_up(redis).await;
    let mut ids = Vec::new();
    for (_, fields) in &poison {
        ids.push(add(redis, fields).await);
    }
    for (number, (_, fields)) in poison.iter().enumerate() {
        ids.push(add(redis, fields).await);
        add(redis, &["user", "43", "data", &number.to_string()]).await;
    }
    add(redis, &["user", "44", "data", &largest]).await;
    let_go(redis).await;
    emptied(redis, OUTBOX).await;

    let rejected = entries(redis, REJECTED).await;
    let told: Vec<_> = rejected.iter().map(|entry| (entry["reason"].as_str(), entry["id"].as_str())).collect();
    let reasons = poison.iter().chain(&poison).map(|(reason, _)| *reason);
    assert_eq!(told, reasons.zip(ids.iter().map(String::as_str)).collect::<Vec<_>>());
    for ((_, fields), entry) in poison.iter().zip(&rejected) {
        let [name, value] = [fields[0], fields[1]];
        assert_eq!(entry[name], value.get(..2_048).unwrap_or(value), "{entry:?}");
        assert!(entry.values().all(|value| value.len() <= 2_048) && entry.len() <= 11, "{entry:?}");
    }
    for (user, count) in [("42", 0), ("43", poison.len()), ("44", 1)] {
        assert_eq!(stored(redis, user).await.len(), count, "of user {user}");
    }
    let of_43 = stored(redis, "43").await;
    assert!(of_43.iter().enumerate().all(|(number, entry)| entry["data"] == number.to_string()), "in their order");
    for reason in poison.iter().map(|(reason, _)| *reason).collect::<BTreeSet<_>>() {
        let count = poison.iter().filter(|(other, _)| *other == reason).count() * 2;
        assert_eq!(
            gateway.metric(&format!("tidings_outbox_rejected_total{{reason=\"{reason}\"}}")).await,
            count as f64
        );
    }
    assert!(gateway.log().contains("outbox entry rejected") && !gateway.log().contains(&long));
}

#[tokio::test]
async fn an_entry_that_is_not_text_harms_nobody() {
    let redis = RedisServer::start().await;
    let _gateway = Gateway::redis(&redis).await;
    for field in ["user", "data", "event", "key", "ttl", "collapse", "other"] {
        let mut add = cmd("XADD").arg(OUTBOX).arg("*").to_owned();
        for (name, value) in [("user", "42"), ("data", "1")] {
            if name != field {
                add.arg(name).arg(value);
            }
        }
        add.arg(field).arg(&b"\"\xff\0\""[..]);
        let _: String = add.query_async(&mut redis.connection().await).await.unwrap();
    }
    emptied(&redis, OUTBOX).await;
    let rejected: Vec<(String, Fields)> = redis.command(&["XRANGE", REJECTED, "-", "+"]).await;
    let reasons: Vec<_> = rejected.iter().map(|(_, fields)| str::from_utf8(&fields[0].1).unwrap()).collect();
    assert_eq!(reasons, ["bad_user", "bad_json", "bad_event", "bad_key", "bad_ttl", "bad_collapse", "unknown_field"]);
    assert!(rejected.iter().all(|(_, fields)| fields.iter().any(|(_, value)| value == b"\"\xff\0\"")));
}

#[tokio::test]
async fn entries_are_seen_as_they_come_and_one_of_any_size_is_passed_over() {
    let redis = RedisServer::start().await;
    let _gateway = Gateway::redis(&redis).await;
    let mut published = Published::on(&redis).await;
    let huge = format!("\"{}\"", "x".repeat(2 << 20));
    // One after the other: were each seen at the next renewal of the lease alone, it would take half a minute.
    let adding = async {
        for number in 0..30 {
            add(&redis, &["user", "42", "data", &huge]).await;
            add(&redis, &["user", "42", "data", &number.to_string()]).await;
            published.hear(1).await;
        }
    };
    within("all are seen", adding).await;
    let rejected = entries(&redis, REJECTED).await;
    assert_eq!(rejected.len(), 30);
    assert!(rejected.iter().all(|entry| entry["reason"] == "too_large" && entry["data"].len() == 2_048));
}

#[tokio::test]
async fn a_fault_that_is_not_the_entrys_own_rejects_nothing() {
    the_fault_is_not_the_entrys_own(Home::one_step().await).await;
}

#[tokio::test]
async fn a_fault_that_is_not_the_entrys_own_rejects_nothing_in_two_steps() {
    the_fault_is_not_the_entrys_own(Home::two_steps().await).await;
}

async fn the_fault_is_not_the_entrys_own(home: Home) {
    let redis = &home.redis;
    let gateway = home.gateway().await;
    eventually("it relays", async || holder(redis).await.is_some()).await;
    let () = redis.command(&["SET", "tidings:history", "x"]).await;
    add(redis, &["user", "42", "data", "1"]).await;
    let refused = "tidings_backplane_errors_total{kind=\"refused\"}";
    eventually("it is refused", async || gateway.metric(refused).await > 0.0).await;
    assert_eq!(redis.command::<u64>(&["XLEN", OUTBOX]).await, 1);
    let () = redis.command(&["DEL", "tidings:history"]).await;
    emptied(redis, OUTBOX).await;
    assert_eq!((stored(redis, "42").await.len(), entries(redis, REJECTED).await.len()), (1, 0));
}

#[tokio::test]
async fn a_place_that_another_program_wrote_holds_up_nobody() {
    let redis = RedisServer::start().await;
    let _gateway = Gateway::redis(&redis).await;
    for (user, place) in [("long", "99999999999999999999999-1"), ("many", "1-9007199254740992"), ("zeros", "05-07")] {
        let () = redis.command(&["HSET", "tidings:history", &format!(":{user}"), place]).await;
        add(&redis, &["user", user, "data", "1"]).await;
        add(&redis, &["user", "42", "data", "2"]).await;
    }
    emptied(&redis, OUTBOX).await;
    assert_eq!((stored(&redis, "42").await.len(), entries(&redis, REJECTED).await.len()), (3, 0));
    for user in ["long", "many", "zeros"] {
        assert_eq!(stored(&redis, user).await.len(), 1, "it begins again");
        let place: String = redis.command(&["HGET", "tidings:history", &format!(":{user}")]).await;
        assert!(place.ends_with("-1"), "{place}");
    }
}

#[tokio::test]
async fn an_entry_waits_while_one_of_the_rights_to_relay_it_is_missing() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    eventually("it relays", async || holder(&redis).await.is_some()).await;
    let denied = async || gateway.metric("tidings_backplane_errors_total{kind=\"NOPERM\"}").await;
    for (already, right) in ["xdel", "publish", "xadd"].into_iter().enumerate() {
        let entry = redis::cmd("XADD").arg(OUTBOX).arg("*").arg("user").arg("42").arg("data").arg(1).to_owned();
        let mut both = redis::pipe();
        both.atomic().add_command(entry).cmd("ACL").arg("SETUSER").arg("default").arg(format!("-{right}"));
        let before = denied().await;
        let () = both.ignore().query_async(&mut redis.connection().await).await.unwrap();
        eventually("it is denied", async || denied().await > before + 1.0).await;
        assert_eq!(stored(&redis, "42").await.len(), already, "without {right}");
        assert_eq!(redis.command::<u64>(&["XLEN", OUTBOX]).await, 1, "without {right}");
        let () = redis.command(&["ACL", "SETUSER", "default", &format!("+{right}")]).await;
        emptied(&redis, OUTBOX).await;
        assert_eq!(stored(&redis, "42").await.len(), already + 1, "without {right}");
    }
}

#[tokio::test]
async fn requests_that_a_stopped_redis_answers_too_late_repeat_nothing() {
    redis_answers_too_late(Home::one_step().await).await;
}

#[tokio::test]
async fn requests_that_a_stopped_redis_answers_too_late_repeat_nothing_in_two_steps() {
    redis_answers_too_late(Home::two_steps().await).await;
}

async fn redis_answers_too_late(home: Home) {
    let redis = &home.redis;
    let mut published = Published::on(redis).await;
    let gateways = [home.gateway().await, home.gateway().await];
    let mut writer = Writer::new(seed(), 5);
    for _ in 0..2 {
        let relaying = relaying(redis, &gateways).await;
        let timeouts = async || gateways[relaying].metric("tidings_backplane_errors_total{kind=\"timeout\"}").await;
        let before = timeouts().await;
        writer.add(redis, 1_500).await;
        published.hear(writer.random.usize(1..900)).await;
        redis.freeze();
        eventually("the relay no longer waits for it", async || timeouts().await > before + 1.0).await;
        redis.thaw();
        emptied(redis, OUTBOX).await;
    }
    writer.all_stored(redis).await;
    writer.all_published(&mut published).await;
}

#[tokio::test]
async fn a_redis_without_memory_loses_and_reorders_nothing() {
    redis_has_no_memory(Home::one_step().await).await;
}

#[tokio::test]
async fn a_redis_without_memory_loses_and_reorders_nothing_in_two_steps() {
    redis_has_no_memory(Home::two_steps().await).await;
}

async fn redis_has_no_memory(home: Home) {
    let redis = &home.redis;
    let mut published = Published::on(redis).await;
    let gateway = home.gateway().await;
    let mut writer = Writer::new(seed(), 3);
    eventually("it relays", async || holder(redis).await.is_some()).await;
    for _ in 0..10 {
        let pipeline = {
            let mut pipeline = adds(&writer.draw(300));
            pipeline.cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").ignore();
            pipeline
        };
        let before = gateway.metric(OOM).await;
        let () = within("written", pipeline.query_async(&mut redis.connection().await)).await.unwrap();
        eventually("it is refused", async || gateway.metric(OOM).await > before).await;
        for _ in 0..5 {
            for maxmemory in ["0", "1"] {
                redis.config_set("maxmemory", maxmemory).await;
                sleep(Duration::from_micros(writer.random.u64(..5_000))).await;
            }
        }
        redis.config_set("maxmemory", "0").await;
    }
    writer.all_stored(redis).await;
    writer.all_published(&mut published).await;
}

#[tokio::test]
async fn a_bad_entry_waits_for_memory_like_a_good_one() {
    a_bad_entry_waits_for_memory(Home::one_step().await).await;
}

#[tokio::test]
async fn a_bad_entry_waits_for_memory_like_a_good_one_in_two_steps() {
    a_bad_entry_waits_for_memory(Home::two_steps().await).await;
}

async fn a_bad_entry_waits_for_memory(home: Home) {
    let redis = &home.redis;
    let gateway = home.gateway().await;
    eventually("it relays", async || holder(redis).await.is_some()).await;
    let mut pipeline = redis::pipe();
    pipeline.atomic().cmd("XADD").arg(OUTBOX).arg("*").arg("user").arg("42").ignore();
    pipeline.cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").ignore();
    let () = pipeline.query_async(&mut redis.connection().await).await.unwrap();
    eventually("it is refused", async || gateway.metric(OOM).await > 0.0).await;
    assert_eq!(redis.command::<u64>(&["XLEN", OUTBOX]).await, 1);
    redis.config_set("maxmemory", "0").await;
    emptied(redis, OUTBOX).await;
    assert_eq!(entries(redis, REJECTED).await.len(), 1);
}

#[tokio::test]
async fn what_waits_when_redis_is_killed_is_relayed_when_it_is_back() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let _gateway = Gateway::redis(&redis).await;
    let mut writer = Writer::new(seed(), 5);
    eventually("it relays", async || holder(&redis).await.is_some()).await;
    for _ in 0..3 {
        emptied(&redis, OUTBOX).await;
        let enough = writer.count() + writer.random.u64(1..900);
        writer.add(&redis, 1_000).await;
        // Some are relayed, and more are just being.
        let mut connection = redis.connection().await;
        let relayed = async {
            while connection.hget::<_, _, Option<u64>>("tidings:history", "count").await.unwrap() < Some(enough) {}
        };
        within("some are relayed", relayed).await;
        redis.restart().await;
        println!("killed while {} entries wait", redis.command::<u64>(&["XLEN", OUTBOX]).await);
    }
    writer.all_stored(&redis).await;
}

#[tokio::test]
async fn two_prefixes_are_two_outboxes() {
    let redis = RedisServer::start().await;
    let _gateways = [Gateway::redis(&redis).await, Options::redis(&redis).set("redis.prefix", "b:").start().await];
    let mut published = Published::on(&redis).await;
    add(&redis, &["user", "42", "data", "1", "key", "k"]).await;
    let _: String = redis.command(&["XADD", "b:outbox", "*", "user", "42", "data", "2", "key", "k"]).await;
    let _: String = redis.command(&["XADD", "b:outbox", "*", "user", "42"]).await;
    emptied(&redis, OUTBOX).await;
    emptied(&redis, "b:outbox").await;
    let data = async |stream: &str| {
        entries(&redis, stream).await.into_iter().map(|entry| entry["data"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(data("tidings:history:{42}").await, ["1"]);
    assert_eq!(data("b:history:{42}").await, ["2"]);
    assert_eq!(entries(&redis, REJECTED).await.len() + 1, entries(&redis, "b:outbox:rejected").await.len());
    let mut heard = [published.next().await.1, published.next().await.1]
        .map(|text| Envelope::parse(&text).unwrap().data.to_owned());
    heard.sort();
    assert_eq!(heard, ["1", "2"]);
}

#[tokio::test]
async fn the_metrics_tell_what_waits_and_who_relays() {
    let redis = RedisServer::start().await;
    hold_up(&redis).await;
    let _: String = redis.command(&["XADD", OUTBOX, "1000-0", "user", "42", "data", "1"]).await;
    add(&redis, &["user", "42", "data", "2"]).await;
    let gateway = Gateway::redis(&redis).await;
    eventually("the lag is seen", async || gateway.metric("tidings_outbox_lag").await == 2.0).await;
    assert!(gateway.metric("tidings_outbox_oldest_seconds").await > 1_700_000_000.0);
    assert_eq!(gateway.metric("tidings_outbox_holder").await, 0.0);
    let_go(&redis).await;
    eventually("it relays", async || gateway.metric("tidings_outbox_holder").await == 1.0).await;
    eventually("nothing waits", async || gateway.metric("tidings_outbox_lag").await == 0.0).await;
    assert_eq!(gateway.metric("tidings_outbox_oldest_seconds").await, 0.0);
    assert_eq!(gateway.metric("tidings_outbox_relayed_total").await, 2.0);
}

#[tokio::test]
async fn an_entry_leaves_the_outbox_only_once_the_replicas_have_its_notification() {
    let fleet = Home::two_steps().await;
    let gateway = fleet.options().set("redis.wait_timeout", "200ms").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let replica = fleet.replica.as_ref().unwrap();
    replica.freeze();
    let _: String = fleet.redis.command(&["XADD", "tidings:outbox", "*", "user", "42", "data", "1"]).await;
    assert_eq!(client.event().await, 1, "it is stored and delivered first");
    eventually("it is counted", async || {
        gateway.metric("tidings_backplane_errors_total{kind=\"not_replicated\"}").await > 1.0
    })
    .await;
    assert_eq!(fleet.redis.command::<u64>(&["XLEN", "tidings:outbox"]).await, 1);
    replica.thaw();
    eventually("it has left", async || fleet.redis.command::<u64>(&["XLEN", "tidings:outbox"]).await == 0).await;
    fleet.redis.publish("42", "2").await;
    assert_eq!(client.event().await, 2, "it came once");
}

#[tokio::test]
async fn an_entry_that_was_stored_in_the_first_of_two_steps_is_not_stored_again_in_one() {
    let redis = RedisServer::start().await;
    let id = add(&redis, &["user", "42", "data", "1"]).await;
    let _: u64 = redis.command(&["HSET", "tidings:history", ">42", "1 another mark", "relay", "1 other"]).await;
    let _: String = redis.command(&["SET", LOCK, "token"]).await;
    let of_user = ["history", "retracted", "expiring", "collapse"].map(|name| format!("tidings:{name}:{{42}}"));
    let keys = ["EVAL", RELAY, "8", LOCK, OUTBOX, "tidings:history", "tidings:escalations"];
    let keys = keys.into_iter().chain(of_user.iter().map(String::as_str));
    let shared = ["0123456789abcdef", "9", "9999", "9999", "9999", "user:", "token"];
    let notification = ["42", "d", &id, "mark", "\"n\"", "1", "server"];
    let call: Vec<_> = keys.chain(shared).chain(notification).collect();
    assert_eq!(redis.command::<Vec<String>>(&call).await, ["KNOWN"]);
    assert_eq!(redis.command::<u64>(&["XLEN", OUTBOX]).await, 0);
    assert_eq!(redis.command::<u64>(&["XLEN", "tidings:history:{42}"]).await, 0);
}
