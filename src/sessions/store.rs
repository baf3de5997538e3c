//! The sessions of an Express application in Redis, as connect-redis stores them: `{auth.session_prefix}{ID}`, a string.
//!
//! Without Redis no session exists.

use std::sync::Arc;

use redis::{RedisResult, Value, pipe};

use crate::backplane::{Backplane, BackplaneError};
use crate::redis::Redis;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// JSON.
    pub bytes: Vec<u8>,
    /// Whether the key has a time to live.
    pub expires: bool,
}

#[derive(Debug)]
pub struct SessionStore {
    redis: Option<Arc<Redis>>,
    prefix: String,
}

impl SessionStore {
    pub fn new(prefix: &str, backplane: &Backplane) -> Self {
        Self { redis: backplane.redis().cloned(), prefix: prefix.to_owned() }
    }

    /// The sessions with these ids, in their order, each truncated to one byte more than `most`.
    pub async fn read(&self, ids: &[Arc<str>], most: usize) -> Result<Vec<Option<Stored>>, BackplaneError> {
        match &self.redis {
            None => Ok(vec![None; ids.len()]),
            Some(redis) => redis.counted(self.read_from(redis, ids, most).await),
        }
    }

    async fn read_from(
        &self,
        redis: &Redis,
        ids: &[Arc<str>],
        most: usize,
    ) -> Result<Vec<Option<Stored>>, BackplaneError> {
        let mut commands = pipe();
        commands.ignore_errors();
        for id in ids {
            let key = format!("{}{id}", self.prefix);
            commands.cmd("GETRANGE").arg(&key).arg(0).arg(most).cmd("PTTL").arg(&key);
        }
        let replies: Vec<RedisResult<Value>> = redis.commands().pipeline(&commands).await?;
        let (pairs, []) = replies.as_chunks::<2>() else {
            return Err(BackplaneError::unexpected("of an odd length"));
        };
        pairs.iter().map(|[text, ttl]| stored(text, ttl)).collect()
    }
}

/// The session in the replies to GETRANGE and PTTL; `None` if the key is missing or not a string.
fn stored(text: &RedisResult<Value>, ttl: &RedisResult<Value>) -> Result<Option<Stored>, BackplaneError> {
    match (text, ttl) {
        (Ok(Value::BulkString(text)), Ok(Value::Int(ttl))) if !text.is_empty() => {
            Ok(Some(Stored { bytes: text.clone(), expires: *ttl >= 0 }))
        }
        (Ok(Value::BulkString(_)), Ok(_)) => Ok(None),
        (Err(error), _) if error.code() == Some("WRONGTYPE") => Ok(None),
        (Err(error), _) | (_, Err(error)) => Err(error.clone().into()),
        (Ok(other), Ok(_)) => Err(BackplaneError::unexpected(format!("{other:?}"))),
    }
}
