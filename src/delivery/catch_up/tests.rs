//! The seam between the history read and live events: every interleaving of publishing, retracting, receiving, connecting,
//! reading and sending in a small model, and random interleavings in a larger one.

use std::collections::HashSet;
use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;

const EPOCH: NonZeroU64 = NonZeroU64::MIN;

/// The epoch after an erasure.
const NEXT_EPOCH: NonZeroU64 = EPOCH.saturating_add(1);

/// A published event, stored or not, or the notice that a stored one was retracted, or all of them erased. Its index in the
/// order of publishing identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Stored,
    Passing,
    Retracted,
    Erased,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Publish(Kind),
    /// The instance receives the next message of the channel.
    Receive,
    /// The instance loses its subscription with the messages in flight, and subscribes again.
    Lose,
    /// The client connects, and resumes from before the first event.
    Come,
    /// A page after the client's position is read.
    Read,
    /// The page is sent.
    Send,
    /// The instance compares the client with the newest stored position.
    Compare,
    /// The oldest stored event expires by its own ttl: reads no longer return it.
    End,
    /// The oldest or the newest of the stored events is retracted: reads no longer return it.
    RetractOldest,
    RetractNewest,
    /// Too many events are pending.
    Overflow,
    /// The client connects while the history cannot be read.
    ComeBlind,
}

const STEPS: [Step; 14] = [
    Step::Publish(Kind::Stored),
    Step::Publish(Kind::Passing),
    Step::Publish(Kind::Erased),
    Step::Receive,
    Step::Lose,
    Step::Come,
    Step::Read,
    Step::Send,
    Step::Compare,
    Step::End,
    Step::RetractOldest,
    Step::RetractNewest,
    Step::Overflow,
    Step::ComeBlind,
];

/// Bounds of the model.
#[derive(Debug, Clone, Copy)]
struct Size {
    stored: usize,
    passing: usize,
    losses: usize,
    page: usize,
    ends: usize,
    retractions: usize,
    overflows: usize,
    erasures: usize,
    blind: bool,
}

const NOTHING: Size = Size {
    stored: 0,
    passing: 0,
    losses: 0,
    page: 9,
    ends: 0,
    retractions: 0,
    overflows: 0,
    erasures: 0,
    blind: false,
};

/// What was read for the client.
#[derive(Debug, Clone)]
struct Reading {
    /// `None`: the position is of an earlier epoch.
    page: Option<CatchUpPage>,
    from: Cursor,
    newest: Cursor,
    /// The index of the newest event that was stored.
    newest_index: Option<usize>,
}

#[derive(Debug, Clone)]
struct World {
    size: Size,
    /// In the order of publishing.
    published: Vec<Kind>,
    /// How many of them the instance has received or lost.
    received: usize,
    /// The events that were not received.
    lost: Vec<usize>,
    losses: usize,
    /// Set by `Lose`: the instance must compare.
    missed: bool,
    catch_up: Option<CatchUp>,
    /// Whether the client has its welcome.
    greeted: bool,
    reading: Option<Reading>,
    /// The events sent to the client, by index in the order of publishing.
    sent: Vec<usize>,
    /// Those of them that were sent as replayed.
    marked: Vec<usize>,
    /// The newest event that was stored when the history was read for the welcome.
    counted: Option<usize>,
    /// How many events had been received when the client connected.
    came: usize,
    /// The index from which on the client must have every stored event.
    since: usize,
    /// How many stored events have expired.
    ended: usize,
    /// Each retracted event, and the notice of that.
    retracted: Vec<(usize, usize)>,
    overflows: usize,
}

impl World {
    fn new(size: Size) -> Self {
        Self {
            size,
            published: Vec::new(),
            received: 0,
            lost: Vec::new(),
            losses: 0,
            missed: false,
            catch_up: None,
            greeted: false,
            reading: None,
            sent: Vec::new(),
            marked: Vec::new(),
            counted: None,
            came: 0,
            since: 0,
            ended: 0,
            retracted: Vec::new(),
            overflows: 0,
        }
    }

    fn count(&self, kind: Kind) -> usize {
        self.published.iter().filter(|other| **other == kind).count()
    }

    /// When the history was erased.
    fn erased_at(&self) -> Option<usize> {
        self.published.iter().position(|kind| *kind == Kind::Erased)
    }

