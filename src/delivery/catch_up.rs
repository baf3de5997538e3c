//! A client's position in its user's stored history, and the events that are pending during catch-up.
//!
//! Stored events are delivered live as long as each follows the previous one. At a gap, all further events are pending,
//! the history is read from the client's position, and the pending events are sent after it. A client that resumes and
//! one that missed an event while connected are treated alike.

mod coverage;

use bytes::Bytes;
use tokio::time::Instant;

use crate::config::SendQueue as Bound;
use crate::protocol::{Continuity, Cursor, Dialect};
use coverage::Coverage;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The client has everything up to this cursor.
    At(Cursor),
    /// The history could not be read when the client connected: it has no event stored since.
    Since(Instant),
}

/// An event and, if it is stored, its position.
type PendingEvent = (Option<Cursor>, Bytes);

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
struct Pending {
    events: Vec<PendingEvent>,
    bytes: usize,
    reading: bool,
    /// How many events were pending when the read began: the read returns those of them that are stored.
    before_reading: usize,
    /// The newest stored position reported meanwhile: that event may be stored after the read, and be missed.
    newest: Option<Cursor>,
    /// The newest position of the client's welcome: events up to it are replayed.
    replaying: Option<Cursor>,
    /// Where the user's history was erased during the read, whose result is outdated then.
    erased: Option<Cursor>,
}

impl Pending {
    fn of(events: Vec<PendingEvent>, newest: Option<Cursor>, replaying: Option<Cursor>) -> Self {
        let bytes = events.iter().map(|(_, event)| event.len()).sum();
        Self { events, bytes, newest, replaying, ..Self::default() }
    }
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct CatchUp {
    position: Position,
    /// `None` while the client is caught up.
    pending: Option<Box<Pending>>,
}

/// A page of the history after a client's position.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct CatchUpPage {
    /// Encoded frames.
    pub events: Vec<(Cursor, Bytes)>,
    pub upto: Cursor,
    /// Whether the page reached the newest position.
    pub complete: bool,
    /// That of the frames.
    pub dialect: Dialect,
}

/// The history as it was read for a client's welcome.
#[derive(Debug)]
pub struct StartPage {
    /// The position from which the client starts.
    pub from: Cursor,
    /// Events up to this position are replayed.
    pub newest: Cursor,
    pub page: CatchUpPage,
}

/// An event to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplayedEvent {
    pub(super) bytes: Bytes,
    pub(super) stored: bool,
    /// It was encoded before it was known to be stored before the client's welcome.
    pub(super) is_unmarked: bool,
}

impl ReplayedEvent {
    fn stored(bytes: Bytes) -> Self {
        Self { bytes, stored: true, is_unmarked: false }
    }

    fn passing(bytes: Bytes) -> Self {
        Self { bytes, stored: false, is_unmarked: false }
    }
}

/// The events to send, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replayed {
    pub(super) events: Vec<ReplayedEvent>,
    /// Dropped events: the history does not have their positions, so tidings did not publish them.
    pub(super) foreign: usize,
}

impl CatchUp {
    pub(super) fn new() -> Self {
        Self { position: Position::Since(Instant::now()), pending: None }
    }

    /// Keeps all events pending until [`CatchUp::replay`]: the history is already being read.
    pub(super) fn pause(&mut self) {
        self.pending = Some(Box::new(Pending { reading: true, ..Pending::default() }));
    }

    pub(super) fn set(&mut self, position: Position) {
        self.position = position;
    }

    /// Ends the first read: the client starts at `from`, and its welcome counts the events up to `newest`.
    pub(super) fn begin_at(&mut self, from: Cursor, newest: Cursor) {
        let Some(pending) = &mut self.pending else { return self.set(Position::At(from)) };
        pending.replaying = Some(newest);
        // If the history was erased after this read, the client continues behind the erasure.
        let behind = pending.erased.filter(|erased| erased.epoch != from.epoch);
        self.position = Position::At(behind.unwrap_or(from));
    }

    /// The user's history was erased: a client of an earlier epoch continues at `erased`. Pending events of an earlier
    /// epoch are dropped; what is being read now is outdated. Returns whether the client must be told: not if it began after
    /// the erasure, and the instance learns of that only now.
    pub(super) fn erase(&mut self, erased: Cursor) -> bool {
        let is_known = matches!(self.position, Position::At(position) if position.epoch == erased.epoch);
        if matches!(self.position, Position::At(position) if position.epoch != erased.epoch) {
            self.position = Position::At(erased);
        }
        let Some(pending) = &mut self.pending else { return !is_known };
        pending.events.retain(|(cursor, _)| cursor.is_none_or(|cursor| cursor.epoch == erased.epoch));
        pending.bytes = pending.events.iter().map(|(_, event)| event.len()).sum();
        (pending.before_reading, pending.newest) = (0, None);
        pending.erased = pending.reading.then_some(erased);
        !is_known
    }

