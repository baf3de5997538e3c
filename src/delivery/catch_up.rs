//! A client's position in its user's stored history, and the events that are pending during catch-up.
//!
//! Stored events are delivered live as long as each follows the previous one. At a gap, all further events are pending,
//! the history is read from the client's position, and the pending events are sent after it. A client that resumes and
//! one that missed an event while connected are treated alike.

use bytes::Bytes;
use tokio::time::Instant;

use crate::config::SendQueue as Bound;
use crate::protocol::{Continuity, Cursor};

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
}

/// The events to send, in order, each with whether it is stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replayed {
    pub(super) events: Vec<(bool, Bytes)>,
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
        if let Some(last) = dropped.iter().rev().find_map(|(cursor, _)| *cursor) {
            pending.newest = Some(last);
        }
        dropped.iter().filter(|(cursor, _)| cursor.is_none()).count()
    }

    /// Merges a page with the pending events. Afterwards the client is caught up, or there is more to read.
    pub(super) fn replay(&mut self, page: CatchUpPage) -> Replayed {
        let mut replayed = Replayed::default();
        let Some(mut pending) = self.pending.take() else { return replayed };
        let first_pending = pending.events.iter().find_map(|(cursor, _)| *cursor);
        // Pending events are in publishing order. The page supplies the events before the first stored pending one; the
        // pending events supply the rest.
        let older =
            |cursor: &Cursor| first_pending.is_none_or(|first| (cursor.ms, cursor.number) < (first.ms, first.number));
        for (cursor, event) in page.events {
            if !older(&cursor) {
                break;
            }
            if self.advance(&cursor) {
                replayed.events.push((true, event));
            }
        }
        if older(&page.upto) && self.followed_by(&page.upto) != Continuity::Known {
            // Events in between have expired by their own ttl.
            self.position = Position::At(page.upto);
        }
        if !page.complete && older(&page.upto) {
            pending.reading = false;
            self.pending = Some(pending);
            return replayed;
        }
        let page_covers = |cursor: &Cursor| page.upto.followed_by(cursor) == Continuity::Known;
        let mut rest = std::mem::take(&mut pending.events).into_iter().enumerate();
        while let Some((index, (cursor, event))) = rest.next() {
            match cursor.map(|cursor| (cursor, self.followed_by(&cursor))) {
                None => replayed.events.push((false, event)),
                Some((cursor, Continuity::Next)) => {
                    self.position = Position::At(cursor);
                    replayed.events.push((true, event));
                }
                Some((_, Continuity::Known)) => {}
                // All stored events before it were just sent, or have expired by their own ttl.
                Some((cursor, Continuity::Gap)) if first_pending == Some(cursor) && page_covers(&cursor) => {
                    self.position = Position::At(cursor);
                    replayed.events.push((true, event));
                }
                // It was published before the complete history was read, and is not in it.
                Some((cursor, Continuity::Gap))
                    if page.complete && index < pending.before_reading && !page_covers(&cursor) =>
                {
                    replayed.foreign += 1;
                }
                Some((cursor, Continuity::Gap)) => {
                    let rest = std::iter::once((Some(cursor), event)).chain(rest.map(|(_, pending)| pending));
                    let events: Vec<PendingEvent> = rest.collect();
                    let bytes = events.iter().map(|(_, event)| event.len()).sum();
                    let newest = pending.newest;
                    self.pending = Some(Box::new(Pending { events, bytes, newest, ..Pending::default() }));
                    break;
                }
            }
        }
        if self.pending.is_none()
            && let Some(newest) = pending.newest
        {
            self.compare(&newest);
        }
        replayed
    }

    /// Without a page: sends the pending events, unless one of them is stored, so that the history must be read first.
    pub(super) fn replay_unread(&mut self) -> Replayed {
        let Some(mut pending) = self.pending.take() else { return Replayed::default() };
        if pending.events.iter().any(|(cursor, _)| cursor.is_some()) {
            pending.reading = false;
            self.pending = Some(pending);
            return Replayed::default();
        }
        Replayed { events: pending.events.into_iter().map(|(_, event)| (false, event)).collect(), foreign: 0 }
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
