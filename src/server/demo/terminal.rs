//! How to publish to this instance from a terminal, for the page to show.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::config::{NodeAddress, RedisTopology, RedisUrl};
use crate::server::App;

/// The URL of the admin listener, and `redis-cli` with the options that reach Redis; both null unless the page is for
/// development, because its visitors need not know the addresses of a server. The prefix of users' channels.
pub(super) async fn addresses(State(app): State<Arc<App>>) -> Json<Value> {
    let config = &app.config;
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let admin = app.admin.get().filter(|_| config.dev).map(|address| format!("{scheme}://{address}"));
    let redis = config.redis.url.as_ref().filter(|_| config.dev).and_then(redis_cli);
    std::future::ready(Json(json!({"admin": admin, "redis": redis, "channel": config.redis.user_channel}))).await
}

/// Without user and password. None for the master that sentinels name: its address is not in the URL.
fn redis_cli(url: &RedisUrl) -> Option<String> {
    let mut command = match url.topology() {
        RedisTopology::Single => single(url.single()?.expose_secret())?,
        RedisTopology::Sentinel { .. } => return None,
        // `-c`: the node may have to redirect a command.
        RedisTopology::Cluster { nodes } => format!("redis-cli -c{}", options(nodes.first()?)),
    };
    if url.is_tls() {
        command.push_str(" --tls");
    }
    Some(command)
}

fn single(url: &str) -> Option<String> {
    let url = redis::parse_redis_url(url)?;
    if url.scheme().contains("unix") {
        return Some(format!("redis-cli -s {}", url.path()));
    }
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some(format!("redis-cli{}", options(&NodeAddress { host, port: url.port().unwrap_or(6379) })))
}

/// Those that differ from the defaults.
fn options(NodeAddress { host, port }: &NodeAddress) -> String {
    let host = if ["127.0.0.1", "localhost"].contains(&&**host) { String::new() } else { format!(" -h {host}") };
    let port = if *port == 6379 { String::new() } else { format!(" -p {port}") };
    host + &port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_reaches_the_configured_redis_and_shows_no_password() {
        for (url, command) in [
            ("redis://127.0.0.1:6379", "redis-cli"),
            ("redis://:secret@localhost:6380/1", "redis-cli -p 6380"),
            ("rediss://user:secret@redis.example", "redis-cli -h redis.example --tls"),
            ("redis://[::1]:7000", "redis-cli -h ::1 -p 7000"),
            ("unix:///run/redis.sock", "redis-cli -s /run/redis.sock"),
            ("redis+cluster://app:secret@10.0.0.1:7000,10.0.0.2:7000", "redis-cli -c -h 10.0.0.1 -p 7000"),
            ("rediss+cluster://[::1]", "redis-cli -c -h ::1 --tls"),
        ] {
            assert_eq!(redis_cli(&url.parse().unwrap()).as_deref(), Some(command), "{url}");
        }
        assert_eq!(redis_cli(&"redis+sentinel://:secret@10.0.0.1/mymaster".parse().unwrap()), None);
    }
}
