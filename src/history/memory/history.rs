//! One user's stored notifications and read positions. Mirrors the Lua scripts in `history/scripts`; see there for why.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;

use compact_str::CompactString;

use super::runs::Runs;
use crate::history::store::{Acked, Entry, MAX_DEVICES, Move, NewestPage, PageSize, Publication, ReadFrom, Reading};
use crate::protocol::{Cursor, UserId, millis};

/// Approximate memory of a read position, without the device's name.
const POSITION_BYTES: usize = 64;

/// Approximate memory of an empty history, without the user's id.
const HISTORY_BYTES: usize = 256;

/// Counted for each entry of a page, besides its event and data.
const PAGE_OVERHEAD: usize = 128;

/// A cursor without the epoch, which is the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) ms: u64,
    pub(super) number: u64,
}

impl Position {
    pub(super) fn of(epoch: NonZeroU64, cursor: &Cursor) -> Option<Self> {
        (cursor.epoch == epoch).then_some(Self { ms: cursor.ms, number: cursor.number })
    }

    pub(super) fn cursor(self, epoch: NonZeroU64) -> Cursor {
        Cursor { epoch, ms: self.ms, number: self.number }
    }
}

/// The current time, and the times before which entries, read positions and places have expired.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: u64,
    pub(super) kept_since: u64,
    pub(super) positions_since: u64,
    pub(super) places_since: u64,
}

/// What remains of a history after all its entries have expired.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The position of the newest notification that was stored.
    pub(super) newest: Position,
    /// If the newest was taken out, the first number of its run.
    taken_out_from: Option<u64>,
    lost_upto: u64,
}

#[derive(Debug)]
struct Stored {
    position: Position,
    /// Expiry by its own ttl.
    until: Option<u64>,
    event: CompactString,
    data: Box<str>,
    collapse: Option<CompactString>,
    trace: Option<Box<str>>,
}

impl Stored {
    fn bytes(&self) -> usize {
        let collapse = self.collapse.as_ref().map_or(0, |key| key.len());
        let trace = self.trace.as_ref().map_or(0, |trace| trace.len());
        size_of::<Self>() + self.event.len() + self.data.len() + collapse + trace
    }
}

#[derive(Debug)]
pub(super) struct History {
    /// Their numbers are consecutive but for those that were taken out.
    entries: VecDeque<Stored>,
    taken_out: Runs,
    /// When the first of the entries with a ttl of their own ends; `u64::MAX` without one.
    next_end: u64,
    /// The position of the newest, even after it has expired.
    place: Option<Position>,
    positions: HashMap<String, Position>,
    /// The time of the last `ack`.
    positions_at: u64,
    /// Entries of this user stored up to this time may have been evicted with an earlier history.
    lost_upto: u64,
    /// The number of its last change, counted across all histories.
    pub(super) change: u64,
    bytes: usize,
}

impl History {
    /// Continues at `place`, if it is known.
    pub(super) fn new(user: &UserId, place: Option<Place>, lost_upto: u64) -> Self {
        let mut taken_out = Runs::default();
        if let Some(Place { newest, taken_out_from: Some(first), .. }) = place {
            taken_out.add(first, newest.number);
        }
        Self {
            entries: VecDeque::new(),
            taken_out,
            next_end: u64::MAX,
            place: place.map(|place| place.newest),
            positions: HashMap::new(),
            positions_at: 0,
            lost_upto: place.map_or(lost_upto, |place| place.lost_upto),
            change: 0,
            bytes: HISTORY_BYTES + 2 * user.as_str().len(),
        }
    }

    /// Approximate memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.taken_out.bytes()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The position of the newest, even after it has expired.
    pub(super) fn place(&self) -> Option<Place> {
        let taken_out_from = |newest: Position| self.taken_out.ending_with(newest.number);
        let place = |newest| Place { newest, taken_out_from: taken_out_from(newest), lost_upto: self.lost_upto };
        self.place.map(place)
    }

