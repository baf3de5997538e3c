//! The sessions of an Express application in Redis, as connect-redis stores them: `{auth.session_prefix}{ID}`, a string.
//!
//! Without Redis no session exists.

use std::sync::Arc;

use redis::{RedisResult, Value, cmd, pipe};

use crate::backplane::{Backplane, BackplaneError};
use crate::redis::{Feature, Redis, Scope, is_wrong_type};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// JSON.
    pub bytes: Vec<u8>,
    /// Whether the key has a time to live.
    pub expires: bool,
}

/// What was read of one session, if it exists.
pub type Reply<T> = Result<Option<T>, BackplaneError>;

#[derive(Debug)]
pub struct SessionStore {
    redis: Option<Arc<Redis>>,
    prefix: String,
}

impl SessionStore {
    pub fn new(prefix: &str, backplane: &Backplane) -> Self {
        let redis = backplane.redis().cloned();
        if let Some(redis) = &redis {
            redis.health().require(Feature::Sessions);
        }
        Self { redis, prefix: prefix.to_owned() }
    }

    /// Reads nothing, unless it is unknown whether Redis refuses, or Redis did: that its end is noticed without a client.
    pub async fn check(&self) {
        if self.redis.as_ref().is_some_and(|redis| !redis.health().works(Feature::Sessions)) {
            self.read(&[Arc::from("")], 0).await.ok();
        }
    }

    /// The sessions with these ids, in their order, each truncated to one byte more than `most`. In a cluster, each may fail
    /// separately.
    pub async fn read(&self, ids: &[Arc<str>], most: usize) -> Result<Vec<Reply<Stored>>, BackplaneError> {
        let Some(redis) = &self.redis else { return Ok(ids.iter().map(|_| Ok(None)).collect()) };
        let observed = |one| redis.observed(Feature::Sessions, Scope::Part, one);
        match self.read_from(redis, ids, most).await {
            Ok(all) => Ok(all.into_iter().map(observed).collect()),
            Err(error) => redis.observed(Feature::Sessions, Scope::Part, Err(error)),
        }
    }

    /// The values of these sessions, in their order, to compare them with earlier ones; `None` if the key is missing or not
    /// a string. Values of any length are read whole: only for sessions that were short when last read.
    pub async fn values(&self, ids: &[Arc<str>]) -> Result<Vec<Reply<Vec<u8>>>, BackplaneError> {
        match &self.redis {
            None => Ok(ids.iter().map(|_| Ok(None)).collect()),
            Some(redis) => redis.counted(self.values_from(redis, ids).await),
        }
    }

    async fn values_from(&self, redis: &Redis, ids: &[Arc<str>]) -> Result<Vec<Reply<Vec<u8>>>, BackplaneError> {
        let keys = ids.iter().map(|id| format!("{}{id}", self.prefix));
        if !redis.is_cluster() {
            let values: Vec<Option<Vec<u8>>> =
                redis.commands().command(cmd("MGET").arg(keys.collect::<Vec<_>>())).await?;
            return Ok(values.into_iter().map(Ok).collect());
        }
        // The keys of one command share a hash slot.
        let mut each = pipe();
        for key in keys {
            each.cmd("GET").arg(key);
        }
        let replies: Vec<RedisResult<Option<Vec<u8>>>> = redis.commands().each_reply(&each).await?;
        let values = replies.into_iter().map(|reply| match reply {
            Err(error) if is_wrong_type(&error) => Ok(None),
            reply => Ok(reply?),
        });
        Ok(values.collect())
    }

    async fn read_from(
        &self,
        redis: &Redis,
        ids: &[Arc<str>],
        most: usize,
    ) -> Result<Vec<Reply<Stored>>, BackplaneError> {
        let mut commands = pipe();
        for id in ids {
            let key = format!("{}{id}", self.prefix);
            commands.cmd("GETRANGE").arg(&key).arg(0).arg(most).cmd("PTTL").arg(&key);
        }
        let replies: Vec<RedisResult<Value>> = redis.commands().each_reply(&commands).await?;
        let (pairs, []) = replies.as_chunks::<2>() else {
            return Err(BackplaneError::unexpected("of an odd length"));
        };
        Ok(pairs.iter().map(|[text, ttl]| stored(text, ttl)).collect())
    }
}

/// The session in the replies to GETRANGE and PTTL; `None` if the key is missing or not a string.
fn stored(text: &RedisResult<Value>, ttl: &RedisResult<Value>) -> Reply<Stored> {
    match (text, ttl) {
        (Ok(Value::BulkString(text)), Ok(Value::Int(ttl))) if !text.is_empty() => {
            Ok(Some(Stored { bytes: text.clone(), expires: *ttl >= 0 }))
        }
        (Ok(Value::BulkString(_)), Ok(_)) => Ok(None),
        (Err(error), _) if is_wrong_type(error) => Ok(None),
        (Err(error), _) | (_, Err(error)) => Err(error.clone().into()),
        (Ok(other), Ok(_)) => Err(BackplaneError::unexpected(format!("{other:?}"))),
    }
}
