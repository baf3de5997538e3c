//! How this process talks to Redis: connections, deadlines, errors and pushes. Nothing in here knows a domain.

mod error;
mod link;
pub mod resp;
mod stream;
mod subscriber;

use std::sync::Arc;

use secrecy::SecretString;
use tracing::warn;

use crate::config;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::InstanceId;
pub use error::Error;
pub use link::{Link, Pipelined};
pub use resp::Malformed;
pub use stream::Stream;
pub use subscriber::{Channels, Push, Subscriber};

/// One Redis, as every domain of this instance shares it.
pub struct Redis {
    commands: Link,
    /// For pages of history and what has to keep their order: large replies must not delay a lease.
    bulk: Link,
    metrics: Arc<Metrics>,
    failures: LogRate,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").finish_non_exhaustive()
    }
}

impl Redis {
    /// Prepares both links; nothing is connected yet.
    ///
    /// # Errors
    /// [`Error::Config`] where the URL or the certificate cannot be used.
    pub fn new(
        config: &config::Redis,
        url: &SecretString,
        instance: &InstanceId,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        Ok(Self {
            commands: Link::new(config, url, format!("tidings-{instance}"))?,
            bulk: Link::new(config, url, format!("tidings-{instance}-history"))?,
            metrics,
            failures: LogRate::new(),
        })
    }

    /// The connection for short commands.
    pub fn commands(&self) -> &Link {
        &self.commands
    }

    /// The connection for large requests and replies.
    pub fn bulk(&self) -> &Link {
        &self.bulk
    }

    /// The metrics of this instance.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Counts and logs an operation that failed.
    pub fn counted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| {
            self.count_error(error.kind());
            if let Some(held_back) = self.failures.admit() {
                warn!(%error, kind = error.kind(), held_back, "redis command failed");
            }
        })
    }

    /// Counts and logs that `users` of one publication failed, for an error of this kind.
    pub fn count_unpublished(&self, kind: &'static str, users: usize) {
        self.count_error(kind);
        if let Some(held_back) = self.failures.admit() {
            warn!(kind, users, held_back, "redis did not accept a notification");
        }
    }

    fn count_error(&self, kind: &'static str) {
        self.metrics.backplane_errors.with_label_values(&[kind]).inc();
    }
}
