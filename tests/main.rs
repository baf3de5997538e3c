//! The promises of tidings, one file each, held against real processes and a real Redis.

#![allow(unreachable_pub, reason = "in one crate of tests, `pub` says what a support module is for")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod admin;
mod architecture;
mod chaos;
mod cli;
mod delivery;
mod frames;
mod handshake;
mod hello;
mod presence_cost;
mod presence_model;
mod raw;
mod support;
