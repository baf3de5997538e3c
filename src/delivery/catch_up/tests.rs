//! The seam between what is read and what comes live: every interleaving of publishing, hearing, coming, reading and
//! sending that a small model has, and random ones of a larger.

use std::collections::HashSet;
use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;

const EPOCH: NonZeroU64 = NonZeroU64::MIN;

/// What is published: stored, or not; each is named by its position in the order of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Stored,
    Passing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Publish(Kind),
    /// The instance hears the next message of the channel.
    Hear,
    /// The instance loses its subscription, with what is on its way, and has another.
    Lose,
    /// The client comes, and resumes from before the first.
    Come,
    /// A page is read behind the client's position.
    Read,
    /// What was read is sent.
    Send,
    /// The instance compares the client with the newest stored.
    Compare,
    /// The oldest stored one ends by its own ttl: whoever reads does not find it any more.
    End,
    /// Too much waits.
    Overflow,
    /// The client comes while the history cannot be read.
    ComeBlind,
}

const STEPS: [Step; 11] = [
    Step::Publish(Kind::Stored),
    Step::Publish(Kind::Passing),
    Step::Hear,
    Step::Lose,
    Step::Come,
    Step::Read,
    Step::Send,
    Step::Compare,
    Step::End,
    Step::Overflow,
    Step::ComeBlind,
];

/// How large the model may grow.
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
    /// How many of them the instance has heard, or lost.
    heard: usize,
    /// Those that were not heard.
    lost: Vec<usize>,
    losses: usize,
    /// Set by `Lose`: the instance owes a comparison.
    missed: bool,
    catch_up: Option<CatchUp>,
    page: Option<CatchUpPage>,
    /// What the client was sent, by position in the order of publishing.
    sent: Vec<usize>,
    /// How much had been heard when the client came.
    came: usize,
    /// From where in the order of publishing on it must have everything stored.
    since: usize,
    /// So many of the stored ones have ended.
    ended: usize,
    overflows: usize,
}

