//! Handing over in three steps: escalations are judged in their bucket, added to the stream, and removed from the bucket.

use fastrand::Rng;
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;

use crate::support::{RedisServer, within};

/// The scripts, as an instance assembles them.
const PEEK: &str = concat!(
    include_str!("../src/history/scripts/position.lua"),
    include_str!("../src/history/scripts/user.lua"),
    include_str!("../src/escalation/scripts/judge.lua"),
    include_str!("../src/escalation/scripts/peek.lua"),
);
const ADD: &str =
    concat!(include_str!("../src/escalation/scripts/unread.lua"), include_str!("../src/escalation/scripts/add.lua"));
const REMOVE: &str =
    concat!(include_str!("../src/escalation/scripts/settle.lua"), include_str!("../src/escalation/scripts/remove.lua"));
const UNMARK: &str = include_str!("../src/escalation/scripts/unmark.lua");

/// `[add, unmark]`
type Scripts = [String; 2];

/// The reply of `peek.lua`.
type Peeked = (u64, u64, Vec<String>, Vec<[String; 4]>);

/// A sweep of the model, which may be paused or killed between any two steps.
#[derive(Default)]
struct Sweep {
    token: Option<String>,
    peeked: Option<Peeked>,
    /// Steps done since.
    done: u8,
}

/// What happens in the model.
struct World {
    redis: MultiplexedConnection,
    scripts: Scripts,
    random: Rng,
    sweeps: [Sweep; 2],
    tokens: u64,
    stored: u64,
}

impl World {
    async fn new(redis: &RedisServer, scripts: &Scripts, seed: u64) -> Self {
        let () = redis.command(&["FLUSHALL"]).await;
        let () = redis.command(&["HSET", "history", "epoch", "0123456789abcdef"]).await;
        let (redis, scripts) = (redis.connection().await, scripts.clone());
        Self { redis, scripts, random: Rng::with_seed(seed), sweeps: Default::default(), tokens: 0, stored: 0 }
    }

