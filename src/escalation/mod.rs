//! Escalation: hands over the notifications that no device has read in time, to the stream `{prefix}unread` of the backends.
//!
//! `publish.lua` records when a notification escalates. The instance that relays the outbox looks each second for those
//! that are due; each is judged then. One script judges and hands over a user's escalations, so that the sweep may die at
//! any moment, and any number of instances may sweep at once. In a cluster this takes three steps (`three_steps.rs`).

mod store;
mod sweep;
mod three_steps;

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Config;
use crate::history::Layout;
use crate::redis::Redis;
use crate::shutdown::Shutdown;
use store::Escalations;
pub use store::{interrupt, unread_stream};
use sweep::Sweeper;

/// Sweeps while `is_keeper` is true, until the instance stops.
pub fn start(redis: &Arc<Redis>, config: &Config, is_keeper: watch::Receiver<bool>, shutdown: &Shutdown) {
    start_with_layout(redis, config, is_keeper, shutdown, Layout::of(redis));
}

/// Tests also use the layout of a cluster on a single Redis.
pub fn start_with_layout(
    redis: &Arc<Redis>,
    config: &Config,
    is_keeper: watch::Receiver<bool>,
    shutdown: &Shutdown,
    layout: Layout,
) {
    let sweeper = Sweeper::new(Escalations::new(Arc::clone(redis), config, layout));
    shutdown.spawn_until_stop(async move { sweeper.run(is_keeper).await });
}