impl World {
    fn new(size: Size) -> Self {
        Self {
            size,
            published: Vec::new(),
            heard: 0,
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

    /// The stored ones, with their cursors.
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
            Step::Hear => self.heard < self.published.len(),
            Step::Lose => self.losses < self.size.losses,
            Step::Come => self.catch_up.is_none(),
            Step::ComeBlind => self.catch_up.is_none() && self.size.blind,
            Step::End => self.ended < self.size.ends.min(self.count(Kind::Stored)),
            Step::Overflow => {
                self.overflows < self.size.overflows && self.catch_up.as_ref().is_some_and(CatchUp::is_pending)
            }
            Step::Read => {
                // The first is begun by whoever comes.
                self.page.is_none() && self.catch_up.as_ref().is_some_and(CatchUp::is_pending)
            }
            Step::Send => self.page.is_some(),
            Step::Compare => self.missed && self.catch_up.is_some(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Publish(kind) => self.published.push(kind),
            Step::Hear => {
                self.hear(self.heard);
                self.heard += 1;
            }
            Step::Lose => {
                self.lost.extend(self.heard..self.published.len());
                self.heard = self.published.len();
                self.losses += 1;
                self.missed = true;
            }
            Step::Come => {
                let mut catch_up = CatchUp::new();
                catch_up.set(Position::At(Cursor { epoch: EPOCH, ms: 1_000, number: 0 }));
                catch_up.pause();
                self.catch_up = Some(catch_up);
                self.came = self.heard;
            }
            Step::ComeBlind => {
                let mut catch_up = CatchUp::new();
                catch_up.pause();
                assert!(catch_up.replay_unread().events.is_empty());
                self.catch_up = Some(catch_up);
                (self.came, self.since) = (self.heard, self.published.len());
            }
            Step::End => self.ended += 1,
            Step::Overflow => {
                if let Some(catch_up) = &mut self.catch_up {
                    // What is not stored is lost with it.
                    let pending = catch_up.pending.as_ref().map(|pending| pending.events.clone()).unwrap_or_default();
                    let passing = pending.iter().filter(|(cursor, _)| cursor.is_none());
                    self.lost.extend(passing.map(|(_, event)| index_of(event)));
                    catch_up.forget();
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

    fn hear(&mut self, index: usize) {
        let cursor = self.store().into_iter().find(|(_, stored)| *stored == index).map(|(cursor, _)| cursor);
        let Some(catch_up) = &mut self.catch_up else { return };
        let event = Bytes::from(index.to_string());
        match cursor.filter(|_| !catch_up.is_pending()).map(|cursor| (cursor, catch_up.followed_by(&cursor))) {
            _ if catch_up.is_pending() => catch_up.wait(cursor, event),
            None => self.sent.push(index),
            Some((_, Continuity::Known)) => {}
            Some((cursor, Continuity::Next)) => {
                catch_up.set(Position::At(cursor));
                self.sent.push(index);
            }
            Some((cursor, Continuity::Gap)) => {
                catch_up.fall_behind();
                catch_up.wait(Some(cursor), event);
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

    /// Lets everything come to its end.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let wanted = [Step::Come, Step::Send, Step::Read, Step::Hear, Step::Compare];
            match wanted.into_iter().find(|step| self.is_enabled(*step)) {
                Some(step) => self.take(step),
                None => return,
            }
        }
        panic!("it never ends: {self:?}");
    }

    /// Nothing was lost, ended or unreadable: then there is one order for all that was heard.
    fn is_simple(&self) -> bool {
        self.losses == 0 && self.overflows == 0 && self.since == 0 && self.ended == 0
    }

    /// Whatever had been heard before the last that was sent has been sent before it.
    fn check_last(&self) {
        let last = *self.sent.last().unwrap();
        let earlier = (self.came..last.min(self.heard)).filter(|index| !self.lost.contains(index));
        let missing: Vec<usize> = earlier.filter(|index| !self.sent.contains(index)).collect();
        assert!(
            last >= self.heard || !self.is_simple() || missing.is_empty(),
            "{missing:?} come behind {last}: {self:?}"
        );
    }

    /// What a client may count on.
    fn check(&self) {
        let stored: Vec<usize> = self.store().into_iter().map(|(_, index)| index).collect();
        let (got, passing): (Vec<usize>, Vec<usize>) = self.sent.iter().partition(|index| stored.contains(index));
        assert!(got.is_sorted_by(|a, b| a < b), "once, in order: {self:?}");
        let due: Vec<usize> = stored.iter().copied().skip(self.ended).filter(|index| *index >= self.since).collect();
        let missing: Vec<&usize> = due.iter().filter(|index| !got.contains(index)).collect();
        assert!(missing.is_empty(), "every stored one, but not {missing:?}: {self:?}");
        let heard = |index: &usize| *index >= self.came && !self.lost.contains(index) && !stored.contains(index);
        let expected: Vec<usize> = (0..self.published.len()).filter(heard).collect();
        assert_eq!(passing, expected, "every other one that was heard, once, in order: {self:?}");
        if self.is_simple() {
            // The other way round may be: a stored one is read while an older one is still on its way to the instance.
            for (position, index) in self.sent.iter().enumerate().filter(|(_, index)| passing.contains(index)) {
                let before = self.sent.get(..position).unwrap_or_default();
                let older = stored.iter().all(|stored| stored > index || before.contains(stored));
                assert!(older, "what is stored comes before anything newer: {self:?}");
            }
        }
    }
}

fn index_of(event: &Bytes) -> usize {
    String::from_utf8_lossy(event).parse().unwrap()
}

/// Takes every step from every state that can be reached, each state once; gives how many there are.
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
fn an_event_that_the_history_does_not_have_is_dropped_and_holds_nobody_up() {
    let mut world = World::new(Size { stored: 3, passing: 1, ..NOTHING });
    for step in [Step::Publish(Kind::Stored), Step::Come, Step::Read, Step::Send, Step::Hear] {
        world.take(step);
    }
    let catch_up = world.catch_up.as_mut().unwrap();
    let forged = Cursor { epoch: EPOCH, ms: 9_000, number: 77 };
    assert_eq!(catch_up.followed_by(&forged), Continuity::Gap);
    catch_up.fall_behind();
    catch_up.wait(Some(forged), Bytes::from_static(b"77"));
    catch_up.wait(None, Bytes::from_static(b"1"));
    let Position::At(position) = catch_up.begin_reading() else { panic!("it has a position") };
    let replayed = catch_up.replay(CatchUpPage { events: Vec::new(), upto: position, complete: true });
    assert_eq!(replayed, Replayed { events: vec![(false, Bytes::from_static(b"1"))], foreign: 1 });
    assert!(!catch_up.is_pending());
}

#[test]
fn another_epoch_with_the_same_newest_event_disturbs_nobody() {
    let position = Cursor { epoch: EPOCH, ms: 1_000, number: 5 };
    let mut catch_up = CatchUp::new();
    catch_up.set(Position::At(position));
    let epoch = NonZeroU64::MAX;
    assert!(!catch_up.compare(&Cursor { epoch, ..position }));
    assert_eq!(catch_up.followed_by(&Cursor { epoch, ms: 1_001, number: 6 }), Continuity::Next);
    assert!(catch_up.compare(&Cursor { epoch, ms: 1_001, number: 6 }) && catch_up.wants_reading());
}

#[test]
fn who_knew_what_redis_lost_is_behind_at_once_and_who_knew_nothing_with_the_next_event() {
    let lost = Cursor { epoch: NonZeroU64::MAX, ms: 9_000, number: 0 };
    for (number, behind) in [(5, true), (0, false)] {
        let mut catch_up = CatchUp::new();
        catch_up.set(Position::At(Cursor { epoch: EPOCH, ms: 1_000, number }));
        assert_eq!(catch_up.followed_by(&Cursor { number: 1, ..lost }), Continuity::Gap);
        assert_eq!((catch_up.compare(&lost), catch_up.wants_reading()), (behind, behind));
        assert!(!catch_up.compare(&Cursor { epoch: EPOCH, ..lost }), "it has ended by its ttl");
    }
}

#[test]
fn who_came_while_the_history_could_not_be_read_is_behind_as_soon_as_there_is_one() {
    let mut catch_up = CatchUp::new();
    catch_up.pause();
    catch_up.wait(None, Bytes::from_static(b"0"));
    assert_eq!(catch_up.replay_unread().events.len(), 1);
    let newest = Cursor { epoch: EPOCH, ms: 1_000, number: 1 };
    assert_eq!(catch_up.followed_by(&newest), Continuity::Gap);
    assert!(!catch_up.compare(&Cursor { number: 0, ..newest }) && !catch_up.is_pending());
    assert!(catch_up.compare(&newest) && catch_up.wants_reading());
}
