//! How far a client has got in its user's stored history, and what waits while it is brought level with that.
//!
//! Stored events reach a client live as long as each follows the one before. Where one does not, everything that comes
//! waits, the history is read from the client's place on, and what waited is sent behind it: the same way for a client
//! that resumes and for one that missed something while it was connected.

use bytes::Bytes;
use tokio::time::Instant;

use crate::config::SendQueue as Bound;
use crate::protocol::{Cursor, Following};

/// A client's place in the stored history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It has everything up to here.
    At(Cursor),
    /// The history could not be read when it came: it has nothing of what was stored since.
    Since(Instant),
}

/// One event that waits, and its place where it is stored.
type Waiter = (Option<Cursor>, Bytes);

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
struct Waiting {
    events: Vec<Waiter>,
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
pub(super) struct Level {
    place: Place,
    /// None while the client is level.
    waiting: Option<Box<Waiting>>,
}

/// What was found in the history behind a client's place.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Found {
    /// The events, ready to be sent.
    pub events: Vec<(Cursor, Bytes)>,
    /// Up to where was read.
    pub upto: Cursor,
    /// Whether that was all, at the time.
    pub level: bool,
}

/// What to send, in this order, each with whether it is stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) events: Vec<(bool, Bytes)>,
    /// Events with places that this history does not have: nobody of ours published them.
    pub(super) foreign: usize,
}

impl Level {
    /// Level with whatever there is.
    pub(super) fn new() -> Self {
        Self { place: Place::Since(Instant::now()), waiting: None }
    }

    /// Keeps what comes until [`Level::release`], as the history is being read already.
    pub(super) fn hold(&mut self) {
        self.waiting = Some(Box::new(Waiting { reading: true, ..Waiting::default() }));
    }

    /// The client has everything up to this place.
    pub(super) fn set(&mut self, place: Place) {
        self.place = place;
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the history must be read, and is not yet.
    pub(super) fn wants_reading(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.reading)
    }

    /// From here on everything waits, until the history was read.
    pub(super) fn fall_behind(&mut self) {
        self.waiting.get_or_insert_default();
    }

    /// Where to read from; what waits now will be found there.
    pub(super) fn begin_reading(&mut self) -> Place {
        if let Some(waiting) = &mut self.waiting {
            waiting.reading = true;
            waiting.before_reading = waiting.events.len();
        }
        self.place
    }

    /// What an event at this place is to a client that is level.
    pub(super) fn followed_by(&self, cursor: &Cursor) -> Following {
        match self.place {
            Place::At(place) => place.followed_by(cursor),
            Place::Since(_) => Following::Gap,
        }
    }

