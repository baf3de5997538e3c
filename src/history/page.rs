//! Pages of stored notifications in Redis, newest first.

use redis::{FromRedisValue, Value};

use super::redis::RedisHistory;
use super::store::{Entry, NewestPage, PageSize};
use crate::backplane::BackplaneError;
use crate::protocol::{Cursor, EventName, UserId, millis};

impl RedisHistory {
    /// As [`super::HistoryStore::page`].
    pub(super) async fn page(
        &self,
        user: &UserId,
        before: Option<&Cursor>,
        size: PageSize,
    ) -> Result<Option<NewestPage>, BackplaneError> {
        let names = self.args.names();
        let mut call = self.page.key(names.bucket_of(user));
        call.key(names.stream(user)).arg(user.as_str()).arg(millis(self.args.kept().ttl));
        call.arg(size.entries).arg(size.bytes).arg(before.map_or_else(String::new, Cursor::to_string));
        let (bulk, bucket) = (self.redis.bulk(), self.bucket(user));
        let check = async || self.compare_bucket(bucket).await;
        let reply: Vec<Value> = self.checks.read(bucket, || bulk.numbered_script(&call), check).await?;
        if reply.is_empty() {
            return Ok(None);
        }
        page(&reply).map(Some).ok_or_else(|| BackplaneError::unexpected(format!("{reply:?}")))
    }
}

fn page(reply: &[Value]) -> Option<NewestPage> {
    let text = |value: &Value| String::from_redis_value_ref(value).ok();
    let [epoch, next, entries @ ..] = reply else { return None };
    let (epoch, next) = (text(epoch)?, text(next)?);
    let cursor = |position: &str| format!("{epoch}-{position}").parse::<Cursor>().ok();
    let (triples, []) = entries.as_chunks::<3>() else { return None };
    let entry = |[position, event, data]: &[Value; 3]| {
        let EventName { event, trace } = EventName::parse(&text(event)?)?;
        Some(Entry { cursor: cursor(&text(position)?)?, event, data: text(data)?, collapse: None, trace })
    };
    let entries = triples.iter().map(entry).collect::<Option<_>>()?;
    let next = if next.is_empty() { None } else { Some(cursor(&next)?) };
    Some(NewestPage { entries, next })
}
