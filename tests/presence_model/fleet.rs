//! The fleet under test: simulated instances on one real Redis, checked after every request.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};
use tidings::internals::Batch;

use super::instance::Instance;
use super::memory::{Dump, Event, LEASE_MS, Memory, held_key};
use super::{Fate, KEYS, SLOTS, Step, Truth, USERS};

type Checked<T = ()> = Result<T, TestCaseError>;

/// Requests that were sent and may arrive late, or once more.
const LATE_KEPT: usize = 12;

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
        let instances = (0..SLOTS).map(|_| Instance::new()).collect();
        let (told, doubted, deleted) = <(BTreeSet<_>, BTreeSet<_>, BTreeSet<_>)>::default();
        Self { memory, instances, named: 0, late: Vec::new(), dump: Dump::default(), told, doubted, deleted }
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
            Step::LeaseEnds { which } => self.lease_ends(which),
            Step::ReapSome { which, step } => self.reap_some(which, step),
            Step::ReapAll => self.reap_all(),
            Step::Late { which, ahead } => self.arrive_late(which, ahead),
            Step::FlushAll => self.flush_all(),
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
        Ok(epoch)
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
                let goes_at = self.dump.expiries.get(&held_key(name)).copied();
                let in_time = |at| before.now + lease() < at && at < self.dump.now + 2.0 * lease() + 86_400_000.0;
                prop_assert!(goes_at.is_none_or(in_time), "held expires at {goes_at:?}");
            }
            "BROKEN" => prop_assert_eq!(self.dump.instances[name], 0.0, "its lease ends at once"),
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
        self.instances[slot] = Instance::new();
        self.disturbed(&returning);
        self.settle().map(|_| ())
    }

    /// SIGTERM, with grace for some rounds of giving up.
    fn stop(&mut self, slot: usize, step: usize, rounds: usize) -> Checked {
        if let Some(incarnation) = &self.instances[slot].incarnation {
            let name = incarnation.name.clone();
            for _ in 0..rounds {
                self.reap(&name, step, true)?;
            }
        }
        self.replace(slot)
    }

    // Steps that any instance takes.

    fn reap(&mut self, name: &str, step: usize, end: bool) -> Checked<usize> {
        let (taken, left) = self.memory.reap(name, step, end);
        let (before, events) = self.settle()?;
        let listed = before.instances.get(name).copied();
        if !listed.is_some_and(|expiry| end || expiry <= before.now) {
            prop_assert_eq!((taken, left), (0, 0));
            return self.unchanged(&before, &events, "reaping a live incarnation").map(|()| 0);
        }
        let held = before.held_by(name).len();
        prop_assert_eq!((taken, left), (held.min(step), held.saturating_sub(step)), "taken and left");
        prop_assert_eq!(self.dump.held_by(name).len(), left, "held");
        prop_assert_eq!(self.dump.instances.contains_key(name), left > 0, "forgotten once it holds no user");
        prop_assert_eq!(self.dump.seq.contains_key(name), left > 0 && before.seq.contains_key(name), "its sequence");
        for event in events {
            let seen = self.dump.last_seen[&event.user];
            prop_assert!(self.dump.now - 2.0 * lease() < seen && seen <= self.dump.now, "last seen at {seen}");
        }
        Ok(left)
    }

    fn reap_some(&mut self, which: usize, step: usize) -> Checked {
        let expired = self.memory.expired();
        let name = match expired.len() {
            // A live incarnation must not be reaped.
            0 => self.dump.instances.keys().nth(which).cloned().unwrap_or_default(),
            dead => expired[which % dead].clone(),
        };
        self.reap(&name, step, false).map(|_| ())
    }

    fn reap_all(&mut self) -> Checked {
        for name in self.memory.expired() {
            while self.reap(&name, 2, false)? > 0 {}
        }
        Ok(())
    }

    fn lease_ends(&mut self, which: usize) -> Checked {
        let listed = self.dump.instances.len().max(1);
        if let Some(name) = self.dump.instances.keys().nth(which % listed).cloned() {
            self.memory.end_lease(&name, self.dump.now);
            self.settle()?;
        }
        Ok(())
    }

    fn repair(&mut self, users: usize, last: bool) -> Checked {
        let some = USERS.iter().enumerate().filter(|(bit, _)| users >> bit & 1 == 1);
        let some: Vec<String> = some.map(|(_, user)| (*user).to_owned()).collect();
        let wrong = self.memory.repair(&some, last);
        let (mut before, events) = self.settle()?;
        if self.deleted.is_empty() {
            prop_assert_eq!(wrong, 0, "nothing was wrong");
            // A total of none is written out.
            before.expiries.clone_from(&self.dump.expiries);
            self.unchanged(&before, &events, "repairing what was right")?;
        }
        Ok(())
    }

    /// As `Presence::audit`, to the end.
    fn audit(&mut self) -> Checked {
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

    fn flush_all(&mut self) -> Checked {
        self.memory.flush_all();
        self.look();
        let returning = self.returning();
        self.doubted = self.told.symmetric_difference(&returning).cloned().collect();
        self.deleted.clear();
        self.settle().map(|_| ())
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

    /// Everything that goes wrong has gone wrong: after some rounds, all is as it must be.
    pub fn converge(&mut self, truth: &Truth) -> Checked {
        let live = |fleet: &Self| -> BTreeSet<String> {
            fleet.instances.iter().filter_map(|i| i.incarnation.as_ref()).map(|i| i.name.clone()).collect()
        };
        for _ in 0..4 {
            for slot in 0..SLOTS {
                self.instances[slot].delay_over();
                for _ in 0..4 {
                    self.flush(slot, Fate::Arrives, Fate::Arrives)?;
                }
                prop_assert!(!self.instances[slot].differs(), "everything is written");
            }
            let gone: Vec<String> = self.dump.instances.keys().filter(|i| !live(self).contains(*i)).cloned().collect();
            for name in gone {
                self.memory.end_lease(&name, self.dump.now);
            }
            self.settle()?;
            self.reap_all()?;
            self.audit()?;
        }
        prop_assert_eq!(self.dump.instances.keys().cloned().collect::<BTreeSet<_>>(), live(self), "live instances");
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
    let lives = before.instances.get(&batch.incarnation).is_some_and(|expiry| *expiry > before.now);
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
