//! Relays in two steps: stores an entry in its user's bucket, and then removes it from the outbox, which is in another slot.
//!
//! The first step may be repeated: a mark in the bucket tells that it was done, by whichever instance. A relay that was
//! paused past its lease cannot do it any more once a later one has written to the bucket: the number of its lease is
//! lower. An entry that cannot be stored holds up its bucket, whose entries stay in the outbox; those of other buckets are
//! relayed past it.

use tokio::time::Instant;

use super::entry::{Entry, Invalid, Reason, Run, Valid, runs};
use super::lease::LeaseId;
use super::relay::Relay;
use super::stream::{EntryOutcome, Stored};
use crate::backplane::BackplaneError;
use crate::history::BucketSet;

/// Pages read in one pass. Entries of held-up buckets on as many pages hold up all others, too.
const MAX_PAGES: usize = 20;

/// One pass over the outbox, from its oldest entry.
struct Pass {
    lease: LeaseId,
    oldest: String,
    /// The buckets with an entry that stays: their later entries stay, too.
    held: BucketSet,
    /// Why the first one stays.
    error: Option<BackplaneError>,
}

impl Relay {
    /// Relays the entries of this page, the oldest, and of later ones while some of them stay.
    pub(super) async fn relay_in_two_steps(
        &mut self,
        lease: LeaseId,
        mut page: Vec<Entry>,
    ) -> Result<(), BackplaneError> {
        let oldest = page.first().map_or_else(String::new, |entry| entry.id.clone());
        let mut pass = Pass { lease, oldest, held: BucketSet::default(), error: None };
        for _ in 0..MAX_PAGES {
            self.relay_page(&mut pass, &page).await?;
            // Where there is one bucket, it holds up everything.
            if self.lease.is_none() || pass.held.is_empty() || !self.outbox.is_spread() {
                break;
            }
            let last = page.last().map(|entry| entry.id.as_str());
            match self.read(&pass.lease, last).await? {
                Some(next) if !next.is_empty() => page = next,
                _ => break,
            }
        }
        pass.error.map_or(Ok(()), Err)
    }

    async fn relay_page(&mut self, pass: &mut Pass, page: &[Entry]) -> Result<(), BackplaneError> {
        for run in runs(page) {
            match run {
                Run::Valid(entries) => self.relay_valid(pass, entries).await?,
                Run::Invalid(entries) => self.reject_any(pass, &entries).await?,
            }
            if self.lease.is_none() || !(pass.held.is_empty() || self.outbox.is_spread()) {
                break;
            }
        }
        Ok(())
    }

    async fn relay_valid(&mut self, pass: &mut Pass, mut entries: Vec<Valid<'_>>) -> Result<(), BackplaneError> {
        entries.retain(|(_, user, _)| !pass.held.contains(self.outbox.bucket(user)));
        let stored = self.store(pass, &entries).await?;
        let ids: Vec<_> = stored.iter().map(|(entry, _)| entry.id.as_str()).collect();
        if self.lease.is_none() || ids.is_empty() {
            return Ok(());
        }
        if !self.outbox.remove(&pass.lease.token, &ids).await? {
            self.lose_lease();
            return Ok(());
        }
        self.progressed = true;
        for (entry, outcome) in stored {
            self.count(entry, outcome, Reason::Unstorable);
        }
        Ok(())
    }

    /// The first step. Returns the entries that may be removed now.
    async fn store<'a>(
        &mut self,
        pass: &mut Pass,
        entries: &[Valid<'a>],
    ) -> Result<Vec<(&'a Entry, EntryOutcome)>, BackplaneError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let replies = self.outbox.store(&pass.lease, &pass.oldest, entries).await?;
        self.redis.metrics().store_seconds.observe(begun.elapsed().as_secs_f64());
        let mut stored = Vec::with_capacity(entries.len());
        for (valid, reply) in entries.iter().zip(replies) {
            let settled = match reply {
                // Not an error that other entries would meet, too: only this user's keys may be unusable.
                Err(error) if error.kind() == "refused" => match self.outbox.is_storable(&pass.lease, valid).await {
                    Ok(Some(settled)) => Ok(settled),
                    _ => Err(error),
                },
                reply => reply,
            };
            match settled {
                Ok(Stored::Done) => stored.push((valid.0, EntryOutcome::Relayed)),
                Ok(Stored::Known) => stored.push((valid.0, EntryOutcome::Known)),
                Ok(Stored::Unstorable) => self.reject_any(pass, &[(valid.0, Reason::Unstorable)]).await?,
                Ok(Stored::Behind) => pass.hold(self.outbox.bucket(&valid.1), None),
                Ok(Stored::Fenced(number)) => return self.meet(number).await,
                Err(error) => pass.hold(self.outbox.bucket(&valid.1), Some(error)),
            }
        }
        Ok(stored)
    }

    /// A later lease has written to a bucket: either this one was lost, or the number of the last one was.
    async fn meet<T>(&mut self, number: u64) -> Result<Vec<T>, BackplaneError> {
        self.least_number = number + 1;
        self.release().await;
        self.lose_lease();
        Ok(Vec::new())
    }

    async fn reject_any(&mut self, pass: &Pass, entries: &[Invalid<'_>]) -> Result<(), BackplaneError> {
        let replies = self.outbox.reject(&pass.lease.token, entries).await?;
        for ((entry, reason), reply) in entries.iter().zip(replies) {
            self.count(entry, reply?, *reason);
        }
        Ok(())
    }
}

impl Pass {
    fn hold(&mut self, bucket: u8, error: Option<BackplaneError>) {
        self.held.insert(bucket);
        if self.error.is_none() {
            self.error = error;
        }
    }
}
