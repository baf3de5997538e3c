//! Relaying in two steps: an entry is stored in its user's bucket, and then removed from the outbox.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use tidings::internals::{Backplane, InstanceId, Layout, Metrics, Shutdown, start_outbox_relay_with_layout};
use tidings::{Config, Layers};

use crate::history_store::bucket;
use crate::outbox::{add, emptied, entries};
use crate::support::{RedisServer, eventually, within};

const OUTBOX: &str = "tidings:outbox";
const LOCK: &str = "{tidings:outbox}:lock";
const FENCE: &str = "{tidings:outbox}:fence";

/// The scripts, as an instance assembles them.
const STORE: &str = concat!(
    include_str!("../src/history/scripts/position.lua"),
    include_str!("../src/history/scripts/user.lua"),
    include_str!("../src/history/scripts/keys.lua"),
    include_str!("../src/history/scripts/publish.lua"),
    include_str!("../src/outbox/scripts/lease.lua"),
    include_str!("../src/outbox/scripts/ids.lua"),
    include_str!("../src/outbox/scripts/store.lua"),
);
const ACQUIRE: &str = include_str!("../src/outbox/scripts/acquire.lua");
const READ: &str = include_str!("../src/outbox/scripts/read.lua");
const REMOVE: &str = include_str!("../src/outbox/scripts/remove.lua");

/// Entries read at a time.
const PAGE: usize = 6;

/// Calls scripts as a relay does, on one connection.
#[derive(Clone)]
struct Scripts {
    redis: MultiplexedConnection,
    store: String,
}

/// A call of the first step.
struct Call<'a> {
    number: u64,
    token: &'a str,
    user: &'a str,
    data: &'a str,
    mark: &'a str,
    preceding: &'a str,
    oldest: &'a str,
    max_marks: usize,
    key: Option<&'a str>,
}

impl Scripts {
    async fn on(redis: &RedisServer) -> Self {
        Self { redis: redis.connection().await, store: STORE.to_owned() }
    }

    async fn call<T: FromRedisValue>(&mut self, script: &str, keys: &[&str], arguments: &[&str]) -> T {
        let call = redis::cmd("EVAL").arg(script).arg(keys.len()).arg(keys).arg(arguments).to_owned();
        within("a reply", call.query_async(&mut self.redis)).await.unwrap()
    }

    async fn store(&mut self, call: &Call<'_>) -> String {
        self.store_all(std::slice::from_ref(call)).await.remove(0)
    }