    /// The position before the first event.
    fn start(&self) -> Cursor {
        match self.erased_at() {
            None => Cursor { epoch: EPOCH, ms: 1_000, number: 0 },
            Some(_) => Cursor { epoch: NEXT_EPOCH, ms: 5_000, number: 0 },
        }
    }

    /// All events that were ever stored, with their cursors.
    fn ever_stored(&self) -> Vec<(Cursor, usize)> {
        let mut next = Cursor { epoch: EPOCH, ms: 1_000, number: 0 };
        let mut stored = Vec::new();
        for (index, kind) in self.published.iter().enumerate() {
            match kind {
                Kind::Stored => {
                    next.number += 1;
                    stored.push((Cursor { ms: next.ms + next.number / 2, ..next }, index));
                }
                Kind::Erased => next = self.start(),
                Kind::Passing | Kind::Retracted => {}
            }
        }
        stored
    }

    /// The stored events with their cursors.
    fn store(&self) -> Vec<(Cursor, usize)> {
        let epoch = self.start().epoch;
        self.ever_stored().into_iter().filter(|(cursor, _)| cursor.epoch == epoch).collect()
    }

    /// The stored events that reads return.
    fn kept(&self) -> Vec<(Cursor, usize)> {
        let is_kept = |(_, index): &(Cursor, usize)| !self.retracted.iter().any(|(retracted, _)| retracted == index);
        self.store().into_iter().skip(self.ended).filter(is_kept).collect()
    }

    fn retract(&mut self, kept: Option<(Cursor, usize)>) {
        if let Some((_, index)) = kept {
            self.retracted.push((index, self.published.len()));
            self.published.push(Kind::Retracted);
        }
    }

    fn newest(&self) -> Cursor {
        self.store().last().map_or(self.start(), |(cursor, _)| *cursor)
    }

