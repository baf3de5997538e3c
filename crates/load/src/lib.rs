//! The load generator behind `tidings load`: it opens many client connections, publishes on a schedule, and verifies
//! every delivery.
//!
//! The publisher follows its schedule even while the server stalls, and latency is measured from the time a message was
//! due. A stall therefore counts against every message that it delays (no coordinated omission).
//!
//! The crate does not depend on the gateway's library: the caller implements [`Gateway`] with it.

mod args;
mod client;
mod connect;
mod greeting;
mod nats;
mod own_input;
mod plan;
mod process;
mod publisher;
mod receiver;
mod redis_usage;
mod report;
mod run;
mod sender;
mod store;
mod tally;
mod wire;

use std::net::SocketAddr;

use secrecy::{ExposeSecret, SecretString};

pub use args::{ArgsError, ClientProtocol, Mode, Phase, Plan, PublishVia};
pub use report::Report;
pub use run::run;

/// How far an activity of a run has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// What it does.
    pub activity: &'static str,
    /// From 0 to 1.
    pub share: f64,
    /// Connections that were begun, messages that were published or stored, or deliveries; `None` while it only waits.
    pub count: Option<u64>,
}

impl Progress {
    /// So many of all are done.
    #[allow(clippy::cast_precision_loss, reason = "a share for a person")]
    pub(crate) fn of(activity: &'static str, count: u64, all: u64) -> Self {
        Self { activity, share: count as f64 / all.max(1) as f64, count: Some(count) }
    }
}

/// The operations that need the gateway's library.
pub trait Gateway {
    /// Issues a token for a user.
    fn token(&self, user: &str) -> String;

    /// Stores and publishes one durable notification to each user, and returns the cursors in the users' order.
    fn publish(&self, users: &[&str], data: &str) -> impl Future<Output = Result<Vec<String>, String>>;

    /// Returns the position of each user's newest stored notification, in the users' order.
    fn newest(&self, users: &[&str]) -> impl Future<Output = Result<Vec<Position>, String>>;
}

/// A position in the history of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// When the notification was stored, in milliseconds since 1970.
    pub ms: u64,
    /// The notification's number in the history, from 1; 0 if the history is empty.
    pub number: u64,
}

/// Addresses and credentials for publishing.
#[derive(Debug, Clone)]
pub struct Backend {
    pub redis_url: SecretString,
    /// The prefix of the gateway's Redis keys.
    pub redis_prefix: String,
    /// An instance's admin listener.
    pub admin: SocketAddr,
    /// The key for the admin listener, if it requires one.
    pub admin_key: Option<SecretString>,
}

impl Backend {
    fn redis(&self) -> redis::RedisResult<redis::Client> {
        redis::Client::open(self.redis_url.expose_secret())
    }
}

/// An error that ends a run. Failed deliveries are not errors; they are counted in the [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The client with this number, from 0, could not connect to this address.
    #[error("connection {0} to {1}: {2}")]
    Connect(u32, SocketAddr, String),
    /// A Redis command failed.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// The server's files in `/proc` could not be read.
    #[error("--server-pid {0}: {1}")]
    Process(u32, std::io::Error),
    /// A request to the admin listener failed.
    #[error("publishing over HTTP: {0}")]
    Http(String),
    /// The own input of a server that is no gateway did not accept the messages.
    #[error("publishing: {0}")]
    OwnInput(std::io::Error),
    /// A durable notification could not be stored.
    #[error("storing: {0}")]
    Store(String),
    /// The publisher's thread panicked.
    #[error("the publisher ended early")]
    Publisher,
    /// The receiver's thread failed.
    #[error("receiving: {0}")]
    Receiver(std::io::Error),
}
