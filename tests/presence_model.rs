//! The presence scripts against a model: random runs with every known failure, checked after every request.
//!
//! Three instances with the real ledger follow the protocol of `src/presence` on a real redis-server, while requests and
//! replies are lost, old requests arrive late or again, instances crash, pause past their lease and stop half-way, Redis
//! stands still, its clock steps forward and back, it loses all data, reaping and repairing are interrupted, and an
//! operator deletes keys. A reference model records the connections of each instance. Time is the model's own, for the
//! reapers' watches and for Redis, whose clock the test steps, so nothing sleeps.
//!
//! An incarnation is reaped only if, while its reaper could read, it was not renewed for a whole lease; and at the end all
//! who are gone are reaped within the lease and two seconds. After every request: each reply, and its effect on the held users, follows the protocol; GONE, GAP and DUP changed and
//! published nothing; `count`, `total` and the plain set agree with the held hashes; a user's events alternate; and all
//! events since the beginning, applied in order, give the set, together with the users who are about to be added back
//! without an event. From the deletion of a key to the next whole audit, only the replies and the alternation are checked.
//! At the end of each run the fleet runs undisturbed and must then hold exactly the connected users, with their numbers of
//! connections.
//!
//! Exempt, because only Redis had the information:
//! * when Redis loses all data: users who were published as online but whom no instance can add back (after a crash that
//!   is not yet reaped, the offline event is lost; with a reply under way, an event is published twice), and users who
//!   were published as offline while an instance, paused past its lease, does not know it yet and will add them back;
//! * after a crash before users are added back: no instance publishes that those users went offline;
//! * until an instance has added a user back, another may publish the same online event a second time;
//! * while `count` is deleted, an offline event may be published twice; if more keys are deleted with it, it may be lost.
//!
//! `PRESENCE_MODEL_SEED` repeats a run, `PRESENCE_MODEL_CASES` sets the number of runs. [`MUTANTS`] are faults that the
//! model detects; a test applies each to its script and expects a failure.

mod fleet;
mod instance;
mod memory;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proptest::option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

use crate::support::RedisServer;
use fleet::Fleet;
use memory::{Memory, Mutant};

/// Instances at a time.
const SLOTS: usize = 3;

/// Names that a script might get wrong are among them.
const USERS: [&str; 5] = ["1", "2", "tenant:3", r#"4"\,"{x}"#, "né 5"];

/// What a hand may delete, by what comes after the hash tag; "held" is one of them, "" the plain set.
const KEYS: [&str; 10] = ["", "count", "total", "held", "instances", "seq", "last_seen", "epoch", "renewed", "audits"];
const HELD: usize = 3;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    RequestLost,
    ReplyLost,
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// A user's connections on an instance come or go.
    Observe { slot: usize, user: usize, connections: u32 },
    /// `presence.offline_delay` passes.
    DelayOver { slot: usize },
    /// A batch, or a heartbeat where nothing differs; with a registration before it where there is no lease.
    Flush { slot: usize, register: Fate, apply: Fate },
    /// SIGKILL; a fresh instance takes the slot.
    Crash { slot: usize },
    /// SIGTERM, which may be cut short: so many rounds of giving up, of so many users each.
    Stop { slot: usize, step: usize, rounds: usize },
    /// So many rounds of the reapers pass, with renewals as they are due; the instances in `silent`, by their bits, are
    /// paused. Each step of reaping takes so many users.
    Run { rounds: u32, silent: usize, step: usize },
    /// Redis stands still, or all instances.
    Stall { ms: u64 },
    /// Redis's clock steps.
    Clock { ms: i64 },
    /// One round of one reaper.
    Look { slot: usize, step: usize },
    /// Reaping by what was read before a renewal.
    ReapStale { which: usize },
    /// An old request arrives late or again; or one `ahead` of others that never came.
    Late { which: usize, ahead: bool },
    /// Redis loses everything, to a server whose clock is behind until this instance has registered there, if any.
    FlushAll { early: Option<usize> },
    /// One step of an audit, by any instance.
    Repair { users: usize, last: bool },
    /// A whole audit.
    Audit,
    /// An operator deletes a key.
    Delete { key: usize },
}

/// Who is connected where.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    pub connections: [BTreeMap<usize, u32>; SLOTS],
}

struct Model;

fn fate() -> BoxedStrategy<Fate> {
    prop_oneof![6 => Just(Fate::Arrives), 1 => Just(Fate::RequestLost), 2 => Just(Fate::ReplyLost)].boxed()
}

impl ReferenceStateMachine for Model {
    type State = Truth;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Truth> {
        Just(Truth::default()).boxed()
    }

