//! The scripts on a real redis-server, called as in `src/presence/redis.rs`, and a dump of all keys.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use redis::{Commands, Connection, RedisError, Script, ScriptInvocation, Value, cmd};
use serde_json::Value as Json;
use tidings::internals::Batch;

use crate::support::RedisServer;

/// In the time of the model, which passes only where a step says so.
pub const LEASE_MS: u64 = 10_000;

/// How long a user had been gone when given up.
pub const DELAY_MS: u64 = 5_000;

const SET: &str = "online_users";
const CHANNEL: &str = "presence";
const FENCE: &str = "that was all";

/// A fault put into a script, or into the simulated reaper, to see that it is found.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    pub name: &'static str,
    pub script: &'static str,
    pub from: &'static str,
    pub to: &'static str,
}

/// What a reaper reads.
pub struct Look {
    pub era: String,
    pub last: f64,
    pub size: usize,
    pub oldest: Option<f64>,
    /// Each with its number and its sequence.
    pub found: BTreeMap<String, (f64, String)>,
}

/// One presence event, as it was published.
#[derive(Debug, Clone)]
pub struct Event {
    pub user: String,
    pub online: bool,
}

/// A redis-server, one connection for commands and one that receives the events.
pub struct Memory {
    server: RedisServer,
    connection: Connection,
    events: Connection,
    register: Script,
    apply: Script,
    observe: Script,
    reap: Script,
    audit: Script,
    repair: Script,
    dump: Script,
    /// The number of audits, as last read.
    audits: String,
    pub fault: Option<&'static str>,
}

fn key(name: &str) -> String {
    format!("{{{SET}}}:{name}")
}

fn held_key(incarnation: &str) -> String {
    key(&format!("held:{incarnation}"))
}

fn load(name: &str, text: &str, mutant: Option<&Mutant>) -> Script {
    match mutant.filter(|mutant| mutant.script == name) {
        None => Script::new(text),
        Some(Mutant { name, from, to, .. }) => {
            assert_eq!(text.matches(from).count(), 1, "{name}: {from:?} must be in the script once");
            Script::new(&text.replace(from, to))
        }
    }
}

