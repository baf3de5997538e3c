//! The message relay of the transactional outbox: stores and publishes the entries of `{prefix}outbox` in their order.
//!
//! One instance at a time relays, under a lease in Redis. One script stores, publishes and removes an entry, so the
//! relay may die at any moment: the next one continues at the first entry that was not relayed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::entry::{Entry, Invalid, Reason, Run, Valid, runs};
use super::stream::{EntryOutcome, LEASE, OutboxStream};
use crate::backoff::Backoff;
use crate::backplane::BackplaneError;
use crate::config::Config;
use crate::log::LogRate;
use crate::protocol::InstanceId;
use crate::redis::{Redis, Stream};
use crate::shutdown::Shutdown;

/// Interval at which the holder renews the lease, and all others try to acquire it.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// `BLOCK` of the read that waits for an entry.
const WAIT_MS: &[u8] = b"10000";

/// For connecting the blocking read, sending its command, and releasing the lease.
const DEADLINE: Duration = Duration::from_secs(2);

/// Interval at which every instance measures the lag of the outbox.
const LAG_EVERY: Duration = Duration::from_secs(10);

/// Relays while this instance holds the lease, and releases the lease when the instance stops.
pub fn start(redis: &Arc<Redis>, config: &Config, instance: &InstanceId, shutdown: &Shutdown) {
    let outbox = Arc::new(OutboxStream::new(Arc::clone(redis), config, instance));
    let max_payload_bytes = config.limits.max_payload_bytes;
    let mut relay = Relay {
        redis: Arc::clone(redis),
        outbox: Arc::clone(&outbox),
        max_payload_bytes,
        lease: None,
        blocking_read: None,
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

struct Relay {
    redis: Arc<Redis>,
    outbox: Arc<OutboxStream>,
    max_payload_bytes: usize,
    lease: Option<Lease>,
    blocking_read: Option<BlockingRead>,
    rejections: LogRate,
}

struct Lease {
    token: String,
    renewed: Instant,
}

/// A connection with an `XREAD BLOCK` that returns when the outbox has an entry.
struct BlockingRead {
    stream: Stream,
    awaits_reply: bool,
}

async fn within<T>(operation: impl Future<Output = Result<T, BackplaneError>>) -> Result<T, BackplaneError> {
    timeout(DEADLINE, operation).await.map_err(|_| BackplaneError::Timeout(DEADLINE))?
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
                self.lose_lease();
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Acquires the lease, relays a page, or waits for an entry.
    async fn step(&mut self) -> Result<(), BackplaneError> {
        let Some(lease) = &mut self.lease else {
            match self.outbox.acquire_lease().await? {
                Some(token) => self.start_lease(token),
                None => sleep(RENEW_EVERY).await,
            }
            return Ok(());
        };
        let requested_at = Instant::now();
        match self.outbox.read(&lease.token).await? {
            None => {
                self.lose_lease();
                Ok(())
            }
            Some(page) => {
                lease.renewed = requested_at;
                let token = lease.token.clone();
                if page.is_empty() { self.wait().await } else { self.relay(&token, &page).await }
            }
        }
    }

    fn start_lease(&mut self, token: String) {
        info!("relaying from the outbox");
        self.redis.metrics().outbox_holder.set(1);
        self.lease = Some(Lease { token, renewed: Instant::now() });
    }

    fn lose_lease(&mut self) {
        warn!("outbox lease lost: another instance may relay");
        self.redis.metrics().outbox_holder.set(0);
        self.lease = None;
        self.blocking_read = None;
    }

    /// Releases the lease, so that another instance continues at once.
    async fn release(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        self.redis.metrics().outbox_holder.set(0);
        match within(self.outbox.release(&lease.token)).await {
            Ok(()) => info!("outbox lease released"),
            Err(error) => warn!(%error, "outbox lease not released: it expires by itself"),
        }
    }

    /// Waits until the outbox has an entry, or until the lease is to be renewed. The reply is discarded, because the
    /// entry in it may be of any size: [`OutboxStream::read`] truncates.
    async fn wait(&mut self) -> Result<(), BackplaneError> {
        let mut blocking_read = match self.blocking_read.take() {
            Some(blocking_read) => blocking_read,
            None => {
                let connecting = self.redis.commands().stream("outbox", self.max_payload_bytes);
                BlockingRead { stream: within(connecting).await?, awaits_reply: false }
            }
        };
        if !blocking_read.awaits_reply {
            let stream = self.outbox.stream().as_bytes();
            let words: [&[u8]; 8] = [b"XREAD", b"COUNT", b"1", b"BLOCK", WAIT_MS, b"STREAMS", stream, b"0-0"];
            within(blocking_read.stream.send_unwanted(&words)).await?;
            blocking_read.awaits_reply = true;
        }
        if let Ok(passed) = timeout(RENEW_EVERY, blocking_read.stream.pass_over()).await {
            passed?;
            blocking_read.awaits_reply = false;
        }
        self.blocking_read = Some(blocking_read);
        Ok(())
    }

    /// Relays or rejects these entries, up to the first that must stay.
    async fn relay(&mut self, token: &str, page: &[Entry]) -> Result<(), BackplaneError> {
        for run in runs(page) {
            let all_removed = match run {
                Run::Valid(entries) => self.publish(token, &entries).await?,
                Run::Invalid(entries) => self.reject(token, &entries).await?,
            };
            if !all_removed {
                break;
            }
        }
        Ok(())
    }

    /// Returns whether all of them were removed from the outbox.
    async fn publish(&mut self, token: &str, entries: &[Valid<'_>]) -> Result<bool, BackplaneError> {
        let replies = self.outbox.relay(token, entries).await?;
        for (valid, reply) in entries.iter().zip(replies) {
            let outcome = match reply {
                // Not an error that other entries would meet, too: only this user's keys may be unusable.
                Err(error) if error.kind() == "refused" => match self.outbox.reject_unstorable(token, valid).await? {
                    EntryOutcome::Storable => return Err(error),
                    outcome => outcome,
                },
                reply => reply?,
            };
            if !self.count(valid.0, outcome, Reason::Unstorable) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether all of them were removed from the outbox.
    async fn reject(&mut self, token: &str, entries: &[Invalid<'_>]) -> Result<bool, BackplaneError> {
        let replies = self.outbox.reject(token, entries).await?;
        for ((entry, reason), reply) in entries.iter().zip(replies) {
            if !self.count(entry, reply?, *reason) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts the outcome; returns whether the entry was removed from the outbox.
    fn count(&mut self, entry: &Entry, outcome: EntryOutcome, reason: Reason) -> bool {
        let metrics = self.redis.metrics();
        match outcome {
            EntryOutcome::Relayed => metrics.outbox_relayed.inc(),
            EntryOutcome::Known => metrics.outbox_duplicates.inc(),
            EntryOutcome::Rejected => {
                let reason = reason.label();
                metrics.outbox_rejected.with_label_values(&[reason]).inc();
                if let Some(held_back) = self.rejections.admit() {
                    warn!(id = entry.id, reason, held_back, moved_to = self.outbox.rejected(), "outbox entry rejected");
                }
            }
            EntryOutcome::Behind | EntryOutcome::Storable => return false,
            EntryOutcome::Fenced => {
                self.lose_lease();
                return false;
            }
        }
        true
    }
}
