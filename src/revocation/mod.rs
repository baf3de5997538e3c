//! Revoked tokens across the fleet.
//!
//! A revocation is in force on this instance as soon as it is received. A task then closes the token's connections and
//! adds the revocation to the shared list, for instances that start later or missed it. If Redis loses a revocation, any
//! instance that has it in force writes it back.

mod store;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::auth::{MAX_REVOCATIONS, Revocations};
use crate::backoff::Backoff;
use crate::backplane::{Backplane, BackplaneError};
use crate::delivery::Registry;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Close, CredentialId, MAX_JTI_BYTES, Revocation};
use store::RevocationStore;

/// How often the shared list is compared with the revocations in force here.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// Maximum number of revocations that wait to be stored while Redis is away.
const MAX_UNSTORED: usize = 100_000;

/// Connections checked without yielding, and revocations written back at once.
const STEP: usize = 1_000;

type Tokens = HashSet<CredentialId, RandomState>;

/// Synchronizes the revocations in force on this instance with the shared list.
#[derive(Debug)]
pub struct RevocationList {
    registry: Arc<Registry>,
    revocations: Arc<Revocations>,
    store: RevocationStore,
    metrics: Arc<Metrics>,
    subscriptions: watch::Receiver<u64>,
    /// The subscription since which the shared list has been read.
    read_since: AtomicU64,
    /// The subscription since which Redis has replied. After a first read, an error reply counts too: no other instance can
    /// read the list either.
    answered_since: AtomicU64,
    /// Why the list could not be read the last time.
    failed: Mutex<Option<String>>,
    received: Mutex<Vec<Revocation>>,
    work: Notify,
    overflows: LogRate,
    losses: LogRate,
}

