//! tidings: a realtime notification gateway.
//!
//! Backends `PUBLISH user:42 '{…}'` to Redis; every instance receives it and writes it to that user's WebSockets; a
//! plain Redis set holds the online users.
//!
//! An application embeds an instance with [`Config`] and [`Gateway`]; [`cli`] is the `tidings` command. Everything else
//! is internal. ARCHITECTURE.md describes the modules and their layers.

mod auth;
mod backoff;
mod backplane;
pub mod cli;
mod config;
mod connection;
mod delivery;
mod escalation;
mod gateway;
mod history;
#[doc(hidden)]
pub mod internals;
mod lease_watch;
mod limits;
mod log;
mod metrics;
mod outbox;
mod presence;
mod protocol;
mod redis;
mod revocation;
mod roster;
mod router;
mod server;
mod sessions;
mod shutdown;

pub use backplane::BackplaneError;
pub use config::{Config, ConfigError, Layers, TlsError};
pub use gateway::{Gateway, StartError};

/// The version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, abbreviated; `unknown` if neither git nor `SOURCE_COMMIT` named it to the build.
pub const COMMIT: &str = env!("BUILD_COMMIT");