    fn first_kept(&self, at: Moment) -> Option<Position> {
        let older = self.entries.partition_point(|stored| stored.position.ms < at.kept_since);
        self.entries.get(older).map(|stored| stored.position)
    }

    fn newest(&self, at: Moment) -> Position {
        self.place.unwrap_or(Position { ms: at.now, number: 0 })
    }

    /// Whether nothing but the place remains.
    pub(super) fn has_expired(&self, at: Moment) -> bool {
        self.first_kept(at).is_none() && self.positions_at < at.positions_since
    }

    /// Stores an entry, takes out the one that it replaces, and drops those that have expired or exceed `max_len`. Returns the
    /// position of the entry, and that of the one it replaces.
    pub(super) fn add(
        &mut self,
        publication: &Publication<'_>,
        max_len: usize,
        at: Moment,
    ) -> (Position, Option<Position>) {
        self.take_out_ended(at);
        let position = match self.place {
            Some(last) => Position { ms: at.now.max(last.ms), number: last.number + 1 },
            None => Position { ms: at.now, number: 1 },
        };
        self.place = Some(position);
        let until = publication.ttl.map(|ttl| position.ms.saturating_add(millis(ttl)));
        self.next_end = self.next_end.min(until.unwrap_or(u64::MAX));
        let collapse = publication.collapse.map(CompactString::from);
        let is_replaced = |stored: &Stored| collapse.is_some() && stored.collapse == collapse;
        let replaced = self.entries.iter().rposition(is_replaced);
        let (event, data) = (publication.event.into(), publication.data.into());
        let trace = publication.trace.map(Box::from);
        let stored = Stored { position, until, event, data, collapse, trace };
        self.bytes += stored.bytes();
        self.entries.push_back(stored);
        let replaced = replaced.and_then(|index| self.take_out(index));
        // One more than the maximum: a client that has received only that one has missed nothing.
        let too_many = self.entries.len().saturating_sub(max_len + 1);
        let too_old = self.entries.partition_point(|stored| stored.position.ms < at.kept_since).saturating_sub(1);
        self.drop_oldest(too_many.max(too_old));
        (position, replaced)
    }

    /// Takes out the entry at this position; returns whether it was stored.
    pub(super) fn retract(&mut self, position: Position) -> bool {
        let found = self.entries.binary_search_by_key(&position, |stored| stored.position);
        found.is_ok_and(|index| self.take_out(index).is_some())
    }

    fn take_out(&mut self, index: usize) -> Option<Position> {
        let taken = self.entries.remove(index)?;
        self.bytes -= taken.bytes();
        self.taken_out.add(taken.position.number, taken.position.number);
        self.remove_stale_runs();
        Some(taken.position)
    }

    /// Takes out the entries whose own ttl has ended.
    pub(super) fn take_out_ended(&mut self, at: Moment) {
        if self.next_end > at.now {
            return;
        }
        let has_ended = |stored: &Stored| stored.until.is_some_and(|until| until <= at.now);
        let (ended, rest): (VecDeque<_>, _) = std::mem::take(&mut self.entries).into_iter().partition(has_ended);
        self.entries = rest;
        for stored in ended {
            self.bytes -= stored.bytes();
            self.taken_out.add(stored.position.number, stored.position.number);
        }
        self.next_end = self.entries.iter().filter_map(|stored| stored.until).min().unwrap_or(u64::MAX);
        self.remove_stale_runs();
    }

    /// Removes the runs that adjoin nothing any more.
    fn remove_stale_runs(&mut self) {
        let oldest = self.entries.front().map(|stored| stored.position.number - 1);
        self.taken_out.remove_before(oldest.or(self.place.map(|newest| newest.number)).unwrap_or(0));
    }

    /// Drops the oldest entries to free `excess` bytes, but never the newest; returns how many were dropped.
    pub(super) fn shrink(&mut self, excess: usize) -> usize {
        let target = self.bytes.saturating_sub(excess);
        let before = self.entries.len();
        while self.bytes > target && self.entries.len() > 1 {
            self.drop_oldest(1);
        }
        before - self.entries.len()
    }

