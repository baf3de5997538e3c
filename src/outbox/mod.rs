//! The outbox: the Redis stream that backends add durable notifications to, and its relay.

mod entry;
mod relay;
mod stream;

pub use relay::start;
