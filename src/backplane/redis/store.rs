//! What is read from Redis besides presence, and the list of revoked tokens: `{prefix}revoked`, a sorted set of their
//! `jti` by when the revocation ends.

use redis::{Script, Value, cmd, pipe};

use super::link::Link;
use crate::backplane::{BackplaneError, Stored};
use crate::protocol::Revocation;

/// Revocations read or written in one step.
const STEP: usize = 1_000;

pub(super) struct RevokedSet {
    key: String,
    revoke: Script,
}

impl RevokedSet {
    pub(super) fn new(prefix: &str) -> Self {
        Self { key: format!("{prefix}revoked"), revoke: Script::new(include_str!("scripts/revoke.lua")) }
    }

    /// Adds to the list, of at most `most`, and drops from it what ended more than a day ago; gives how many found no room.
    pub(super) async fn add(
        &self,
        link: &Link,
        revocations: &[Revocation],
        most: usize,
    ) -> Result<u64, BackplaneError> {
        let mut refused = 0;
        for some in revocations.chunks(STEP) {
            let mut invocation = self.revoke.key(&self.key);
            invocation.arg(most);
            for Revocation { jti, until } in some {
                invocation.arg(*until).arg(jti);
            }
            refused += link.script::<u64>(&invocation).await?;
        }
        Ok(refused)
    }

    pub(super) async fn count(&self, link: &Link, oldest: u64) -> Result<usize, BackplaneError> {
        link.command(cmd("ZCOUNT").arg(&self.key).arg(format!("({oldest}")).arg("+inf")).await
    }

    /// Some of the list from a place on, those that end last first: what is dropped meanwhile moves none of the others.
    pub(super) async fn page(&self, link: &Link, from: usize) -> Result<Vec<Revocation>, BackplaneError> {
        let range = cmd("ZREVRANGE").arg(&self.key).arg(from).arg(from + STEP - 1).arg("WITHSCORES").to_owned();
        let page: Vec<(Vec<u8>, f64)> = link.command(&range).await?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds, which the cast saturates")]
        let revocation = |(jti, until): (Vec<u8>, f64)| {
            // What somebody else put there and is no text matches no token.
            Revocation { jti: String::from_utf8_lossy(&jti).into_owned(), until: until as u64 }
        };
        Ok(page.into_iter().map(revocation).collect())
    }
}

/// The strings at these keys, cut to one byte more than `most`. What is no string is none.
pub(super) async fn read(link: &Link, keys: &[String], most: usize) -> Result<Vec<Option<Stored>>, BackplaneError> {
    let mut questions = pipe();
    questions.ignore_errors();
    for key in keys {
        questions.cmd("GETRANGE").arg(key).arg(0).arg(most).cmd("PTTL").arg(key);
    }
    let answers: Vec<redis::RedisResult<Value>> = link.pipeline(&questions).await?;
    let (pairs, []) = answers.as_chunks::<2>() else { return Err(BackplaneError::Answer("of another length".into())) };
    pairs.iter().map(|[text, ttl]| stored(text, ttl)).collect()
}

fn stored(text: &redis::RedisResult<Value>, ttl: &redis::RedisResult<Value>) -> Result<Option<Stored>, BackplaneError> {
    match (text, ttl) {
        (Ok(Value::BulkString(text)), Ok(Value::Int(ttl))) if !text.is_empty() => {
            Ok(Some(Stored { bytes: text.clone(), expires: *ttl >= 0 }))
        }
        (Ok(Value::BulkString(_)), Ok(_)) => Ok(None),
        (Err(error), _) if error.code() == Some("WRONGTYPE") => Ok(None),
        (Err(error), _) | (_, Err(error)) => Err(error.clone().into()),
        (Ok(other), Ok(_)) => Err(BackplaneError::Answer(format!("{other:?}").chars().take(40).collect())),
    }
}
