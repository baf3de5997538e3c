//! Reconciles the fleet's set of online users with this instance's registry.
//!
//! One task writes the difference between the users in the registry and those that the backplane has confirmed, in
//! batches, under a lease that each batch renews. Nothing is sent per connection; an outage only makes the difference
//! larger.

mod ledger;
mod memory;
mod query;
mod redis;
mod store;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::backplane::BackplaneError;
use crate::config;
use crate::delivery::Registry;
use crate::lease_watch::LeaseWatch;
use crate::log::{LogRate, OUTAGE_EVERY};
use crate::metrics::Metrics;
use crate::protocol::InstanceId;
pub use ledger::Ledger;
use store::Reaped;
pub use store::{Applied, Batch, PageCursor, PresenceStore};

/// Changes within this time share a batch.
const GATHER: Duration = Duration::from_millis(20);

/// Maximum time between two renewals of the lease, and so until the loss of all data in Redis is detected.
const HEARTBEAT: Duration = Duration::from_secs(2);

pub struct Presence {
    store: Arc<PresenceStore>,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    instance: InstanceId,
    offline_delay: Duration,
    heartbeat: Duration,
    ledger: Ledger,
    incarnation: Option<Incarnation>,
    /// The name of the latest incarnation, set before it is registered: it is released at the end.
    name: Option<String>,
    /// The backplane's epoch at the last registration: a different one means that it lost all data.
    epoch: Option<String>,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("instance", &self.instance).finish_non_exhaustive()
    }
}

struct Incarnation {
    name: String,
    applied: u64,
    /// Sent with an unknown outcome: sent again before any other batch.
    unconfirmed: Option<Batch>,
    renew_at: Instant,
}

impl Presence {
    pub fn new(
        config: &config::Presence,
        instance: InstanceId,
        store: Arc<PresenceStore>,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            store,
            registry,
            metrics,
            instance,
            offline_delay: config.offline_delay,
            heartbeat: (config.lease / 3).min(HEARTBEAT),
            ledger: Ledger::default(),
            incarnation: None,
            name: None,
            epoch: None,
        }
    }

    /// Runs until `stopping`, then releases the incarnation within `grace`.
    pub async fn run(mut self, stopping: impl Future<Output = ()>, grace: Duration) {
        static FAILURES: LogRate = LogRate::every(OUTAGE_EVERY);
        tokio::pin!(stopping);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        loop {
            let step = tokio::select! {
                () = &mut stopping => break,
                step = self.step() => step,
            };
            let delay = match step {
                Ok(()) => {
                    backoff.reset();
                    Duration::ZERO
                }
                Err(error) => {
                    if let Some(held_back) = FAILURES.admit() {
                        debug!(%error, held_back, "presence not written");
                    }
                    backoff.next_delay()
                }
            };
            tokio::select! {
                () = &mut stopping => break,
                () = self.pause(delay) => {}
            }
        }
        if let Some(name) = self.name {
            match timeout(grace, self.store.release(&name)).await {
                Ok(Ok(())) => info!("presence released"),
                Ok(Err(error)) => warn!(%error, "presence not released: others reap it a lease later"),
                Err(_) => warn!("presence not released in time: others reap it a lease later"),
            }
        }
    }

    /// Waits until a batch is due, and then for [`GATHER`], so that changes share a batch.
    async fn pause(&self, delay: Duration) {
        sleep(delay).await;
        if delay.is_zero() && !self.ledger.differs() {
            // Without an incarnation, registering one is due now.
            let renew_at = self.incarnation.as_ref().map_or_else(Instant::now, |incarnation| incarnation.renew_at);
            let wake_at = self.ledger.next_expiry(self.offline_delay).map_or(renew_at, |expiry| expiry.min(renew_at));
            tokio::select! {
                () = self.registry.changed() => sleep(GATHER).await,
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Reads the registry's changes and writes one batch if users differ or the lease is due for renewal.
    async fn step(&mut self) -> Result<(), BackplaneError> {
        let now = Instant::now();
        for user in self.registry.take_changes() {
            let connections = self.registry.connections_of(user.as_str());
            self.ledger.observe(user, connections, now);
        }
        self.ledger.expire(now, self.offline_delay);

        let mut incarnation = match self.incarnation.take() {
            Some(incarnation) => incarnation,
            None => self.incarnate().await?,
        };
        let batch = match incarnation.unconfirmed.take() {
            Some(batch) => batch,
            None if self.ledger.differs() || now >= incarnation.renew_at => {
                self.ledger.batch(&incarnation.name, incarnation.applied + 1)
            }
            None => {
                self.incarnation = Some(incarnation);
                return Ok(());
            }
        };
        match self.store.apply(&batch).await {
            Ok(Applied::Done) => {
                self.ledger.confirm(&batch);
                self.metrics.presence_batches.inc();
                incarnation.applied = batch.sequence;
                incarnation.renew_at = now + self.heartbeat;
                self.incarnation = Some(incarnation);
                Ok(())
            }
            Ok(Applied::Stale(why)) => {
                warn!(incarnation = incarnation.name, why, "presence incarnation lost: registering a new one");
                Ok(())
            }
            Err(error) => {
                incarnation.unconfirmed = Some(batch);
                self.incarnation = Some(incarnation);
                Err(error)
            }
        }
    }

    async fn incarnate(&mut self) -> Result<Incarnation, BackplaneError> {
        let name = format!("{}-{:08x}", self.instance, fastrand::u32(..));
        self.name = Some(name.clone());
        let epoch = self.store.register(&name).await?;
        let forgot = self.epoch.replace(epoch.clone()).is_some_and(|earlier| earlier != epoch);
        self.metrics.presence_incarnations.inc();
        self.ledger.start_over(forgot);
        info!(incarnation = name, forgot, "presence lease taken");
        Ok(Incarnation { name, applied: 0, unconfirmed: None, renew_at: Instant::now() + self.heartbeat })
    }
}

/// Reaps dead instances, and audits the keys, which a bug or another program may have changed. Never returns.
pub async fn run_reaper(store: &PresenceStore, lease: Duration, metrics: &Metrics) {
    loop {
        let start = Instant::now();
        let reaped = reap(store, metrics).await;
        if reaped.is_some_and(|reaped| reaped.audit_due) {
            audit(store, metrics).await;
        }
        let next_in = reaped.map_or(LeaseWatch::interval(lease, 0), |reaped| reaped.next_in);
        sleep_until(start + next_in).await;
    }
}

async fn reap(store: &PresenceStore, metrics: &Metrics) -> Option<Reaped> {
    static FAILURES: LogRate = LogRate::every(OUTAGE_EVERY);
    let failed = |error: &BackplaneError| {
        if let Some(held_back) = FAILURES.admit() {
            debug!(%error, held_back, "dead instances not reaped");
        }
    };
    let reaped = store.reap().await.inspect_err(failed).ok()?;
    if reaped.users > 0 {
        metrics.presence_reaped.inc_by(reaped.users);
        info!(users = reaped.users, "reaped the users of a dead instance");
    }
    Some(reaped)
}

async fn audit(store: &PresenceStore, metrics: &Metrics) {
    match store.audit().await {
        Ok(None) => {}
        Ok(Some(users)) => {
            metrics.presence_audits.inc();
            warn!(users, "presence keys were inconsistent: repaired from the held users");
        }
        Err(error) => debug!(%error, "presence not audited"),
    }
}