    /// Stores these in one call; lease, oldest entry and maximum are those of the first.
    async fn store_all(&mut self, calls: &[Call<'_>]) -> Vec<String> {
        let Call { number, token, oldest, max_marks, .. } = calls[0];
        let (number, max_marks) = (number.to_string(), max_marks.to_string());
        let (mut keys, mut arguments) = (vec!["bucket".to_owned(), "escalations".to_owned()], Vec::new());
        arguments.extend(["0123456789abcdef", "1000", "3600000", "86400000", "5184000000", "user:"]);
        arguments.extend([number.as_str(), token, oldest, max_marks.as_str()]);
        for Call { user, data, mark, preceding, key, .. } in calls {
            let of_user = ["stream", "retracted", "expiring", "collapse", "escalations", "keys"];
            let count = if key.is_some() { of_user.len() } else { 4 };
            keys.extend(of_user.iter().take(count).map(|kind| format!("{kind}:{user}")));
            keys.extend(key.map(str::to_owned));
            arguments.extend([*user, key.map_or("d", |_| "dk"), mark, preceding, "\"n\"", data]);
        }
        arguments.push("server");
        let script = self.store.clone();
        self.call(&script, &keys.iter().map(String::as_str).collect::<Vec<_>>(), &arguments).await
    }
}

#[tokio::test]
async fn an_entry_is_stored_once_in_its_order_and_by_no_earlier_lease() {
    let redis = RedisServer::start().await;
    let mut scripts = Scripts::on(&redis).await;
    let call = |number, token, mark| Call {
        number,
        token,
        user: "42",
        data: "1",
        mark,
        preceding: "",
        oldest: "1-1",
        max_marks: 3,
        key: None,
    };
    let marks = async || {
        let marks: String = redis.command(&["HGET", "bucket", ">42"]).await;
        marks.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let length = async || redis.command::<u64>(&["XLEN", "stream:42"]).await;

    assert!(scripts.store(&call(10, "a", "1-1:x")).await.ends_with("-1"));
    for (number, token) in [(9, "b"), (10, "b")] {
        assert_eq!(scripts.store(&call(number, token, "2-1:x")).await, "FENCED 10", "lease {number} of {token}");
    }
    assert_eq!(scripts.store(&call(10, "a", "1-1:x")).await, "REPEATED");
    assert_eq!(scripts.store(&call(11, "b", "1-1:x")).await, "REPEATED", "by the next lease");
    assert_eq!(scripts.store(&call(10, "a", "2-1:x")).await, "FENCED 11");
    assert_eq!(scripts.store(&Call { preceding: "2-1:x", ..call(11, "b", "3-1:x") }).await, "BEHIND");
    assert_eq!((length().await, marks().await), (1, vec!["1-1:x".to_owned()]));
    assert!(scripts.store(&Call { preceding: "1-1:x", ..call(11, "b", "2-1:x") }).await.ends_with("-2"));
    assert!(scripts.store(&Call { preceding: "2-1:x", ..call(11, "b", "3-1:x") }).await.ends_with("-3"));
    assert_eq!(marks().await, ["1-1:x", "2-1:x", "3-1:x"]);

    // The outbox was deleted, and its ids are used again.
    assert!(scripts.store(&call(12, "c", "2-1:y")).await.ends_with("-4"));
    assert_eq!(marks().await, ["2-1:x", "3-1:x", "2-1:y"], "no more than the maximum");
    // Earlier entries have left the outbox.
    assert!(scripts.store(&Call { oldest: "3-1", ..call(12, "c", "10-1:x") }).await.ends_with("-5"));
    assert_eq!(marks().await, ["3-1:x", "2-1:y", "10-1:x"]);
    assert!(scripts.store(&Call { oldest: "9-9", ..call(12, "c", "10-2:x") }).await.ends_with("-6"));
    assert_eq!(marks().await, ["10-1:x", "10-2:x"]);

    // A key that was published before counts as relayed.
    let () = redis.command(&["SET", "key", "earlier"]).await;
    assert_eq!(scripts.store(&Call { key: Some("key"), ..call(12, "c", "11-1:x") }).await, "KNOWN");
    assert!(scripts.store(&Call { preceding: "11-1:x", ..call(12, "c", "12-1:x") }).await.ends_with("-7"));
    assert_eq!(length().await, 7);
}

#[tokio::test]
async fn the_number_of_a_lease_exceeds_every_earlier_one_whatever_the_clock_and_a_failover_do() {
    let redis = RedisServer::with_stepped_clock().await;
    let mut scripts = Scripts::on(&redis).await;
    let mut acquire = async |least: u64| {
        let number = scripts.call(ACQUIRE, &[LOCK, FENCE], &["token", "3000", &least.to_string()]).await;
        let () = redis.command(&["DEL", LOCK]).await;
        number
    };
    let first: u64 = acquire(0).await;
    assert!(first > 1_700_000_000_000_000);
    redis.step_clock(-120_000);
    let second: u64 = acquire(0).await;
    assert_eq!(second, first + 1);
    let () = redis.command(&["DEL", FENCE]).await;
    assert!(acquire(0).await < second, "lost in a failover");
    assert_eq!(acquire(second + 1).await, second + 1);
    let () = redis.command(&["SET", LOCK, "another"]).await;
    assert_eq!(scripts.call::<Option<u64>>(ACQUIRE, &[LOCK, FENCE], &["token", "3000", "0"]).await, None);
}

/// A relay of the model, which may be paused or killed between any two calls.
#[derive(Default)]
struct Relay {
    lease: Option<(String, u64)>,
    least: u64,
    /// The page: ids, users and data, and how many calls of the first step are sent.
    page: Vec<[String; 3]>,
    sent: usize,
    stored: Vec<String>,
}

/// What happens in the model: an entry is one of three users', and faults are drawn.
struct World {
    scripts: Scripts,
    random: Rng,
    relays: [Relay; 2],
    leases: u64,
    added: [Vec<String>; 3],
}

impl World {
    async fn new(redis: &RedisServer, store: &str, seed: u64) -> Self {
        let () = redis.command(&["FLUSHALL"]).await;
        let scripts = Scripts { store: store.to_owned(), ..Scripts::on(redis).await };
        let (relays, added) = (Default::default(), Default::default());
        Self { scripts, random: Rng::with_seed(seed), relays, leases: 0, added }
    }

    async fn command<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        let command = redis::cmd(words[0]).arg(&words[1..]).to_owned();
        within("a reply", command.query_async(&mut self.scripts.redis)).await.unwrap()
    }

    async fn take_step(&mut self) {
        match self.random.u8(..20) {
            0..3 => self.add().await,
            // A lease ends although its holder lives: it is paused.
            3 => self.command(&["DEL", LOCK]).await,
            step => {
                let which = self.random.usize(..2);
                match step {
                    4 => self.relays[which] = Relay::default(),
                    _ => self.relay(which, true).await,
                }
            }
        }
    }

    async fn add(&mut self) {
        for _ in 0..self.random.usize(1..4) {
            let user = self.random.usize(..3);
            let data = (self.added[user].len() + 1).to_string();
            let name = user.to_string();
            let _: String = self.command(&["XADD", OUTBOX, "*", "user", &name, "data", &data]).await;
            self.added[user].push(data);
        }
    }

    /// The next call of a relay.
    async fn relay(&mut self, which: usize, faults: bool) {
        let mut relay = std::mem::take(&mut self.relays[which]);
        match &relay.lease {
            None => {
                self.leases += 1;
                let (token, least) = (format!("lease{}", self.leases), relay.least.to_string());
                let number = self.scripts.call(ACQUIRE, &[LOCK, FENCE], &[&token, "600000", &least]).await;
                relay.lease = Option::map(number, |number| (token, number));
            }
            Some((token, _)) if relay.page.is_empty() => {
                let page = PAGE.to_string();
                let arguments = [token, "600000", page.as_str(), "1000000", "1000", "100", "8", "-"];
                let page: Option<Vec<(String, Vec<String>)>> =
                    self.scripts.call(READ, &[LOCK, OUTBOX], &arguments).await;
                match page {
                    None => relay = Relay { least: relay.least, ..Relay::default() },
                    Some(page) => {
                        let entry = |(id, words): (String, Vec<String>)| [id, words[1].clone(), words[3].clone()];
                        relay.page = page.into_iter().map(entry).collect();
                    }
                }
            }
            Some(_) if relay.sent < relay.page.len() => self.store_some(&mut relay, faults).await,
            Some((token, _)) => {
                let arguments: Vec<&str> = std::iter::once(token).chain(&relay.stored).map(String::as_str).collect();
                let held = relay.stored.is_empty() || self.scripts.call(REMOVE, &[LOCK, OUTBOX], &arguments).await;
                let lease = relay.lease.filter(|_| held);
                relay = Relay { lease, least: relay.least, ..Relay::default() };
            }
        }
        self.relays[which] = relay;
    }

    /// Some more calls of the first step: a call or its reply may be lost.
    async fn store_some(&mut self, relay: &mut Relay, faults: bool) {
        let (token, number) = relay.lease.clone().unwrap();
        let upto = self.random.usize(relay.sent + 1..=relay.page.len());
        let mark = |[id, _, data]: &[String; 3]| format!("{id}:{data}");
        let preceding = |at: usize| {
            let of_user = |[_, other, _]: &&[String; 3]| *other == relay.page[at][1];
            relay.page[..at].iter().rfind(of_user).map(mark).unwrap_or_default()
        };
        let marks: Vec<_> = (0..relay.page.len()).map(|at| (mark(&relay.page[at]), preceding(at))).collect();
        let (oldest, token, max_marks) = (relay.page[0][0].clone(), token.as_str(), 100);
        let (mut at, mut stored) = (relay.sent, Vec::new());
        while at < upto {
            let end = self.random.usize(at + 1..=upto);
            let fault = if faults { self.random.u8(..10) } else { 9 };
            let one = |at: usize| {
                let ([_, user, data], (mark, preceding), oldest) = (&relay.page[at], &marks[at], &oldest);
                Call { number, token, user, data, mark, preceding, oldest, max_marks, key: None }
            };
            let replies = match fault {
                0 => Vec::new(),
                _ => self.scripts.store_all(&(at..end).map(one).collect::<Vec<_>>()).await,
            };
            if let Some(seen) = replies.first().and_then(|reply| reply.strip_prefix("FENCED ")) {
                *relay = Relay { least: seen.parse::<u64>().unwrap() + 1, ..Relay::default() };
                return;
            }
            let done = relay.page[at..end].iter().zip(&replies).filter(|(_, reply)| fault > 1 && *reply != "BEHIND");
            stored.extend(done.map(|([id, ..], _)| id.clone()));
            at = end;
        }
        relay.stored.append(&mut stored);
        relay.sent = upto;
    }

    /// Whether each entry is stored once and in its order, when everything is relayed.
    async fn is_exact(&mut self) -> bool {
        let _: u64 = self.command(&["DEL", LOCK]).await;
        // Both relays wake up.
        for step in 0.. {
            self.relay(step % 2, false).await;
            let left: u64 = self.command(&["XLEN", OUTBOX]).await;
            if left == 0 && self.relays.iter().all(|relay| relay.page.is_empty()) {
                break;
            }
            // A relay that lost its lease leaves it to the other.
            assert!(step < 10_000, "entries stay in the outbox");
        }
        for user in 0..3 {
            let stored: Vec<(String, Vec<String>)> =
                self.command(&["XRANGE", &format!("stream:{user}"), "-", "+"]).await;
            if stored.iter().map(|(_, fields)| &fields[3]).ne(&self.added[user]) {
                return false;
            }
        }
        true
    }
}

/// The first seed with which an entry is lost, repeated or reordered.
async fn violation(redis: &RedisServer, store: &str, seeds: std::ops::Range<u64>) -> Option<u64> {
    for seed in seeds {
        let mut world = World::new(redis, store, seed).await;
        for _ in 0..150 {
            world.take_step().await;
        }
        if !world.is_exact().await {
            return Some(seed);
        }
    }
    None
}

#[tokio::test]
async fn relays_that_are_paused_and_killed_between_the_steps_lose_repeat_and_reorder_nothing() {
    let redis = RedisServer::start().await;
    let start = fastrand::u64(..u64::MAX / 2);
    assert_eq!(violation(&redis, STORE, start..start + 60).await, None);
}

/// The model is worth something: it finds each of these.
#[tokio::test]
async fn without_fence_mark_preceding_entry_or_kept_marks_the_model_finds_a_violation() {
    let redis = RedisServer::start().await;
    for (mechanism, without) in [
        ("local refused = fenced(KEYS[1], ARGV[7], ARGV[8])", "local refused"),
        ("elseif is_marked(of, mark) then", "elseif false then"),
        ("preceding ~= '' and not is_marked(of, preceding)", "false"),
        ("precedes(first, ARGV[9])", "true"),
    ] {
        assert!(STORE.contains(mechanism));
        let found = violation(&redis, &STORE.replace(mechanism, without), 0..400).await;
        assert!(found.is_some(), "without {mechanism}");
        println!("without {mechanism}: seed {found:?}");
    }
}

/// The relay of an instance, with the keys of a cluster.
fn relay_in_buckets(redis: &RedisServer) -> Shutdown {
    let set = |key: &str, value: String| ("--set".to_owned(), key.to_owned(), value);
    let flags = vec![set("redis.url", redis.url()), set("history.max_len", "2000".into())];
    let config = Config::load(Layers { flags, ..Layers::default() }).unwrap();
    let (instance, shutdown) = (InstanceId::random(), Shutdown::default());
    let backplane = Backplane::new(&config, &instance, &Arc::new(Metrics::new())).unwrap();
    start_outbox_relay_with_layout(backplane.redis().unwrap(), &config, &instance, &shutdown, Layout::Buckets);
    shutdown
}

async fn stored(redis: &RedisServer, user: &str) -> Vec<String> {
    let stream = format!("tidings:{{b{}}}:history:{user}", bucket(user));
    entries(redis, &stream).await.into_iter().map(|entry| entry["data"].clone()).collect()
}

/// A bucket whose shard does not answer is one whose hash is of the wrong type.
#[tokio::test]
async fn a_bucket_that_cannot_be_written_holds_up_its_own_entries_alone() {
    let redis = RedisServer::start().await;
    assert_ne!(bucket("dead"), bucket("42"));
    let dead = format!("tidings:{{b{}}}:history", bucket("dead"));
    let () = redis.command(&["SET", &dead, "x"]).await;
    let numbers: Vec<_> = (0..1_200).map(|number| number.to_string()).collect();
    for number in &numbers {
        add(&redis, &["user", "dead", "data", number]).await;
    }
    add(&redis, &["user", "42", "data", "1"]).await;
    add(&redis, &["user", "42"]).await;
    let shutdown = relay_in_buckets(&redis);
    eventually("the other user's is stored", async || stored(&redis, "42").await == ["1"]).await;
    add(&redis, &["user", "42", "data", "2"]).await;
    eventually("and the next", async || stored(&redis, "42").await == ["1", "2"]).await;
    let left = async || redis.command::<usize>(&["XLEN", OUTBOX]).await == numbers.len();
    eventually("they are removed", left).await;
    assert_eq!(entries(&redis, "{tidings:outbox}:rejected").await.len(), 1);

    let () = redis.command(&["DEL", &dead]).await;
    emptied(&redis, OUTBOX).await;
    assert!(stored(&redis, "dead").await == numbers, "in their order");
    within("the relay ends", shutdown.stop(Duration::from_secs(5))).await;
    assert!(!redis.command::<bool>(&["EXISTS", LOCK]).await, "the lease is released");
}

#[tokio::test]
async fn a_relay_whose_number_is_too_low_acquires_a_higher_one() {
    let redis = RedisServer::start().await;
    let bucket_key = format!("tidings:{{b{}}}:history", bucket("42"));
    let highest = u64::MAX / 4_096;
    let () = redis.command(&["HSET", &bucket_key, "relay", &format!("{highest} lost in a failover")]).await;
    let shutdown = relay_in_buckets(&redis);
    add(&redis, &["user", "42", "data", "1"]).await;
    emptied(&redis, OUTBOX).await;
    assert_eq!(stored(&redis, "42").await, ["1"]);
    let relay: String = redis.command(&["HGET", &bucket_key, "relay"]).await;
    assert!(relay.starts_with(&format!("{} ", highest + 1)), "{relay}");
    within("the relay ends", shutdown.stop(Duration::from_secs(5))).await;
}
