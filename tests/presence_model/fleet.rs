//! The fleet under test: simulated instances on one real Redis, checked after every request.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};
use tidings::internals::Batch;

use tokio::time::Instant;

use super::instance::{Instance, LEASE};
use super::memory::{Dump, Event, LEASE_MS, Look, Memory};
use super::{Fate, KEYS, SLOTS, Step, Truth, USERS};

type Checked<T = ()> = Result<T, TestCaseError>;

/// Requests that were sent and may arrive late, or once more.
const LATE_KEPT: usize = 12;

/// The reaper looks this often, and each fourth time the lease is renewed.
const ROUND: Duration = Duration::from_millis(500);
const RENEWED_EACH: u32 = 4;

/// A time without reads that cannot be mistaken for a death, see `LeaseWatch`.
const MOMENT: Duration = Duration::from_secs(2);

/// By how much the clock of a server that takes over may be behind, in ms.
const CLOCK_BEHIND: i64 = 120_000;

#[derive(Debug, Clone)]
enum Late {
    Register(String),
    Apply(Batch),
}

pub struct Fleet<'a> {
    memory: &'a mut Memory,
    instances: Vec<Instance>,
    named: u32,
    late: Vec<Late>,
    dump: Dump,
    /// The time of the model.
    now: Instant,
    /// When each incarnation was registered or last renewed.
    renewed: BTreeMap<String, Instant>,
    /// The events, folded from the beginning.
    told: BTreeSet<String>,
    /// Users whose events are exempt until the next one: see the tests' module.
    doubted: BTreeSet<String>,
    /// Keys that a hand deleted since the last audit.
    deleted: BTreeSet<&'static str>,
}

impl<'a> Fleet<'a> {
    pub fn new(memory: &'a mut Memory) -> Self {
        memory.flush_all();
        memory.events();
        let now = Instant::now();
        let instances = (0..SLOTS).map(|_| Instance::new(now)).collect();
        let (told, doubted, deleted) = <(BTreeSet<_>, BTreeSet<_>, BTreeSet<_>)>::default();
        let (late, dump, renewed) = (Vec::new(), Dump::default(), BTreeMap::new());
        Self { memory, instances, named: 0, late, dump, now, renewed, told, doubted, deleted }
    }

    pub fn take(&mut self, step: &Step) -> Checked {
        match *step {
            Step::Observe { slot, user, connections } => {
                self.instances[slot].observe(USERS[user], connections);
                Ok(())
            }
            Step::DelayOver { slot } => {
                self.instances[slot].delay_over();
                Ok(())
            }
            Step::Flush { slot, register, apply } => self.flush(slot, register, apply),
            Step::Crash { slot } => self.replace(slot),
            Step::Stop { slot, step, rounds } => self.stop(slot, step, rounds),
            Step::Run { rounds, silent, step } => self.run(rounds, silent, step),
            Step::Stall { ms } => self.stall(ms),
            Step::Clock { ms } => self.step_clock(ms),
            Step::Look { slot, step } => self.look_for_dead(slot, step),
            Step::ReapStale { which } => self.reap_stale(which),
            Step::Late { which, ahead } => self.arrive_late(which, ahead),
            Step::FlushAll { early } => self.flush_all(early),
            Step::Repair { users, last } => self.repair(users, last),
            Step::Audit => self.audit(),
            Step::Delete { key } => self.delete(KEYS[key]),
        }
    }

    fn look(&mut self) -> Dump {
        let dump = self.memory.dump();
        std::mem::replace(&mut self.dump, dump)
    }

    /// Whom some instance will add again in silence, since Redis has not said of them that they went.
    fn returning(&self) -> BTreeSet<String> {
        let forgotten = |instance: &&Instance| instance.epoch.is_some() && instance.epoch != self.dump.epoch;
        let forgotten = self.instances.iter().filter(forgotten).flat_map(|instance| &instance.confirmed);
        let silent = self.instances.iter().flat_map(|instance| &instance.silent);
        silent.chain(forgotten).filter(|user| !self.dump.last_seen.contains_key(*user)).cloned().collect()
    }