    fn is_enabled(&self, step: Step) -> bool {
        match step {
            Step::Publish(Kind::Stored) => self.count(Kind::Stored) < self.size.stored,
            Step::Publish(Kind::Passing) => self.count(Kind::Passing) < self.size.passing,
            // By the steps that retract.
            Step::Publish(Kind::Retracted) => false,
            Step::RetractOldest => self.retracted.len() < self.size.retractions && !self.kept().is_empty(),
            // Of one event, the other step.
            Step::RetractNewest => self.retracted.len() < self.size.retractions && self.kept().len() > 1,
            Step::Publish(Kind::Erased) => self.count(Kind::Erased) < self.size.erasures,
            Step::Receive => self.received < self.published.len(),
            Step::Lose => self.losses < self.size.losses,
            Step::Come => self.catch_up.is_none(),
            Step::ComeBlind => self.catch_up.is_none() && self.size.blind,
            Step::End => self.ended < self.size.ends.min(self.count(Kind::Stored)),
            Step::Overflow => {
                self.overflows < self.size.overflows && self.catch_up.as_ref().is_some_and(CatchUp::is_pending)
            }
            Step::Read => {
                // The connecting client starts the first read.
                self.reading.is_none() && self.catch_up.as_ref().is_some_and(CatchUp::is_pending)
            }
            // A read that finds another epoch waits for the notice of an erasure.
            Step::Send => self.reading.as_ref().is_some_and(|reading| {
                reading.page.is_some() || !self.greeted || self.erased_at().is_none_or(|at| at < self.received)
            }),
            Step::Compare => self.missed && self.catch_up.is_some(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Publish(kind) => self.published.push(kind),
            Step::Receive => {
                self.receive(self.received);
                self.received += 1;
            }
            Step::Lose => {
                self.lost.extend(self.received..self.published.len());
                self.received = self.published.len();
                self.losses += 1;
                self.missed = true;
            }
            Step::Come => {
                let mut catch_up = CatchUp::new();
                catch_up.pause();
                self.catch_up = Some(catch_up);
                self.came = self.received;
            }
            Step::ComeBlind => {
                let mut catch_up = CatchUp::new();
                catch_up.pause();
                assert!(catch_up.replay_unread().events.is_empty());
                self.catch_up = Some(catch_up);
                self.greeted = true;
                (self.came, self.since) = (self.received, self.published.len());
            }
            Step::End => self.ended += 1,
            Step::RetractOldest => self.retract(self.kept().first().copied()),
            Step::RetractNewest => self.retract(self.kept().last().copied()),
            Step::Overflow => {
                if let Some(catch_up) = &mut self.catch_up {
                    // The events that are not stored are lost.
                    let pending = catch_up.pending.as_ref().map(|pending| pending.events.clone()).unwrap_or_default();
                    let passing = pending.iter().filter(|(cursor, _)| cursor.is_none());
                    self.lost.extend(passing.map(|(_, event)| index_of(event)));
                    catch_up.drop_pending();
                }
                self.overflows += 1;
            }
            Step::Read => self.read(),
            Step::Send => self.send(),
            Step::Compare => {
                let newest = self.newest();
                if let Some(catch_up) = &mut self.catch_up {
                    catch_up.compare(&newest);
                }
                self.missed = false;
            }
        }
    }

    fn send(&mut self) {
        let (Some(catch_up), Some(reading)) = (&mut self.catch_up, self.reading.take()) else { return };
        let Reading { page, from, newest, newest_index } = reading;
        if !self.greeted {
            self.greeted = true;
            self.counted = newest_index;
            if page.is_none() {
                // The client's position was erased: it starts at the newest.
                self.since = newest_index.map_or(0, |index| index + 1);
            }
            catch_up.begin_at(from, newest);
        } else if page.is_none() {
            return assert!(catch_up.discard_reading(), "it would be told that events are lost");
        }
        let nothing = CatchUpPage { events: Vec::new(), upto: newest, complete: true, dialect: Dialect::Raw };
        let replayed = catch_up.replay(page.unwrap_or(nothing));
        // One of the earlier epoch may arrive after the client began in the next one.
        assert!(replayed.foreign == 0 || self.erased_at().is_some(), "all of it is ours");
        for ReplayedEvent { bytes, is_unmarked, .. } in &replayed.events {
            let index = index_of(bytes);
            self.sent.push(index);
            if *is_unmarked || bytes.starts_with(b"r") {
                self.marked.push(index);
            }
            self.check_last();
        }
    }

    fn receive(&mut self, index: usize) {
        let cursor = self.ever_stored().into_iter().find(|(_, stored)| *stored == index).map(|(cursor, _)| cursor);
        let start = self.start();
        let Some(catch_up) = &mut self.catch_up else { return };
        if self.published.get(index) == Some(&Kind::Erased) {
            if !catch_up.erase(start) {
                // The client began after the erasure.
                return self.lost.push(index);
            }
            if self.greeted {
                self.sent.extend(catch_up.take_passing().iter().map(index_of));
                return self.sent.push(index);
            }
        }
        let event = Bytes::from(index.to_string());
        match cursor.filter(|_| !catch_up.is_pending()).map(|cursor| (cursor, catch_up.followed_by(&cursor))) {
            _ if catch_up.is_pending() => catch_up.add_pending(cursor, event),
            None => self.sent.push(index),
            Some((_, Continuity::Known)) => {}
            Some((cursor, Continuity::Next)) => {
                catch_up.set(Position::At(cursor));
                self.sent.push(index);
            }
            Some((cursor, Continuity::Gap)) => {
                catch_up.fall_behind();
                catch_up.add_pending(Some(cursor), event);
            }
        }
    }

    fn read(&mut self) {
        let (store, kept, newest, start) = (self.store(), self.kept(), self.newest(), self.start());
        let Some(catch_up) = &mut self.catch_up else { return };
        let from = match catch_up.position {
            // It resumes from before the first event.
            _ if !self.greeted => Cursor { epoch: EPOCH, ms: 1_000, number: 0 },
            Position::At(position) => position,
            Position::Since(_) => {
                let before = store.iter().rev().find(|(_, index)| *index < self.since);
                before.map_or(start, |(cursor, _)| *cursor)
            }
        };
        let replaying = if self.greeted { catch_up.replaying() } else { Some(newest) };
        if self.greeted {
            catch_up.begin_reading();
        }
        let newest_index = store.last().map(|(_, index)| *index);
        if from.epoch != newest.epoch {
            self.reading = Some(Reading { page: None, from: newest, newest, newest_index });
            return;
        }
        let mut rest = kept.into_iter().filter(|(at, _)| at.number > from.number);
        let page: Vec<_> = rest.by_ref().take(self.size.page).collect();
        // Behind those at the end that reads do not return.
        let last = page.last().map_or(from, |(cursor, _)| *cursor);
        let upto = if rest.next().is_none() && newest.number > last.number { newest } else { last };
        let is_replayed = |cursor: &Cursor| replaying.is_some_and(|upto| upto.followed_by(cursor) == Continuity::Known);
        let text =
            |cursor: &Cursor, index: usize| if is_replayed(cursor) { format!("r{index}") } else { index.to_string() };
        let events = page.into_iter().map(|(cursor, index)| (cursor, Bytes::from(text(&cursor, index)))).collect();
        let page = Some(CatchUpPage { events, upto, complete: !upto.is_behind(&newest), dialect: Dialect::Raw });
        self.reading = Some(Reading { page, from, newest, newest_index });
    }

    /// Runs all remaining steps.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let wanted = [Step::Come, Step::Send, Step::Read, Step::Receive, Step::Compare];
            match wanted.into_iter().find(|step| self.is_enabled(*step)) {
                Some(step) => self.take(step),
                None => return,
            }
        }
        panic!("it never ends: {self:?}");
    }

    /// Without losses, expiries, retractions and failed reads, all received events have one order.
    fn is_simple(&self) -> bool {
        let all_is_there = self.ended == 0 && self.retracted.is_empty() && self.erased_at().is_none();
        self.losses == 0 && self.overflows == 0 && self.since == 0 && all_is_there
    }

    /// All events received before the last one sent were sent before it.
    fn check_last(&self) {
        let last = *self.sent.last().unwrap();
        let earlier = (self.came..last.min(self.received)).filter(|index| !self.lost.contains(index));
        let missing: Vec<usize> = earlier.filter(|index| !self.sent.contains(index)).collect();
        assert!(
            last >= self.received || !self.is_simple() || missing.is_empty(),
            "{missing:?} come behind {last}: {self:?}"
        );
    }

    /// The events that the welcome counts are marked, and no others.
    fn check_marks(&self, got: &[usize]) {
        let counted = |index: &usize| self.counted.is_some_and(|newest| *index <= newest);
        let expected: Vec<usize> = got.iter().copied().filter(counted).collect();
        assert_eq!(self.marked, expected, "replayed: {self:?}");
    }

    /// The notice of a retraction does not come before the event.
    fn check_retractions(&self) {
        let at = |index: &usize| self.sent.iter().position(|sent| sent == index);
        let overtaken = self.retracted.iter().find(|(event, notice)| at(notice).is_some() && at(notice) < at(event));
        assert_eq!(overtaken, None, "retracted before it was sent: {self:?}");
    }

    /// The guarantees to a client.
    fn check(&self) {
        let stored: Vec<usize> = self.ever_stored().into_iter().map(|(_, index)| index).collect();
        let (got, passing): (Vec<usize>, Vec<usize>) = self.sent.iter().partition(|index| stored.contains(index));
        assert!(got.is_sorted_by(|a, b| a < b), "once, in order: {self:?}");
        let due: Vec<usize> =
            self.kept().iter().map(|(_, index)| *index).filter(|index| *index >= self.since).collect();
        let missing: Vec<&usize> = due.iter().filter(|index| !got.contains(index)).collect();
        assert!(missing.is_empty(), "every stored one, but not {missing:?}: {self:?}");
        let received = |index: &usize| *index >= self.came && !self.lost.contains(index) && !stored.contains(index);
        let expected: Vec<usize> = (0..self.published.len()).filter(received).collect();
        assert_eq!(passing, expected, "every other received event, once, in order: {self:?}");
        self.check_marks(&got);
        self.check_retractions();
        if let Some(at) = self.sent.iter().position(|index| Some(*index) == self.erased_at()) {
            let after = self.sent.get(at..).unwrap_or_default();
            assert!(after.iter().all(|index| *index >= after[0]), "an erased event follows the notice: {self:?}");
            let before = self.sent.get(..at).unwrap_or_default();
            assert!(before.iter().all(|index| *index < after[0]), "a later event precedes the notice: {self:?}");
        }
        if self.is_simple() {
            // The reverse is possible: a stored event is read while an older message is still in flight to the
            // instance.
            for (position, index) in self.sent.iter().enumerate().filter(|(_, index)| passing.contains(index)) {
                let before = self.sent.get(..position).unwrap_or_default();
                let older = stored.iter().all(|stored| stored > index || before.contains(stored));
                assert!(older, "a stored event is sent before all newer ones: {self:?}");
            }
        }
    }
}