    /// Hears where the newest stored event is; gives whether the client turned out to be behind.
    pub(super) fn compare(&mut self, newest: &Cursor) -> bool {
        if let Some(waiting) = &mut self.waiting {
            waiting.newest = Some(*newest);
            return false;
        }
        let behind = match &mut self.place {
            // Redis lost what the client has, and maybe more.
            Place::At(place) if newest.number == 0 => place.number > 0 && place.epoch != newest.epoch,
            Place::Since(_) => newest.number > 0,
            Place::At(place) if place.is_same_place(newest) => {
                place.epoch = newest.epoch;
                false
            }
            Place::At(place) => place.is_behind(newest),
        };
        if behind {
            self.fall_behind();
        }
        behind
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.bytes)
    }

    pub(super) fn has_room(&self, more: usize, bound: &Bound) -> bool {
        let Some(waiting) = &self.waiting else { return true };
        waiting.events.is_empty()
            || (waiting.events.len() < bound.max_messages && waiting.bytes + more <= bound.max_bytes)
    }

    pub(super) fn wait(&mut self, cursor: Option<Cursor>, event: Bytes) {
        let waiting = self.waiting.get_or_insert_default();
        waiting.bytes += event.len();
        waiting.events.push((cursor, event));
    }

    /// Forgets what waits; the stored ones will be read. Gives how many others there were.
    pub(super) fn forget(&mut self) -> usize {
        let Some(waiting) = &mut self.waiting else { return 0 };
        (waiting.bytes, waiting.before_reading) = (0, 0);
        let forgotten = std::mem::take(&mut waiting.events);
        // The reading that is under way may not have it.
        if let Some(last) = forgotten.iter().rev().find_map(|(cursor, _)| *cursor) {
            waiting.newest = Some(last);
        }
        forgotten.iter().filter(|(cursor, _)| cursor.is_none()).count()
    }

    /// Takes what was found, and gives what to send now. The client is level afterwards, or there is more to read.
    pub(super) fn release(&mut self, found: Found) -> Released {
        let mut released = Released::default();
        let Some(mut waiting) = self.waiting.take() else { return released };
        let first_waiting = waiting.events.iter().find_map(|(cursor, _)| *cursor);
        // What waits stands in the order of publishing: what is found is older than all of it up to the first that is
        // stored, and sent from there on as it waits.
        let older =
            |cursor: &Cursor| first_waiting.is_none_or(|first| (cursor.ms, cursor.number) < (first.ms, first.number));
        for (cursor, event) in found.events {
            if !older(&cursor) {
                break;
            }
            if self.follow(&cursor) {
                released.events.push((true, event));
            }
        }
        if older(&found.upto) && self.followed_by(&found.upto) != Following::Known {
            // What has ended by its own ttl lies in between.
            self.place = Place::At(found.upto);
        }
        if !found.level && older(&found.upto) {
            waiting.reading = false;
            self.waiting = Some(waiting);
            return released;
        }
        let has = |cursor: &Cursor| found.upto.followed_by(cursor) == Following::Known;
        let mut waiters = std::mem::take(&mut waiting.events).into_iter().enumerate();
        while let Some((index, (cursor, event))) = waiters.next() {
            match cursor.map(|cursor| (cursor, self.followed_by(&cursor))) {
                None => released.events.push((false, event)),
                Some((cursor, Following::Next)) => {
                    self.place = Place::At(cursor);
                    released.events.push((true, event));
                }
                Some((_, Following::Known)) => {}
                // All that is stored before it was sent just now, or has ended by its own ttl.
                Some((cursor, Following::Gap)) if first_waiting == Some(cursor) && has(&cursor) => {
                    self.place = Place::At(cursor);
                    released.events.push((true, event));
                }
                // It was published before all of the history was read, and is not in there.
                Some((cursor, Following::Gap)) if found.level && index < waiting.before_reading && !has(&cursor) => {
                    released.foreign += 1;
                }
                Some((cursor, Following::Gap)) => {
                    let rest = std::iter::once((Some(cursor), event)).chain(waiters.map(|(_, waiter)| waiter));
                    let events: Vec<Waiter> = rest.collect();
                    let bytes = events.iter().map(|(_, event)| event.len()).sum();
                    let newest = waiting.newest;
                    self.waiting = Some(Box::new(Waiting { events, bytes, newest, ..Waiting::default() }));
                    break;
                }
            }
        }
        if self.waiting.is_none()
            && let Some(newest) = waiting.newest
        {
            self.compare(&newest);
        }
        released
    }

    /// The history could not be read: what waits is sent, unless something of it is stored. Then it must be read.
    pub(super) fn release_unread(&mut self) -> Released {
        let Some(mut waiting) = self.waiting.take() else { return Released::default() };
        if waiting.events.iter().any(|(cursor, _)| cursor.is_some()) {
            waiting.reading = false;
            self.waiting = Some(waiting);
            return Released::default();
        }
        Released { events: waiting.events.into_iter().map(|(_, event)| (false, event)).collect(), foreign: 0 }
    }

    /// Moves on to an event of the history, unless it is known.
    fn follow(&mut self, cursor: &Cursor) -> bool {
        let known = self.followed_by(cursor) == Following::Known;
        if !known {
            self.place = Place::At(*cursor);
        }
        !known
    }
}

#[cfg(test)]
mod tests;
