//! One simulated instance: the real ledger, and the handling of replies as in `Presence::step`.

use std::collections::BTreeSet;
use std::time::Duration;

use tidings::internals::{Batch, Ledger, UserId};
use tokio::time::Instant;

use super::memory::DELAY_MS;

/// See `src/presence/mod.rs`.
pub struct Incarnation {
    pub name: String,
    pub applied: u64,
    pub unconfirmed: Option<Batch>,
}

pub struct Instance {
    ledger: Ledger,
    pub incarnation: Option<Incarnation>,
    pub epoch: Option<String>,
    now: Instant,
    /// Whom the ledger believes to be written.
    pub confirmed: BTreeSet<String>,
    /// Whom the ledger will add again in silence.
    pub silent: BTreeSet<String>,
}

impl Instance {
    pub fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            incarnation: None,
            epoch: None,
            now: Instant::now(),
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
