//! The promises of tidings, by topic, tested with real processes and a real Redis.
#![allow(unreachable_pub, reason = "the support modules are one crate with the tests")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows these in test functions; their helpers are tests, too"
)]

mod admin;
mod architecture;
mod backplane;
mod chaos;
mod cli;
mod conformance;
mod control;
mod delivery;
mod delivery_promises;
mod deploy;
mod durability;
#[path = "../examples/echo.rs"]
mod echo;
mod examples;
mod footprint;
mod frames;
mod handshake;
mod hello;
mod history_http;
mod history_model;
mod history_store;
mod jwks;
mod leaving;
mod limits;
mod link_faults;
mod load;
mod openapi;
mod outbox;
mod portability;
mod presence;
mod presence_cost;
mod presence_http;
mod presence_model;
mod properties;
mod publish_http;
mod raw;
mod redis_link;
mod resume;
mod resume_answers;
mod service_manager;
mod sessions;
mod slow_client;
mod stopping;
mod support;
mod tls;
mod tokens;
mod topology;
mod torn_frames;