impl RevocationList {
    pub fn new(
        registry: Arc<Registry>,
        revocations: Arc<Revocations>,
        prefix: &str,
        backplane: &Backplane,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            registry,
            revocations,
            subscriptions: backplane.subscriptions(),
            store: RevocationStore::new(prefix, backplane),
            metrics,
            read_since: AtomicU64::new(0),
            answered_since: AtomicU64::new(0),
            failed: Mutex::default(),
            received: Mutex::default(),
            work: Notify::new(),
            overflows: LogRate::new(),
            losses: LogRate::new(),
        }
    }

    /// Puts a revocation into force at once; its connections are closed and it is stored by [`RevocationList::run`].
    pub fn revoke(&self, revocation: Revocation) {
        self.put_into_force(&revocation);
        self.enqueue(vec![revocation]);
    }

    /// Returns whether it is new.
    fn put_into_force(&self, revocation: &Revocation) -> bool {
        self.revocations.insert(revocation).unwrap_or_else(|error| {
            self.dropped(1, &error.to_string());
            false
        })
    }

    /// Queues revocations for the task, which closes their connections and stores them.
    fn enqueue(&self, mut revocations: Vec<Revocation>) {
        let mut received = self.received.lock();
        let room = MAX_UNSTORED.saturating_sub(received.len());
        let lost = revocations.len().saturating_sub(room);
        revocations.truncate(room);
        received.append(&mut revocations);
        drop(received);
        self.work.notify_one();
        if lost > 0 {
            self.dropped(lost as u64, "too many wait to be stored");
        }
    }

    fn dropped(&self, count: u64, why: &str) {
        self.metrics.revocations_dropped.inc_by(count);
        if let Some(held_back) = self.overflows.admit() {
            warn!(why, held_back, "revocation dropped");
        }
    }

    /// The reason if this instance may accept a revoked token, else `None`.
    pub fn not_ready(&self) -> Option<String> {
        let behind = *self.subscriptions.borrow() != self.answered_since.load(Ordering::Relaxed);
        behind.then(|| {
            let failed = self.failed.lock().as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("the revoked tokens have not been read yet{failed}")
        })
    }

    /// Never returns.
    pub async fn run(&self) {
        let mut subscriptions = self.subscriptions.clone();
        let mut compare = interval(COMPARE_EVERY);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let (mut differs, mut lasting) = (false, 0);
        loop {
            // Errors are counted and logged where they occur.
            let Ok(lost) = self.catch_up(differs).await else {
                sleep(backoff.next_delay()).await;
                continue;
            };
            backoff.reset();
            if let Some(lost) = lost
                && self.write_back(&lost).await.is_ok()
            {
                // Further reads cannot remove this difference: the list is full, or has entries that no token can match.
                lasting = self.difference().await.unwrap_or_default();
            }
            differs = tokio::select! {
                () = self.work.notified() => false,
                Ok(()) = subscriptions.changed() => false,
                _ = compare.tick() => self.difference().await.is_ok_and(|difference| difference != lasting),
            };
        }
    }

    /// The size of the shared list minus the number in force here. Not 0: some were not received, or Redis lost some.
    async fn difference(&self) -> Result<i64, BackplaneError> {
        let in_force = self.revocations.trim();
        let kept = self.store.count(self.revocations.oldest()).await?;
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(number(kept) - number(in_force))
    }

    /// Closes, stores and reads what is due. If the list was read, returns the revocations that it has lost.
    async fn catch_up(&self, differs: bool) -> Result<Option<Vec<CredentialId>>, BackplaneError> {
        let received = std::mem::take(&mut *self.received.lock());
        if !received.is_empty() {
            let tokens = received.iter().map(|revocation| CredentialId::of_token(&revocation.jti)).collect();
            self.close_all(&tokens).await;
        }
        // Stored first: a revocation that is then missing from the list is lost.
        let stored = self.store(received).await;
        let read = self.read_if_behind(differs).await;
        self.metrics.revocations.set(i64::try_from(self.revocations.trim()).unwrap_or(i64::MAX));
        stored.and(read)
    }

    /// Stores revocations; after an error they are queued again.
    async fn store(&self, received: Vec<Revocation>) -> Result<(), BackplaneError> {
        if received.is_empty() {
            return Ok(());
        }
        match self.store.add(&received, MAX_REVOCATIONS).await {
            Ok(0) => {}
            Ok(refused) => self.dropped(refused, "the list in redis is full"),
            Err(error) => {
                self.enqueue(received);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn read_if_behind(&self, differs: bool) -> Result<Option<Vec<CredentialId>>, BackplaneError> {
        let subscription = *self.subscriptions.borrow();
        let read_since = self.read_since.load(Ordering::Relaxed);
        if !differs && read_since == subscription {
            return Ok(None);
        }
        let read = self.read().await;
        *self.failed.lock() = read.as_ref().err().map(ToString::to_string);
        if read.is_ok() {
            self.read_since.store(subscription, Ordering::Relaxed);
        }
        if read.as_ref().map_or_else(|error| read_since > 0 && error.is_refusal(), |_| true) {
            self.answered_since.store(subscription, Ordering::Relaxed);
        }
        read.map(Some)
    }

    /// Puts the whole list into force; returns the tokens in force that are missing from the list.
    async fn read(&self) -> Result<Vec<CredentialId>, BackplaneError> {
        let mut lost: Tokens = self.revocations.tokens().into_iter().collect();
        for revocation in &*self.received.lock() {
            // Not lost, but not stored yet.
            lost.remove(&CredentialId::of_token(&revocation.jti));
        }
        let (mut from, mut news) = (0, Tokens::default());
        loop {
            let page = self.store.page(from).await?;
            if page.is_empty() {
                break;
            }
            from += page.len();
            for revocation in page.iter().filter(|revocation| revocation.jti.len() <= MAX_JTI_BYTES) {
                let token = CredentialId::of_token(&revocation.jti);
                lost.remove(&token);
                if self.put_into_force(revocation) {
                    news.insert(token);
                }
            }
        }
        if !news.is_empty() {
            info!(count = news.len(), "read new revocations from redis");
            self.close_all(&news).await;
        }
        Ok(lost.into_iter().collect())
    }

    async fn write_back(&self, lost: &[CredentialId]) -> Result<(), BackplaneError> {
        let mut restored = 0;
        for some in lost.chunks(STEP) {
            let revocations = self.revocations.of(some);
            let refused = self.store.add(&revocations, MAX_REVOCATIONS).await?;
            if refused > 0 {
                self.dropped(refused, "the list in redis is full");
            }
            restored += (revocations.len() as u64).saturating_sub(refused);
        }
        self.metrics.revocations_restored.inc_by(restored);
        if restored > 0
            && let Some(held_back) = self.losses.admit()
        {
            warn!(count = restored, held_back, "redis had lost revocations: written back");
        }
        Ok(())
    }

    async fn close_all(&self, revoked: &Tokens) {
        for some in self.registry.handles().chunks(STEP) {
            for handle in some {
                if handle.credential.get().is_some_and(|credential| revoked.contains(&credential)) {
                    handle.queue.close(Close::Revoked);
                }
            }
            tokio::task::yield_now().await;
        }
    }
}
