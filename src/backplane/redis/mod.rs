//! The Redis backplane: pub/sub for messages, a lease design in Lua for presence.

mod directory;
mod heard;
mod history;
mod limits;
mod link;
mod presence;
mod relay;
#[doc(hidden)]
pub mod resp;
mod store;
mod stream;
mod subscriber;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Script, cmd};
use secrecy::SecretString;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use super::history::{Acked, Move, PageSize, Publication, Published, ReadFrom, Reading};
use super::memory::EVENTS_KEPT;
use super::{Applied, BackplaneError, Batch, LiveInstance, Page, PageCursor, Sink, Stored, USER_CHANNEL, UserPresence};
use crate::config::Config;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, InstanceId, Revocation, UserId};
use crate::shutdown::Shutdown;
use heard::Heard;
use history::History;
use limits::Limits;
pub use limits::{Claim, Granted};
use link::Link;
use presence::Presence;
use relay::Outbox;
pub use resp::Malformed;
use store::RevokedSet;

/// See the module.
pub struct Redis {
    link: Link,
    /// Pages of history are large, and must not stand before a lease.
    history_link: Link,
    presence: Presence,
    history: History,
    heard: Mutex<Heard>,
    fleet: Script,
    missed: watch::Sender<u64>,
    outbox: Outbox,
    limits: Limits,
    revoked: RevokedSet,
    control_channel: String,
    probe_channel: String,
    probe_interval: Duration,
    /// A subscription that was silent for this long, probes included, is dead.
    silent_after: Duration,
    /// Subscribed to only where the demo shows it.
    presence_channel: Option<String>,
    events: broadcast::Sender<Arc<str>>,
    subscription: Mutex<Subscription>,
    subscriptions: watch::Sender<u64>,
    max_payload_bytes: usize,
    metrics: Arc<Metrics>,
    failures: LogRate,
}

/// For the benchmarks: reads all whole replies of a buffer, and gives how many there are.
#[doc(hidden)]
#[must_use]
pub fn count_replies(mut buffer: &[u8]) -> usize {
    let mut count = 0;
    while let Ok(Some((reply, consumed))) = resp::read(buffer, usize::MAX) {
        std::hint::black_box(reply);
        buffer = buffer.get(consumed..).unwrap_or_default();
        count += 1;
    }
    count
}

/// Whether the instance hears.
#[derive(Debug, Clone)]
enum Subscription {
    Down { why: String },
    Up { last_heard: Instant },
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("subscription", &*self.subscription.lock()).finish_non_exhaustive()
    }
}

impl Redis {
    /// Prepares the link; nothing is connected yet.
    ///
    /// # Errors
    /// [`BackplaneError::Config`] where the URL or the certificate cannot be used.
    pub fn new(
        config: &Config,
        url: &SecretString,
        instance: &InstanceId,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BackplaneError> {
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        Ok(Self {
            link: Link::new(&config.redis, url, format!("tidings-{instance}"))?,
            history_link: Link::new(&config.redis, url, format!("tidings-{instance}-history"))?,
            history: History::new(&config.redis.prefix, config.history),
            heard: Mutex::default(),
            fleet: Script::new(include_str!("scripts/fleet.lua")),
            missed: watch::Sender::default(),
            outbox: Outbox::new(&config.redis.prefix, instance, config.limits.max_payload_bytes),
            presence: Presence::new(&config.presence),
            limits: Limits::new(&config.redis.prefix, config.presence.lease),
            revoked: RevokedSet::new(&config.redis.prefix),
            control_channel: format!("{}control", config.redis.prefix),
            probe_channel: format!("{}probe:{instance}", config.redis.prefix),
            probe_interval: config.redis.probe_interval,
            // Three probes lost, and a little for the last one's way.
            silent_after: config.redis.probe_interval * 3 + Duration::from_secs(1),
            presence_channel: config.server.demo.then(|| config.presence.channel.clone()),
            events,
            subscription: Mutex::new(Subscription::Down { why: "not subscribed yet".into() }),
            subscriptions: watch::Sender::default(),
            max_payload_bytes: config.limits.max_payload_bytes,
            metrics,
            failures: LogRate::new(),
        })
    }

    pub(super) fn subscribe(self: &Arc<Self>, sink: Sink, shutdown: &Shutdown) {
        let (redis, stopping) = (Arc::clone(self), shutdown.stopping().clone());
        shutdown.spawn_service(async move {
            let _ = stopping.run_until_cancelled(subscriber::run(&redis, &sink)).await;
        });
        let (redis, stopping) = (Arc::clone(self), shutdown.stopping().clone());
        shutdown.spawn_service(async move {
            let _ = stopping.run_until_cancelled(redis.probe()).await;
        });
    }

    pub(super) fn relay_outbox(self: &Arc<Self>, shutdown: &Shutdown) {
        relay::start(self, shutdown);
    }

    /// Keeps something to be heard on a quiet subscription, the long way round.
    async fn probe(&self) {
        let mut subscriptions = self.subscriptions();
        let mut ticks = interval(self.probe_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A new subscription may be to a Redis that went back: that is to be known before anything is heard of it.
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = subscriptions.changed() => {}
            }
            let probe = cmd("PUBLISH").arg(&self.probe_channel).arg("").to_owned();
            // Counted and logged: without it the subscription will be found silent.
            self.counted(self.link.command::<i64>(&probe).await).ok();
            self.look_at_fleet().await.ok();
        }
    }

