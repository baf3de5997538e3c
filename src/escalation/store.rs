//! The escalations in Redis, and the stream of unread notifications.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, cmd};

use crate::backplane::BackplaneError;
use crate::config::Config;
use crate::history::{Bucket, Layout, PUBLISH_BYTES, PublishArgs};
use crate::protocol::{UserId, millis};
use crate::redis::{Pipelined, Redis, Script};

/// Unread notifications to keep, approximately.
pub(super) const MAX_UNREAD: usize = 100_000;

const UNREAD_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// Due users read at a time, and those of each bucket of a cluster.
const MAX_DUE: usize = 500;
const MAX_DUE_OF_BUCKET: usize = 50;

/// Escalations of one user in one call.
pub(super) const MAX_OF_USER: usize = 100;

/// Users in one pipeline: in steps, their notifications pass through this process.
pub(super) const USERS: usize = 500;
pub(super) const USERS_IN_STEPS: usize = 64;

/// Marks to keep: far more than one pipeline adds.
pub(super) const MAX_MARKS: usize = 100_000;

macro_rules! judging {
    ($($part:literal),+) => {
        concat!(
            include_str!("../history/scripts/position.lua"),
            include_str!("../history/scripts/user.lua"),
            include_str!("scripts/judge.lua"),
            $(include_str!($part)),+
        )
    };
}

const HAND_OVER: &str = judging!("scripts/settle.lua", "scripts/unread.lua", "scripts/hand_over.lua");
const PEEK: &str = judging!("scripts/peek.lua");
const ADD: &str = concat!(include_str!("scripts/unread.lua"), include_str!("scripts/add.lua"));
const REMOVE: &str = concat!(include_str!("scripts/settle.lua"), include_str!("scripts/remove.lua"));

/// What became of a user's due escalations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) handed_over: u64,
    pub(super) read: u64,
    /// No longer stored, though unread.
    pub(super) lost: u64,
}

/// The reply of `due.lua`.
type DueReply = (u64, u64, u64, Vec<String>);

/// What a bucket has.
pub(super) struct Due {
    /// Users with escalations.
    pub(super) pending: u64,
    /// For how long the earliest has been due.
    pub(super) overdue: Duration,
    /// Escalations dropped with the notifications of a user whose history is full.
    pub(super) dropped: u64,
    /// The first users with a due escalation.
    pub(super) users: Vec<String>,
}

/// The name of the stream of unread notifications.
pub fn unread_stream(config: &Config) -> String {
    format!("{}unread", config.redis.prefix)
}

fn sweeper(unread: &str) -> String {
    format!("{{{unread}}}:sweeper")
}

/// From now on, the sweep in progress adds nothing that it judged before. One script judges and adds where users and stream
/// are in one slot.
pub async fn interrupt(redis: &Redis, config: &Config) -> Result<(), BackplaneError> {
    if redis.is_cluster() {
        let () = redis.commands().command(cmd("DEL").arg(sweeper(&unread_stream(config)))).await?;
    }
    Ok(())
}

pub(super) struct Escalations {
    pub(super) redis: Arc<Redis>,
    pub(super) history: PublishArgs,
    pub(super) layout: Layout,
    /// The stream of unread notifications; in a cluster, its name is the hash tag of the next two.
    pub(super) unread: String,
    /// The token of the latest sweep.
    pub(super) sweeper: String,
    pub(super) marks: String,
    due: Pipelined,
    hand_over: Pipelined,
    pub(super) peek: Pipelined,
    pub(super) add: Script,
    pub(super) remove: Pipelined,
    pub(super) unmark: Script,
    trim: Script,
}

impl Escalations {
    pub(super) fn new(redis: Arc<Redis>, config: &Config, layout: Layout) -> Self {
        let unread = unread_stream(config);
        Self {
            redis,
            history: PublishArgs::new(&config.redis, config.history, layout),
            layout,
            sweeper: sweeper(&unread),
            marks: format!("{{{unread}}}:marks"),
            unread,
            due: Pipelined::new(include_str!("scripts/due.lua")),
            hand_over: Pipelined::new(HAND_OVER),
            peek: Pipelined::new(PEEK),
            add: Script::new(ADD),
            remove: Pipelined::new(REMOVE),
            unmark: Script::new(include_str!("scripts/unmark.lua")),
            trim: Script::new(include_str!("scripts/trim.lua")),
        }
    }

    /// Whether users and unread notifications are in different slots.
    pub(super) fn is_spread(&self) -> bool {
        self.layout != Layout::One
    }

    /// Which users of these buckets have a due escalation, after passing over so many of each.
    pub(super) async fn due(
        &self,
        buckets: &[(Bucket, usize)],
    ) -> Result<Vec<Result<Due, BackplaneError>>, BackplaneError> {
        let most = if self.is_spread() { MAX_DUE_OF_BUCKET } else { MAX_DUE };
        let call = |(bucket, skipped): &(Bucket, usize)| {
            let mut call = self.due.call(&self.history.bucket_keys(*bucket));
            call.arg(skipped).arg(most);
            call
        };
        let calls: Vec<_> = buckets.iter().map(call).collect();
        let replies: Vec<RedisResult<DueReply>> = self.redis.commands().scripts(&self.due, &calls).await?;
        let due = |(pending, overdue, dropped, users)| Due {
            pending,
            overdue: Duration::from_millis(overdue),
            dropped,
            users,
        };
        Ok(replies.into_iter().map(|reply| Ok(due(reply?))).collect())
    }

    /// Judges the due escalations of these users, up to so many of each, hands over those that are unread, and removes them.
    pub(super) async fn hand_over(
        &self,
        users: &[UserId],
    ) -> Result<Vec<Result<Judged, BackplaneError>>, BackplaneError> {
        let call = |user: &UserId| {
            let mut keys = self.history.escalation_keys(user).to_vec();
            keys.push(self.unread.clone());
            let mut call = self.hand_over.call(&keys);
            call.arg(user.as_str()).arg(MAX_OF_USER).arg(PUBLISH_BYTES).arg(MAX_UNREAD);
            call
        };
        let calls: Vec<_> = users.iter().map(call).collect();
        let replies: Vec<RedisResult<(u64, u64, u64)>> = self.redis.bulk().scripts(&self.hand_over, &calls).await?;
        let judged = |(handed_over, read, lost)| Judged { handed_over, read, lost };
        Ok(replies.into_iter().map(|reply| Ok(judged(reply?))).collect())
    }

    /// Removes old unread notifications.
    pub(super) async fn trim(&self) -> Result<(), BackplaneError> {
        let mut call = self.trim.key(&self.unread);
        self.redis.commands().script(call.arg(millis(UNREAD_KEPT))).await
    }
}