    fn drop_oldest(&mut self, count: usize) {
        self.bytes -= self.entries.drain(..count).map(|stored| stored.bytes()).sum::<usize>();
        self.remove_stale_runs();
    }

    pub(super) fn read(&self, epoch: NonZeroU64, from: &ReadFrom, device: &str, page: PageSize, at: Moment) -> Reading {
        let newest = self.newest(at);
        let whole_from = self.start(epoch, from, at);
        let from_position = whole_from.unwrap_or(newest);
        let (mut upto, mut entries) = (from_position, Vec::new());
        if whole_from.is_some() && from_position.number < newest.number {
            let (mut left, mut room) = (page.entries, page.bytes);
            let oldest = if *from == ReadFrom::Oldest { at.kept_since } else { 0 };
            for stored in self.after(from_position).filter(|stored| stored.position.ms >= oldest) {
                if left == 0 || room == 0 {
                    break;
                }
                left -= 1;
                upto = stored.position;
                room = room.saturating_sub(stored.data.len());
                let (event, data) = (stored.event.to_string(), stored.data.to_string());
                let collapse = stored.collapse.as_ref().map(|key| key.to_string());
                let trace = stored.trace.as_deref().map(str::to_owned);
                entries.push(Entry { cursor: upto.cursor(epoch), event, data, collapse, trace });
            }
            if self.taken_out.cover(upto.number + 1, newest.number) {
                upto = newest;
            }
        }
        Reading {
            whole: whole_from.is_some(),
            from: from_position.cursor(epoch),
            upto: upto.cursor(epoch),
            newest: newest.cursor(epoch),
            entries,
            acked: self.position(device, at).map(|position| position.cursor(epoch)),
            unread: self.unread(device, at),
        }
    }

    /// As [`crate::history::HistoryStore::page`].
    pub(super) fn page(
        &self,
        epoch: NonZeroU64,
        before: Option<&Cursor>,
        size: PageSize,
        at: Moment,
    ) -> Option<NewestPage> {
        let before = match before {
            Some(before) => Some(Position::of(epoch, before)?),
            None => None,
        };
        if before.is_some_and(|before| before.number > 0 && self.place.is_some_and(|newest| before > newest)) {
            return None;
        }
        let is_older = |stored: &&Stored| before.is_none_or(|before| before.number > 0 && stored.position < before);
        let is_kept = |stored: &&Stored| stored.until.is_none_or(|until| until > at.now);
        let older = self.entries.iter().rev().take_while(|stored| stored.position.ms >= at.kept_since);
        let mut room = size.bytes;
        let mut page = NewestPage { entries: Vec::new(), next: None };
        for stored in older.filter(is_older).filter(is_kept) {
            let bytes = stored.event.len() + stored.data.len() + PAGE_OVERHEAD;
            let last = page.entries.last().map(|entry: &Entry| entry.cursor);
            if page.entries.len() == size.entries || (last.is_some() && bytes > room) {
                page.next = last;
                break;
            }
            room = room.saturating_sub(bytes);
            let (cursor, event, data) =
                (stored.position.cursor(epoch), stored.event.to_string(), stored.data.to_string());
            page.entries.push(Entry { cursor, event, data, collapse: None, trace: None });
        }
        Some(page)
    }

