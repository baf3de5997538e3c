//! Access to Redis: connections, deadlines, errors and pushed messages. This module knows no domain.

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

/// The connections that all domains of this instance share.
pub struct Redis {
    commands: Link,
    /// For pages of history and for publications that must keep their order: large replies must not delay a lease.
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
    /// Connects to nothing yet. Fails with [`Error::Config`] if the URL or the certificate is unusable.
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

    pub fn commands(&self) -> &Link {
        &self.commands
    }

    pub fn bulk(&self) -> &Link {
        &self.bulk
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Counts and logs a failed operation.
    pub fn counted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| {
            self.count_error(error.kind());
            if let Some(held_back) = self.failures.admit() {
                warn!(%error, kind = error.kind(), held_back, "redis command failed");
            }
        })
    }

    /// Counts and logs one publication that failed for `users`.
    pub fn count_unpublished(&self, kind: &'static str, users: usize) {
        self.count_error(kind);
        if let Some(held_back) = self.failures.admit() {
            warn!(kind, users, held_back, "notification not published to redis");
        }
    }

    fn count_error(&self, kind: &'static str) {
        self.metrics.backplane_errors.with_label_values(&[kind]).inc();
    }
}