    /// Finds out whether a stored notification was not heard, be it the last one, or Redis has lost some.
    async fn look_at_fleet(&self) -> Result<(), BackplaneError> {
        let known = {
            let heard = self.heard.lock();
            let (epoch, count) = heard.known();
            (epoch.to_owned(), count)
        };
        let key = self.history.key();
        let fleet = heard::look(&self.link, &self.fleet, &key, (&known.0, known.1)).await;
        let fleet = self.counted(fleet)?;
        if !known.0.is_empty() && fleet.epoch != known.0 {
            warn!(counted = fleet.count, "redis has lost stored notifications: another epoch begins");
        }
        if self.heard.lock().look(fleet) {
            self.miss();
        }
        Ok(())
    }

    /// Something stored may not have been heard.
    fn miss(&self) {
        self.missed.send_modify(|count| *count += 1);
    }

    pub(super) fn missed(&self) -> watch::Receiver<u64> {
        self.missed.subscribe()
    }

    /// Publishes JSON for one user; gives how many instances heard it.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not confirm it.
    pub async fn publish(&self, user: &UserId, json: &str) -> Result<u64, BackplaneError> {
        let publish = cmd("PUBLISH").arg(format!("{USER_CHANNEL}{user}")).arg(json).to_owned();
        self.counted(self.link.command(&publish).await)
    }

    /// Publishes to each of these users; gives what became of it, in their order.
    pub async fn publish_to_many(&self, users: &[UserId], publication: &Publication<'_>) -> Vec<Published> {
        // What is not stored need not stand behind pages of history.
        let stored = publication.durable || publication.key.is_some();
        let link = if stored { &self.history_link } else { &self.link };
        let published = self.history.publish(link, users, publication).await;
        let failed: Vec<_> = published.iter().filter_map(|outcome| outcome.as_ref().err().copied()).collect();
        if let Some(kind) = failed.first() {
            self.metrics.backplane_errors.with_label_values(&[kind]).inc();
            if let Some(held_back) = self.failures.admit() {
                warn!(kind, users = failed.len(), held_back, "redis did not publish");
            }
        }
        published
    }

    pub(super) async fn read_history(
        &self,
        user: &UserId,
        from: &ReadFrom,
        device: &str,
        page: PageSize,
    ) -> Result<Reading, BackplaneError> {
        self.counted(self.history.read(&self.history_link, user, from, device, page).await)
    }

    pub(super) async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, BackplaneError> {
        self.counted(self.history.newest(&self.history_link, users).await)
    }

    pub(super) async fn ack(&self, acks: &[(UserId, String, Cursor)], how: Move) -> Result<Vec<Acked>, BackplaneError> {
        self.counted(self.history.ack(&self.history_link, acks, how).await)
    }

    pub(super) async fn publish_command(&self, json: &str) -> Result<(), BackplaneError> {
        let publish = cmd("PUBLISH").arg(&self.control_channel).arg(json).to_owned();
        self.counted(self.link.command(&publish).await)
    }

    pub(super) fn subscriptions(&self) -> watch::Receiver<u64> {
        self.subscriptions.subscribe()
    }

    pub(super) async fn keep_revoked(&self, revocations: &[Revocation], most: usize) -> Result<u64, BackplaneError> {
        self.counted(self.revoked.add(&self.link, revocations, most).await)
    }

