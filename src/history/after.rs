//! What a client missed since its cursor, read without a script where nothing of it was taken out, trimmed or erased: Redis
//! then spends a fifth of the CPU on the entries.

use std::num::NonZeroU64;

use redis::{Value, cmd, from_redis_value};

use super::redis::RedisHistory;
use super::starts::Start;
use super::store::{Beginning, Entry, PageSize, ReadFrom, Reading, places_kept};
use crate::backplane::BackplaneError;
use crate::protocol::{Cursor, EventName, UserId};

/// Entries in the first command: their size is unknown.
const FIRST_STEP: usize = 16;

/// Entries in each later one, at least and at most.
const LEAST_STEP: usize = 8;
const MOST_STEP: usize = 100;

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
        let mut step = FIRST_STEP;
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
        let (reply, its): (Vec<Value>, u64) = self.redis.bulk().numbered_command(&range).await?;
        let reply = if its == connection { reply } else { Vec::new() };
        Ok(reply.into_iter().map(|entry| stored(entry, epoch)).collect())
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

    /// As many as there is room for if they are as large as those so far.
    fn step(&self, size: PageSize) -> usize {
        let room = size.bytes.saturating_sub(self.bytes);
        (room.saturating_mul(self.count) / self.bytes.max(1)).clamp(LEAST_STEP, MOST_STEP)
    }
}

fn stored(reply: Value, epoch: NonZeroU64) -> Option<Stored> {
    let (position, fields): (String, Vec<String>) = from_redis_value(reply).ok()?;
    let (ms, number) = position.split_once('-')?;
    let cursor = Cursor { epoch, ms: ms.parse().ok()?, number: number.parse().ok()? };
    let [mut event, mut data, mut collapse, mut until] = [const { None }; 4];
    let mut fields = fields.into_iter();
    while let Some(name) = fields.next() {
        let field = match name.as_str() {
            "event" => &mut event,
            "data" => &mut data,
            "collapse" => &mut collapse,
            "until" => &mut until,
            _ => continue,
        };
        *field = fields.next();
    }
    let EventName { event, trace } = EventName::parse(&event?)?;
    let collapse = collapse.map(|key| serde_json::from_str(&key)).transpose().ok()?;
    let until = until.map(|until| until.parse()).transpose().ok()?;
    Some(Stored { entry: Entry { cursor, event, data: data?, collapse, trace }, until })
}