    async fn command<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        let command = redis::cmd(words[0]).arg(&words[1..]).to_owned();
        within("a reply", command.query_async(&mut self.redis)).await.unwrap()
    }

    async fn call<T: FromRedisValue>(&mut self, script: &str, keys: &[&str], arguments: &[&str]) -> T {
        let call = redis::cmd("EVAL").arg(script).arg(keys.len()).arg(keys).arg(arguments).to_owned();
        within("a reply", call.query_async(&mut self.redis)).await.unwrap()
    }

    /// Stores a notification whose escalation is due.
    async fn store(&mut self) {
        self.stored += 1;
        let position = format!("{0}-{0}", self.stored);
        let data = self.stored.to_string();
        let _: String = self.command(&["XADD", "stream", &position, "event", "\"n\"", "data", &data]).await;
        let _: u64 = self.command(&["ZADD", "escalations", "1", &position]).await;
        let _: u64 = self.command(&["ZADD", "bucket", "1", "42"]).await;
    }

    async fn take_step(&mut self) {
        match self.random.u8(..20) {
            0..3 => self.store().await,
            3 => self.sweeps[self.random.usize(..2)] = Sweep::default(),
            _ => {
                let which = self.random.usize(..2);
                self.sweep(which, true).await;
            }
        }
    }

    /// The next step of a sweep.
    async fn sweep(&mut self, which: usize, faults: bool) {
        let mut sweep = std::mem::take(&mut self.sweeps[which]);
        // A call is lost before it is executed, or its reply is: the sweep fails.
        let fault = if faults { self.random.u8(..12) } else { 9 };
        if fault == 0 {
            return;
        }
        let lives = match (&sweep.token, &sweep.peeked) {
            (None, _) => {
                self.tokens += 1;
                let token = self.tokens.to_string();
                let () = self.command(&["SET", "sweeper", &token]).await;
                sweep.token = Some(token);
                true
            }
            (Some(_), None) => {
                let most = self.random.u8(1..4).to_string();
                let keys = ["history", "stream", "positions", "escalations"];
                let peeked: Peeked = self.call(PEEK, &keys, &["42", &most, "1000"]).await;
                sweep.done = 0;
                let any = !peeked.2.is_empty();
                sweep.peeked = Some(peeked).filter(|_| any);
                any
            }
            (Some(token), Some((.., positions, unread))) => {
                let lives = self.advance(sweep.done, token, positions, unread).await;
                sweep.done += 1;
                sweep.peeked = sweep.peeked.filter(|_| sweep.done < 3);
                lives
            }
        };
        if lives && fault > 1 {
            self.sweeps[which] = sweep;
        }
    }

    /// Returns whether no other sweep has begun.
    async fn advance(&mut self, done: u8, token: &str, positions: &[String], unread: &[[String; 4]]) -> bool {
        let [add, unmark] = self.scripts.clone();
        match done {
            0 => {
                let mut arguments = vec![token, "1000", "1000"];
                for entry in unread {
                    arguments.push("42");
                    arguments.extend(entry.iter().map(String::as_str));
                }
                self.call::<Option<u64>>(&add, &["unread", "sweeper", "marks"], &arguments).await.is_some()
            }
            1 => {
                let arguments: Vec<_> = ["42"].into_iter().chain(positions.iter().map(String::as_str)).collect();
                self.call(REMOVE, &["escalations", "bucket"], &arguments).await
            }
            _ => {
                let arguments: Vec<_> =
                    [token].into_iter().chain(unread.iter().map(|[cursor, ..]| cursor.as_str())).collect();
                let _: u64 = self.call(&unmark, &["sweeper", "marks"], &arguments).await;
                true
            }
        }
    }

    /// Whether each notification was handed over once, when all are.
    async fn is_exact(&mut self) -> bool {
        self.store().await;
        for step in 0.. {
            // Not in turn: each could begin again before the other adds anything.
            let which = self.random.usize(..2);
            self.sweep(which, false).await;
            let pending: u64 = self.command(&["ZCARD", "bucket"]).await;
            if pending == 0 && self.sweeps.iter().all(|sweep| sweep.peeked.is_none()) {
                break;
            }
            assert!(step < 10_000, "escalations stay in the bucket");
        }
        let unread: Vec<(String, Vec<String>)> = self.command(&["XRANGE", "unread", "-", "+"]).await;
        let mut numbers: Vec<u64> = unread.iter().map(|(_, fields)| fields[7].parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers.into_iter().eq(1..=self.stored)
    }
}

/// The first seed with which a notification is lost or repeated.
async fn violation(redis: &RedisServer, scripts: &Scripts, seeds: std::ops::Range<u64>) -> Option<u64> {
    for seed in seeds {
        let mut world = World::new(redis, scripts, seed).await;
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
async fn sweeps_that_are_paused_and_killed_between_the_steps_lose_and_repeat_nothing() {
    let redis = RedisServer::start().await;
    let start = fastrand::u64(..u64::MAX / 2);
    assert_eq!(violation(&redis, &[ADD, UNMARK].map(str::to_owned), start..start + 60).await, None);
}

/// The model is worth something: it finds each of these.
#[tokio::test]
async fn without_token_or_mark_the_model_finds_an_escalation_that_is_handed_over_twice() {
    let redis = RedisServer::start().await;
    for (mechanism, without) in [
        ("redis.call('GET', KEYS[2]) ~= ARGV[1]", "false"),
        ("not redis.call('ZSCORE', KEYS[3], cursor)", "true"),
        ("redis.call('GET', KEYS[1]) == ARGV[1]", "true"),
    ] {
        assert!(ADD.contains(mechanism) || UNMARK.contains(mechanism));
        let scripts = [ADD, UNMARK].map(|script| script.replace(mechanism, without));
        let found = violation(&redis, &scripts, 0..400).await;
        assert!(found.is_some(), "without {mechanism}");
        println!("without {mechanism}: seed {found:?}");
    }
}
