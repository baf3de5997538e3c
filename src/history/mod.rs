//! What clients read of their stored notifications.

mod acks;

pub use acks::Acks;
