//! The message relay of the transactional outbox: stores and publishes what backends add to `{prefix}outbox`, in its order.
//!
//! One instance at a time does it, under a lease in Redis. Storing, publishing and taking an entry off are one step, so
//! that whoever relays may die at any moment: what it has not done is still there for the next, and nothing else is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::entry::{Bad, Entry, Good, Reason, Run, runs};
use super::stream::{LEASE, OutboxStream, Taken};
use crate::backoff::Backoff;
use crate::backplane::BackplaneError;
use crate::config::Config;
use crate::log::LogRate;
use crate::protocol::InstanceId;
use crate::redis::{Redis, Stream};
use crate::shutdown::Shutdown;

/// How often the lease is renewed by whoever has it, and asked for by everybody else.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// Longest wait of Redis for an entry.
const WAIT_MS: &[u8] = b"10000";

/// From nothing to a connection that waits, or to a lease that was given up.
const DEADLINE: Duration = Duration::from_secs(2);

/// How often every instance looks how far behind the outbox is.
const LAG_EVERY: Duration = Duration::from_secs(10);

/// Relays whenever no other instance does, until the instance stops.
pub fn start(redis: &Arc<Redis>, config: &Config, instance: &InstanceId, shutdown: &Shutdown) {
    let outbox = Arc::new(OutboxStream::new(Arc::clone(redis), config, instance));
    let max_payload_bytes = config.limits.max_payload_bytes;
    let mut relay = Relay {
        redis: Arc::clone(redis),
        outbox: Arc::clone(&outbox),
        max_payload_bytes,
        lease: None,
        waiting: None,
        rejections: LogRate::new(),
    };
    let stopping = shutdown.stopping().clone();
    shutdown.spawn_service(async move {
        let _ = stopping.run_until_cancelled(relay.run()).await;
        relay.release().await;
    });
    let redis = Arc::clone(redis);
    shutdown.spawn_until_stop(async move { measure_lag(&redis, &outbox).await });
}

async fn measure_lag(redis: &Redis, outbox: &OutboxStream) {
    let mut ticks = interval(LAG_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Ok((entries, seconds)) = redis.counted(outbox.lag().await) {
            redis.metrics().outbox_lag.set(entries);
            redis.metrics().outbox_oldest_seconds.set(seconds);
        }
    }
}

/// The task's state.
struct Relay {
    redis: Arc<Redis>,
    outbox: Arc<OutboxStream>,
    max_payload_bytes: usize,
    lease: Option<Lease>,
    waiting: Option<Waiting>,
    rejections: LogRate,
}

struct Lease {
    token: String,
    renewed: Instant,
}

/// A connection on which Redis says that there is something in the outbox.
struct Waiting {
    stream: Stream,
    /// Whether it was asked and has not answered yet.
    asked: bool,
}

async fn within<T>(doing: impl Future<Output = Result<T, BackplaneError>>) -> Result<T, BackplaneError> {
    timeout(DEADLINE, doing).await.map_err(|_| BackplaneError::Timeout(DEADLINE))?
}