    fn transitions(_: &Truth) -> BoxedStrategy<Step> {
        let slot = || 0..SLOTS;
        let connections = prop_oneof![4 => Just(0_u32), 5 => 1..=3_u32];
        prop_oneof![
            24 => (slot(), 0..USERS.len(), connections)
                .prop_map(|(slot, user, connections)| Step::Observe { slot, user, connections }),
            6 => slot().prop_map(|slot| Step::DelayOver { slot }),
            28 => (slot(), fate(), fate()).prop_map(|(slot, register, apply)| Step::Flush { slot, register, apply }),
            2 => slot().prop_map(|slot| Step::Crash { slot }),
            2 => (slot(), 1..=2_usize, 0..=3_usize)
                .prop_map(|(slot, step, rounds)| Step::Stop { slot, step, rounds }),
            3 => (select(&[1_u32, 4, 21, 22, 23, 26][..]), 0..1_usize << SLOTS, 1..=2_usize)
                .prop_map(|(rounds, silent, step)| Step::Run { rounds, silent, step }),
            2 => select(&[1_000_u64, 3_000, 11_000, 60_000][..]).prop_map(|ms| Step::Stall { ms }),
            2 => select(&[-120_000_i64, -11_000, 11_000, 120_000, 30 * 3_600_000][..])
                .prop_map(|ms| Step::Clock { ms }),
            6 => (slot(), 1..=2_usize).prop_map(|(slot, step)| Step::Look { slot, step }),
            2 => (0..8_usize).prop_map(|which| Step::ReapStale { which }),
            6 => (0..12_usize, proptest::bool::weighted(0.2)).prop_map(|(which, ahead)| Step::Late { which, ahead }),
            2 => option::of(slot()).prop_map(|early| Step::FlushAll { early }),
            2 => (0..1_usize << USERS.len(), any::<bool>()).prop_map(|(users, last)| Step::Repair { users, last }),
            4 => Just(Step::Audit),
            3 => (0..KEYS.len()).prop_map(|key| Step::Delete { key }),
            2 => Just(Step::Delete { key: HELD }),
        ]
        .boxed()
    }

    fn apply(mut truth: Truth, step: &Step) -> Truth {
        match *step {
            Step::Observe { slot, user, connections: 0 } => drop(truth.connections[slot].remove(&user)),
            Step::Observe { slot, user, connections } => drop(truth.connections[slot].insert(user, connections)),
            Step::Crash { slot } | Step::Stop { slot, .. } => truth.connections[slot].clear(),
            _ => {}
        }
        truth
    }
}

