//! Calls that are confirmed only once as many replicas have them as `redis.wait_replicas` requires.
//!
//! `WAIT` holds up everything behind it on its connection, so these calls have a link of their own. Those that come during
//! a `WAIT` form the next batch, which has one `WAIT` for all: replicas that do not answer delay a call by two timeouts at
//! most.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value, cmd, make_extension_error};

use super::Error;
use super::call::{Asking, Call, OwnedCall};
use super::error::NOT_REPLICATED;
use super::link::{COMMAND_DEADLINE, Link, Replies};
use super::node::Node;

/// Calls of one batch, and their bytes; one set of calls may exceed them.
const MAX_CALLS: usize = 10_000;
const MAX_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) replicas: u32,
    pub(super) timeout: Duration,
}

impl Wait {
    fn command(self) -> Cmd {
        let timeout = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        cmd("WAIT").arg(self.replicas).arg(timeout).to_owned()
    }

    /// The replies of calls, without that to the `WAIT` behind them: those that succeeded count only if it did.
    fn confirmed(self, mut replies: Vec<RedisResult<Value>>) -> Vec<RedisResult<Value>> {
        let waited = replies.pop().unwrap_or(Ok(Value::Nil));
        let error = match waited.and_then(|reply| Ok(u32::from_redis_value(reply)?)) {
            Ok(replicas) if replicas >= self.replicas => return replies,
            Ok(replicas) => not_replicated(replicas, self),
            Err(error) => error,
        };
        replies.into_iter().map(|reply| reply.and(Err(error.clone()))).collect()
    }
}

fn not_replicated(replicas: u32, wait: Wait) -> RedisError {
    let detail = format!("{replicas} of {} replicas had it within {:?}", wait.replicas, wait.timeout);
    make_extension_error(NOT_REPLICATED.into(), Some(detail))
}

/// The replies to a batch: `None` for a call that its caller had given up. An error is that of all calls, by kind and text.
type Outcome = Arc<Result<(Vec<Option<RedisResult<Value>>>, u64), (&'static str, String)>>;
type Sent = Shared<BoxFuture<'static, Outcome>>;

#[derive(Debug)]
pub(super) struct Replicated {
    link: Arc<Link>,
    wait: Wait,
    last: Mutex<Option<Batch>>,
}

struct Batch {
    /// `None` once it is being sent.
    jobs: Arc<Mutex<Option<Jobs>>>,
    /// Driven by all its callers: one may give up.
    sent: Sent,
}

#[derive(Default)]
struct Jobs {
    jobs: Vec<(OwnedCall, Weak<()>)>,
    bytes: usize,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}

impl Replicated {
    pub(super) fn new(node: Arc<Node>, wait: Wait) -> Self {
        let link = Arc::new(Link::with_deadline(node, "durable-commands", COMMAND_DEADLINE + wait.timeout));
        Self { link, wait, last: Mutex::default() }
    }

    /// As [`Link::run`].
    pub(super) async fn run(&self, calls: &[Call<'_>], asking: Asking) -> Result<Replies, Error> {
        if asking != Asking::Owner {
            let wait = self.wait.command();
            let calls: Vec<_> = calls.iter().copied().chain([Call::Command(&wait)]).collect();
            let Replies { replies, connection } = self.link.run(&calls, asking).await?;
            return Ok(Replies { replies: self.wait.confirmed(replies), connection });
        }
        let wanted = Arc::new(());
        let (sent, first) = self.add(calls, &wanted)?;
        match &*sent.await {
            Err((kind, why)) => Err(Error::Unreachable { kind, why: why.clone() }),
            Ok((replies, connection)) => {
                let own = replies.iter().skip(first).take(calls.len()).flatten().cloned().collect();
                Ok(Replies { replies: own, connection: *connection })
            }
        }
    }

    /// Adds calls to the batch that is not being sent yet; returns it, and the index of the first of them.
    fn add(&self, calls: &[Call<'_>], wanted: &Arc<()>) -> Result<(Sent, usize), Error> {
        let mut last = self.last.lock();
        let previous = last.as_ref().map(|batch| batch.sent.clone());
        let is_open = last.as_ref().is_some_and(|batch| batch.jobs.lock().is_some());
        if !is_open {
            *last = Some(self.batch(previous));
        }
        let missing = || Error::unexpected("none");
        let batch = last.as_ref().ok_or_else(missing)?;
        let mut jobs = batch.jobs.lock();
        let jobs = jobs.as_mut().ok_or_else(missing)?;
        let (first, bytes) = (jobs.jobs.len(), calls.iter().map(Call::bytes).sum::<usize>());
        if first > 0 && (first + calls.len() > MAX_CALLS || jobs.bytes + bytes > MAX_BYTES) {
            let why = "redis: too many calls wait for replicas (redis.wait_replicas)".into();
            return Err(Error::Unreachable { kind: "overload", why });
        }
        jobs.bytes += bytes;
        jobs.jobs.extend(calls.iter().map(|call| (call.owned(), Arc::downgrade(wanted))));
        Ok((batch.sent.clone(), first))
    }

    fn batch(&self, previous: Option<Sent>) -> Batch {
        let (link, wait, jobs) = (Arc::clone(&self.link), self.wait, Arc::new(Mutex::new(Some(Jobs::default()))));
        let collected = Arc::clone(&jobs);
        let sending = async move {
            if let Some(previous) = previous {
                previous.await;
            }
            let jobs = collected.lock().take().unwrap_or_default().jobs;
            Arc::new(send(&link, wait, &jobs).await.map_err(|error| (error.kind(), error.to_string())))
        };
        Batch { jobs, sent: sending.boxed().shared() }
    }
}

async fn send(
    link: &Link,
    wait: Wait,
    jobs: &[(OwnedCall, Weak<()>)],
) -> Result<(Vec<Option<RedisResult<Value>>>, u64), Error> {
    let is_wanted: Vec<_> = jobs.iter().map(|(_, wanted)| wanted.strong_count() > 0).collect();
    let wait_command = wait.command();
    let wanted = jobs.iter().zip(&is_wanted).filter(|(_, is_wanted)| **is_wanted);
    let calls: Vec<_> = wanted.map(|((call, _), _)| call.as_call()).chain([Call::Command(&wait_command)]).collect();
    if calls.len() == 1 {
        return Ok((Vec::new(), 0));
    }
    let Replies { replies, connection } = link.run(&calls, Asking::Owner).await?;
    let mut replies = wait.confirmed(replies).into_iter();
    let of_each = is_wanted.into_iter().map(|is_wanted| if is_wanted { replies.next() } else { None });
    Ok((of_each.collect(), connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_counts_only_if_enough_replicas_have_the_call() {
        let wait = Wait { replicas: 2, timeout: Duration::from_secs(1) };
        let confirmed = |waited| {
            let failed = Err(make_extension_error("OOM".into(), None));
            let kind = |reply: RedisResult<Value>| reply.map_err(|error| Error::from(error).kind());
            wait.confirmed(vec![Ok(Value::Okay), failed, waited]).into_iter().map(kind).collect::<Vec<_>>()
        };
        assert_eq!(confirmed(Ok(Value::Int(2))), [Ok(Value::Okay), Err("OOM")]);
        assert_eq!(confirmed(Ok(Value::Int(1))), [Err("not_replicated"), Err("OOM")]);
        assert_eq!(confirmed(Err(make_extension_error("NOPERM".into(), None))), [Err("NOPERM"), Err("OOM")]);
        assert_eq!(confirmed(Ok(Value::Nil))[1], Err("OOM"));
        assert!(confirmed(Ok(Value::Nil))[0].is_err());
    }
}
