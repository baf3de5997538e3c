//! What `redis.url` leads to, and which of its servers executes a call. No domain knows which topology it is.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use tokio::sync::watch;
use tokio::time::timeout;

use super::call::{Asking, Call};
use super::cluster::Cluster;
use super::link::{Link, Replies};
use super::node::{Access, Node, NodeMode, single_info};
use super::replicated::{Replicated, Wait};
use super::sentinel::Sentinels;
use super::stream::Stream;
use super::tls::Tls;
use super::{Error, Reply};
use crate::config::{self, RedisTopology, RedisUrl};

#[derive(Debug)]
pub(super) enum Topology {
    /// One server at one address, which may come to lead to another.
    Single(Server),
    /// The master that the sentinels name.
    Sentinel(Server, Box<Sentinels>),
    Cluster(Cluster),
}

/// The connections to a server that carry commands: large replies must not delay a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Everything that is small.
    Commands,
    /// Pages of history, and publications that must keep their order.
    Bulk,
    /// Publications that must reach replicas.
    Replicated,
}

/// A server and its links.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) node: Arc<Node>,
    commands: Link,
    bulk: Link,
    replicated: Replicated,
}

impl Server {
    pub(super) fn new(node: Arc<Node>, wait: Wait) -> Self {
        let commands = Link::new(Arc::clone(&node), "commands");
        let bulk = Link::piped(Arc::clone(&node), "history-commands");
        let replicated = Replicated::new(Arc::clone(&node), wait);
        Self { node, commands, bulk, replicated }
    }

    /// As [`Link::run`].
    pub(super) async fn run(&self, lane: Lane, calls: &[Call<'_>], asking: Asking) -> Result<Vec<Reply>, Error> {
        let ran: Result<Replies, Error> = match lane {
            Lane::Commands => self.commands.run(calls, asking).await,
            Lane::Bulk => self.bulk.run(calls, asking).await,
            Lane::Replicated => self.replicated.run(calls, asking).await,
        };
        self.log_reply(&ran);
        let Replies { replies, connection } = ran?;
        Ok(replies.into_iter().map(|reply| (reply, connection)).collect())
    }

    /// As [`Server::run`], for so long at most.
    pub(super) async fn run_within(
        &self,
        limit: Duration,
        lane: Lane,
        calls: &[Call<'_>],
        asking: Asking,
    ) -> Result<Vec<Reply>, Error> {
        timeout(limit, self.run(lane, calls, asking)).await.unwrap_or_else(|_| {
            let error = Error::Timeout(limit);
            self.node.log_reply(Some(&error));
            Err(error)
        })
    }

    /// A refusal is a reply, too.
    fn log_reply(&self, ran: &Result<Replies, Error>) {
        match ran {
            Err(error) if error.is_outage() => self.node.log_reply(Some(error)),
            Err(error) if error.is_refusal() => self.node.log_reply(None),
            Err(_) => {}
            Ok(ran) => {
                let failed = ran.replies.iter().find_map(|reply| reply.as_ref().err().filter(|e| is_unanswered(e)));
                self.node.log_reply(failed.cloned().map(Error::from).as_ref());
            }
        }
    }
}

impl Topology {
    /// Connects to nothing yet. Fails with [`Error::Config`] if the URL or the certificate is unusable. `name` starts the name
    /// of each connection in `CLIENT LIST`.
    pub(super) fn new(config: &config::Redis, url: &RedisUrl, name: String) -> Result<Self, Error> {
        let wait = Wait { replicas: config.wait_replicas, timeout: config.wait_timeout };
        let access = Access { login: url.login().clone(), uses_tls: url.is_tls(), tls: Tls::new(config), name, wait };
        // The last errors of the configuration are found here.
        access.tls.client(access.info("localhost", 0)?)?;
        Ok(match url.topology() {
            RedisTopology::Single => {
                let info = single_info(url)?;
                Self::Single(Server::new(Node::new(Some(info), &access, NodeMode::Standalone), access.wait))
            }
            RedisTopology::Sentinel { sentinels, master } => {
                let server = Server::new(Node::new(None, &access, NodeMode::Standalone), access.wait);
                Self::Sentinel(server, Box::new(Sentinels::new(config, access, sentinels, master)?))
            }
            RedisTopology::Cluster { nodes } => Self::Cluster(Cluster::new(access, nodes.clone())),
        })
    }

    /// Runs calls, pipelined; returns their replies in the same order. Each may fail separately.
    pub(super) async fn run(&self, lane: Lane, calls: &[Call<'_>]) -> Result<Vec<Reply>, Error> {
        match self {
            Self::Single(server) => server.run(lane, calls, Asking::Owner).await,
            Self::Sentinel(server, sentinels) => {
                sentinels.find(server).await?;
                server.run(lane, calls, Asking::Owner).await
            }
            Self::Cluster(cluster) => cluster.run(lane, calls).await,
        }
    }

    /// Opens a separate connection to the server that has this key, or, without a key, to any server that delivers every
    /// published message.
    pub(super) async fn stream(&self, key: Option<&str>, purpose: &str, max_part: usize) -> Result<Stream, Error> {
        self.node(key).await?.stream(purpose, max_part).await
    }

    /// The node that [`Topology::stream`] connects to.
    pub(super) async fn node(&self, key: Option<&str>) -> Result<Arc<Node>, Error> {
        match self {
            Self::Single(server) => Ok(Arc::clone(&server.node)),
            Self::Sentinel(server, sentinels) => {
                sentinels.find(server).await?;
                Ok(Arc::clone(&server.node))
            }
            Self::Cluster(cluster) => Ok(Arc::clone(&cluster.server_for(key).await?.node)),
        }
    }

    /// Counts the masters that sentinels have led to; `None` without sentinels.
    pub(super) fn moves(&self) -> Option<watch::Receiver<u64>> {
        if let Self::Sentinel(server, _) = self { Some(server.node.moves()) } else { None }
    }

    /// What keeps sentinels from leading to a master, or a cluster from working; `None` if nothing does.
    pub(super) fn problem(&self) -> Option<String> {
        match self {
            Self::Single(_) => None,
            Self::Sentinel(_, sentinels) => sentinels.problem(),
            Self::Cluster(cluster) => cluster.problem(),
        }
    }
}

fn is_unanswered(error: &RedisError) -> bool {
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped()
}