fn index_of(event: &Bytes) -> usize {
    String::from_utf8_lossy(event).trim_start_matches('r').parse().unwrap()
}

/// Takes every step from every reachable state, each state once, and visits it; returns the number of states.
fn explore(size: Size, visit: impl Fn(&World)) -> usize {
    let (mut seen, mut open) = (HashSet::new(), vec![World::new(size)]);
    while let Some(world) = open.pop() {
        if !seen.insert(format!("{world:?}")) {
            continue;
        }
        visit(&world);
        let mut end = world.clone();
        end.settle();
        end.check();
        for step in STEPS.into_iter().filter(|step| world.is_enabled(*step)) {
            let mut next = world.clone();
            next.take(step);
            open.push(next);
        }
    }
    seen.len()
}

#[test]
fn no_interleaving_loses_repeats_or_swaps_an_event() {
    for page in [1, 2, 9] {
        let small = Size { page, ..NOTHING };
        for size in [
            Size { stored: 3, passing: 2, ..small },
            Size { stored: 3, passing: 1, losses: 1, ..small },
            Size { stored: 6, passing: 1, ..small },
            Size { stored: 3, ends: 2, losses: 1, ..small },
            Size { stored: 3, passing: 1, overflows: 1, ..small },
            Size { stored: 2, passing: 1, ends: 1, overflows: 1, blind: true, ..small },
            Size { stored: 2, losses: 1, overflows: 1, ..small },
            Size { stored: 3, retractions: 2, ..small },
            Size { stored: 2, passing: 1, retractions: 1, ..small },
            Size { stored: 2, retractions: 1, losses: 1, ..small },
            Size { stored: 2, retractions: 1, ends: 1, overflows: 1, ..small },
            Size { stored: 2, passing: 1, retractions: 1, blind: true, ..small },
            Size { stored: 2, retractions: 1, erasures: 1, ..small },
            Size { stored: 2, passing: 1, erasures: 1, ..small },
            Size { stored: 2, passing: 1, erasures: 1, overflows: 1, ..small },
        ] {
            let states = explore(size, |_| {});
            assert!(states > 500, "{states} of {size:?}");
        }
    }
}