    fn held_by_any(&self, user: &str) -> bool {
        self.dump.true_count().contains_key(user)
    }

    /// Takes in what a request did, and checks everything that must hold after any request. Gives what was before, and
    /// the events.
    fn settle(&mut self) -> Checked<(Dump, Vec<Event>)> {
        let returning = self.returning();
        self.settle_where(&returning)
    }

    /// Some may be told of a second time: those who are about to `return` in silence, but not by that return itself.
    fn settle_where(&mut self, returning: &BTreeSet<String>) -> Checked<(Dump, Vec<Event>)> {
        let before = self.look();
        let events = self.memory.events();
        for event in &events {
            self.hear(event, returning)?;
        }
        if self.deleted.is_empty() {
            self.check_keys()?;
            self.check_told()?;
        }
        Ok((before, events))
    }

    fn hear(&mut self, event: &Event, returning: &BTreeSet<String>) -> Checked {
        let Event { user, online } = event;
        let doubted = self.doubted.remove(user) || self.deleted.contains("count");
        let changed = if *online { self.told.insert(user.clone()) } else { self.told.remove(user) };
        let again = doubted || (*online && returning.contains(user));
        prop_assert!(changed || again, "online={online} was published twice for {user:?}");
        if !online {
            prop_assert!(self.dump.last_seen.contains_key(user), "{user:?} went offline without a last seen time");
        }
        Ok(())
    }

    /// The keys agree with each other.
    fn check_keys(&self) -> Checked {
        let Dump { count, online, total, .. } = &self.dump;
        let truth = self.dump.true_count();
        prop_assert_eq!(count, &truth, "count");
        prop_assert_eq!(*total, truth.values().sum::<i64>(), "total");
        prop_assert_eq!(online, &truth.into_keys().collect(), "online");
        prop_assert!(self.dump.expiring.is_empty(), "no clock removes a key: {:?}", self.dump.expiring);
        Ok(())
    }

    /// The published events give the set, or will once users are added back without an event.
    fn check_told(&self) -> Checked {
        let expected: BTreeSet<_> = self.dump.online.union(&self.returning()).cloned().collect();
        let wrong = self.told.symmetric_difference(&expected).find(|user| !self.doubted.contains(*user));
        prop_assert!(wrong.is_none(), "{:?} was told {:?}, not {:?}", wrong, self.told, expected);
        Ok(())
    }

    fn unchanged(&self, before: &Dump, events: &[Event], what: &str) -> Checked {
        prop_assert!(events.is_empty(), "{what} told {events:?}");
        prop_assert_eq!(before, &self.dump, "{} changed something", what);
        Ok(())
    }

    fn remember(&mut self, late: Late) {
        if self.late.len() == LATE_KEPT {
            self.late.remove(0);
        }
        self.late.push(late);
    }

    // What an instance does.

    fn flush(&mut self, slot: usize, register: Fate, apply: Fate) -> Checked {
        if self.instances[slot].incarnation.is_none() {
            self.named += 1;
            let name = format!("i{slot}-{}", self.named);
            if register == Fate::RequestLost {
                self.remember(Late::Register(name));
                return Ok(());
            }
            let epoch = self.register(&name)?;
            if register == Fate::ReplyLost {
                return Ok(());
            }
            self.instances[slot].registered(name, epoch);
        }
        let batch = self.instances[slot].next_batch();
        self.remember(Late::Apply(batch.clone()));
        if apply == Fate::RequestLost {
            return Ok(());
        }
        let answer = self.apply(&batch)?;
        if apply == Fate::Arrives {
            self.instances[slot].answered(&answer);
        }
        Ok(())
    }

    fn register(&mut self, name: &str) -> Checked<String> {
        let epoch = self.memory.register(name);
        let (before, events) = self.settle()?;
        prop_assert!(events.is_empty(), "a registration published {events:?}");
        prop_assert_eq!(&epoch, before.epoch.as_deref().unwrap_or(name), "the epoch");
        prop_assert_eq!(self.dump.epoch.as_ref(), Some(&epoch), "the epoch is kept");
        prop_assert!(self.dump.instances[name] >= before.now + lease(), "a lease was taken");
        self.check_number(name, &before)?;
        self.renewed.insert(name.to_owned(), self.now);
        Ok(epoch)
    }