impl Memory {
    pub fn new(server: RedisServer, mutant: Option<&Mutant>) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        let mut events = client.get_connection().unwrap();
        events.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        events.send_packed_command(&cmd("SUBSCRIBE").arg(CHANNEL).get_packed_command()).unwrap();
        events.recv_response().unwrap();
        macro_rules! script {
            ($name:literal) => {
                load($name, include_str!(concat!("../../src/presence/scripts/", $name, ".lua")), mutant)
            };
        }
        Self {
            server,
            connection: client.get_connection().unwrap(),
            events,
            register: script!("register"),
            apply: script!("apply"),
            observe: script!("observe"),
            reap: script!("reap"),
            audit: script!("audit"),
            repair: script!("repair"),
            dump: Script::new(include_str!("dump.lua")),
            audits: String::new(),
            fault: mutant.filter(|mutant| mutant.script == "reaper").map(|mutant| mutant.from),
        }
    }

    pub fn register(&mut self, incarnation: &str) -> String {
        let mut invocation = self.register.key(key("instances"));
        invocation.key(key("seq")).key(key("epoch")).key(key("renewed"));
        invocation.arg(incarnation).arg(LEASE_MS).arg(incarnation).invoke(&mut self.connection).unwrap()
    }

    pub fn apply(&mut self, batch: &Batch) -> String {
        let mut invocation = with_held(&self.apply, &batch.incarnation);
        invocation.key(key("renewed"));
        invocation.arg(&batch.incarnation).arg(LEASE_MS).arg(batch.sequence).arg(batch.size);
        invocation.arg(CHANNEL).arg(DELAY_MS).arg(u8::from(batch.silent)).arg(batch.held.len());
        for (user, connections) in &batch.held {
            invocation.arg(user.as_str()).arg(*connections);
        }
        for user in &batch.released {
            invocation.arg(user.as_str());
        }
        invocation.invoke(&mut self.connection).unwrap()
    }

    /// The incarnations with numbers up to this one, and those being reaped.
    pub fn observe(&mut self, dead_up_to: f64) -> Look {
        let mut invocation = self.observe.key(key("instances"));
        invocation.key(key("seq")).key(key("renewed")).key(key("audits")).arg(CHANNEL).arg(dead_up_to);
        type Reply = (String, f64, usize, String, String, Vec<(String, f64, String)>);
        let (era, last, size, oldest, audits, found): Reply = invocation.invoke(&mut self.connection).unwrap();
        self.audits = audits;
        let found = found.into_iter().map(|(name, number, sequence)| (name, (number, sequence))).collect();
        Look { era, last, size, oldest: oldest.parse().ok(), found }
    }

    /// Gives users taken and users left.
    pub fn reap(&mut self, incarnation: &str, sequence: &str, step: usize) -> (usize, usize) {
        let mut invocation = with_held(&self.reap, incarnation);
        invocation.arg(incarnation).arg(step).arg(CHANNEL).arg(sequence).arg(LEASE_MS);
        invocation.invoke(&mut self.connection).unwrap()
    }

    /// Whether the keys agree; by another instance's audit, if there was one since the last look.
    pub fn audit(&mut self) -> bool {
        let mut invocation = over_all(&self.audit);
        invocation.key(key("audits")).arg(30 * 86_400_000_u64).arg(&self.audits);
        invocation.invoke(&mut self.connection).unwrap()
    }

    pub fn repair(&mut self, users: &[String], last: bool) -> usize {
        let mut invocation = over_all(&self.repair);
        invocation.arg(CHANNEL).arg(if last { "1" } else { "" });
        for user in users {
            invocation.arg(user);
        }
        invocation.invoke(&mut self.connection).unwrap()
    }

    pub fn step_clock(&mut self, by_ms: i64) {
        self.server.step_clock(by_ms);
    }

    pub fn flush_all(&mut self) {
        let _: () = cmd("FLUSHALL").query(&mut self.connection).unwrap();
    }

    /// By its name after the hash tag; the plain set has none.
    pub fn delete(&mut self, name: &str) {
        let _: () = self.connection.del(if name.is_empty() { SET.to_owned() } else { key(name) }).unwrap();
    }

    pub fn dump(&mut self) -> Dump {
        let text: String = self.dump.prepare_invoke().invoke(&mut self.connection).unwrap();
        Dump::read(&serde_json::from_str(&text).unwrap())
    }

    /// A child of another test that ends interrupts the read, because it has a timeout.
    fn receive(&mut self) -> Value {
        loop {
            match self.events.recv_response() {
                Err(error) if is_interrupted(&error) => {}
                received => return received.unwrap(),
            }
        }
    }

    /// Every event since last asked.
    pub fn events(&mut self) -> Vec<Event> {
        let _: () = self.connection.publish(CHANNEL, FENCE).unwrap();
        let mut events = Vec::new();
        loop {
            let Value::Array(message) = self.receive() else { panic!("not a message") };
            let Some(Value::BulkString(payload)) = message.last() else { panic!("not a message: {message:?}") };
            if payload == FENCE.as_bytes() {
                return events;
            }
            let event: Json = serde_json::from_slice(payload).unwrap();
            assert!(event["at"].as_u64().is_some() && event.as_object().unwrap().len() == 3, "{event}");
            let online = match event["status"].as_str() {
                Some("online") => true,
                Some("offline") => false,
                _ => panic!("{event}"),
            };
            events.push(Event { user: event["user"].as_str().unwrap().to_owned(), online });
        }
    }
}

