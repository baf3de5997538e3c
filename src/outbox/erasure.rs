//! Removes what the streams for backends have of a user.

use super::stream::name_beside;
use crate::backplane::BackplaneError;
use crate::config::Config;
use crate::history::Layout;
use crate::protocol::UserId;
use crate::redis::{Redis, Script};

/// Entries looked at in one call, whose data Redis holds in memory twice.
const STEP: usize = 100;

/// The stream of the rejected entries.
pub fn rejected_stream(redis: &Redis, config: &Config) -> String {
    name_beside(&config.redis.prefix, Layout::of(redis), "rejected")
}

/// Removes a user's entries from a stream whose entries have a field `user`.
pub async fn erase_entries(redis: &Redis, stream: &str, user: &UserId) -> Result<(), BackplaneError> {
    let script = Script::new(include_str!("scripts/erase.lua"));
    let mut start = "-".to_owned();
    loop {
        let mut call = script.key(stream);
        call.arg(user.as_str()).arg(&start).arg(STEP);
        let last: Result<Option<String>, _> = redis.bulk().script(&call).await;
        match redis.counted(last)? {
            Some(last) => start = format!("({last}"),
            None => return Ok(()),
        }
    }
}