    /// The requested position, if no entry after it is missing.
    fn start(&self, epoch: NonZeroU64, from: &ReadFrom, at: Moment) -> Option<Position> {
        let first = self.first_kept(at);
        let newest = self.place.map_or(0, |newest| newest.number);
        let from_the_first = self.taken_out.cover(1, first.map_or(newest, |first| first.number - 1));
        let whole = |position: Position| self.is_whole(position, at).then_some(position);
        match from {
            ReadFrom::Newest => Some(self.newest(at)),
            ReadFrom::Oldest => Some(first.map_or_else(|| self.newest(at), |_| Position { ms: 0, number: 0 })),
            ReadFrom::After(cursor) => Position::of(epoch, cursor).and_then(whole),
            ReadFrom::Acked(device) => match self.position(device, at) {
                Some(position) => whole(position),
                None => (from_the_first && !self.has_lost_since(at.kept_since))
                    .then(|| Position { ms: first.map_or(at.now, |first| first.ms), number: 0 }),
            },
            ReadFrom::Since(age) => {
                let since = at.now.saturating_sub(millis(*age));
                if let Some(place) = self.place.filter(|place| place.ms < since) {
                    return Some(place);
                }
                let older = self.entries.partition_point(|stored| stored.position.ms < since);
                match older.checked_sub(1).and_then(|index| self.entries.get(index)) {
                    Some(before) if since >= at.kept_since => Some(before.position),
                    _ => (from_the_first && !self.has_lost_since(since)).then_some(Position { ms: since, number: 0 }),
                }
            }
        }
    }

    fn has_lost_since(&self, ms: u64) -> bool {
        self.lost_upto > 0 && self.lost_upto >= ms
    }

    /// Whether no entry after a position is missing: it is the newest, or all up to the next one that is stored, or to the
    /// newest, were taken out.
    fn is_whole(&self, position: Position, at: Moment) -> bool {
        if position.number > 0 && self.place == Some(position) {
            return true;
        }
        if position.ms <= at.places_since.max(self.lost_upto) {
            return false;
        }
        let Some(newest) = self.place else { return position.number == 0 };
        match self.after(position).next().map(|stored| stored.position) {
            Some(next) => next.ms >= at.kept_since && self.follows(position, next.number - 1),
            None => position.number < newest.number && self.follows(position, newest.number),
        }
    }

    /// Whether all numbers after this position up to another one were taken out.
    fn follows(&self, position: Position, upto: u64) -> bool {
        position.number <= upto && self.taken_out.cover(position.number + 1, upto)
    }

    fn after(&self, position: Position) -> impl Iterator<Item = &Stored> {
        let start = match position.number {
            0 => 0,
            _ => self.entries.partition_point(|stored| stored.position <= position),
        };
        self.entries.range(start..)
    }

    fn position(&self, device: &str, at: Moment) -> Option<Position> {
        self.positions.get(device).filter(|_| self.positions_at >= at.positions_since).copied()
    }

    pub(super) fn unread(&self, device: &str, at: Moment) -> u64 {
        let (Some(first), Some(newest)) = (self.first_kept(at), self.place) else { return 0 };
        let read = self.position(device, at).filter(|read| *read >= first);
        let upto = read.map_or(first.number - 1, |read| read.number);
        newest.number.saturating_sub(upto).saturating_sub(self.taken_out.count_after(upto))
    }

    /// The outcome of an `ack` that does not move the read position.
    pub(super) fn ack_without_move(&self, device: &str, position: Position, how: Move, at: Moment) -> Option<Acked> {
        if self.place.map_or(position.ms > at.now, |last| position > last) {
            return Some(Acked::Foreign);
        }
        match self.position(device, at) {
            Some(read) if read == position || (how == Move::Forward && read > position) => Some(Acked::Kept),
            None if self.positions_at >= at.positions_since && self.positions.len() >= MAX_DEVICES => {
                Some(Acked::TooManyDevices)
            }
            _ => None,
        }
    }

    /// Read positions expire some time after the last `ack`, even if it repeats the same position.
    pub(super) fn renew_positions(&mut self, at: Moment) {
        self.positions_at = at.now;
    }

    pub(super) fn move_position(&mut self, device: &str, position: Position, at: Moment) {
        let cost = |device: &str| device.len() + POSITION_BYTES;
        if self.positions_at < at.positions_since {
            self.bytes -= self.positions.drain().map(|(device, _)| cost(&device)).sum::<usize>();
        }
        if self.positions.insert(device.to_owned(), position).is_none() {
            self.bytes += cost(device);
        }
        self.positions_at = at.now;
    }
}
