//! What a client missed since its cursor, read without a script where nothing of it was taken out, trimmed or erased: Redis
//! then spends a fifth of the CPU on the entries.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};

use redis::cmd;

use super::redis::RedisHistory;
use super::starts::Start;
use super::store::{Beginning, Entry, PageSize, ReadFrom, Reading, places_kept};
use crate::backplane::BackplaneError;
use crate::protocol::{Cursor, EventName, UserId};
use crate::redis::ReplyParts;

/// Entries in one command, at least and at most.
const LEAST_STEP: usize = 8;
const MOST_STEP: usize = 100;

/// Until a page was read.
const TYPICAL_BYTES: usize = 8 * 1024;

/// The size of an entry as the last pages had them, the large ones rather than the small: the size of those that are asked for
/// first is unknown.
#[derive(Debug)]
pub(super) struct TypicalBytes(AtomicUsize);

/// The entries after a cursor, as far as they were read.
struct Page {
    upto: Cursor,
    entries: Vec<Entry>,
    /// Including those whose own ttl has ended.
    count: usize,
    bytes: usize,
}

/// An entry of a stream.
struct Stored {
    entry: Entry,
    /// The end of its own ttl, in milliseconds since 1970.
    until: Option<u64>,
}

impl RedisHistory {
    /// As [`RedisHistory::read`] after a cursor.
    pub(super) async fn read_after(
        &self,
        user: &UserId,
        cursor: Cursor,
        device: &str,
        size: PageSize,
    ) -> Result<Reading, BackplaneError> {
        let start = self.start(user, device).await?;
        match self.read_entries(user, cursor, start, size).await? {
            Some(Page { upto, entries, .. }) => {
                let Beginning { newest, unread } = start.beginning;
                Ok(Reading { whole: true, from: cursor, upto, newest, entries, acked: None, unread })
            }
            None => self.read(user, &ReadFrom::After(cursor), device, size).await,
        }
    }

    /// Reads a page. Returns `None` if only the script can tell whether an entry is missing.
    async fn read_entries(
        &self,
        user: &UserId,
        cursor: Cursor,
        start: Start,
        size: PageSize,
    ) -> Result<Option<Page>, BackplaneError> {
        let newest = start.beginning.newest;
        let mut page = Page { upto: cursor, entries: Vec::new(), count: 0, bytes: 0 };
        if cursor == newest {
            return Ok(Some(page));
        }
        let ttl = self.args.kept().ttl;
        let (kept_since, known_since) = (start.since(ttl), start.since(places_kept(ttl)));
        if cursor.epoch != newest.epoch || cursor.number >= newest.number || cursor.ms <= known_since {
            return Ok(None);
        }
        let mut step = step(size.bytes, self.typical.get());
        while page.upto.number < newest.number && page.has_room(size) {
            let left = usize::try_from(newest.number - page.upto.number).unwrap_or(usize::MAX);
            let wanted = step.min(left).min(size.entries - page.count);
            // One more shows that what follows was not taken out.
            let asked = wanted + usize::from(wanted < left);
            let before = page.count;
            let some = self.entries_after(user, &page.upto, asked, start.connection).await?;
            if some.len() < asked {
                return Ok(None);
            }
            for stored in some.into_iter().take(wanted) {
                let kept = stored.filter(|stored| stored.entry.cursor.ms >= kept_since && page.has_room(size));
                if !kept.is_some_and(|stored| page.add(stored, start.now)) {
                    break;
                }
            }
            if page.count - before < wanted && page.has_room(size) {
                return Ok(None);
            }
            step = page.step(size);
        }
        self.typical.note(&page);
        let is_sound = page.count > 0 && (page.upto.number < newest.number || page.upto == newest);
        Ok(is_sound.then_some(page))
    }

    /// Reads so many entries of the stream, each `None` if it is not one of this version; none if Redis was replaced.
    async fn entries_after(
        &self,
        user: &UserId,
        cursor: &Cursor,
        count: usize,
        connection: u64,
    ) -> Result<Vec<Option<Stored>>, BackplaneError> {
        let Cursor { epoch, ms, number } = *cursor;
        let after = if number == 0 { "-".to_owned() } else { format!("({ms}-{number}") };
        let mut range = cmd("XRANGE");
        range.arg(self.args.names().stream(user)).arg(after).arg("+").arg("COUNT").arg(count);
        let (reply, its) = self.redis.bulk().numbered_raw(&range).await?;
        if its != connection {
            return Ok(Vec::new());
        }
        let mut parts = ReplyParts(&reply);
        let count = parts.array().unwrap_or_default();
        let entries = (0..count).map(|_| stored(&mut parts, epoch)).collect::<Option<_>>();
        entries.ok_or_else(|| BackplaneError::unexpected("of no entries"))
    }
}

impl Page {
    fn has_room(&self, size: PageSize) -> bool {
        self.count < size.entries && self.bytes < size.bytes
    }

    /// Adds an entry, if it directly follows.
    fn add(&mut self, Stored { entry, until }: Stored, now: u64) -> bool {
        let (upto, cursor) = (self.upto, entry.cursor);
        if cursor.number != upto.number + 1 || (upto.number > 0 && cursor.ms < upto.ms) {
            return false;
        }
        self.upto = cursor;
        self.count += 1;
        if until.is_none_or(|until| until > now) {
            self.bytes += entry.data.len();
            self.entries.push(entry);
        }
        true
    }

    fn step(&self, size: PageSize) -> usize {
        step(size.bytes.saturating_sub(self.bytes), self.bytes / self.count.max(1))
    }
}

/// As many entries as there is room for if each has so many bytes.
fn step(room: usize, each: usize) -> usize {
    (room / each.max(1)).clamp(LEAST_STEP, MOST_STEP)
}

impl Default for TypicalBytes {
    fn default() -> Self {
        Self(TYPICAL_BYTES.into())
    }
}

impl TypicalBytes {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn note(&self, page: &Page) {
        if let Some(mean) = page.bytes.checked_div(page.entries.len()) {
            self.0.store(mean.max(self.get() / 8 * 7), Ordering::Relaxed);
        }
    }
}

/// The next entry of the reply, if it is one: `None` within if it is not one of this version.
fn stored(reply: &mut ReplyParts<'_>, epoch: NonZeroU64) -> Option<Option<Stored>> {
    let (2, position) = (reply.array()?, reply.bulk()?) else { return None };
    let [mut event, mut data, mut collapse, mut until] = [None; 4];
    for _ in 0..reply.array()? / 2 {
        let (name, value) = (reply.bulk()?, reply.bulk()?);
        match name {
            b"event" => event = Some(value),
            b"data" => data = Some(value),
            b"collapse" => collapse = Some(value),
            b"until" => until = Some(value),
            _ => {}
        }
    }
    let read = || {
        let (ms, number) = str::from_utf8(position).ok()?.split_once('-')?;
        let cursor = Cursor { epoch, ms: ms.parse().ok()?, number: number.parse().ok()? };
        let EventName { event, trace } = EventName::parse(str::from_utf8(event?).ok()?)?;
        let collapse = collapse.map(serde_json::from_slice).transpose().ok()?;
        let until = until.map(str::from_utf8).transpose().ok()?.map(str::parse).transpose().ok()?;
        let data = str::from_utf8(data?).ok()?.to_owned();
        Some(Stored { entry: Entry { cursor, event, data, collapse, trace }, until })
    };
    Some(read())
}
