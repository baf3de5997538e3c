//! tidings: a realtime notification gateway.
//!
//! Backends `PUBLISH user:42 '{…}'` to Redis; every instance hears it and writes it to that user's WebSockets; a plain
//! Redis set says who is online. The modules, from the bottom up, each importing only from those above it in this list:
//!
//! | row | modules |
//! | --- | --- |
//! | 0 | [`protocol`], [`config`], [`metrics`], [`shutdown`], [`backoff`] |
//! | 1 | [`log`] |
//! | 2 | [`auth`], [`registry`], [`backplane`] |
//! | 3 | [`limits`], [`history`] |
//! | 4 | [`router`], [`presence`], [`control`], [`sessions`], [`connection`] |
//! | 5 | [`server`] |
//! | 6 | [`Gateway`], which wires them, and [`cli`] |

pub mod auth;
pub mod backoff;
pub mod backplane;
pub mod cli;
pub mod config;
pub mod connection;
pub mod control;
mod gateway;
pub mod history;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod presence;
pub mod protocol;
pub mod registry;
pub mod router;
pub mod server;
pub mod sessions;
pub mod shutdown;

pub use gateway::{Gateway, StartError};
