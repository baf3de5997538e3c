//! Reads the stored notifications that clients miss: when they connect, and after each possible gap.
//!
//! A client's position is kept in its send queue (`delivery/catch_up.rs`). The entries after it are read here, one page
//! at a time for each client, so memory is bounded by [`READERS`] and by the speed of the clients.

mod acks;
mod after;
mod audit;
mod checks;
mod gap;
mod layout;
mod memory;
mod page;
mod publish;
mod redis;
mod retraction;
mod starts;
mod store;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::backoff::Backoff;
use crate::backplane::{Backplane, BackplaneError};
use crate::config::SendQueue as Bound;
use crate::delivery::{ConnectionHandle, Position, Registry};
use crate::metrics::Metrics;
use crate::protocol::{Cursor, DEFAULT_DEVICE, PageRequest, Resume, Start, UserId, millis};
pub use acks::{Acks, PendingAcks};
pub use layout::{Bucket, BucketSet, Layout};
pub use publish::{PUBLISH_BYTES, PUBLISH_STEP, PublishArgs, batches};
pub use store::{
    Ack, Acked, Entry, HistoryStore, MAX_COLLAPSE_BYTES, MAX_DEVICES, MAX_ESCALATE, MAX_KEY_BYTES, Move, NewestPage,
    PageSize, Publication, Published, ReadFrom, ReadPosition, Reading, Retracted,
};

const PAGE_ENTRIES: usize = 100;

/// One entry may exceed it.
const PAGE_BYTES: usize = 128 * 1024;

/// Concurrent reads.
const READERS: usize = 64;

/// Concurrent reads of pages that clients requested: those of clients that resume or are behind do not wait for them.
const PAGE_READERS: usize = 16;

/// How long a requested page may take, and the wait for others.
const PAGE_DEADLINE: Duration = Duration::from_secs(10);

/// How much later than a read the notice of an erasure before it may arrive.
const NOTICE_ARRIVAL: Duration = Duration::from_millis(500);

/// Users compared with the store in one batch.
const COMPARE_BATCH: usize = 500;

/// How long a connecting client waits for its position, and a resuming one, in a reconnect storm, for its first page.
const START_DEADLINE: Duration = Duration::from_secs(3);
const RESUME_DEADLINE: Duration = Duration::from_secs(10);

/// Attempts to read a connecting client's position.
const START_TRIES: u32 = 4;

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
    /// The most that a requested page holds, in bytes.
    page_bytes: usize,
    page_readers: Semaphore,
}