    /// Takes the pending events that are not stored, up to the first that is.
    pub(super) fn take_passing(&mut self) -> Vec<Bytes> {
        let Some(pending) = &mut self.pending else { return Vec::new() };
        let count = pending.events.iter().take_while(|(cursor, _)| cursor.is_none()).count();
        let passing: Vec<_> = pending.events.drain(..count).map(|(_, event)| event).collect();
        pending.bytes -= passing.iter().map(Bytes::len).sum::<usize>();
        pending.before_reading = pending.before_reading.saturating_sub(count);
        passing
    }

    /// Whether the result of the read is outdated, since the history was erased meanwhile: then it must be read again.
    pub(super) fn discard_reading(&mut self) -> bool {
        let Some(pending) = &mut self.pending else { return false };
        let is_outdated = pending.erased.take().is_some();
        pending.reading &= !is_outdated;
        is_outdated
    }

    /// The newest position of the client's welcome, until the client has caught up with it.
    pub(super) fn replaying(&self) -> Option<Cursor> {
        self.pending.as_ref()?.replaying
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether the history must be read, and no read is in progress.
    pub(super) fn wants_reading(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| !pending.reading)
    }

    /// Keeps all further events pending until the history has been read.
    pub(super) fn fall_behind(&mut self) {
        self.pending.get_or_insert_default();
    }

    /// Returns the position to read from. The read will return the stored events that are pending now.
    pub(super) fn begin_reading(&mut self) -> Position {
        if let Some(pending) = &mut self.pending {
            pending.reading = true;
            pending.before_reading = pending.events.len();
        }
        self.position
    }

    /// How an event at this position follows the client's position.
    pub(super) fn followed_by(&self, cursor: &Cursor) -> Continuity {
        match self.position {
            Position::At(position) => position.followed_by(cursor),
            Position::Since(_) => Continuity::Gap,
        }
    }

    /// Compares the client with the newest stored position; returns whether the client is found to be behind.
    pub(super) fn compare(&mut self, newest: &Cursor) -> bool {
        if let Some(pending) = &mut self.pending {
            pending.newest = Some(*newest);
            return false;
        }
        let behind = match &mut self.position {
            // Redis lost the entries that the client has, and maybe later ones.
            Position::At(position) if newest.number == 0 => position.number > 0 && position.epoch != newest.epoch,
            Position::Since(_) => newest.number > 0,
            Position::At(position) if position.is_same_position(newest) => {
                position.epoch = newest.epoch;
                false
            }
            Position::At(position) => position.is_behind(newest),
        };
        if behind {
            self.fall_behind();
        }
        behind
    }

