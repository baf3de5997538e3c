//! Stores notifications for clients that are disconnected or whose server has lost its subscription.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{cmd, pipe};

use crate::plan::SentCounts;
use crate::redis_usage::RedisUsage;
use crate::sender::Message;
use crate::{Backend, Gateway, LoadError, Progress};

/// Maximum number of users per call of [`Gateway::publish`]; the gateway's own pipelines are no longer.
const BATCH: usize = 1_000;

/// Stores and publishes this many durable notifications, to each user in turn; returns their cursors.
pub(crate) async fn publish(
    gateway: &impl Gateway,
    count: usize,
    size: usize,
    sent: &mut SentCounts,
    progress: &impl Fn(Progress),
) -> Result<Vec<String>, LoadError> {
    let mut cursors = Vec::with_capacity(count);
    while cursors.len() < count {
        let messages = next_messages(count - cursors.len(), sent);
        let same_text = messages.chunk_by(|one, next| one.number == next.number);
        for batch in same_text.flat_map(|same| same.chunks(BATCH)) {
            let Some(first) = batch.first() else { continue };
            progress(Progress::of("storing", cursors.len() as u64, count as u64));
            let stored = gateway.publish(&users(batch), &first.text(size)).await;
            cursors.extend(stored.map_err(LoadError::Store)?);
        }
    }
    Ok(cursors)
}

/// Kills all subscriptions and stores this many notifications in one transaction, as if their publication was lost
/// together with the subscriptions. Returns the usage of Redis at the end of the transaction.
pub(crate) async fn store_unpublished(
    gateway: &impl Gateway,
    backend: &Backend,
    count: usize,
    size: usize,
    sent: &mut SentCounts,
) -> Result<RedisUsage, LoadError> {
    let messages = next_messages(count, sent);
    let newest = if messages.is_empty() { Ok(Vec::new()) } else { gateway.newest(&users(&messages)).await };
    let newest = newest.map_err(LoadError::Store)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now = u64::try_from(now).unwrap_or(u64::MAX);
    let mut transaction = pipe();
    transaction.atomic().add_command(cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").to_owned()).ignore();
    let counts = format!("{}history", backend.redis_prefix);
    for (message, newest) in messages.iter().zip(newest) {
        let stream = format!("{}history:{{{}}}", backend.redis_prefix, message.user);
        let id = format!("{}-{}", newest.ms.max(now), newest.number + 1);
        let place = format!(":{}", message.user);
        transaction.cmd("HSET").arg(&counts).arg(place).arg(&id).ignore();
        let add = transaction.cmd("XADD").arg(stream).arg(id).arg("event").arg("\"notification\"");
        add.arg("data").arg(message.text(size)).ignore();
    }
    transaction.cmd("HINCRBY").arg(&counts).arg("count").arg(messages.len()).ignore();
    transaction.cmd("INFO").arg("all");
    let (info,): (String,) = transaction.query(&mut backend.redis()?.get_connection()?)?;
    Ok(RedisUsage::parse(&info))
}

fn users(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.user.as_str()).collect()
}

/// The next message of each of the first `count` users, or of all users if there are fewer.
fn next_messages(count: usize, sent: &mut SentCounts) -> Vec<Message> {
    let next = |(user, sent): (usize, &mut u64)| {
        *sent += 1;
        Message { user: user.to_string(), number: *sent, due: Duration::ZERO }
    };
    sent.iter_mut().enumerate().take(count).map(next).collect()
}