    /// A renewal's number is the greatest of all, however Redis's clock steps.
    fn check_number(&self, name: &str, before: &Dump) -> Checked {
        let number = self.dump.instances[name];
        let greatest = before.instances.values().copied().chain(before.renewed).fold(0.0, f64::max);
        prop_assert!(number > greatest, "{number} was given after {greatest}");
        prop_assert_eq!(self.dump.renewed, Some(number), "the last number given");
        Ok(())
    }

    /// Sends a batch, and compares the answer and what became of Redis with what the protocol says.
    fn apply(&mut self, batch: &Batch) -> Checked<String> {
        let (expected, held) = expect(&self.dump, batch);
        let returning = if batch.silent { BTreeSet::new() } else { self.returning() };
        let answer = self.memory.apply(batch);
        let (before, events) = self.settle_where(&returning)?;
        let name = &batch.incarnation;
        prop_assert_eq!(&answer, expected, "of {:?}", batch);
        match expected {
            "OK" => {
                prop_assert_eq!(self.dump.seq.get(name), Some(&batch.sequence), "the sequence");
                prop_assert!(self.dump.instances[name] >= before.now + lease(), "the lease is renewed");
                self.check_number(name, &before)?;
                self.renewed.insert(name.clone(), self.now);
            }
            "BROKEN" => prop_assert!(self.dump.instances[name] < 0.0, "it is to be reaped at once"),
            fenced => return self.unchanged(&before, &events, fenced).map(|()| answer),
        }
        // Also after a deletion by an operator: a user that was not held is not released.
        let size = |held: &BTreeMap<String, u32>| i64::try_from(held.len()).unwrap();
        let moved = size(&held) - size(&before.held_by(name));
        prop_assert_eq!(self.dump.total - before.total, moved, "total moves as held does");
        let mut all = before.held;
        all.insert(name.clone(), held);
        all.retain(|_, held| !held.is_empty());
        prop_assert_eq!(&self.dump.held, &all, "held");
        Ok(answer)
    }

    /// A request that was lost arrives after all, or one that arrived arrives again.
    fn arrive_late(&mut self, which: usize, ahead: bool) -> Checked {
        if self.late.is_empty() {
            return Ok(());
        }
        let which = which % self.late.len();
        match self.late[which].clone() {
            Late::Apply(mut batch) => {
                batch.sequence += if ahead { 1_000 } else { 0 };
                self.apply(&batch).map(|_| ())
            }
            // Never sent twice: each attempt has its own name.
            Late::Register(name) => {
                self.late.remove(which);
                self.register(&name).map(|_| ())
            }
        }
    }

    /// The instance is gone, and another takes its place.
    fn replace(&mut self, slot: usize) -> Checked {
        let returning = self.returning();
        self.instances[slot] = Instance::new(self.now);
        self.disturbed(&returning);
        self.settle().map(|_| ())
    }

    /// SIGTERM, with grace for some rounds of giving up.
    fn stop(&mut self, slot: usize, step: usize, rounds: usize) -> Checked {
        if let Some(incarnation) = &self.instances[slot].incarnation {
            let name = incarnation.name.clone();
            for _ in 0..rounds {
                self.reap(&name, "end", step)?;
            }
        }
        self.replace(slot)
    }

    // Steps that any instance takes.

