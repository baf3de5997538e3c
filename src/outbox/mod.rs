//! The outbox: the Redis stream that backends add durable notifications to, and its relay.

mod entry;
mod erasure;
mod lease;
mod relay;
mod stream;
mod two_steps;

pub use erasure::{erase_entries, rejected_stream};
pub use relay::{start, start_with_layout};