/// The result of a client's request for a page.
#[derive(Debug)]
pub enum Requested {
    Page(NewestPage),
    /// `before` is not a position of this user and epoch.
    Foreign,
    /// The history cannot be read now.
    Unreadable,
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
        let (readers, page_readers) = (Semaphore::new(READERS), Semaphore::new(PAGE_READERS));
        let page_bytes = bound.max_bytes / 2;
        Self { store, backplane, registry, metrics, page, readers, page_bytes, page_readers }
    }

    /// The read position of a device and the newest position; `None` if they cannot be read now.
    pub async fn positions(&self, user: &UserId, device: &str) -> Option<Reading> {
        let nothing = PageSize { entries: 0, bytes: 0 };
        self.store.read(user, &ReadFrom::Newest, device, nothing).await.ok()
    }

    /// Reads a page that a client requested.
    pub async fn page(&self, user: &UserId, request: &PageRequest) -> Requested {
        let PageRequest { before, limit, .. } = request;
        let size = PageSize { entries: *limit, bytes: self.page_bytes };
        let reading = async {
            // The semaphore is never closed.
            let _permit = self.page_readers.acquire().await.ok();
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
            for _ in 0..START_TRIES {
                match self.store.page(user, before.as_ref(), size).await {
                    Ok(page) => return Some(page),
                    Err(error) if error.is_refusal() => return None,
                    Err(_) => sleep(backoff.next_delay()).await,
                }
            }
            None
        };
        match timeout(PAGE_DEADLINE, Box::pin(reading)).await {
            Ok(Some(Some(page))) => Requested::Page(page),
            Ok(Some(None)) => Requested::Foreign,
            Ok(None) | Err(_) => Requested::Unreadable,
        }
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
                let reading = timeout(deadline, self.read_first(user, &from, start)).await.ok().flatten();
                match (&reading, start.other) {
                    (Some(first), Some(other)) if !first.whole => {
                        let from = ReadFrom::After(other);
                        timeout(deadline, self.read_first(user, &from, start)).await.ok().flatten()
                    }
                    _ => reading,
                }
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

    /// Reads a client's start position and first page. A server that was replaced, or a slot that moved, fails a read at most
    /// a few times.
    async fn read_first(&self, user: &UserId, from: &ReadFrom, start: &Start) -> Option<Reading> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for _ in 0..START_TRIES {
            let read = match from {
                // Not behind those that resume, whose pages are large.
                ReadFrom::Newest => self.store.start(user, start.device()).await.map(Reading::beginning),
                from => self.read(user, from, start.device()).await,
            };
            match read {
                Ok(reading) => return Some(reading),
                Err(error) if error.is_refusal() => return None,
                Err(_) => sleep(backoff.next_delay()).await,
            }
        }
        None
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
                Ok(reading) => {
                    let is_of = |cursor: &Cursor| cursor.epoch == reading.newest.epoch;
                    // If the user's history was erased, the client must not be told that it is lost.
                    if matches!(&from, ReadFrom::After(cursor) if !is_of(cursor)) {
                        sleep(NOTICE_ARRIVAL + self.backplane.lag()).await;
                    }
                    return Some(reading);
                }
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

    /// Compares the clients with the store after each possible gap. Runs until dropped.
    pub async fn run_catch_up(&self) {
        let mut missed = self.store.missed();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        // Those that could not be compared.
        let mut users = Vec::new();
        loop {
            tokio::select! {
                Ok(()) = missed.changed() => backoff.reset(),
                () = sleep(backoff.next_delay()), if !users.is_empty() => {}
                else => return std::future::pending().await,
            }
            let buckets = self.store.take_missed();
            if !buckets.is_empty() {
                let in_buckets = |user: &UserId| buckets.contains(self.store.bucket(user));
                users.retain(|user| !in_buckets(user));
                users.extend(self.registry.user_ids().into_iter().filter(in_buckets));
                users.sort_by_key(|user| self.store.bucket(user));
            }
            users = self.compare(users).await;
        }
    }

    /// Compares the clients of these users with the store; returns the users for whom it cannot be read now.
    async fn compare(&self, users: Vec<UserId>) -> Vec<UserId> {
        let begun = Instant::now();
        let (mut unread, mut behind) = (Vec::new(), 0);
        let mut batches = users.chunks(COMPARE_BATCH);
        for some in batches.by_ref() {
            let Ok(newest) = self.store.newest_each(some).await else {
                unread.extend_from_slice(some);
                break;
            };
            for (user, newest) in some.iter().zip(&newest) {
                match newest {
                    Some(newest) => behind += self.catch_up(user, newest, false),
                    None => unread.push(user.clone()),
                }
            }
        }
        // They would fail the same way.
        unread.extend(batches.flatten().cloned());
        let (users, unread_users, took_ms) = (users.len(), unread.len(), millis(begun.elapsed()));
        if behind > 0 {
            info!(users, behind, unread_users, took_ms, "clients missed stored events: catch-up started");
        } else {
            debug!(users, unread_users, took_ms, "no client is behind the history, as far as it could be read");
        }
        unread
    }

    /// Starts the catch-up of the user's clients that lack the newest position, as [`crate::delivery::SendQueue::compare`]
    /// finds them; returns how many.
    fn catch_up(&self, user: &UserId, newest: &Cursor, is_old: bool) -> usize {
        let is_behind = |handle: &&Arc<ConnectionHandle>| handle.queue.compare(newest, is_old);
        let look = |handles: &[Arc<ConnectionHandle>]| handles.iter().filter(is_behind).count();
        let found = self.registry.with(user.as_str(), look).unwrap_or_default();
        self.metrics.gaps_found.inc_by(found as u64);
        found
    }
}
