//! Taking notifications back in Redis: one, or all of a user.

use redis::cmd;

use super::publish::fresh_epoch;
use super::redis::RedisHistory;
use super::store::{Retracted, places_kept};
use crate::backplane::BackplaneError;
use crate::protocol::{Cursor, UserId, millis};

/// Idempotency keys erased in one call.
const KEYS_STEP: usize = 500;

/// Calls for one user, who may meanwhile be published to with further keys.
const MAX_STEPS: usize = 10_000;

impl RedisHistory {
    pub async fn retract(&self, user: &UserId, cursor: &Cursor) -> Result<Retracted, BackplaneError> {
        let names = self.args.names();
        let mut call = self.retract.key(names.bucket_of(user));
        call.key(names.stream(user)).key(names.retracted(user)).key(names.expiring(user));
        call.key(names.collapse(user)).key(names.escalations(user));
        call.arg(user.as_str()).arg(cursor.to_string()).arg(millis(places_kept(self.args.kept().ttl)));
        call.arg(self.args.channel(user));
        let reply: String = self.redis.durable().script(&call).await?;
        match reply.as_str() {
            "gone" => Ok(Retracted::Gone),
            "foreign" => Ok(Retracted::Foreign),
            other => Err(BackplaneError::unexpected(other)),
        }
    }

    pub async fn erase(&self, user: &UserId) -> Result<(), BackplaneError> {
        let names = self.args.names();
        let salt = fresh_epoch();
        for _ in 0..MAX_STEPS {
            let list = cmd("ZRANGE").arg(names.keys(user)).arg(0).arg(KEYS_STEP - 1).to_owned();
            // Declared as keys of the script: in a cluster, their slot may be on its way to another node.
            let keys: Vec<Vec<u8>> = self.redis.bulk().command(&list).await?;
            let mut call = self.erase.key(names.bucket_of(user));
            call.key(names.stream(user)).key(names.positions(user)).key(names.retracted(user));
            call.key(names.expiring(user)).key(names.collapse(user)).key(names.escalations(user));
            call.key(names.bucket_escalations(self.bucket(user))).key(names.keys(user));
            for key in keys {
                call.key(key);
            }
            call.arg(user.as_str()).arg(fresh_epoch()).arg(&salt).arg(self.args.channel(user));
            let reply: String = self.redis.durable().script(&call).await?;
            match reply.as_str() {
                "more" => {}
                "erased" => return Ok(()),
                other => return Err(BackplaneError::unexpected(other)),
            }
        }
        Err(BackplaneError::unexpected("idempotency keys without end"))
    }
}
