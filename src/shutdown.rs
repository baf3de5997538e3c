//! Signals, the two phases of a shutdown, and the tracker of every task.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{info, warn};

/// The phases of a shutdown, and the tasks that must end before it is complete. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    stopping: CancellationToken,
    connections: TaskTracker,
    services: TaskTracker,
}

impl Shutdown {
    /// Phase one: clients are closed while the listeners still accept.
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Phase two: every other task ends.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Spawns the task of a connection, for which a drain waits.
    pub fn spawn_connection(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.connections.spawn(task);
    }

    /// A drain waits until this token is dropped, as for a connection's task.
    pub fn connection_in_hand(&self) -> TaskTrackerToken {
        self.connections.token()
    }

    /// Spawns a service, which must end once [`Shutdown::stopping`] is cancelled.
    pub fn spawn_service(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.services.spawn(task);
    }

    /// Spawns a service that is dropped at its current await once [`Shutdown::stopping`] is cancelled. A service that
    /// must finish its work uses [`Shutdown::spawn_service`] and the token instead.
    pub fn spawn_until_stop(&self, service: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.spawn_service(async move {
            stopping.run_until_cancelled(service).await;
        });
    }

    /// Spawns blocking work that ends by itself.
    pub fn spawn_blocking(&self, work: impl FnOnce() + Send + 'static) {
        self.services.spawn_blocking(work);
    }

    /// Waits until every connection's task has ended, for at most `grace`.
    pub async fn connections_ended(&self, grace: Duration) {
        self.connections.close();
        if tokio::time::timeout(grace, self.connections.wait()).await.is_err() {
            warn!(left = self.connections.len(), "connection tasks were still running when the grace period ended");
        }
    }

    /// Cancels every service and waits until all have ended, for at most `grace`.
    pub async fn stop(&self, grace: Duration) {
        self.stopping.cancel();
        self.services.close();
        if tokio::time::timeout(grace, self.services.wait()).await.is_err() {
            warn!(left = self.services.len(), "services were still running when the grace period ended");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP: reload the configuration.
    Reload,
}

/// Handlers of SIGTERM and SIGINT; signals are queued from [`Stops::install`] on.
#[derive(Debug)]
pub struct Stops {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stops {
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "signal received");
    }
}

/// As [`Stops`], and the handler of SIGHUP.
#[derive(Debug)]
pub struct Signals {
    /// They may be awaited alone: a SIGHUP remains queued meanwhile.
    pub stops: Stops,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn install() -> io::Result<Self> {
        Ok(Self { stops: Stops::install()?, hangup: signal(SignalKind::hangup())? })
    }

    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            () = self.stops.next() => return Signal::Stop,
            _ = self.hangup.recv() => {}
        }
        info!(signal = "SIGHUP", "signal received");
        Signal::Reload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signals when it is dropped.
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
        assert!(begun.elapsed() < GRACE, "the stop waited for the whole grace period");
    }
}
