//! One simulated instance: the real ledger, and the handling of replies as in `Presence::step`.

use std::collections::BTreeSet;
use std::time::Duration;

use tidings::internals::{Batch, LeaseWatch, Ledger, UserId};
use tokio::time::Instant;

use super::memory::{DELAY_MS, LEASE_MS};

pub const LEASE: Duration = Duration::from_millis(LEASE_MS);

/// See `src/presence/mod.rs`.
pub struct Incarnation {
    pub name: String,
    pub applied: u64,
    pub unconfirmed: Option<Batch>,
}

/// The instance's reaper: the real watch, at the time of the model.
pub struct Reaper {
    watch: LeaseWatch,
    last: Option<(Instant, String, f64)>,
    started_at: Instant,
    /// When it could not read, but for moments too short to matter.
    blind: Vec<(Instant, Instant)>,
}

impl Reaper {
    fn new(now: Instant) -> Self {
        Self { watch: LeaseWatch::new(LEASE), last: None, started_at: now, blind: Vec::new() }
    }

    /// It could not read from then until now.
    pub fn was_blind(&mut self, from: Instant, now: Instant) {
        self.blind.push((from, now));
    }

    /// For how long of the time since then it could read.
    pub fn saw(&self, since: Instant, now: Instant) -> Duration {
        let since = since.max(self.started_at);
        let blind = self.blind.iter().map(|(from, to)| to.saturating_duration_since(since.max(*from)));
        now - since - blind.sum::<Duration>()
    }

    /// What to ask for.
    pub fn dead_up_to(&self, now: Instant) -> f64 {
        self.watch.dead_up_to(now)
    }

    /// The dead are those up to this number.
    pub fn observe(&mut self, now: Instant, era: &str, last: f64) -> f64 {
        self.last = Some((now, era.to_owned(), last));
        self.watch.observe(now, era.to_owned(), last);
        self.watch.dead_up_to(now)
    }

    /// A fault: counts the time since the last read as if it had read the same again and again.
    pub fn count_gap(&mut self, now: Instant) {
        let Some((mut at, era, last)) = self.last.take() else { return };
        while at < now {
            self.watch.observe(at, era.clone(), last);
            at += LeaseWatch::interval(LEASE, 0);
        }
    }
}

pub struct Instance {
    ledger: Ledger,
    pub incarnation: Option<Incarnation>,
    pub epoch: Option<String>,
    now: Instant,
    pub reaper: Reaper,
    /// Whom the ledger believes to be written.
    pub confirmed: BTreeSet<String>,
    /// Whom the ledger will add again in silence.
    pub silent: BTreeSet<String>,
}

impl Instance {
    /// Started at this time of the model.
    pub fn new(started_at: Instant) -> Self {
        Self {
            ledger: Ledger::default(),
            incarnation: None,
            epoch: None,
            now: Instant::now(),
            reaper: Reaper::new(started_at),
            confirmed: BTreeSet::new(),
            silent: BTreeSet::new(),
        }
    }

    pub fn observe(&mut self, user: &str, connections: u32) {
        self.ledger.observe(UserId::new(user).unwrap(), connections as usize, self.now);
    }

    /// Time passes: who left is given up.
    pub fn delay_over(&mut self) {
        self.now += Duration::from_millis(DELAY_MS);
        self.ledger.expire(self.now, Duration::from_millis(DELAY_MS));
    }

    pub fn differs(&self) -> bool {
        self.ledger.differs()
    }

    /// What to send under its incarnation: the same again where that is not known to be written.
    pub fn next_batch(&mut self) -> Batch {
        let incarnation = self.incarnation.as_mut().unwrap();
        let again = incarnation.unconfirmed.take();
        let batch = again.unwrap_or_else(|| self.ledger.batch(&incarnation.name, incarnation.applied + 1));
        incarnation.unconfirmed = Some(batch.clone());
        batch
    }

    /// The lease was taken.
    pub fn registered(&mut self, name: String, epoch: String) {
        let forgot = self.epoch.as_ref().is_some_and(|earlier| *earlier != epoch);
        self.epoch = Some(epoch);
        self.ledger.start_over(forgot);
        let confirmed = std::mem::take(&mut self.confirmed);
        if forgot {
            self.silent.extend(confirmed);
        }
        self.incarnation = Some(Incarnation { name, applied: 0, unconfirmed: None });
    }

    /// The answer to the batch under way has come.
    pub fn answered(&mut self, answer: &str) {
        let Some(incarnation) = self.incarnation.as_mut() else { return };
        let batch = incarnation.unconfirmed.take().unwrap();
        if answer != "OK" && answer != "DUP" {
            self.incarnation = None;
            return;
        }
        incarnation.applied = batch.sequence;
        self.ledger.confirm(&batch);
        for user in batch.held.iter().map(|(user, _)| user).chain(&batch.released) {
            self.silent.remove(user.as_str());
            self.confirmed.remove(user.as_str());
        }
        self.confirmed.extend(batch.held.iter().map(|(user, _)| user.as_str().to_owned()));
    }
}
