//! One Redis server by its address, and what all connections to it share.

use std::sync::Arc;

use parking_lot::Mutex;
use redis::io::tcp::TcpSettings;
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Error;
use super::generation::{Generation, Generations};
use super::outage::Outage;
use super::replicated::Wait;
use super::server_info::ServerInfo;
use super::stream::{Stream, keepalive};
use super::tls::Tls;
use crate::config::RedisUrl;
use crate::protocol::millis;

/// How to connect to each server of a topology: they share credentials, authorities and the instance's name.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) login: RedisConnectionInfo,
    pub(super) uses_tls: bool,
    pub(super) tls: Tls,
    /// The start of each connection's name in `CLIENT LIST`.
    pub(super) name: String,
    /// For replicas, before a durable publication is confirmed.
    pub(super) wait: Wait,
}

impl Access {
    pub(super) fn info(&self, host: &str, port: u16) -> Result<ConnectionInfo, Error> {
        let host = host.to_owned();
        let address = if self.uses_tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Ok(with_tcp_settings(address.into_connection_info()?.set_redis_settings(self.login.clone())))
    }
}

/// Of the URL of a single server.
pub(super) fn single_info(url: &RedisUrl) -> Result<ConnectionInfo, Error> {
    let bad_url = |error: redis::RedisError| Error::Config(format!("redis.url: {error}"));
    let text = url.single().map(ExposeSecret::expose_secret).unwrap_or_default();
    Ok(with_tcp_settings(text.into_connection_info().map_err(bad_url)?))
}

fn with_tcp_settings(info: ConnectionInfo) -> ConnectionInfo {
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive());
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(super::stream::KEEPALIVE * 2);
    info.set_tcp_settings(tcp)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeMode {
    /// A replica and a node of a cluster are refused.
    Standalone,
    /// A node of a cluster, in either role: it redirects what it does not own.
    Cluster,
    /// No data, and no role.
    Sentinel,
}

#[derive(Debug)]
pub(super) struct Node {
    /// `None` until the sentinels have named a master.
    info: Mutex<Option<ConnectionInfo>>,
    tls: Tls,
    name: String,
    mode: NodeMode,
    pub(super) generations: Generations,
    pub(super) outage: Outage,
    /// Counts the calls of [`Node::lead_to`].
    moves: watch::Sender<u64>,
}

impl Node {
    pub(super) fn new(info: Option<ConnectionInfo>, access: &Access, mode: NodeMode) -> Arc<Self> {
        let (tls, name) = (access.tls.clone(), access.name.clone());
        Arc::new(Self {
            info: Mutex::new(info),
            tls,
            name,
            mode,
            generations: Generations::default(),
            outage: Outage::default(),
            moves: watch::Sender::default(),
        })
    }

    /// The server is another from now on: every connection to the earlier one ends.
    pub(super) fn lead_to(&self, info: ConnectionInfo) {
        *self.info.lock() = Some(info);
        self.generations.end();
        self.moves.send_modify(|moves| *moves += 1);
    }

    pub(super) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// Without user and password.
    pub(super) fn address(&self) -> String {
        self.info.lock().as_ref().map_or_else(|| "no server".into(), |info| info.addr().to_string())
    }

    /// Logs a call that had no reply, or no server that can be used, and the first reply after such calls.
    pub(super) fn log_reply(&self, failed: Option<&Error>) {
        if let Some(error) = failed {
            if let Some(lasted) = self.outage.fail() {
                let (address, kind, lasted_ms) = (self.address(), error.kind(), millis(lasted));
                let what = if error.is_unusable() { "cannot be used" } else { "does not reply" };
                warn!(%address, %error, kind, lasted_ms, "a redis server {what}");
            }
        } else if let Some(lasted) = self.outage.end() {
            info!(address = %self.address(), lasted_ms = millis(lasted), "the redis server replies again");
        }
    }

    pub(super) fn connection_name(&self, purpose: &str) -> String {
        format!("{}-{purpose}", self.name)
    }

    /// A client of redis-rs, which connects to nothing yet, and the generation of its connection.
    pub(super) fn client(&self) -> Result<(Client, Generation), Error> {
        // The generation first: if the address changes in between, the connection ends at once.
        let generation = self.generations.current();
        Ok((self.tls.client(self.info()?)?, generation))
    }

    /// Opens a separate connection, for a subscription or a blocking read.
    pub(super) async fn stream(&self, purpose: &str, max_part: usize) -> Result<Stream, Error> {
        let mut stream = self.open(purpose, max_part).await?;
        stream.server = self.accept(stream.server)?;
        Ok(stream)
    }

    /// Asks the server that a fresh connection leads to, whether it can be used or not.
    pub(super) async fn server_at_address(&self) -> Result<ServerInfo, Error> {
        Ok(self.open("address", 0).await?.server().clone())
    }

    async fn open(&self, purpose: &str, max_part: usize) -> Result<Stream, Error> {
        let generation = self.generations.current();
        Stream::connect(&self.info()?, &self.tls, &self.connection_name(purpose), max_part, generation).await
    }

    /// Fails if the server that a new connection leads to must not be used.
    pub(super) fn accept(&self, server: ServerInfo) -> Result<ServerInfo, Error> {
        let server = server.usable(self.mode).inspect_err(|error| {
            if matches!(error, Error::Replica) {
                // Others may still be connected to it, or to an earlier master.
                self.generations.end_if_used();
            }
        })?;
        self.generations.add(&server);
        Ok(server)
    }

    fn info(&self) -> Result<ConnectionInfo, Error> {
        let none = || Error::Unreachable { kind: "sentinel", why: "redis: no sentinel has named a master yet".into() };
        self.info.lock().clone().ok_or_else(none)
    }
}