    fn reap(&mut self, name: &str, sequence: &str, step: usize) -> Checked<usize> {
        let (taken, left) = self.memory.reap(name, sequence, step);
        let (mut before, events) = self.settle()?;
        let kept = before.seq.get(name).map(u64::to_string).unwrap_or_default();
        let held = before.held_by(name).len();
        match before.instances.get(name) {
            None => {
                // Another program deleted the list: what is left of the incarnation goes, uncounted.
                before.seq.remove(name);
                before.held.remove(name);
                self.unchanged(&before, &events, "removing what is left")?;
                prop_assert_eq!((taken, left), (0, 0));
                return Ok(0);
            }
            Some(lease_end) if *lease_end > 0.0 && sequence != "end" && sequence != kept => {
                prop_assert_eq!((taken, left), (0, 0));
                return self.unchanged(&before, &events, "reaping who was renewed").map(|()| 0);
            }
            Some(_) => {}
        }
        prop_assert_eq!((taken, left), (held.min(step), held.saturating_sub(step)), "taken and left");
        prop_assert_eq!(self.dump.held_by(name).len(), left, "held");
        let listed = self.dump.instances.get(name);
        prop_assert_eq!(listed.is_some(), left > 0, "forgotten once it holds no user");
        prop_assert!(listed.is_none_or(|lease_end| *lease_end < 0.0), "fenced from the first step on");
        prop_assert_eq!(self.dump.seq.contains_key(name), left > 0 && before.seq.contains_key(name), "its sequence");
        let renewed_at = before.instances[name].abs() - lease();
        for event in events {
            let seen = self.dump.last_seen[&event.user];
            let (now, at_renewal) = (before.now <= seen && seen <= self.dump.now, seen == renewed_at);
            prop_assert!(now || (at_renewal && sequence != "end"), "last seen at {seen}, not {renewed_at}");
        }
        Ok(left)
    }

    /// A round of one instance's reaper, as `RedisPresence::reap`, with steps of so many users.
    fn look_for_dead(&mut self, slot: usize, step: usize) -> Checked {
        let (reaper, fault) = (&mut self.instances[slot].reaper, self.memory.fault);
        if fault == Some("counts gaps") {
            reaper.count_gap(self.now);
        }
        let by_clock = (fault == Some("trusts Redis's clock")).then_some(self.dump.now);
        let sought = by_clock.unwrap_or_else(|| reaper.dead_up_to(self.now));
        let look = self.memory.observe(sought);
        let dead_up_to = reaper.observe(self.now, &look.era, look.last);
        let dead_up_to = by_clock.unwrap_or(dead_up_to);
        self.check_look(&look, sought)?;
        let dead: Vec<_> = look.found.into_iter().filter(|(_, (number, _))| *number <= dead_up_to).collect();
        for (name, (number, _)) in &dead {
            if *number > 0.0 {
                let silent = self.instances[slot].reaper.saw(self.renewed[name], self.now);
                prop_assert!(silent >= LEASE, "{name} was reaped after {silent:?}");
            }
        }
        for (name, (_, sequence)) in dead {
            self.reap(&name, &sequence, step)?;
        }
        Ok(())
    }

    /// The reaper reads the incarnations up to a number, and those that are not listed.
    fn check_look(&self, look: &Look, sought: f64) -> Checked {
        let Dump { instances, seq, renewed, .. } = &self.dump;
        let sequence = |name: &String| seq.get(name).map(u64::to_string).unwrap_or_default();
        let listed = instances.iter().filter(|(_, number)| **number <= sought);
        let listed = listed.map(|(name, number)| (name.clone(), (*number, sequence(name))));
        let unlisted = seq.keys().filter(|name| !instances.contains_key(*name));
        let unlisted = unlisted.map(|name| (name.clone(), (-1.0, sequence(name))));
        prop_assert_eq!(&look.found, &listed.chain(unlisted).collect(), "what the reaper reads");
        let newer = instances.values().copied().filter(|number| *number > sought);
        prop_assert_eq!(
            (look.last, look.size),
            (renewed.unwrap_or_default(), instances.len()),
            "the last, of how many"
        );
        prop_assert_eq!(look.oldest, newer.min_by(f64::total_cmp), "the oldest of the others");
        Ok(())
    }

    /// Reaping that comes after a renewal.
    fn reap_stale(&mut self, which: usize) -> Checked {
        let renewed: Vec<_> =
            self.dump.seq.iter().filter(|(name, _)| self.dump.instances.contains_key(*name)).collect();
        if renewed.is_empty() {
            return Ok(());
        }
        let (name, sequence) = (renewed[which % renewed.len()].0.clone(), renewed[which % renewed.len()].1 + 1_000);
        self.reap(&name, &sequence.to_string(), 1).map(|_| ())
    }

