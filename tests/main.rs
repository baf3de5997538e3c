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
mod alerts;
mod alerts_fire;
mod architecture;
mod backplane;
mod broadcast;
mod chaos;
mod check_config;
mod cli;
mod cluster;
mod cluster_migration;
mod cluster_ready;
mod conformance;
mod connection_log;
mod connections;
mod control;
mod delivery;
mod delivery_promises;
mod deploy;
mod door;
mod door_log;
mod durability;
#[path = "../examples/echo.rs"]
mod echo;
mod escalation;
mod escalation_steps;
mod exact;
mod examples;
mod footprint;
mod frames;
mod handshake;
mod harness;
mod hello;
mod history_http;
mod history_model;
mod history_store;
mod inbox;
mod jwks;
mod leaving;
mod limits;
mod lineage;
mod link_faults;
mod listen;
mod load;
mod log_commands;
mod metrics;
mod moving_address;
mod openapi;
mod operator_commands;
mod outage_log;
mod outbox;
mod outbox_steps;
mod paced;
mod polling;
mod polling_end;
mod polling_http;
mod polling_upgrade;
mod portability;
mod presence;
mod presence_clock;
mod presence_cost;
mod presence_http;
mod presence_model;
mod properties;
mod proxies;
mod publish_http;
mod raw;
mod readme;
mod redis_link;
mod reload;
mod resume;
mod resume_answers;
mod retraction;
mod rights;
mod sdk;
mod sentinel;
mod service_manager;
mod sessions;
mod sharded;
mod slow_client;
mod socketio;
mod socketio_end;
mod socketio_recovery;
mod socketio_suite;
mod sse;
mod sse_door;
mod sse_end;
mod stopping;
mod support;
mod tls;
mod tls_shapes;
mod tokens;
mod topology;
mod torn_frames;
mod trace;
mod user_channel;