/// Runs the model this many times; returns the failure, if any.
fn explore(cases: u32, seed: u64, mutant: Option<&Mutant>) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(RedisServer::with_stepped_clock());
    let shrinks = if mutant.is_some() { 0 } else { 2_000 };
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: shrinks,
        ..Config::default()
    };
    let memory = std::cell::RefCell::new(Memory::new(redis, mutant));
    let found = TestRunner::new(config).run(&Model::sequential_strategy(30..=80), |(mut truth, steps, seen)| {
        let mut memory = memory.borrow_mut();
        let mut fleet = Fleet::new(&mut memory);
        for step in &steps {
            // Counted for shrinking, which a mutant does without.
            if let Some(seen) = seen.as_ref().filter(|_| shrinks > 0) {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            truth = Model::apply(truth, step);
            fleet.take(step)?;
        }
        fleet.converge(&truth)
    });
    found.map_err(|error| match error {
        TestError::Abort(why) => format!("aborted: {why}"),
        TestError::Fail(why, (_, steps, _)) => format!("{why}\nafter {steps:#?}"),
    })
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Faults, each of which must be found.
const MUTANTS: [Mutant; 47] = [
    mutant("the fence does not know who is being reaped", "apply", "lease_end <= 0 or last < 0", "last < 0"),
    mutant("the fence looks at the clock", "apply", "lease_end <= 0 or last < 0", "lease_end <= now or last < 0"),
    mutant("the fence asks for no sequence", "apply", "lease_end <= 0 or last < 0", "lease_end <= 0"),
    mutant("a batch sent again is not known", "apply", "if sequence == last then", "if false then"),
    mutant(
        "a batch sent again is applied",
        "apply",
        "if sequence == last then
  return 'DUP'
end
if sequence ~= last + 1 then",
        "if sequence < last or sequence > last + 1 then",
    ),
    mutant("an old batch is applied", "apply", "sequence ~= last + 1", "sequence > last + 1"),
    mutant("a missing batch is not missed", "apply", "sequence ~= last + 1", "sequence < last"),
    mutant("the sequence is not kept", "apply", "redis.call('HSET', KEYS[2], incarnation, sequence)", ""),
    mutant("the lease is not renewed", "apply", "redis.call('ZADD', KEYS[1], number, incarnation)", ""),
    mutant(
        "held goes by itself",
        "apply",
        "redis.call('HSET', KEYS[2], incarnation, sequence)",
        "redis.call('HSET', KEYS[2], incarnation, sequence) redis.call('PEXPIRE', KEYS[3], ARGV[2] + 86400000)",
    ),
    mutant("who is held already is counted again", "apply", "if not connections then", "if true then"),
    mutant(
        "who is not held is released",
        "apply",
        "redis.call('HDEL', KEYS[3], user) == 1",
        "redis.call('HDEL', KEYS[3], user) ~= 2",
    ),
    mutant("a release takes who is held elsewhere", "apply", "user, -1) <= 0", "user, -1) <= 9"),
    mutant("a batch leaves the total", "apply", "if moved ~= 0 then", "if false then"),
    mutant("a broken batch keeps its lease", "apply", "redis.call('ZADD', KEYS[1], -lease_end, incarnation)", ""),
    mutant(
        "a broken batch is not noticed",
        "apply",
        "~= tonumber(ARGV[4]) then",
        "~= tonumber(ARGV[4]) and false then",
    ),
    mutant("the silent tell", "apply", "local loud = ARGV[7] ~= '1'", "local loud = true"),
    mutant(
        "the silent say nothing to who was told of a going",
        "apply",
        "if loud or redis.call('ZSCORE', KEYS[7], user) then",
        "if loud then",
    ),
    mutant("a going is not remembered", "apply", "redis.call('ZADD', KEYS[7], now - ARGV[6], user)", ""),
    mutant("reaping takes who is held elsewhere", "reap", "user, -1) <= 0", "user, -1) <= 9"),
    mutant("reaping takes who was renewed", "reap", "~= ARGV[4] then", "~= ARGV[4] and false then"),
    mutant("reaping fences no incarnation", "reap", "redis.call('ZADD', KEYS[1], -lease_end, incarnation)", ""),
    mutant("reaping forgets when users were seen", "reap", "math.abs(lease_end) - ARGV[5]", "math.abs(lease_end)"),
    mutant("reaping leaves what is not listed", "reap", "redis.call('UNLINK', KEYS[3])", ""),
    mutant("a renewal's number is that of Redis's clock", "apply", "given + 0.001", "0"),
    mutant("a lease's number is that of Redis's clock", "register", "given + 0.001", "0"),
    mutant("a renewal's number is not kept", "apply", "redis.call('HSET', KEYS[8], 'number', number)", ""),
    mutant("a lease's number is not kept", "register", "redis.call('HSET', KEYS[4], 'number', number)", ""),
    mutant("the era never changes", "register", "'era', ARGV[1]", "'era', 'one' or ARGV[1]"),
    mutant("the reaper misses who is being reaped", "observe", "'-inf', ARGV[2]", "0, ARGV[2]"),
    mutant("the reaper misses who is not listed", "observe", "{ known[i], '-1', known[i + 1] }", "nil"),
    mutant("the reaper reads too few", "observe", "'-inf', ARGV[2]", "'-inf', '(' .. ARGV[2]"),
    mutant("the reaper trusts Redis's clock", "reaper", "trusts Redis's clock", ""),
    mutant("the reaper counts the time in which it could not read", "reaper", "counts gaps", ""),
    mutant("reaping leaves the total", "reap", "redis.call('DECRBY', KEYS[6], #users)", ""),
    mutant("reaping half-way forgets the rest", "reap", "if left == 0 then", "if true then"),
    mutant("a stop waits for the lease", "reap", "ARGV[4] == 'end'", "false"),
    mutant(
        "each registration renames the epoch",
        "register",
        "'SET', KEYS[3], ARGV[3], 'NX'",
        "'SET', KEYS[3], ARGV[3]",
    ),
    mutant(
        "the audit finds nothing",
        "audit",
        "~= redis.call('HLEN', KEYS[2]) then\n  return 0",
        "~= redis.call('HLEN', KEYS[2]) then\n  return 1",
    ),
    mutant("the audit looks at sizes alone", "audit", "if #users == 0 then", "if true then"),
    mutant("each audit is taken for another's", "audit", "redis.call('GET', KEYS[6]) or ''", "'other'"),
    mutant("the audit looks at no total", "audit", "total ~= held or", ""),
    mutant("repairing tells of no going", "repair", "publish(user, 'offline')", ""),
    mutant(
        "repairing tells of no going of whom a hand hid",
        "repair",
        "if counted > 0 then",
        "if counted > 0 and changed == 1 then",
    ),
    mutant("repairing tells of no coming", "repair", "publish(user, 'online')", ""),
    mutant("repairing tells who never went of a coming", "repair", "changed == 1 and counted == 0", "changed == 1"),
    mutant("repairing sets no total", "repair", "if ARGV[3] == '1' then", "if false then"),
];

const fn mutant(name: &'static str, script: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { name, script, from, to }
}

#[test]
fn the_model_finds_every_mutant() {
    let seed = number("PRESENCE_MODEL_SEED", fastrand::u64(..));
    println!("PRESENCE_MODEL_SEED={seed}");
    for mutant in &MUTANTS {
        let found = explore(10_000, seed, Some(mutant));
        let Err(why) = found else { panic!("PRESENCE_MODEL_SEED={seed}: not found: {}", mutant.name) };
        println!("{}: {}", mutant.name, why.lines().next().unwrap_or_default());
    }
}

#[test]
fn presence_keeps_its_promises_whatever_happens() {
    let cases = u32::try_from(number("PRESENCE_MODEL_CASES", 300)).unwrap();
    let seed = number("PRESENCE_MODEL_SEED", fastrand::u64(..));
    println!("PRESENCE_MODEL_SEED={seed} PRESENCE_MODEL_CASES={cases}");
    if let Err(found) = explore(cases, seed, None) {
        panic!("PRESENCE_MODEL_SEED={seed} PRESENCE_MODEL_CASES={cases}: {found}");
    }
}
