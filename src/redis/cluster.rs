//! A cluster: which node has which slot, and calls that follow their slots as these move.
//!
//! Hand-written: redis-rs' cluster client gives a push to a command in flight, forgets subscriptions, and refuses
//! pipelines over several slots. Here each node has links of its own, with the deadlines and errors of every link.

mod absent;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use redis::{FromRedisValue, RedisError, RedisResult, Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::call::{Asking, Call};
use super::link::COMMAND_DEADLINE;
use super::node::{Access, Node, NodeMode};
use super::slot::slot;
use super::slot_map::{SlotMap, redirection};
use super::topology::{Lane, Server};
use super::{Error, Redis, Reply};
use crate::config::NodeAddress;

/// Interval at which the slots are read, unless a node shows that they have moved.
const REFRESH_EVERY: Duration = Duration::from_secs(2);

/// At least this long between two reads.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

/// A node that does not reply must leave time for the next.
const ASK_DEADLINE: Duration = Duration::from_secs(1);

/// Until slots with a lower epoch are believed if no others are known.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// Before a call is repeated that no node could execute: its slot is being moved, or is without a master.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) access: Access,
    /// The nodes that `redis.url` names.
    seeds: Vec<NodeAddress>,
    known: Mutex<Arc<Known>>,
    /// A server for each address of the slot map, and others while they are being asked.
    servers: Mutex<HashMap<NodeAddress, Arc<Server>>>,
    /// Those that were not in the slots when these were read last.
    absent: Mutex<BTreeSet<NodeAddress>>,
    /// Since when no working node has known the latest slots.
    stale_since: Mutex<Option<Instant>>,
    /// Why no node knows the slots; `None` if one does.
    problem: Mutex<Option<String>>,
    /// Held while the slots are read for the first time.
    first: tokio::sync::Mutex<()>,
    outdated: Notify,
    /// A node did not reply to a call.
    failed: Notify,
    /// Counts the changes of the slots.
    changes: watch::Sender<u64>,
    turn: AtomicUsize,
    /// When keys could not be moved to the node that takes over their slot.
    pub(super) move_failed: Mutex<Option<Instant>>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Known {
    /// The highest epoch of the cluster that a node has reported: a node that was away does not know the latest owners.
    epoch: u64,
    slots: SlotMap,
}

/// Where a call is sent next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    address: NodeAddress,
    asking: Asking,
    /// The slot of the calls, if the node has only some of their keys.
    parted: Option<u16>,
}

impl Target {
    fn new(address: NodeAddress, asking: Asking) -> Self {
        Self { address, asking, parted: None }
    }
}

impl Cluster {
    pub(super) fn new(access: Access, seeds: Vec<NodeAddress>) -> Self {
        let turn = AtomicUsize::new(fastrand::usize(..1 << 16));
        Self {
            access,
            seeds,
            known: Mutex::default(),
            servers: Mutex::default(),
            absent: Mutex::default(),
            stale_since: Mutex::default(),
            problem: Mutex::default(),
            first: tokio::sync::Mutex::default(),
            outdated: Notify::new(),
            failed: Notify::new(),
            changes: watch::Sender::default(),
            turn,
            move_failed: Mutex::default(),
        }
    }

