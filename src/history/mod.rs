//! Reads the stored notifications that clients miss: when they connect, and after each possible gap.
//!
//! A client's position is kept in its send queue (`delivery/catch_up.rs`). The entries after it are read here, one page
//! at a time for each client, so memory is bounded by [`READERS`] and by the speed of the clients.

mod acks;
mod gap;
mod memory;
mod publish;
mod redis;
mod store;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::backoff::Backoff;
use crate::backplane::{Backplane, BackplaneError};
use crate::config::SendQueue as Bound;
use crate::delivery::{ConnectionHandle, Position, Registry};
use crate::metrics::Metrics;
use crate::protocol::{DEFAULT_DEVICE, Resume, Start, UserId};
pub use acks::Acks;
pub use publish::{PUBLISH_BYTES, PUBLISH_STEP, PublishArgs};
pub use store::{
    Acked, Entry, HistoryStore, MAX_DEVICES, MAX_KEY_BYTES, Move, PageSize, Publication, Published, ReadFrom,
    ReadPosition, Reading,
};

const PAGE_ENTRIES: usize = 100;

/// One entry may exceed it.
const PAGE_BYTES: usize = 128 * 1024;

/// Concurrent reads.
const READERS: usize = 64;

/// Users compared with the store in one batch.
const COMPARE_BATCH: usize = 500;

/// How long a connecting client waits for its position, and a resuming one, in a reconnect storm, for its first page.
const START_DEADLINE: Duration = Duration::from_secs(3);
const RESUME_DEADLINE: Duration = Duration::from_secs(10);

/// How long catch-up is retried while Redis refuses it: meanwhile, the client receives no events.
const MAX_REFUSED: Duration = Duration::from_secs(10);

/// Added to the age of a client without a position: the read may reach Redis this much later than it was computed.
const READ_LATENCY: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct History {
    store: Arc<HistoryStore>,
    backplane: Backplane,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    page: PageSize,
    readers: Semaphore,
}

impl History {
    /// A page is at most half of `bound`, the bound of a send queue.
    pub fn new(
        store: Arc<HistoryStore>,
        backplane: Backplane,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        bound: &Bound,
    ) -> Self {
        let page = PageSize {
            entries: (bound.max_messages / 2).clamp(1, PAGE_ENTRIES),
            bytes: (bound.max_bytes / 2).clamp(1, PAGE_BYTES),
        };
        Self { store, backplane, registry, metrics, page, readers: Semaphore::new(READERS) }
    }

    /// Reads a client's start position and the first page after it. Returns `None` if they cannot be read now.
    pub async fn start(&self, user: &UserId, start: &Start) -> Option<Reading> {
        let from = match start.resume {
            None | Some(Resume::Unknown) => ReadFrom::Newest,
            Some(Resume::After(cursor)) => ReadFrom::After(cursor),
            Some(Resume::Acked) => ReadFrom::Acked(start.device().to_owned()),
        };
        // While the backplane is unavailable, a client that does not resume need not wait for the deadline.
        let reading = match self.backplane.not_ready() {
            Some(_) if !start.resumes() => None,
            _ => {
                let deadline = if start.resumes() { RESUME_DEADLINE } else { START_DEADLINE };
                timeout(deadline, self.read(user, &from, start.device())).await.ok().and_then(Result::ok)
            }
        };
        if let Some(resume) = start.resume {
            let result = match &reading {
                None if start.resumes() => "unreadable",
                Some(reading) if reading.whole && resume != Resume::Unknown => "recovered",
                _ => "lost",
            };
            self.metrics.resumes.with_label_values(&[result]).inc();
        }
        reading
    }

    /// Reads the page after a client's position. Retries while Redis is unreachable; returns `None` if Redis refuses
    /// the read for too long.
    pub async fn follow(&self, user: &UserId, position: Position) -> Option<Reading> {
        let mut refused_since = None;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let from = match position {
                Position::At(cursor) => ReadFrom::After(cursor),
                Position::Since(at) => ReadFrom::Since(at.elapsed() + READ_LATENCY),
            };
            match self.read(user, &from, DEFAULT_DEVICE).await {
                Ok(reading) => return Some(reading),
                // Counted and logged by the store.
                Err(error) if error.is_refusal() || matches!(error, BackplaneError::UnexpectedReply(_)) => {
                    if refused_since.get_or_insert_with(Instant::now).elapsed() > MAX_REFUSED {
                        return None;
                    }
                }
                Err(_) => refused_since = None,
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn read(&self, user: &UserId, from: &ReadFrom, device: &str) -> Result<Reading, BackplaneError> {
        // The semaphore is never closed.
        let _permit = self.readers.acquire().await.ok();
        // Boxed: in a reconnect storm many more tasks wait for a permit than read.
        let reading = Box::pin(self.store.read(user, from, device, self.page)).await?;
        self.metrics.replayed.inc_by(reading.entries.len() as u64);
        Ok(reading)
    }

    /// Compares every client with the store after each possible gap. Runs until dropped.
    pub async fn run_catch_up(&self) {
        let mut missed = self.store.missed();
        loop {
            if missed.changed().await.is_err() {
                return std::future::pending().await;
            }
            self.compare_all(&mut missed).await;
        }
    }

    async fn compare_all(&self, missed: &mut watch::Receiver<u64>) {
        let begun = Instant::now();
        let (users, mut behind) = (self.registry.user_ids(), 0);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for some in users.chunks(COMPARE_BATCH) {
            let newest = loop {
                match self.store.newest(some).await {
                    Ok(newest) => break newest,
                    Err(_) => sleep(backoff.next_delay()).await,
                }
                // Another gap was signalled: start again with all users.
                if missed.has_changed().unwrap_or_default() {
                    return;
                }
            };
            for (user, newest) in some.iter().zip(&newest) {
                let is_behind = |handle: &&Arc<ConnectionHandle>| handle.queue.compare(newest);
                let look = |handles: &[Arc<ConnectionHandle>]| handles.iter().filter(is_behind).count();
                let found = self.registry.with(user.as_str(), look).unwrap_or_default();
                self.metrics.gaps_found.inc_by(found as u64);
                behind += found;
            }
        }
        let (users, took_ms) = (users.len(), begun.elapsed().as_millis());
        if behind > 0 {
            info!(users, behind, took_ms, "clients missed stored events: catch-up started");
        } else {
            debug!(users, took_ms, "all clients are caught up with the history");
        }
    }
}
