//! Access to Redis: connections, deadlines, errors and pushed messages. This module knows no domain.

mod address;
mod call;
mod channels;
mod cluster;
mod error;
mod generation;
mod health;
mod inspect;
mod lag;
mod link;
mod links;
mod migration;
mod moving;
mod named;
mod node;
mod outage;
mod paced;
mod pipe;
mod replicated;
pub mod resp;
mod script;
mod sentinel;
mod sentinel_node;
mod server_info;
mod shard;
mod shards;
mod slot;
mod slot_map;
mod stream;
mod subscriber;
mod tls;
mod topology;

use std::convert::Infallible;
use std::sync::Arc;

use futures::future::join_all;
use redis::{Cmd, RedisResult, Value, cmd};
use tracing::warn;

use crate::config::{self, RedisUrl};
use crate::log::{LogRate, OUTAGE_EVERY};
use crate::metrics::Metrics;
use crate::protocol::InstanceId;
use call::{Asking, Call};
pub use channels::{UserChannel, UserChannels};
pub use error::{Error, is_wrong_type};
pub use health::{Feature, Health, Scope};
pub use inspect::{Facts, Inspection, Rights, ServerRole};
pub use lag::Lag;
pub use links::Links;
pub use resp::{Malformed, ReplyParts};
pub use script::{Pipelined, Script, ScriptInvocation};
pub use server_info::ServerInfo;
pub use shards::Shards;
pub use slot::crc16;
pub use stream::Stream;
pub use subscriber::{Channels, Push, Subscriber};
use topology::{Lane, Server, Topology};

/// Masters of a cluster that are probed at a time.
const PROBED_MASTERS: usize = 4;

/// A reply, and the number of the connection that carried it: each leads to one server.
type Reply = (RedisResult<Value>, u64);

/// A message to publish.
#[derive(Debug)]
pub struct Message<'a> {
    pub channel: String,
    pub payload: &'a str,
    /// In a cluster, the node that has this key publishes: messages from one node keep their order, also with those that
    /// scripts publish there. `None`: the node that would have a key with the name of the channel.
    pub beside: Option<String>,
}

impl Message<'_> {
    fn beside(&self) -> &str {
        self.beside.as_ref().unwrap_or(&self.channel)
    }
}

/// The connections that all domains of this instance share.
pub struct Redis {
    topology: Topology,
    /// `redis.url` without user and password.
    url: String,
    /// Whether durable publications wait for replicas.
    waits: bool,
    /// A key that never exists.
    absent: String,
    metrics: Arc<Metrics>,
    failures: LogRate,
    /// Of calls that no server executes now.
    unserved: LogRate,
    health: Health,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects to nothing yet. Fails with [`Error::Config`] if the URL or the certificate is unusable.
    pub fn new(
        config: &config::Redis,
        url: &RedisUrl,
        instance: &InstanceId,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let topology = Topology::new(config, url, format!("tidings-{instance}"))?;
        let absent = format!("{}absent", config.prefix);
        let health = Health::new(matches!(topology, Topology::Cluster(_)));
        let waits = config.wait_replicas > 0;
        let (failures, unserved) = (LogRate::new(), LogRate::every(OUTAGE_EVERY));
        Ok(Self { topology, url: url.to_string(), waits, absent, metrics, failures, unserved, health })
    }

    /// Connects once; fails if the server that `redis.url` leads to cannot be used.
    pub async fn check(&self) -> Result<(), Error> {
        self.topology.stream(None, "check", 0).await.map(drop)
    }

