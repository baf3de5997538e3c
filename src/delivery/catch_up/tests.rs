//! The seam between the history read and live events: every interleaving of publishing, receiving, connecting, reading
//! and sending in a small model, and random interleavings in a larger one.

use std::collections::HashSet;
use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;

const EPOCH: NonZeroU64 = NonZeroU64::MIN;

/// A published event, stored or not. Its index in the order of publishing identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Stored,
    Passing,
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
    /// Too many events are pending.
    Overflow,
    /// The client connects while the history cannot be read.
    ComeBlind,
}

const STEPS: [Step; 11] = [
    Step::Publish(Kind::Stored),
    Step::Publish(Kind::Passing),
    Step::Receive,
    Step::Lose,
    Step::Come,
    Step::Read,
    Step::Send,
    Step::Compare,
    Step::End,
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
    overflows: usize,
    blind: bool,
}

const NOTHING: Size = Size { stored: 0, passing: 0, losses: 0, page: 9, ends: 0, overflows: 0, blind: false };

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
    page: Option<CatchUpPage>,
    /// The events sent to the client, by index in the order of publishing.
    sent: Vec<usize>,
    /// How many events had been received when the client connected.
    came: usize,
    /// The index from which on the client must have every stored event.
    since: usize,
    /// How many stored events have expired.
    ended: usize,
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
            page: None,
            sent: Vec::new(),
            came: 0,
            since: 0,
            ended: 0,
            overflows: 0,
        }
    }

    fn count(&self, kind: Kind) -> usize {
        self.published.iter().filter(|other| **other == kind).count()
    }

    /// The stored events with their cursors.
    fn store(&self) -> Vec<(Cursor, usize)> {
        let stored = self.published.iter().enumerate().filter(|(_, kind)| **kind == Kind::Stored);
        let cursor = |number: u64| Cursor { epoch: EPOCH, ms: 1_000 + number / 2, number };
        (1..).zip(stored).map(|(number, (index, _))| (cursor(number), index)).collect()
    }

    fn newest(&self) -> Cursor {
        self.store().last().map_or(Cursor { epoch: EPOCH, ms: 1_000, number: 0 }, |(cursor, _)| *cursor)
    }

    fn is_enabled(&self, step: Step) -> bool {
        match step {
            Step::Publish(Kind::Stored) => self.count(Kind::Stored) < self.size.stored,
            Step::Publish(Kind::Passing) => self.count(Kind::Passing) < self.size.passing,
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
                self.page.is_none() && self.catch_up.as_ref().is_some_and(CatchUp::is_pending)
            }
            Step::Send => self.page.is_some(),
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
                catch_up.set(Position::At(Cursor { epoch: EPOCH, ms: 1_000, number: 0 }));
                catch_up.pause();
                self.catch_up = Some(catch_up);
                self.came = self.received;
            }
            Step::ComeBlind => {
                let mut catch_up = CatchUp::new();
                catch_up.pause();
                assert!(catch_up.replay_unread().events.is_empty());
                self.catch_up = Some(catch_up);
                (self.came, self.since) = (self.received, self.published.len());
            }
            Step::End => self.ended += 1,
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
            Step::Send => {
                if let (Some(catch_up), Some(page)) = (&mut self.catch_up, self.page.take()) {
                    let replayed = catch_up.replay(page);
                    assert_eq!(replayed.foreign, 0, "all of it is ours");
                    for (_, event) in &replayed.events {
                        self.sent.push(index_of(event));
                        self.check_last();
                    }
                }
            }
            Step::Compare => {
                let newest = self.newest();
                if let Some(catch_up) = &mut self.catch_up {
                    catch_up.compare(&newest);
                }
                self.missed = false;
            }
        }
    }

    fn receive(&mut self, index: usize) {
        let cursor = self.store().into_iter().find(|(_, stored)| *stored == index).map(|(cursor, _)| cursor);
        let Some(catch_up) = &mut self.catch_up else { return };
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
        let (store, newest) = (self.store(), self.newest());
        let Some(catch_up) = &mut self.catch_up else { return };
        let from = match catch_up.begin_reading() {
            Position::At(position) => position,
            Position::Since(_) => {
                let before = store.iter().rev().find(|(_, index)| *index < self.since);
                before.map_or(Cursor { epoch: EPOCH, ms: 1_000, number: 0 }, |(cursor, _)| *cursor)
            }
        };
        let page: Vec<_> = store.into_iter().filter(|(at, _)| at.number > from.number).take(self.size.page).collect();
        let upto = page.last().map_or(from, |(cursor, _)| *cursor);
        let there = page.into_iter().filter(|(cursor, _)| cursor.number > self.ended as u64);
        let events = there.map(|(cursor, index)| (cursor, Bytes::from(index.to_string()))).collect();
        self.page = Some(CatchUpPage { events, upto, complete: !upto.is_behind(&newest) });
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

    /// Without losses, expiries and failed reads, all received events have one order.
    fn is_simple(&self) -> bool {
        self.losses == 0 && self.overflows == 0 && self.since == 0 && self.ended == 0
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

    /// The guarantees to a client.
    fn check(&self) {
        let stored: Vec<usize> = self.store().into_iter().map(|(_, index)| index).collect();
        let (got, passing): (Vec<usize>, Vec<usize>) = self.sent.iter().partition(|index| stored.contains(index));
        assert!(got.is_sorted_by(|a, b| a < b), "once, in order: {self:?}");
        let due: Vec<usize> = stored.iter().copied().skip(self.ended).filter(|index| *index >= self.since).collect();
        let missing: Vec<&usize> = due.iter().filter(|index| !got.contains(index)).collect();
        assert!(missing.is_empty(), "every stored one, but not {missing:?}: {self:?}");
        let received = |index: &usize| *index >= self.came && !self.lost.contains(index) && !stored.contains(index);
        let expected: Vec<usize> = (0..self.published.len()).filter(received).collect();
        assert_eq!(passing, expected, "every other received event, once, in order: {self:?}");
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
    String::from_utf8_lossy(event).parse().unwrap()
}

/// Takes every step from every reachable state, each state once; returns the number of states.
fn explore(size: Size) -> usize {
    let (mut seen, mut open) = (HashSet::new(), vec![World::new(size)]);
    while let Some(world) = open.pop() {
        if !seen.insert(format!("{world:?}")) {
            continue;
        }
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
        ] {
            let states = explore(size);
            assert!(states > 500, "{states} of {size:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_long_run_loses_repeats_or_swaps_an_event(
        steps in proptest::collection::vec(prop::sample::select(STEPS.to_vec()), 0..200),
        page in 1_usize..5,
        losses in 0_usize..4,
        ends in 0_usize..20,
        overflows in 0_usize..4,
        blind in any::<bool>(),
    ) {
        let mut world = World::new(Size { stored: 60, passing: 60, losses, page, ends, overflows, blind });
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
    let replayed = catch_up.replay(CatchUpPage { events: Vec::new(), upto: position, complete: true });
    assert_eq!(replayed, Replayed { events: vec![(false, Bytes::from_static(b"1"))], foreign: 1 });
    assert!(!catch_up.is_pending());
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
