//! One user's stored notifications and read positions. Mirrors the Lua scripts in `history/scripts`; see there for why.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;

use compact_str::CompactString;

use crate::history::store::{Acked, Entry, MAX_DEVICES, Move, PageSize, Publication, ReadFrom, Reading};
use crate::protocol::{Cursor, UserId, millis};

/// Approximate memory of a read position, without the device's name.
const POSITION_BYTES: usize = 64;

/// Approximate memory of an empty history, without the user's id.
const HISTORY_BYTES: usize = 256;

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

/// The current time, and the times before which entries and read positions have expired.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: u64,
    pub(super) kept_since: u64,
    pub(super) positions_since: u64,
}

#[derive(Debug)]
struct Stored {
    position: Position,
    /// Expiry by its own ttl.
    until: Option<u64>,
    event: CompactString,
    data: Box<str>,
}

impl Stored {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.event.len() + self.data.len()
    }
}

#[derive(Debug)]
pub(super) struct History {
    /// Their numbers are consecutive.
    entries: VecDeque<Stored>,
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
    pub(super) fn new(user: &UserId, lost_upto: u64) -> Self {
        let (entries, positions) = (VecDeque::new(), HashMap::new());
        let bytes = HISTORY_BYTES + 2 * user.as_str().len();
        Self { entries, positions, positions_at: 0, lost_upto, change: 0, bytes }
    }

    /// Approximate memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn last(&self) -> Option<Position> {
        self.entries.back().map(|stored| stored.position)
    }

    /// The newest position, unless all entries have expired.
    pub(super) fn last_kept(&self, at: Moment) -> Option<Position> {
        self.last().filter(|last| last.ms >= at.kept_since)
    }

    fn first_kept(&self, at: Moment) -> Option<Position> {
        let older = self.entries.partition_point(|stored| stored.position.ms < at.kept_since);
        self.entries.get(older).map(|stored| stored.position)
    }

    fn newest(&self, at: Moment) -> Position {
        self.last_kept(at).unwrap_or(Position { ms: at.now, number: 0 })
    }

    pub(super) fn has_expired(&self, at: Moment) -> bool {
        self.last_kept(at).is_none() && self.positions_at < at.positions_since
    }

    /// Stores an entry, and drops those that have expired or exceed `max_len`.
    pub(super) fn add(&mut self, publication: &Publication<'_>, max_len: usize, at: Moment) -> Position {
        let position = match self.last_kept(at) {
            Some(last) => Position { ms: at.now.max(last.ms), number: last.number + 1 },
            None => {
                self.drop_oldest(self.entries.len());
                Position { ms: at.now, number: 1 }
            }
        };
        let until = publication.ttl.map(|ttl| position.ms.saturating_add(millis(ttl)));
        let stored = Stored { position, until, event: publication.event.into(), data: publication.data.into() };
        self.bytes += stored.bytes();
        self.entries.push_back(stored);
        // One more than the maximum: a client that has received only that one has missed nothing.
        let too_many = self.entries.len().saturating_sub(max_len + 1);
        let too_old = self.entries.partition_point(|stored| stored.position.ms < at.kept_since).saturating_sub(1);
        self.drop_oldest(too_many.max(too_old));
        position
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
                if stored.until.is_none_or(|until| until > at.now) {
                    room = room.saturating_sub(stored.data.len());
                    let (event, data) = (stored.event.to_string(), stored.data.to_string());
                    entries.push(Entry { cursor: upto.cursor(epoch), event, data });
                }
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

    /// The requested position, if no entry after it is missing.
    fn start(&self, epoch: NonZeroU64, from: &ReadFrom, at: Moment) -> Option<Position> {
        let first = self.first_kept(at);
        let from_the_first = first.is_none_or(|first| first.number == 1);
        let whole = |position: Position| self.is_whole(position, at).then_some(position);
        match from {
            ReadFrom::Newest => Some(self.newest(at)),
            ReadFrom::Oldest => Some(Position { ms: 0, number: 0 }),
            ReadFrom::After(cursor) => Position::of(epoch, cursor).and_then(whole),
            ReadFrom::Acked(device) => match self.position(device, at) {
                Some(position) => whole(position),
                None => (from_the_first && !self.has_lost_since(at.kept_since))
                    .then(|| Position { ms: first.map_or(at.now, |first| first.ms), number: 0 }),
            },
            ReadFrom::Since(age) => {
                let since = at.now.saturating_sub(millis(*age));
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

    /// Whether no entry after a position is missing: the next one is stored, or the position is the newest.
    fn is_whole(&self, position: Position, at: Moment) -> bool {
        if position.number == 0 && position.ms <= at.kept_since.max(self.lost_upto) {
            return false;
        }
        match self.after(position).next().map(|stored| stored.position) {
            Some(next) => next.number == position.number + 1 && next.ms >= at.kept_since,
            None if position.number == 0 => true,
            None => position == self.newest(at),
        }
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

    fn unread(&self, device: &str, at: Moment) -> u64 {
        let (Some(first), Some(newest)) = (self.first_kept(at), self.last()) else { return 0 };
        let read = self.position(device, at).filter(|read| *read >= first);
        newest.number.saturating_sub(read.map_or(first.number - 1, |read| read.number))
    }

    /// The outcome of an `ack` that does not move the read position.
    pub(super) fn ack_without_move(&self, device: &str, position: Position, how: Move, at: Moment) -> Option<Acked> {
        if self.last_kept(at).map_or(position.ms > at.now, |last| position > last) {
            return Some(Acked::Foreign);
        }
        match self.position(device, at) {
            Some(read) if how == Move::Forward && read >= position => Some(Acked::Kept),
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