    /// The links for everything that is small.
    pub fn commands(&self) -> Links<'_> {
        self.links(Lane::Commands)
    }

    /// The links for pages of history and for publications that must keep their order: large replies must not delay a lease.
    pub fn bulk(&self) -> Links<'_> {
        self.links(Lane::Bulk)
    }

    /// As [`Redis::bulk`], for publications that are confirmed only once `redis.wait_replicas` replicas have them.
    pub fn durable(&self) -> Links<'_> {
        self.links(if self.waits { Lane::Replicated } else { Lane::Bulk })
    }

    fn links(&self, lane: Lane) -> Links<'_> {
        Links { topology: &self.topology, lane, roundtrip: &self.metrics.redis_roundtrip_seconds }
    }

    /// Follows the server, or the slots, wherever they move. Runs until dropped.
    pub async fn follow(&self) -> Infallible {
        match &self.topology {
            Topology::Single(server) => self.follow_address(server).await,
            Topology::Sentinel(server, sentinels) => self.follow_sentinels(server, sentinels).await,
            Topology::Cluster(cluster) => self.follow_slots(cluster).await,
        }
    }

    /// Whether keys are spread over slots: then all keys of one script must share one.
    pub fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Cluster(_))
    }

    /// Returns when a node of a cluster did not reply to a call, which may be one for a single user. Never returns elsewhere.
    pub async fn node_failed(&self) {
        match &self.topology {
            Topology::Cluster(cluster) => cluster.failed().await,
            Topology::Single(_) | Topology::Sentinel(..) => std::future::pending().await,
        }
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What is wrong with the sentinels or the cluster; `None` if nothing is.
    pub fn problem(&self) -> Option<String> {
        self.topology.problem()
    }

    /// As [`Redis::counted`], for an operation that shows whether a feature works.
    pub fn observed<T>(&self, feature: Feature, scope: Scope, result: Result<T, Error>) -> Result<T, Error> {
        self.health.observe(feature, scope, &result);
        self.counted(result)
    }

    /// Publishes these messages; returns the number of subscribers that received them on the node that published. Fails on
    /// a replica outside a cluster, whose subscribers alone would receive them.
    ///
    /// A replica executes `PUBLISH`, but not a deletion, even of a key that does not exist.
    pub async fn publish(&self, messages: &[Message<'_>]) -> Result<u64, Error> {
        let delete = cmd("DEL").arg(&self.absent).to_owned();
        let publish = |message: &Message<'_>| cmd("PUBLISH").arg(&message.channel).arg(message.payload).to_owned();
        let publish: Vec<Cmd> = messages.iter().map(publish).collect();
        let beside = |(command, message)| Call::Beside(command, Message::beside(message).as_bytes());
        let publish = publish.iter().zip(messages).map(beside);
        let delete = (!self.is_cluster()).then_some(Call::Command(&delete));
        let calls: Vec<_> = delete.into_iter().chain(publish).collect();
        let mut replies = self.commands().each::<u64>(&calls).await?.into_iter();
        if delete.is_some()
            && let Some(Err(error)) = replies.next()
            && error.code() == Some("READONLY")
        {
            return Err(error.into());
        }
        replies.try_fold(0, |received, reply| Ok(received + reply?))
    }

    /// Publishes a probe on this channel; in a cluster one through each of several masters, since each reaches the
    /// subscription by another way.
    pub async fn probe(&self, channel: &str, lag: &Lag) {
        let Topology::Cluster(cluster) = &self.topology else {
            let probe = lag.send();
            let published = self
                .counted(self.publish(&[Message { channel: channel.to_owned(), payload: &probe, beside: None }]).await);
            if published.is_err_and(|error| error.is_refusal()) {
                lag.forget(&probe);
            }
            return;
        };
        let through = async |server: Arc<Server>| {
            let probe = lag.send();
            let publish = cmd("PUBLISH").arg(channel).arg(&probe).to_owned();
            let published = server.run(Lane::Commands, &[Call::Command(&publish)], Asking::Owner).await;
            let published =
                published.and_then(|ran| Ok(ran.into_iter().map(|(reply, _)| reply).collect::<Result<Vec<_>, _>>()?));
            if self.counted(published).is_err() {
                lag.forget(&probe);
            }
        };
        if let Ok(masters) = self.counted(cluster.next_masters(PROBED_MASTERS).await) {
            join_all(masters.into_iter().map(through)).await;
        }
    }

    /// Reports a server that may evict keys.
    fn report_server(&self, server: &ServerInfo) {
        let policy = server.evicts();
        self.metrics.redis_evicts.set(i64::from(policy.is_some()));
        if let Some(policy) = policy {
            warn!(
                policy,
                "redis may evict stored notifications, presence and idempotency keys: set maxmemory-policy noeviction"
            );
        }
    }

    /// Counts and logs a failed operation. A server that does not reply, or cannot be used, has
    /// lines of its own.
    pub fn counted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| {
            self.count_error(error.kind());
            let rate = if error.is_unserved() { &self.unserved } else { &self.failures };
            if !error.is_outage()
                && let Some(held_back) = rate.admit()
            {
                warn!(%error, kind = error.kind(), held_back, "redis command failed");
            }
        })
    }

    /// Counts and logs one publication that failed for `users`.
    pub fn count_unpublished(&self, kind: &'static str, users: usize) {
        self.count_error(kind);
        if let Some(held_back) = self.failures.admit() {
            warn!(kind, users, held_back, "notification not published to redis");
        }
    }

    fn count_error(&self, kind: &'static str) {
        self.metrics.backplane_errors.with_label_values(&[kind]).inc();
    }
}
