//! Clients that come back, or that missed something, and how long it takes until they have everything.

use std::time::Instant;

use tokio::time::sleep;

use super::report::Measured;
use super::store::Store;
use super::tally::Latencies;
use super::{LoadError, Mode, Phase, Reading, Run, own_cpu};

impl Run {
    /// Everybody is cut and comes back; with [`Mode::Resume`] from the last notification they got, for those that were
    /// stored meanwhile.
    pub(super) async fn come_back(&mut self, phase: &Phase, store: &Store) -> Result<Measured, LoadError> {
        let mut cursors = Vec::new();
        if phase.mode == Mode::Resume {
            let each = self.sent.len();
            cursors = store.publish(each, phase.payload, &mut self.sent).await?;
            self.settled().await;
        }
        // Their sockets close.
        self.receiver = None;
        let received = self.sent.clone();
        store.publish(phase.stored as usize, phase.payload, &mut self.sent).await?;
        sleep(self.plan.settle).await;

        let (first, own, delivered) = (self.read()?, own_cpu(), self.tally.delivered());
        let started = Instant::now();
        self.connect(&received, &cursors).await?;
        self.settled().await;
        let took = started.elapsed();
        Ok(Measured {
            took,
            published: phase.stored.into(),
            delivered: self.tally.delivered() - delivered,
            first,
            last: self.read()?,
            own_cpu: own_cpu().saturating_sub(own),
            latencies: Latencies::default(),
        })
    }

    /// Some miss what is stored while nobody is subscribed, and stay connected.
    pub(super) async fn refill(&mut self, phase: &Phase, store: &Store) -> Result<Measured, LoadError> {
        let (server, own, delivered) = (self.read_server()?, own_cpu(), self.tally.delivered());
        let redis = store.store_unheard(phase.stored as usize, phase.payload, &mut self.sent).await?;
        let started = Instant::now();
        self.settled().await;
        let took = started.elapsed();
        Ok(Measured {
            took,
            published: phase.stored.into(),
            delivered: self.tally.delivered() - delivered,
            first: Reading { server, redis },
            last: self.read()?,
            own_cpu: own_cpu().saturating_sub(own),
            latencies: Latencies::default(),
        })
    }
}
