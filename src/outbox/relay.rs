//! The message relay of the transactional outbox: stores and publishes the entries of `{prefix}outbox` in their order.
//!
//! One instance at a time relays, under a lease in Redis. One script stores, publishes and removes an entry, so the
//! relay may die at any moment: the next one continues at the first entry that was not relayed. In a cluster this takes
//! two steps (`two_steps.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::entry::{Entry, Invalid, Reason, Run, Valid, runs};
use super::lease::{Lease, LeaseId};
use super::stream::{EntryOutcome, LEASE, OutboxStream};
use crate::backoff::Backoff;
use crate::backplane::BackplaneError;
use crate::config::{Config, LiveLimits};
use crate::history::Layout;
use crate::log::LogRate;
use crate::protocol::InstanceId;
use crate::redis::{Feature, Redis, Scope, Stream};
use crate::shutdown::Shutdown;

/// Interval at which the holder renews the lease, and all others try to acquire it.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// `BLOCK` of the read that waits for an entry.
const WAIT_MS: &[u8] = b"10000";

/// For connecting the blocking read, sending its command, and releasing the lease.
const DEADLINE: Duration = Duration::from_secs(2);

/// Interval at which every instance measures the lag of the outbox.
const LAG_EVERY: Duration = Duration::from_secs(10);

/// Relays while this instance holds the lease, and releases the lease when the instance stops. Returns whether it holds the
/// lease, as far as it knows.
pub fn start(redis: &Arc<Redis>, config: &Config, instance: &InstanceId, shutdown: &Shutdown) -> watch::Receiver<bool> {
    start_with_layout(redis, config, instance, shutdown, Layout::of(redis))
}

/// Tests also use the layout of a cluster on a single Redis.
pub fn start_with_layout(
    redis: &Arc<Redis>,
    config: &Config,
    instance: &InstanceId,
    shutdown: &Shutdown,
    layout: Layout,
) -> watch::Receiver<bool> {
    let outbox = Arc::new(OutboxStream::new(Arc::clone(redis), config, instance, layout));
    let limits = config.limits.clone();
    let mut relay = Relay {
        redis: Arc::clone(redis),
        outbox: Arc::clone(&outbox),
        limits,
        lease: None,
        is_holder: watch::Sender::new(false),
        least_number: 0,
        progressed: false,
        blocking_read: None,
        rejections: LogRate::new(),
    };
    let is_holder = relay.is_holder.subscribe();
    let stopping = shutdown.stopping().clone();
    shutdown.spawn_service(async move {
        let _ = stopping.run_until_cancelled(relay.run()).await;
        relay.release().await;
    });
    let redis = Arc::clone(redis);
    shutdown.spawn_until_stop(async move { measure_lag(&redis, &outbox).await });
    is_holder
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

pub(super) struct Relay {
    pub(super) redis: Arc<Redis>,
    pub(super) outbox: Arc<OutboxStream>,
    limits: LiveLimits,
    pub(super) lease: Option<Lease>,
    is_holder: watch::Sender<bool>,
    /// Of the next lease: above each that a bucket has met.
    pub(super) least_number: u64,
    /// Whether entries were relayed though others had to stay.
    pub(super) progressed: bool,
    blocking_read: Option<BlockingRead>,
    rejections: LogRate,
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
            if self.redis.observed(Feature::Outbox, Scope::Whole, step).is_ok() {
                backoff.reset();
                continue;
            }
            if std::mem::take(&mut self.progressed) {
                backoff.reset();
            }
            if self.lease.as_ref().is_some_and(|lease| lease.renewed.elapsed() > LEASE) {
                self.lose_lease();
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Acquires the lease, relays a page, or waits for an entry.
    async fn step(&mut self) -> Result<(), BackplaneError> {
        let Some(Lease { id, .. }) = &self.lease else {
            match self.outbox.acquire_lease(self.least_number).await? {
                Some(id) => self.start_lease(id),
                None => sleep(RENEW_EVERY).await,
            }
            return Ok(());
        };
        let id = id.clone();
        match self.read(&id, None).await? {
            None => Ok(()),
            Some(page) if page.is_empty() => self.wait().await,
            Some(page) if self.outbox.in_two_steps() => self.relay_in_two_steps(id, page).await,
            Some(page) => self.relay(&id.token, &page).await,
        }
    }

    /// Renews the lease and reads a page, see [`OutboxStream::read`]. Returns `None` if the lease was lost.
    pub(super) async fn read(
        &mut self,
        id: &LeaseId,
        after: Option<&str>,
    ) -> Result<Option<Vec<Entry>>, BackplaneError> {
        let requested_at = Instant::now();
        let page = self.outbox.read(&id.token, after).await?;
        match &mut self.lease {
            Some(lease) if page.is_some() => lease.renewed = requested_at,
            _ => self.lose_lease(),
        }
        Ok(page)
    }

    fn start_lease(&mut self, id: LeaseId) {
        info!("relaying from the outbox");
        self.set_holder(true);
        self.lease = Some(Lease { id, renewed: Instant::now() });
    }

    pub(super) fn lose_lease(&mut self) {
        warn!("outbox lease lost: another instance may relay");
        self.set_holder(false);
        self.lease = None;
        self.blocking_read = None;
    }

    fn set_holder(&self, is_holder: bool) {
        self.redis.metrics().outbox_holder.set(i64::from(is_holder));
        self.is_holder.send_replace(is_holder);
    }

    /// Releases the lease, so that another instance continues at once.
    pub(super) async fn release(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        self.set_holder(false);
        match within(self.outbox.release(&lease.id.token)).await {
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
                let connecting = self.redis.commands().blocking_stream(
                    self.outbox.stream(),
                    "outbox",
                    self.limits.max_payload_bytes(),
                );
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
        let begun = Instant::now();
        let replies = self.outbox.relay(token, entries).await?;
        self.redis.metrics().store_seconds.observe(begun.elapsed().as_secs_f64());
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
    pub(super) fn count(&mut self, entry: &Entry, outcome: EntryOutcome, reason: Reason) -> bool {
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
