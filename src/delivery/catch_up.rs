//! How far a client has got in its user's stored history, and what waits while it is brought level with that.
//!
//! Stored events reach a client live as long as each follows the one before. Where one does not, everything that comes
//! waits, the history is read from the client's position on, and what waited is sent behind it: the same way for a client
//! that resumes and for one that missed something while it was connected.

use bytes::Bytes;
use tokio::time::Instant;

use crate::config::SendQueue as Bound;
use crate::protocol::{Continuity, Cursor};

/// A client's position in the stored history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// It has everything up to here.
    At(Cursor),
    /// The history could not be read when it came: it has nothing of what was stored since.
    Since(Instant),
}

/// One event that waits, and its position where it is stored.
type PendingEvent = (Option<Cursor>, Bytes);

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
struct Pending {
    events: Vec<PendingEvent>,
    bytes: usize,
    /// The history is being read; what waited by then is stored for whoever reads it.
    reading: bool,
    before_reading: usize,
    /// Where the newest stored event was said to be meanwhile: it may have come after the reading, and be lost.
    newest: Option<Cursor>,
}

/// See the module.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct CatchUp {
    position: Position,
    /// None while the client is level.
    pending: Option<Box<Pending>>,
}

/// What was found in the history behind a client's position.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct CatchUpPage {
    /// The events, ready to be sent.
    pub events: Vec<(Cursor, Bytes)>,
    /// Up to where was read.
    pub upto: Cursor,
    /// Whether that was all, at the time.
    pub complete: bool,
}

/// What to send, in this order, each with whether it is stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replayed {
    pub(super) events: Vec<(bool, Bytes)>,
    /// Events with positions that this history does not have: nobody of ours published them.
    pub(super) foreign: usize,
}

impl CatchUp {
    /// CatchUp with whatever there is.
    pub(super) fn new() -> Self {
        Self { position: Position::Since(Instant::now()), pending: None }
    }

    /// Keeps what comes until [`CatchUp::replay`], as the history is being read already.
    pub(super) fn pause(&mut self) {
        self.pending = Some(Box::new(Pending { reading: true, ..Pending::default() }));
    }

    /// The client has everything up to this position.
    pub(super) fn set(&mut self, position: Position) {
        self.position = position;
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether the history must be read, and is not yet.
    pub(super) fn wants_reading(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| !pending.reading)
    }

    /// From here on everything waits, until the history was read.
    pub(super) fn fall_behind(&mut self) {
        self.pending.get_or_insert_default();
    }

    /// Where to read from; what waits now will be found there.
    pub(super) fn begin_reading(&mut self) -> Position {
        if let Some(pending) = &mut self.pending {
            pending.reading = true;
            pending.before_reading = pending.events.len();
        }
        self.position
    }

    /// What an event at this position is to a client that is level.
    pub(super) fn followed_by(&self, cursor: &Cursor) -> Continuity {
        match self.position {
            Position::At(position) => position.followed_by(cursor),
            Position::Since(_) => Continuity::Gap,
        }
    }

    /// Hears where the newest stored event is; gives whether the client turned out to be behind.
    pub(super) fn compare(&mut self, newest: &Cursor) -> bool {
        if let Some(pending) = &mut self.pending {
            pending.newest = Some(*newest);
            return false;
        }
        let behind = match &mut self.position {
            // Redis lost what the client has, and maybe more.
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

    pub(super) fn wait(&mut self, cursor: Option<Cursor>, event: Bytes) {
        let pending = self.pending.get_or_insert_default();
        pending.bytes += event.len();
        pending.events.push((cursor, event));
    }

    /// Forgets what waits; the stored ones will be read. Gives how many others there were.
    pub(super) fn forget(&mut self) -> usize {
        let Some(pending) = &mut self.pending else { return 0 };
        (pending.bytes, pending.before_reading) = (0, 0);
        let forgotten = std::mem::take(&mut pending.events);
        // The reading that is under way may not have it.
        if let Some(last) = forgotten.iter().rev().find_map(|(cursor, _)| *cursor) {
            pending.newest = Some(last);
        }
        forgotten.iter().filter(|(cursor, _)| cursor.is_none()).count()
    }

    /// Takes what was found, and gives what to send now. The client is level afterwards, or there is more to read.
    pub(super) fn replay(&mut self, found: CatchUpPage) -> Replayed {
        let mut replayed = Replayed::default();
        let Some(mut pending) = self.pending.take() else { return replayed };
        let first_waiting = pending.events.iter().find_map(|(cursor, _)| *cursor);
        // What waits stands in the order of publishing: what is found is older than all of it up to the first that is
        // stored, and sent from there on as it waits.
        let older =
            |cursor: &Cursor| first_waiting.is_none_or(|first| (cursor.ms, cursor.number) < (first.ms, first.number));
        for (cursor, event) in found.events {
            if !older(&cursor) {
                break;
            }
            if self.follow(&cursor) {
                replayed.events.push((true, event));
            }
        }
        if older(&found.upto) && self.followed_by(&found.upto) != Continuity::Known {
            // What has ended by its own ttl lies in between.
            self.position = Position::At(found.upto);
        }
        if !found.complete && older(&found.upto) {
            pending.reading = false;
            self.pending = Some(pending);
            return replayed;
        }
        let has = |cursor: &Cursor| found.upto.followed_by(cursor) == Continuity::Known;
        let mut rest = std::mem::take(&mut pending.events).into_iter().enumerate();
        while let Some((index, (cursor, event))) = rest.next() {
            match cursor.map(|cursor| (cursor, self.followed_by(&cursor))) {
                None => replayed.events.push((false, event)),
                Some((cursor, Continuity::Next)) => {
                    self.position = Position::At(cursor);
                    replayed.events.push((true, event));
                }
                Some((_, Continuity::Known)) => {}
                // All that is stored before it was sent just now, or has ended by its own ttl.
                Some((cursor, Continuity::Gap)) if first_waiting == Some(cursor) && has(&cursor) => {
                    self.position = Position::At(cursor);
                    replayed.events.push((true, event));
                }
                // It was published before all of the history was read, and is not in there.
                Some((cursor, Continuity::Gap))
                    if found.complete && index < pending.before_reading && !has(&cursor) =>
                {
                    replayed.foreign += 1;
                }
                Some((cursor, Continuity::Gap)) => {
                    let rest = std::iter::once((Some(cursor), event)).chain(rest.map(|(_, waiter)| waiter));
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

    /// The history could not be read: what waits is sent, unless something of it is stored. Then it must be read.
    pub(super) fn replay_unread(&mut self) -> Replayed {
        let Some(mut pending) = self.pending.take() else { return Replayed::default() };
        if pending.events.iter().any(|(cursor, _)| cursor.is_some()) {
            pending.reading = false;
            self.pending = Some(pending);
            return Replayed::default();
        }
        Replayed { events: pending.events.into_iter().map(|(_, event)| (false, event)).collect(), foreign: 0 }
    }

    /// Moves on to an event of the history, unless it is known.
    fn follow(&mut self, cursor: &Cursor) -> bool {
        let known = self.followed_by(cursor) == Continuity::Known;
        if !known {
            self.position = Position::At(*cursor);
        }
        !known
    }
}

#[cfg(test)]
mod tests;