/// A server that lacks some of the newest takes over, and stores others: the instance compares the client with it. A page
/// of the first server may still be in flight.
fn fork(world: &World, lacks: usize, more: u64) {
    let Some(catch_up) = &world.catch_up else { return };
    let mut catch_up = catch_up.clone();
    let number = world.count(Kind::Stored).saturating_sub(lacks) as u64 + more;
    let newest = Cursor { epoch: NonZeroU64::MAX, ms: 1_000 + number / 2 + lacks as u64, number };
    catch_up.compare(&newest);
    if let Some(Reading { page: Some(page), from, newest, .. }) = world.reading.clone() {
        if !world.greeted {
            catch_up.begin_at(from, newest);
        }
        catch_up.replay(page);
    }
    // Its read finds that its position is of another epoch.
    assert!(catch_up.is_pending(), "it is not told: {lacks} {more} {world:?}");
}

#[test]
fn a_client_of_a_forked_lineage_is_behind_wherever_it_was_interrupted() {
    for size in
        [Size { stored: 3, passing: 1, losses: 1, page: 2, ..NOTHING }, Size { stored: 2, blind: true, ..NOTHING }]
    {
        let states = explore(size, |world| {
            for (lacks, more) in [(1, 1), (1, 2), (2, 1), (2, 3), (0, 1)] {
                fork(world, lacks, more);
            }
        });
        assert!(states > 30, "{states}");
    }
}

proptest! {
    #[test]
    fn no_long_run_loses_repeats_or_swaps_an_event(
        steps in proptest::collection::vec(prop::sample::select(STEPS.to_vec()), 0..200),
        page in 1_usize..5,
        losses in 0_usize..4,
        ends in 0_usize..20,
        retractions in 0_usize..40,
        overflows in 0_usize..4,
        blind in any::<bool>(),
    ) {
        // The notice may be lost with the subscription: then the client is told that events are lost.
        let erasures = usize::from(losses == 0);
        let mut world = World::new(Size { stored: 60, passing: 60, losses, page, ends, retractions, overflows, erasures, blind });
        for step in steps {
            if world.is_enabled(step) {
                world.take(step);
            }
        }
        world.settle();
        world.check();
    }
}

