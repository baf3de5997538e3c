//! Real servers and real clients for the tests: each starts what it needs on free ports and cleans up after itself.

mod authority;
mod client;
mod clock;
mod cluster;
mod edge;
mod events;
mod express;
mod follower;
mod gateway;
mod history;
mod http;
mod issuer;
mod key_server;
mod light;
mod nginx;
pub mod openapi;
mod polling;
mod prometheus;
mod proxy;
mod redis;
pub mod secrets;
mod sentinel;
mod socketio;
mod sse;
mod store;
mod tls;
mod token;
pub mod wire;

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

pub use authority::Authority;
pub use client::{Client, Refused, handshake, handshake_from, masked, refused};
pub use cluster::{Cluster, Migration, key_slot, lone_node};
pub use edge::{Edge, Server};
pub use events::EventStream;
pub use express::{Express, Session};
pub use follower::Follower;
pub use gateway::{Gateway, Options, clean, command, http, output, signal};
pub use history::Listed;
pub use http::Answer;
pub use issuer::{ASYMMETRIC, Issuer, key_set};
pub use key_server::{KeyServer, Publishes};
pub use light::{Light, Received, Resume};
pub use nginx::Nginx;
pub use polling::{Kept, POLLING, Polling};
pub use prometheus::Prometheus;
pub use proxy::{Proxy, Way, Whose};
pub use redis::{RedisServer, Subscription, free_port};
pub use sentinel::{Sentinel, lone_sentinel};
pub use socketio::{SocketIo, UPGRADE, WEBSOCKET, engine_refusal};
pub use sse::SseClient;
pub use store::Store;
pub use tls::{client_config, handshake_tls, served_certificate};
pub use token::{SECRET, now, sign, sign_with, token, token_for};

/// How long a test waits for something that must come: far longer than it takes, so that only its absence fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The text of a JSON string.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a string was expected, not {value}"))
}

/// Waits for `event`, or fails saying what did not come.
pub async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Asks again and again until `holds` gives true, or fails saying what never held.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    eventually_within(PATIENCE, what, &mut holds).await;
}

/// As [`eventually`], with a limit that is part of the promise.
pub async fn eventually_within(limit: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(20)).await;
    }
}