impl Relay {
    async fn run(&mut self) -> std::convert::Infallible {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let step = self.step().await;
            if self.redis.counted(step).is_ok() {
                backoff.reset();
                continue;
            }
            if self.lease.as_ref().is_some_and(|lease| lease.renewed.elapsed() > LEASE) {
                self.lost();
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Takes the lease, or relays a page, or waits until there is something to do.
    async fn step(&mut self) -> Result<(), BackplaneError> {
        let Some(lease) = &mut self.lease else {
            match self.outbox.take().await? {
                Some(token) => self.taken(token),
                None => sleep(RENEW_EVERY).await,
            }
            return Ok(());
        };
        let asked = Instant::now();
        match self.outbox.read(&lease.token).await? {
            None => {
                self.lost();
                Ok(())
            }
            Some(page) => {
                lease.renewed = asked;
                let token = lease.token.clone();
                if page.is_empty() { self.wait().await } else { self.relay(&token, &page).await }
            }
        }
    }

    fn taken(&mut self, token: String) {
        info!("relaying from the outbox");
        self.redis.metrics().outbox_holder.set(1);
        self.lease = Some(Lease { token, renewed: Instant::now() });
    }

    fn lost(&mut self) {
        warn!("the lease of the outbox was lost: another instance may relay");
        self.redis.metrics().outbox_holder.set(0);
        self.lease = None;
        self.waiting = None;
    }

    /// Gives the lease up, so that another instance goes on at once.
    async fn release(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        self.redis.metrics().outbox_holder.set(0);
        match within(self.outbox.release(&lease.token)).await {
            Ok(()) => info!("the lease of the outbox was given up"),
            Err(error) => warn!(%error, "the lease of the outbox was not given up: it will end by itself"),
        }
    }

    /// Until there is something in the outbox, or the lease wants to be renewed. An answer means no more than that it is
    /// worth looking: the entry that it holds may be of any size, and is passed over.
    async fn wait(&mut self) -> Result<(), BackplaneError> {
        let mut waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => {
                let connecting = self.redis.commands().stream("outbox", self.max_payload_bytes);
                Waiting { stream: within(connecting).await?, asked: false }
            }
        };
        if !waiting.asked {
            let stream = self.outbox.stream().as_bytes();
            let words: [&[u8]; 8] = [b"XREAD", b"COUNT", b"1", b"BLOCK", WAIT_MS, b"STREAMS", stream, b"0-0"];
            within(waiting.stream.send_unwanted(&words)).await?;
            waiting.asked = true;
        }
        if let Ok(passed) = timeout(RENEW_EVERY, waiting.stream.pass_over()).await {
            passed?;
            waiting.asked = false;
        }
        self.waiting = Some(waiting);
        Ok(())
    }

    /// Takes these off, up to the first that stays.
    async fn relay(&mut self, token: &str, page: &[Entry]) -> Result<(), BackplaneError> {
        for run in runs(page) {
            let all_gone = match run {
                Run::Good(entries) => self.publish(token, &entries).await?,
                Run::Bad(entries) => self.reject(token, &entries).await?,
            };
            if !all_gone {
                break;
            }
        }
        Ok(())
    }

    /// Gives whether all of them are gone.
    async fn publish(&mut self, token: &str, entries: &[Good<'_>]) -> Result<bool, BackplaneError> {
        let answers = self.outbox.relay(token, entries).await?;
        for (good, answer) in entries.iter().zip(answers) {
            let taken = match answer {
                // Of no kind that another entry would meet, too: perhaps it is this user's alone.
                Err(error) if error.kind() == "refused" => match self.outbox.reject_unstorable(token, good).await? {
                    Taken::Sound => return Err(error),
                    taken => taken,
                },
                answer => answer?,
            };
            if !self.count(good.0, taken, Reason::Unstorable) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As [`Relay::publish`].
    async fn reject(&mut self, token: &str, entries: &[Bad<'_>]) -> Result<bool, BackplaneError> {
        let answers = self.outbox.reject(token, entries).await?;
        for ((entry, reason), answer) in entries.iter().zip(answers) {
            if !self.count(entry, answer?, *reason) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts what became of an entry; gives whether it is gone.
    fn count(&mut self, entry: &Entry, taken: Taken, reason: Reason) -> bool {
        let metrics = self.redis.metrics();
        match taken {
            Taken::Relayed => metrics.outbox_relayed.inc(),
            Taken::Known => metrics.outbox_duplicates.inc(),
            Taken::Rejected => {
                let reason = reason.label();
                metrics.outbox_rejected.with_label_values(&[reason]).inc();
                if let Some(held_back) = self.rejections.admit() {
                    warn!(
                        id = entry.id,
                        reason,
                        held_back,
                        moved_to = self.outbox.rejected(),
                        "an outbox entry was rejected"
                    );
                }
            }
            Taken::Behind | Taken::Sound => return false,
            Taken::Fenced => {
                self.lost();
                return false;
            }
        }
        true
    }
}