    /// Runs calls, each at the node of its slot and pipelined with the others of that node. A call that no node executes
    /// now, because its slot is moving or has no master, is repeated until [`COMMAND_DEADLINE`].
    pub(super) async fn run(&self, lane: Lane, calls: &[Call<'_>]) -> Result<Vec<Reply>, Error> {
        let end = Instant::now() + COMMAND_DEADLINE;
        let mut replies: Vec<Option<Reply>> = calls.iter().map(|_| None).collect();
        let mut pending = self.targets(calls).await?;
        let (mut round, mut failures) = (0_u32, Vec::new());
        while !pending.is_empty() {
            // Two nodes may redirect to each other for a moment.
            let pause = if round > 1 { RETRY_PAUSE } else { Duration::ZERO };
            let mut again = Vec::new();
            for (target, indexes, ran) in self.attempt(lane, calls, pending).await {
                let ran = ran.unwrap_or_else(|error| {
                    let replies: Vec<Reply> = indexes.iter().map(|_| (Err(as_redis_error(&error)), 0)).collect();
                    failures.push((error, indexes.len()));
                    replies
                });
                if ran.iter().any(|(reply, _)| reply.as_ref().is_err_and(RedisError::is_io_error)) {
                    self.outdated.notify_one();
                    self.failed.notify_one();
                }
                for (index, reply) in indexes.into_iter().zip(ran) {
                    let next =
                        reply.0.as_ref().err().and_then(|error| self.next_target(error, &target, calls.get(index)));
                    again.extend(next.filter(|_| Instant::now() + pause < end).map(|next| (index, next)));
                    if let Some(slot) = replies.get_mut(index) {
                        *slot = Some(reply);
                    }
                }
            }
            if !again.is_empty() {
                self.outdated.notify_one();
                sleep(pause).await;
            }
            (pending, round) = (again, round + 1);
        }
        // If no call reached a server, its own error says more.
        if failures.iter().map(|(_, calls)| calls).sum::<usize>() == calls.len()
            && let Some((error, _)) = failures.pop()
        {
            return Err(error);
        }
        Ok(replies.into_iter().flatten().collect())
    }

    /// Sends each call to its target.
    async fn attempt(
        &self,
        lane: Lane,
        calls: &[Call<'_>],
        pending: Vec<(usize, Target)>,
    ) -> Vec<(Target, Vec<usize>, Result<Vec<Reply>, Error>)> {
        let mut groups = BTreeMap::<Target, Vec<usize>>::new();
        for (index, target) in pending {
            groups.entry(target).or_default().push(index);
        }
        let run = async |(target, indexes): (Target, Vec<usize>)| {
            let some: Vec<Call<'_>> = indexes.iter().filter_map(|index| calls.get(*index)).copied().collect();
            let target = self.joined(target, &some).await;
            let ran = match self.server(&target.address) {
                // Waits for its replicas, too, and has a deadline of its own.
                Ok(server) if lane == Lane::Replicated => server.run(lane, &some, target.asking).await,
                // One node that hangs, even while it is being connected to, holds up the calls to others no longer.
                Ok(server) => server.run_within(COMMAND_DEADLINE, lane, &some, target.asking).await,
                Err(error) => Err(error),
            };
            (target, indexes, ran)
        };
        join_all(groups.into_iter().map(run)).await
    }

    /// Where to send calls after their keys were moved to one node, if need be and if possible.
    async fn joined(&self, target: Target, calls: &[Call<'_>]) -> Target {
        if target.parted.is_none() {
            return target;
        }
        match self.move_keys(&target.address, calls).await {
            Some(address) => Target::new(address, Asking::Alone),
            None => Target::new(target.address, target.asking),
        }
    }

    async fn targets(&self, calls: &[Call<'_>]) -> Result<Vec<(usize, Target)>, Error> {
        let known = self.known().await?;
        let common = calls.iter().find_map(Call::key).map(slot);
        let target = |(index, call): (usize, &Call<'_>)| {
            let owner = call.key().map(slot).or(common).and_then(|slot| known.slots.owner(slot));
            // A slot without a master: any node says so.
            let address = owner.cloned().or_else(|| self.any(&known.slots.masters));
            address.map(|address| (index, Target::new(address, Asking::Owner))).ok_or_else(no_master)
        };
        calls.iter().enumerate().map(target).collect()
    }

    /// Where to repeat a call after this error; `None` if the error is the reply.
    fn next_target(&self, error: &RedisError, asked: &Target, call: Option<&Call<'_>>) -> Option<Target> {
        match error.code()? {
            code @ ("MOVED" | "ASK") => {
                let address = redirection(error.detail()?, &asked.address.host)?;
                Some(Target::new(address, if code == "ASK" { Asking::Target } else { Asking::Owner }))
            }
            // The call that carried the script for the others was sent on. The next attempt carries it again.
            "NOSCRIPT" => Some(asked.clone()),
            // The source has none of its keys, or it would not have redirected the call.
            "TRYAGAIN" if asked.asking != Asking::Owner => Some(Target::new(asked.address.clone(), Asking::Alone)),
            code @ ("TRYAGAIN" | "CLUSTERDOWN") => {
                let known = Arc::clone(&self.known.lock());
                let slot = call.and_then(Call::key).map(slot);
                let owner = slot.and_then(|slot| known.slots.owner(slot).cloned());
                let address = owner.unwrap_or_else(|| asked.address.clone());
                Some(Target { parted: slot.filter(|_| code == "TRYAGAIN"), ..Target::new(address, Asking::Owner) })
            }
            _ => None,
        }
    }

    /// The server that has this key; without a key, another one each time, in either role.
    pub(super) async fn server_for(&self, key: Option<&str>) -> Result<Arc<Server>, Error> {
        let known = self.known().await?;
        let owner = key.and_then(|key| known.slots.owner(slot(key.as_bytes())).cloned());
        self.server(&owner.or_else(|| self.any(&known.slots.nodes())).ok_or_else(no_master)?)
    }

    /// Some masters, in turn.
    pub(super) async fn next_masters(&self, most: usize) -> Result<Vec<Arc<Server>>, Error> {
        let masters = &self.known().await?.slots.masters;
        let turn = self.turn.fetch_add(most, Ordering::Relaxed).checked_rem(masters.len()).unwrap_or_default();
        let next = masters.iter().cycle().skip(turn).take(most.min(masters.len()));
        next.map(|address| self.server(address)).collect()
    }

    /// Returns when a node did not reply to a call.
    pub(super) async fn failed(&self) {
        self.failed.notified().await;
    }

    fn any(&self, addresses: &[NodeAddress]) -> Option<NodeAddress> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        addresses.get(turn.checked_rem(addresses.len())?).cloned()
    }

    /// Why the cluster does not work; `None` if it does, or no node says.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// Counts the changes of the slots.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The slots as they are known now.
    pub(super) fn slots(&self) -> SlotMap {
        self.known.lock().slots.clone()
    }

    /// The nodes that `redis.url` names.
    pub(super) fn seeds(&self) -> &[NodeAddress] {
        &self.seeds
    }

    /// As [`Cluster::slots`]; reads them if none are known yet.
    pub(super) async fn known_slots(&self) -> Result<SlotMap, Error> {
        Ok(self.known().await?.slots.clone())
    }

    /// The slots seem to have moved: they are read again.
    pub(super) fn outdate(&self) {
        self.outdated.notify_one();
    }

    pub(super) fn server(&self, address: &NodeAddress) -> Result<Arc<Server>, Error> {
        let mut servers = self.servers.lock();
        if let Some(server) = servers.get(address) {
            return Ok(Arc::clone(server));
        }
        let info = self.access.info(&address.host, address.port)?;
        let server = Arc::new(Server::new(Node::new(Some(info), &self.access, NodeMode::Cluster), self.access.wait));
        servers.insert(address.clone(), Arc::clone(&server));
        Ok(server)
    }

    /// Reads the slots if none are known yet.
    async fn known(&self) -> Result<Arc<Known>, Error> {
        let known = || Some(Arc::clone(&self.known.lock())).filter(|known| !known.slots.masters.is_empty());
        if let Some(known) = known() {
            return Ok(known);
        }
        let waiting = timeout(COMMAND_DEADLINE, self.first.lock()).await;
        let _first = waiting.map_err(|_| Error::Timeout(COMMAND_DEADLINE))?;
        if known().is_none() {
            self.refresh().await?;
        }
        known().ok_or_else(no_master)
    }

    /// Reads the slots, and leaves the masters that failed.
    async fn refresh(&self) -> Result<(), Error> {
        let before = self.slots().masters;
        let read = self.read_slots().await;
        let nodes = self.slots().nodes();
        join_all(before.iter().filter(|master| !nodes.contains(master)).map(|master| self.leave_failed(master))).await;
        read
    }

    /// From the first node that knows the latest.
    async fn read_slots(&self) -> Result<(), Error> {
        let mut nodes = self.known.lock().slots.nodes();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(nodes.len()).unwrap_or_default();
        nodes.rotate_left(first);
        nodes.extend(self.seeds.iter().filter(|seed| !nodes.contains(seed)).cloned().collect::<Vec<_>>());
        let (mut failed, mut stale, mut doubtful, mut down) = (no_master(), None, None::<Known>, None);
        for address in nodes {
            match self.ask(&address).await {
                // A master that was replaced knows the epoch before it knows its successor: a second node must agree.
                Ok((known, true))
                    if self.contradicts(&known)
                        && doubtful.as_ref().is_none_or(|other| !other.slots.agrees(&known.slots)) =>
                {
                    doubtful = Some(known);
                }
                Ok((known, works)) if self.learn(&known, works) => {
                    *self.stale_since.lock() = None;
                    *self.problem.lock() = (!works).then(|| is_down(&address));
                    return Ok(());
                }
                // It was away, or is cut off.
                Ok((known, true)) => stale = stale.or(Some(known)),
                Ok((_, false)) => down = Some(address),
                Err(error) => failed = error,
            }
        }
        let is_learned = doubtful.is_some_and(|known| self.learn(&known, true)) || self.learn_again(stale);
        let problem = down.filter(|_| !is_learned).map(|node| is_down(&node));
        self.problem.lock().clone_from(&problem);
        match problem {
            Some(why) => Err(Error::Unreachable { kind: "CLUSTERDOWN", why: format!("redis: {why}") }),
            None if is_learned => Ok(()),
            None => Err(failed),
        }
    }

    /// Returns what a node knows, and whether it takes part in a working cluster.
    async fn ask(&self, address: &NodeAddress) -> Result<(Known, bool), Error> {
        let (info, slots) = (cmd("CLUSTER").arg("INFO").to_owned(), cmd("CLUSTER").arg("SLOTS").to_owned());
        let server = self.server(address)?;
        let calls = [Call::Command(&info), Call::Command(&slots)];
        let replies = server.run_within(ASK_DEADLINE, Lane::Commands, &calls, Asking::Owner).await?;
        let replies = replies.into_iter().map(|(reply, _)| reply);
        let [info, slots] =
            <[RedisResult<Value>; 2]>::try_from(replies.collect::<Vec<_>>()).map_err(|_| Error::unexpected("none"))?;
        let info = String::from_redis_value(info?).map_err(RedisError::from)?;
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let epoch = field("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
        let slots = SlotMap::parse(&slots?, &address.host)?;
        Ok((Known { epoch, slots }, field("cluster_state") == Some("ok")))
    }

    /// Whether a node reports other owners than are known, without a later epoch.
    fn contradicts(&self, asked: &Known) -> bool {
        let known = Arc::clone(&self.known.lock());
        asked.epoch == known.epoch && !known.slots.masters.is_empty() && !known.slots.agrees(&asked.slots)
    }

    /// Returns whether this is the latest that is known now.
    fn learn(&self, asked: &Known, works: bool) -> bool {
        let mut known = self.known.lock();
        let knows_none = known.slots.masters.is_empty();
        if asked.slots.masters.is_empty() || (!works && !knows_none) || asked.epoch < known.epoch {
            return false;
        }
        self.leave_absent(&asked.slots);
        if known.as_ref() == asked {
            return true;
        }
        let (masters, replicas) = (asked.slots.masters.len(), asked.slots.replicas.len());
        info!(masters, replicas, epoch = asked.epoch, "the slots of the cluster are known");
        *known = Arc::new(asked.clone());
        drop(known);
        self.changes.send_modify(|changes| *changes += 1);
        true
    }

    /// A cluster that was created again at the same addresses begins at a low epoch. Returns whether this is taken to be one: for
    /// some time, no working node has known the latest slots.
    fn learn_again(&self, stale: Option<Known>) -> bool {
        let Some(stale) = stale else { return false };
        if self.stale_since.lock().get_or_insert_with(Instant::now).elapsed() < FORGOTTEN_AFTER {
            return false;
        }
        warn!(
            epoch = stale.epoch,
            "no node of the redis cluster knows its latest epoch: the cluster was created again"
        );
        *self.known.lock() = Arc::default();
        self.learn(&stale, true)
    }
}

impl Redis {
    /// Keeps the slots up to date. Runs until dropped.
    pub(super) async fn follow_slots(&self, cluster: &Cluster) -> Infallible {
        let mut failing = false;
        loop {
            let refreshed = cluster.refresh().await;
            if let Err(error) = &refreshed {
                self.count_error(error.kind());
                if !failing {
                    warn!(%error, kind = error.kind(), "cannot read the slots of the redis cluster");
                }
            } else if failing {
                info!("the slots of the redis cluster can be read again");
            }
            failing = refreshed.is_err();
            sleep(REFRESH_PAUSE).await;
            timeout(REFRESH_EVERY, cluster.outdated.notified()).await.ok();
        }
    }
}

fn is_down(node: &NodeAddress) -> String {
    format!("the redis cluster is down: {node} reports cluster_state:fail")
}

fn no_master() -> Error {
    Error::Unreachable { kind: "CLUSTERDOWN", why: "redis: no master of the cluster is known".into() }
}

/// Of one call among others that were answered.
fn as_redis_error(error: &Error) -> RedisError {
    let kind = if error.kind() == "timeout" { std::io::ErrorKind::TimedOut } else { std::io::ErrorKind::NotConnected };
    let text = error.to_string();
    std::io::Error::new(kind, text.strip_prefix("redis: ").unwrap_or(&text)).into()
}

#[cfg(test)]
mod tests;
