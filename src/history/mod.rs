//! Brings clients level with their user's stored notifications: when they come, and whenever something may have been
//! missed.
//!
//! A client's position is kept in its outbox (`registry/level.rs`). What lies behind it is read here, in pages of which each
//! client holds one; so it is bounded by what all may read at once, and by what the clients take.

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

/// Most entries of a page.
const PAGE_ENTRIES: usize = 100;

/// Most bytes of a page, one entry aside.
const PAGE_BYTES: usize = 128 * 1024;

/// Pages that are read at once.
const READERS: usize = 64;

/// Users compared with the store at once.
const COMPARED: usize = 500;

/// How long a client that comes waits for its position; and one that resumes, for what it missed, among many who do.
const START_DEADLINE: Duration = Duration::from_secs(3);
const RESUME_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client that is behind waits while its history is refused: nothing else reaches it meanwhile.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// How much earlier a client is taken to have come than it did, where only its time is known: what the question for it
/// may take on its way.
const ON_THE_WAY: Duration = Duration::from_secs(3);

/// See the module.
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
    /// Reads for clients whose queues have this bound: what is read at once is half of it.
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

    /// Reads where a client starts, and the first page of what follows; none where that cannot be read now.
    pub async fn start(&self, user: &UserId, start: &Start) -> Option<Reading> {
        let from = match start.resume {
            None | Some(Resume::Unknown) => ReadFrom::Newest,
            Some(Resume::After(cursor)) => ReadFrom::After(cursor),
            Some(Resume::Acked) => ReadFrom::Acked(start.device().to_owned()),
        };
        // With a backplane that is away, nobody waits for the answer that does not come.
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

    /// Reads what follows a client's position, while Redis is away until it is back; none where it is there and refuses for
    /// too long.
    pub async fn follow(&self, user: &UserId, position: Position) -> Option<Reading> {
        let mut refused_since = None;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let from = match position {
                Position::At(cursor) => ReadFrom::After(cursor),
                Position::Since(at) => ReadFrom::Since(at.elapsed() + ON_THE_WAY),
            };
            match self.read(user, &from, DEFAULT_DEVICE).await {
                Ok(reading) => return Some(reading),
                // Counted and logged where it happened.
                Err(error) if error.is_refusal() || matches!(error, BackplaneError::UnexpectedReply(_)) => {
                    if refused_since.get_or_insert_with(Instant::now).elapsed() > REFUSED_FOR {
                        return None;
                    }
                }
                Err(_) => refused_since = None,
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn read(&self, user: &UserId, from: &ReadFrom, device: &str) -> Result<Reading, BackplaneError> {
        // Never closed.
        let _reader = self.readers.acquire().await.ok();
        // Boxed: in a storm many more wait for a reader than read.
        let reading = Box::pin(self.store.read(user, from, device, self.page)).await?;
        self.metrics.replayed.inc_by(reading.entries.len() as u64);
        Ok(reading)
    }

    /// Compares every client with the store whenever something may have been missed; for ever, ends by being dropped.
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
        for some in users.chunks(COMPARED) {
            let newest = loop {
                match self.store.newest(some).await {
                    Ok(newest) => break newest,
                    Err(_) => sleep(backoff.next_delay()).await,
                }
                // Missed again meanwhile: everybody is looked at anew.
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
            info!(users, behind, took_ms, "clients had missed stored events: they are brought level");
        } else {
            debug!(users, took_ms, "clients are level with the history");
        }
    }
}
