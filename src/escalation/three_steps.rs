//! Hands over in three steps: judges the escalations in their bucket, adds those that are unread to the stream, which is in
//! another slot, and removes them from their bucket.
//!
//! Each may be repeated: a mark beside the stream tells which were added. A sweep that was paused adds nothing once another
//! has begun: each begins by leaving its token beside the stream, before it judges anything.

use redis::{RedisResult, cmd};

use super::store::{Escalations, Judged, MAX_MARKS, MAX_OF_USER, MAX_UNREAD, USERS_IN_STEPS};
use crate::backplane::BackplaneError;
use crate::history::PUBLISH_BYTES;
use crate::protocol::UserId;

/// A judged user's reply of `peek.lua`.
type Peeked = (u64, u64, Vec<String>, Vec<[Vec<u8>; 4]>);

impl Escalations {
    /// Begins a sweep: an earlier one adds nothing any more. Returns its token.
    pub(super) async fn begin(&self) -> Result<String, BackplaneError> {
        let token = format!("{:016x}", fastrand::u64(..));
        let () = self.redis.commands().command(cmd("SET").arg(&self.sweeper).arg(&token)).await?;
        Ok(token)
    }

    /// As [`Escalations::hand_over`]. Returns `None` if another sweep has begun.
    pub(super) async fn hand_over_in_steps(
        &self,
        token: &str,
        users: &[UserId],
    ) -> Result<Option<Vec<Result<Judged, BackplaneError>>>, BackplaneError> {
        let peeked = self.peek(users).await?;
        if !self.add(token, users, &peeked).await? {
            return Ok(None);
        }
        let removed = self.remove(users, &peeked).await?;
        let mut settled = Vec::new();
        let mut judged = Vec::with_capacity(users.len());
        for (peeked, removed) in peeked.into_iter().zip(removed) {
            let outcome = peeked.and_then(|peeked| removed.map(|()| peeked));
            judged.push(outcome.map(|(read, lost, _, unread)| {
                let handed_over = unread.len() as u64;
                settled.extend(unread.into_iter().map(|[cursor, ..]| cursor));
                Judged { handed_over, read, lost }
            }));
        }
        self.unmark(token, &settled).await?;
        Ok(Some(judged))
    }

    async fn peek(&self, users: &[UserId]) -> Result<Vec<Result<Peeked, BackplaneError>>, BackplaneError> {
        let call = |user: &UserId| {
            let [history, stream, positions, escalations, _] = self.history.escalation_keys(user);
            let mut call = self.peek.call(&[history, stream, positions, escalations]);
            call.arg(user.as_str()).arg(MAX_OF_USER).arg(PUBLISH_BYTES / USERS_IN_STEPS);
            call
        };
        let calls: Vec<_> = users.iter().map(call).collect();
        let replies: Vec<RedisResult<Peeked>> = self.redis.bulk().scripts(&self.peek, &calls).await?;
        Ok(replies.into_iter().map(|reply| Ok(reply?)).collect())
    }

    /// Returns whether no other sweep has begun. Replicas confirm it, so that a failover does not lose what is then removed.
    async fn add(
        &self,
        token: &str,
        users: &[UserId],
        peeked: &[Result<Peeked, BackplaneError>],
    ) -> Result<bool, BackplaneError> {
        let mut call = self.add.key(&self.unread);
        call.key(&self.sweeper).key(&self.marks).arg(token).arg(MAX_UNREAD).arg(MAX_MARKS);
        let mut any = false;
        for (user, peeked) in users.iter().zip(peeked) {
            for [cursor, event, data, ts] in peeked.iter().flat_map(|(.., unread)| unread) {
                call.arg(user.as_str()).arg(cursor).arg(event).arg(data).arg(ts);
                any = true;
            }
        }
        let added: Option<u64> = if any { self.redis.durable().script(&call).await? } else { Some(0) };
        Ok(added.is_some())
    }

    /// Returns the outcome for each user; one that could not be judged counts as done.
    async fn remove(
        &self,
        users: &[UserId],
        peeked: &[Result<Peeked, BackplaneError>],
    ) -> Result<Vec<Result<(), BackplaneError>>, BackplaneError> {
        let call = |(user, peeked): (&UserId, &Result<Peeked, BackplaneError>)| {
            let [.., escalations, bucket] = self.history.escalation_keys(user);
            let mut call = self.remove.call(&[escalations, bucket]);
            call.arg(user.as_str());
            if let Ok((.., positions, _)) = peeked {
                call.arg(positions);
            }
            call
        };
        let calls: Vec<_> = users.iter().zip(peeked).map(call).collect();
        let replies: Vec<RedisResult<u64>> = self.redis.bulk().scripts(&self.remove, &calls).await?;
        Ok(replies.into_iter().map(|reply| Ok(reply.map(drop)?)).collect())
    }

    async fn unmark(&self, token: &str, cursors: &[Vec<u8>]) -> Result<(), BackplaneError> {
        if cursors.is_empty() {
            return Ok(());
        }
        let mut call = self.unmark.key(&self.sweeper);
        call.key(&self.marks).arg(token).arg(cursors);
        self.redis.commands().script(&call).await
    }
}