fn with_held<'a>(script: &'a Script, incarnation: &str) -> ScriptInvocation<'a> {
    let mut invocation = script.key(key("instances"));
    invocation.key(key("seq")).key(held_key(incarnation)).key(key("count")).key(SET);
    invocation.key(key("total")).key(key("last_seen"));
    invocation
}

fn over_all(script: &Script) -> ScriptInvocation<'_> {
    let mut invocation = script.key(key("instances"));
    invocation.key(key("count")).key(SET).key(key("total")).key(key("last_seen"));
    invocation.arg(key("held:"));
    invocation
}

/// Everything that Redis holds; equal where nothing was changed.
#[derive(Debug, Clone, Default)]
pub struct Dump {
    pub now: f64,
    pub instances: BTreeMap<String, f64>,
    pub seq: BTreeMap<String, u64>,
    pub held: BTreeMap<String, BTreeMap<String, u32>>,
    pub count: BTreeMap<String, i64>,
    pub online: BTreeSet<String>,
    pub total: i64,
    pub last_seen: BTreeMap<String, f64>,
    pub epoch: Option<String>,
    pub renewed: Option<f64>,
    /// Keys that go by themselves.
    pub expiring: BTreeSet<String>,
}

impl PartialEq for Dump {
    fn eq(&self, other: &Self) -> bool {
        let all = |dump: &Self| Self { now: 0.0, ..dump.clone() };
        format!("{:?}", all(self)) == format!("{:?}", all(other))
    }
}

impl Dump {
    fn read(json: &Json) -> Self {
        let mut dump = Self { now: number(json["now"].as_str().unwrap()), ..Self::default() };
        for (name, found) in json["keys"].as_object().into_iter().flatten() {
            let mut texts = found.as_array().unwrap().iter().map(|text| text.as_str().unwrap());
            if texts.next() != Some("-1") {
                dump.expiring.insert(name.clone());
            }
            let texts: Vec<&str> = texts.collect();
            let pairs = || texts.chunks(2).map(|pair| (pair[0].to_owned(), pair[1]));
            let name = name.strip_prefix("{online_users}:").unwrap_or("");
            match name.split_once(':').map_or(name, |(kind, _)| kind) {
                "" => dump.online = texts.iter().map(|user| (*user).to_owned()).collect(),
                "instances" => dump.instances = pairs().map(|(name, expiry)| (name, number(expiry))).collect(),
                "seq" => dump.seq = pairs().map(|(name, seq)| (name, seq.parse().unwrap())).collect(),
                "count" => dump.count = pairs().map(|(user, count)| (user, count.parse().unwrap())).collect(),
                "last_seen" => dump.last_seen = pairs().map(|(user, at)| (user, number(at))).collect(),
                "total" => dump.total = texts[0].parse().unwrap(),
                "renewed" => dump.renewed = pairs().find(|pair| pair.0 == "number").map(|pair| number(pair.1)),
                "audits" => {}
                "epoch" => dump.epoch = Some(texts[0].to_owned()),
                "held" => {
                    let held = pairs().map(|(user, connections)| (user, connections.parse().unwrap())).collect();
                    dump.held.insert(name.trim_start_matches("held:").to_owned(), held);
                }
                other => panic!("unknown key: {other}"),
            }
        }
        dump
    }

    /// Whom an incarnation holds.
    pub fn held_by(&self, incarnation: &str) -> BTreeMap<String, u32> {
        self.held.get(incarnation).cloned().unwrap_or_default()
    }

    /// What `count` must be: how many listed incarnations hold each user.
    pub fn true_count(&self) -> BTreeMap<String, i64> {
        let mut count = BTreeMap::new();
        for user in self.instances.keys().filter_map(|name| self.held.get(name)).flat_map(BTreeMap::keys) {
            *count.entry(user.clone()).or_default() += 1;
        }
        count
    }
}

fn number(text: &str) -> f64 {
    text.parse().unwrap()
}

fn is_interrupted(error: &RedisError) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == ErrorKind::Interrupted)
}