    /// Whether the client has all events up to this position, and none after it.
    pub(super) fn is_at(&self, newest: &Cursor) -> bool {
        self.pending.is_none() && matches!(&self.position, Position::At(position) if position.is_same_position(newest))
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.bytes)
    }

    pub(super) fn has_room(&self, more: usize, bound: &Bound) -> bool {
        let Some(pending) = &self.pending else { return true };
        pending.events.is_empty()
            || (pending.events.len() < bound.max_messages && pending.bytes + more <= bound.max_bytes)
    }

    pub(super) fn add_pending(&mut self, cursor: Option<Cursor>, event: Bytes) {
        let pending = self.pending.get_or_insert_default();
        pending.bytes += event.len();
        pending.events.push((cursor, event));
    }

    /// Drops the pending events; the stored ones will be read. Returns the number of the others.
    pub(super) fn drop_pending(&mut self) -> usize {
        let Some(pending) = &mut self.pending else { return 0 };
        (pending.bytes, pending.before_reading) = (0, 0);
        let dropped = std::mem::take(&mut pending.events);
        // A read in progress may not return it.
        if let Some(last) = dropped.iter().rev().find_map(|(cursor, _)| *cursor)
            && pending.newest.is_none_or(|newest| newest.is_behind(&last))
        {
            pending.newest = Some(last);
        }
        dropped.iter().filter(|(cursor, _)| cursor.is_none()).count()
    }

    /// Merges a page with the pending events. Afterwards the client is caught up, or there is more to read.
    pub(super) fn replay(&mut self, page: CatchUpPage) -> Replayed {
        let mut replayed = Replayed::default();
        if self.discard_reading() {
            // The notice of the erasure precedes all that is read next.
            replayed.events = self.take_passing().into_iter().map(ReplayedEvent::passing).collect();
            return replayed;
        }
        let Some(mut pending) = self.pending.take() else { return replayed };
        let coverage = Coverage::of(&page, pending.events.iter().filter_map(|(cursor, _)| *cursor));
        self.replay_page(page, &coverage, &mut replayed);
        if coverage.needs_more() {
            pending.reading = false;
            self.pending = Some(pending);
        } else {
            self.replay_pending(*pending, &coverage, &mut replayed);
        }
        replayed
    }

    /// Sends the page's events up to the first stored pending one.
    fn replay_page(&mut self, page: CatchUpPage, coverage: &Coverage, replayed: &mut Replayed) {
        for (cursor, event) in page.events {
            if !coverage.is_before_pending(&cursor) {
                break;
            }
            if self.advance(&cursor) {
                replayed.events.push(ReplayedEvent::stored(event));
            }
        }
        if coverage.is_before_pending(&page.upto) {
            // Events in between have expired by their own ttl.
            self.advance(&page.upto);
        }
    }

    /// Sends the pending events that follow the page. At a gap, the others stay pending, and there is more to read.
    fn replay_pending(&mut self, pending: Pending, coverage: &Coverage, replayed: &mut Replayed) {
        let Pending { events, newest, replaying, before_reading, .. } = pending;
        let stored = |cursor: &Cursor, bytes: Bytes| {
            let is_unmarked = replaying.is_some_and(|upto| upto.followed_by(cursor) == Continuity::Known);
            ReplayedEvent { bytes, stored: true, is_unmarked }
        };
        let mut rest = events.into_iter().enumerate();
        while let Some((index, (cursor, event))) = rest.next() {
            match cursor.map(|cursor| (cursor, self.followed_by(&cursor))) {
                None => replayed.events.push(ReplayedEvent::passing(event)),
                Some((_, Continuity::Known)) => {}
                Some((cursor, continuity))
                    if coverage.is_taken_back(&cursor)
                        && (continuity == Continuity::Next || coverage.is_first_pending(&cursor)) =>
                {
                    self.position = Position::At(cursor);
                }
                Some((cursor, continuity)) if continuity == Continuity::Next || coverage.leads_to(&cursor) => {
                    self.position = Position::At(cursor);
                    replayed.events.push(stored(&cursor, event));
                }
                Some((cursor, _)) if index < before_reading && coverage.is_foreign(&cursor) => replayed.foreign += 1,
                Some((cursor, _)) => {
                    let rest = std::iter::once((Some(cursor), event)).chain(rest.map(|(_, pending)| pending));
                    self.pending = Some(Box::new(Pending::of(rest.collect(), newest, replaying)));
                    return;
                }
            }
        }
        self.end_replay(newest, replaying);
    }

    fn end_replay(&mut self, newest: Option<Cursor>, replaying: Option<Cursor>) {
        if let (Position::At(position), Some(upto)) = (self.position, replaying)
            && position.epoch == upto.epoch
            && position.is_behind(&upto)
        {
            // Events that the welcome counts are still on their way: they are read, and sent as replayed.
            self.pending = Some(Box::new(Pending::of(Vec::new(), None, replaying)));
        }
        if let Some(newest) = newest {
            self.compare(&newest);
        }
    }

    /// Without a page: sends the pending events, unless one of them is stored, so that the history must be read first.
    pub(super) fn replay_unread(&mut self) -> Replayed {
        let Some(mut pending) = self.pending.take() else { return Replayed::default() };
        if pending.events.iter().any(|(cursor, _)| cursor.is_some()) {
            (pending.reading, pending.erased) = (false, None);
            self.pending = Some(pending);
            return Replayed::default();
        }
        let events = pending.events.into_iter().map(|(_, event)| ReplayedEvent::passing(event));
        Replayed { events: events.collect(), foreign: 0 }
    }

    /// Advances to this position unless the client has it; returns whether it advanced.
    fn advance(&mut self, cursor: &Cursor) -> bool {
        let known = self.followed_by(cursor) == Continuity::Known;
        if !known {
            self.position = Position::At(*cursor);
        }
        !known
    }
}

#[cfg(test)]
mod tests;