    // What time does.

    /// Time passes for all, by Redis's clock too.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.memory.step_clock(i64::try_from(time.as_millis()).unwrap());
    }

    /// The fleet runs for so many rounds; the instances in `silent`, by their bits, are paused.
    fn run(&mut self, rounds: u32, silent: usize, step: usize) -> Checked {
        let awake: Vec<usize> = (0..SLOTS).filter(|slot| silent >> slot & 1 == 0).collect();
        let begun = self.now;
        for round in 0..rounds {
            self.pass(ROUND);
            for slot in &awake {
                if round % RENEWED_EACH == 0 {
                    self.flush(*slot, Fate::Arrives, Fate::Arrives)?;
                }
                self.look_for_dead(*slot, step)?;
            }
        }
        if ROUND * rounds > MOMENT {
            let asleep = (0..SLOTS).filter(|slot| silent >> slot & 1 == 1);
            asleep.for_each(|slot| self.instances[slot].reaper.was_blind(begun, self.now));
        }
        Ok(())
    }

    /// Redis stands still, and all wait for it.
    fn stall(&mut self, ms: u64) -> Checked {
        let (time, begun) = (Duration::from_millis(ms), self.now);
        self.pass(time);
        if time > MOMENT {
            self.instances.iter_mut().for_each(|instance| instance.reaper.was_blind(begun, self.now));
        }
        self.settle().map(|_| ())
    }

    fn step_clock(&mut self, ms: i64) -> Checked {
        self.memory.step_clock(ms);
        let (before, events) = self.settle()?;
        self.unchanged(&before, &events, "a step of Redis's clock")
    }

    fn repair(&mut self, users: usize, last: bool) -> Checked {
        let some = USERS.iter().enumerate().filter(|(bit, _)| users >> bit & 1 == 1);
        let some: Vec<String> = some.map(|(_, user)| (*user).to_owned()).collect();
        let wrong = self.memory.repair(&some, last);
        let (before, events) = self.settle()?;
        if self.deleted.is_empty() {
            prop_assert_eq!(wrong, 0, "nothing was wrong");
            self.unchanged(&before, &events, "repairing what was right")?;
        }
        Ok(())
    }

    /// As `Presence::audit`, to the end.
    fn audit(&mut self) -> Checked {
        // No other instance has audited since this look.
        self.memory.observe(0.0);
        let agreed = self.memory.audit();
        if self.deleted.is_empty() {
            let (before, events) = self.settle()?;
            prop_assert!(agreed, "they had agreed: {:?}", self.dump);
            return self.unchanged(&before, &events, "an audit of what was right");
        }
        if !agreed {
            let members = [&self.dump.online.iter().cloned().collect(), &self.dump.count.keys().cloned().collect()];
            let held = self.dump.instances.keys().map(|name| self.dump.held_by(name).into_keys().collect());
            let lists: Vec<Vec<String>> = members.into_iter().cloned().chain(held).collect();
            for some in lists.iter().flat_map(|list| list.chunks(2)) {
                self.memory.repair(some, false);
                self.settle()?;
            }
            self.memory.repair(&[], true);
            self.settle()?;
        }
        // Nothing is left of whom a hand took out of every key that knew of them.
        if self.deleted.len() > 1 && self.deleted.contains("count") {
            let lost = self.told.symmetric_difference(&self.dump.online).cloned();
            self.doubted.extend(lost.collect::<Vec<_>>());
        }
        self.deleted.clear();
        self.settle().map(|_| ())
    }

    // What happens to Redis.

    fn flush_all(&mut self, early: Option<usize>) -> Checked {
        self.memory.flush_all();
        self.look();
        let returning = self.returning();
        self.doubted = self.told.symmetric_difference(&returning).cloned().collect();
        self.deleted.clear();
        self.settle()?;
        let Some(slot) = early else { return Ok(()) };
        self.step_clock(-CLOCK_BEHIND)?;
        // It learns that its lease is lost, and takes one.
        for _ in 0..2 {
            self.flush(slot, Fate::Arrives, Fate::Arrives)?;
        }
        self.step_clock(CLOCK_BEHIND)
    }

    fn delete(&mut self, key: &'static str) -> Checked {
        let returning = self.returning();
        match key {
            "held" => {
                let name = self.dump.held.keys().next().cloned().unwrap_or_default();
                self.memory.delete(&format!("held:{name}"));
            }
            key => self.memory.delete(key),
        }
        self.deleted.insert(key);
        self.look();
        self.disturbed(&returning);
        self.settle().map(|_| ())
    }

    /// Who was to return in silence and never will, and who will although they were told to have gone.
    fn disturbed(&mut self, before: &BTreeSet<String>) {
        let now = self.returning();
        let lost = before.difference(&now).filter(|user| !self.held_by_any(user));
        let gained = now.difference(before).filter(|user| !self.told.contains(*user));
        let doubted: Vec<String> = lost.chain(gained).cloned().collect();
        self.doubted.extend(doubted);
    }

    fn flush_all_changes(&mut self) -> Checked {
        for slot in 0..SLOTS {
            self.instances[slot].delay_over();
            for _ in 0..4 {
                self.flush(slot, Fate::Arrives, Fate::Arrives)?;
            }
            prop_assert!(!self.instances[slot].differs(), "everything is written");
        }
        Ok(())
    }

    /// Everything that goes wrong has gone wrong: after some rounds, all is as it must be.
    pub fn converge(&mut self, truth: &Truth) -> Checked {
        // The lease and two seconds.
        let in_time = u32::try_from((LEASE + Duration::from_secs(2)).as_millis() / ROUND.as_millis()).unwrap();
        let live = |fleet: &Self| -> BTreeSet<String> {
            fleet.instances.iter().filter_map(|i| i.incarnation.as_ref()).map(|i| i.name.clone()).collect()
        };
        self.audit()?;
        self.flush_all_changes()?;
        // However Redis's clock stands: all who are gone are reaped in time.
        self.step_clock(-120_000)?;
        self.run(in_time, 0, USERS.len())?;
        self.audit()?;
        self.flush_all_changes()?;
        prop_assert_eq!(self.dump.instances.keys().cloned().collect::<BTreeSet<_>>(), live(self), "live instances");
        prop_assert_eq!(self.dump.seq.keys().cloned().collect::<BTreeSet<_>>(), live(self), "their sequences");
        for (instance, connections) in self.instances.iter().zip(&truth.connections) {
            let held = self.dump.held_by(&instance.incarnation.as_ref().unwrap().name);
            let wanted = connections.iter().map(|(user, connections)| (USERS[*user].to_owned(), *connections));
            prop_assert_eq!(held, wanted.collect::<BTreeMap<_, _>>(), "connections");
        }
        let wanted = truth.connections.iter().flat_map(BTreeMap::keys).map(|user| USERS[*user].to_owned());
        prop_assert_eq!(&self.dump.online, &wanted.collect::<BTreeSet<_>>(), "online");
        Ok(())
    }
}

fn lease() -> f64 {
    f64::from(u32::try_from(LEASE_MS).unwrap())
}

/// What the protocol says to a batch, and what its incarnation then holds.
fn expect(before: &Dump, batch: &Batch) -> (&'static str, BTreeMap<String, u32>) {
    let mut held = before.held_by(&batch.incarnation);
    let lives = before.instances.get(&batch.incarnation).is_some_and(|lease_end| *lease_end > 0.0);
    let Some(last) = before.seq.get(&batch.incarnation).filter(|_| lives) else { return ("GONE", held) };
    if batch.sequence == *last {
        return ("DUP", held);
    }
    if batch.sequence != last + 1 {
        return ("GAP", held);
    }
    held.extend(batch.held.iter().map(|(user, connections)| (user.as_str().to_owned(), *connections)));
    held.retain(|user, _| batch.released.iter().all(|released| released.as_str() != user));
    (if held.len() == batch.size { "OK" } else { "BROKEN" }, held)
}