    pub(super) async fn count_revoked(&self, oldest: u64) -> Result<usize, BackplaneError> {
        self.counted(self.revoked.count(&self.link, oldest).await)
    }

    pub(super) async fn revoked_page(&self, from: usize) -> Result<Vec<Revocation>, BackplaneError> {
        self.counted(self.revoked.page(&self.link, from).await)
    }

    pub(super) async fn read(&self, keys: &[String], most: usize) -> Result<Vec<Option<Stored>>, BackplaneError> {
        self.counted(store::read(&self.link, keys, most).await)
    }

    pub(super) fn not_ready(&self) -> Option<String> {
        match &*self.subscription.lock() {
            Subscription::Down { why } => Some(format!("not subscribed to redis: {why}")),
            Subscription::Up { last_heard } if last_heard.elapsed() > self.silent_after => {
                Some(format!("nothing heard from redis for {} s", last_heard.elapsed().as_secs()))
            }
            Subscription::Up { .. } => None,
        }
    }

    fn set_subscription(&self, subscription: Subscription) {
        self.metrics.backplane_up.set(i64::from(matches!(subscription, Subscription::Up { .. })));
        *self.subscription.lock() = subscription;
    }

    pub(super) async fn register(&self, incarnation: &str) -> Result<String, BackplaneError> {
        self.counted(self.presence.register(&self.link, incarnation).await)
    }

    pub(super) async fn apply(&self, batch: &Batch) -> Result<Applied, BackplaneError> {
        self.counted(self.presence.apply(&self.link, batch).await)
    }

    pub(super) async fn release(&self, incarnation: &str) -> Result<(), BackplaneError> {
        self.counted(self.presence.reap_one(&self.link, incarnation, true).await).map(|_| ())
    }

    pub(super) async fn reap(&self) -> Result<u64, BackplaneError> {
        self.counted(self.presence.reap(&self.link).await)
    }

    pub(super) async fn audit(&self) -> Result<Option<u64>, BackplaneError> {
        self.counted(self.presence.audit(&self.link).await)
    }

    pub(super) async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BackplaneError> {
        self.counted(directory::presence_of(&self.link, &self.presence, users).await)
    }

    pub(super) async fn online_count(&self) -> Result<u64, BackplaneError> {
        self.counted(directory::count(&self.link, &self.presence).await)
    }

    pub(super) async fn online_page(&self, limit: usize, from: PageCursor) -> Result<Page, BackplaneError> {
        self.counted(directory::page(&self.link, &self.presence, limit, from).await)
    }

    pub(super) async fn instances(&self) -> Result<Vec<LiveInstance>, BackplaneError> {
        self.counted(directory::instances(&self.link, &self.presence).await)
    }

    /// Counts one connect under this key; gives how many all instances counted in this second.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not answer.
    pub async fn count_connect(&self, key: &str) -> Result<u32, BackplaneError> {
        self.counted(self.limits.count(&self.link, key).await)
    }

    /// Takes a lease for a fresh holder of slots; an `earlier` one of the same instance ends.
    ///
    /// # Errors
    /// [`BackplaneError`]; it may be asked for again.
    pub async fn hold_slots(&self, holder: &str, earlier: Option<&str>) -> Result<(), BackplaneError> {
        self.counted(self.limits.hold(&self.link, holder, earlier).await)
    }

    /// Writes claims of at most `most` slots a user, and renews the lease of a holder that has slots of `size` users.
    /// `None`: the holder is not heard any more, and must start over under another name.
    ///
    /// # Errors
    /// [`BackplaneError`]; the holder must start over then, too.
    pub async fn claim_slots(
        &self,
        holder: &str,
        size: usize,
        most: u32,
        claims: &[Claim],
    ) -> Result<Option<Granted>, BackplaneError> {
        self.counted(self.limits.claim(&self.link, holder, size, most, claims).await)
    }

    pub(super) fn presence_events(&self) -> broadcast::Receiver<Arc<str>> {
        self.events.subscribe()
    }

    fn counted<T>(&self, result: Result<T, BackplaneError>) -> Result<T, BackplaneError> {
        result.inspect_err(|error| {
            self.metrics.backplane_errors.with_label_values(&[error.kind()]).inc();
            if let Some(held_back) = self.failures.admit() {
                warn!(%error, kind = error.kind(), held_back, "redis did not do what it was asked");
            }
        })
    }
}