#[test]
fn an_event_that_the_history_does_not_have_is_dropped_and_delays_no_other() {
    let mut world = World::new(Size { stored: 3, passing: 1, ..NOTHING });
    for step in [Step::Publish(Kind::Stored), Step::Come, Step::Read, Step::Send, Step::Receive] {
        world.take(step);
    }
    let catch_up = world.catch_up.as_mut().unwrap();
    let forged = Cursor { epoch: EPOCH, ms: 9_000, number: 77 };
    assert_eq!(catch_up.followed_by(&forged), Continuity::Gap);
    catch_up.fall_behind();
    catch_up.add_pending(Some(forged), Bytes::from_static(b"77"));
    catch_up.add_pending(None, Bytes::from_static(b"1"));
    let Position::At(position) = catch_up.begin_reading() else { panic!("it has a position") };
    let replayed =
        catch_up.replay(CatchUpPage { events: Vec::new(), upto: position, complete: true, dialect: Dialect::Raw });
    assert_eq!(replayed, Replayed { events: vec![ReplayedEvent::passing(Bytes::from_static(b"1"))], foreign: 1 });
    assert!(!catch_up.is_pending());
}

#[test]
fn a_pending_event_that_was_taken_back_before_the_history_was_read_is_not_sent() {
    let at = |number| Cursor { epoch: EPOCH, ms: 1_000 + number, number };
    let event = |number: u64| Bytes::from(number.to_string());
    let mut catch_up = CatchUp::new();
    catch_up.pause();
    // The instance receives 1 to 4 only now, though 2 and 4 were taken back before the client came.
    (1..=4).for_each(|number| catch_up.add_pending(Some(at(number)), event(number)));
    catch_up.begin_at(at(0), at(4));
    let events = vec![(at(1), event(1)), (at(3), event(3))];
    let replayed = catch_up.replay(CatchUpPage { events, upto: at(4), complete: true, dialect: Dialect::Raw });
    let sent: Vec<_> = replayed.events.iter().map(|event| event.bytes.clone()).collect();
    assert_eq!(sent, [event(1), event(3)]);
    assert!(!catch_up.is_pending() && catch_up.followed_by(&at(5)) == Continuity::Next);
}

#[test]
fn another_epoch_with_the_same_newest_event_causes_no_catch_up() {
    let position = Cursor { epoch: EPOCH, ms: 1_000, number: 5 };
    let mut catch_up = CatchUp::new();
    catch_up.set(Position::At(position));
    let epoch = NonZeroU64::MAX;
    assert!(!catch_up.compare(&Cursor { epoch, ..position }));
    assert_eq!(catch_up.followed_by(&Cursor { epoch, ms: 1_001, number: 6 }), Continuity::Next);
    assert!(catch_up.compare(&Cursor { epoch, ms: 1_001, number: 6 }) && catch_up.wants_reading());
}

#[test]
fn a_client_with_an_entry_that_redis_lost_is_behind_at_once_and_one_without_at_the_next_event() {
    let lost = Cursor { epoch: NonZeroU64::MAX, ms: 9_000, number: 0 };
    for (number, behind) in [(5, true), (0, false)] {
        let mut catch_up = CatchUp::new();
        catch_up.set(Position::At(Cursor { epoch: EPOCH, ms: 1_000, number }));
        assert_eq!(catch_up.followed_by(&Cursor { number: 1, ..lost }), Continuity::Gap);
        assert_eq!((catch_up.compare(&lost), catch_up.wants_reading()), (behind, behind));
        assert!(!catch_up.compare(&Cursor { epoch: EPOCH, ..lost }), "it has expired by its ttl");
    }
}

#[test]
fn a_client_that_connected_while_the_history_was_unreadable_is_behind_once_an_event_is_stored() {
    let mut catch_up = CatchUp::new();
    catch_up.pause();
    catch_up.add_pending(None, Bytes::from_static(b"0"));
    assert_eq!(catch_up.replay_unread().events.len(), 1);
    let newest = Cursor { epoch: EPOCH, ms: 1_000, number: 1 };
    assert_eq!(catch_up.followed_by(&newest), Continuity::Gap);
    assert!(!catch_up.compare(&Cursor { number: 0, ..newest }) && !catch_up.is_pending());
    assert!(catch_up.compare(&newest) && catch_up.wants_reading());
}

#[test]
fn a_client_is_at_the_newest_position_once_it_has_every_event_up_to_it_and_none_is_pending() {
    let at = |number| Cursor { epoch: EPOCH, ms: number, number };
    let mut client = CatchUp::new();
    assert!(!client.is_at(&at(3)));
    client.set(Position::At(at(3)));
    assert!(client.is_at(&at(3)) && !client.is_at(&at(2)) && !client.is_at(&at(4)));
    assert!(client.compare(&at(4)), "it is behind");
    assert!(!client.is_at(&at(3)));
}
