//! How an instance stops: signals, the two phases of a stop, and the tracker of every task.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{info, warn};

/// The phases of a stop, and every task that must have ended after it. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    stopping: CancellationToken,
    connections: TaskTracker,
    services: TaskTracker,
}

impl Shutdown {
    /// Phase one: clients are sent away, while the listeners still answer.
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Phase two: every other task ends.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Spawns a task that a drain waits for: one of a client.
    pub fn spawn_connection(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.connections.spawn(task);
    }

    /// Until it is dropped, a drain waits as for a client's task.
    pub fn connection_in_hand(&self) -> TaskTrackerToken {
        self.connections.token()
    }

    /// Spawns a task of the instance itself; it must end once [`Shutdown::stopping`] is cancelled.
    pub fn spawn_service(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.services.spawn(task);
    }

    /// Spawns a service that does not end by itself: it is dropped, wherever it waits, once [`Shutdown::stopping`] is
    /// cancelled. One that has work to finish then gets the token instead, from [`Shutdown::spawn_service`].
    pub fn spawn_until_stop(&self, service: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.spawn_service(async move {
            stopping.run_until_cancelled(service).await;
        });
    }

    /// Runs on a thread of its own what takes a while and waits for nobody.
    pub fn spawn_blocking(&self, work: impl FnOnce() + Send + 'static) {
        self.services.spawn_blocking(work);
    }

    /// Waits until no client's task is left, or the grace ends.
    pub async fn connections_ended(&self, grace: Duration) {
        self.connections.close();
        if tokio::time::timeout(grace, self.connections.wait()).await.is_err() {
            warn!(left = self.connections.len(), "clients' tasks were still running when the grace ended");
        }
    }

    /// Tells every service to end and waits for it, or for the grace to end.
    pub async fn stop(&self, grace: Duration) {
        self.stopping.cancel();
        self.services.close();
        if tokio::time::timeout(grace, self.services.wait()).await.is_err() {
            warn!(left = self.services.len(), "tasks were still running when the grace ended");
        }
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT: the end.
    Stop,
    /// SIGHUP: files that may have changed are to be read anew.
    Reload,
}

/// SIGTERM, SIGINT and SIGHUP, listened for from creation on.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// Where the system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) -> Signal {
        let (name, signal) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", Signal::Stop),
            _ = self.interrupt.recv() => ("SIGINT", Signal::Stop),
            _ = self.hangup.recv() => ("SIGHUP", Signal::Reload),
        };
        info!(signal = name, "signal received");
        signal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says when it is dropped.
    struct Dropped(Option<tokio::sync::oneshot::Sender<()>>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.take().map(|sender| sender.send(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_runs_until_the_stop_and_is_dropped_then() {
        const GRACE: Duration = Duration::from_secs(1);
        let shutdown = Shutdown::default();
        let (runs, running) = tokio::sync::oneshot::channel();
        let (sender, mut dropped) = tokio::sync::oneshot::channel();
        let guard = Dropped(Some(sender));
        shutdown.spawn_until_stop(async move {
            let _guard = guard;
            let _ = runs.send(());
            std::future::pending().await
        });
        running.await.unwrap();

        shutdown.draining().cancel();
        tokio::time::sleep(GRACE).await;
        assert!(dropped.try_recv().is_err(), "a drain does not end it");

        let begun = tokio::time::Instant::now();
        shutdown.stop(GRACE).await;
        dropped.try_recv().unwrap();
        assert!(begun.elapsed() < GRACE, "the stop waited for the grace to end");
    }
}
