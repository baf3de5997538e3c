//! The sharded channels of an instance's own users, each at the node of a cluster that has the channel's slot.
//!
//! Redis does not say where a slot went, and accepts what is published for it before anyone has subscribed at the new
//! node. So the channel follows the slot map, and a user whose channel was not subscribed to for a time is told so. While
//! a slot is on its way, scripts that write keys already moved run at its target: the channel is subscribed to at both.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::{FromRedisValue, RedisError, cmd};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::call::{Asking, Call};
use super::channels::UserChannel;
use super::cluster::Cluster;
use super::shard::Shard;
use super::slot::slot;
use super::slot_map::SlotMap;
use super::topology::{Lane, Topology};
use super::{Error, Push, Redis, UserChannels, migration};
use crate::config::{LiveLimits, NodeAddress};
use crate::log::LogRate;
use crate::protocol::UserId;

/// Interval at which the masters are asked for slots on their way.
const POLL: Duration = Duration::from_secs(1);

type Migrations = HashMap<u16, NodeAddress>;

#[derive(Debug)]
pub struct Shards {
    pub(super) redis: Arc<Redis>,
    prefix: String,
    pub(super) limits: LiveLimits,
    pub(super) failures: LogRate,
    state: Mutex<State>,
    /// Other slots are on their way.
    migrations_changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    slots: SlotMap,
    /// The slots on their way, with their targets.
    migrations: Migrations,
    shards: BTreeMap<NodeAddress, Arc<Shard>>,
    users: HashMap<UserId, Place, RandomState>,
    /// Users whose channel is not subscribed to, though it should have been.
    lost: usize,
}

/// Where a user's channel is subscribed to.
#[derive(Debug)]
struct Place {
    slot: u16,
    owner: Option<NodeAddress>,
    at: Vec<Spot>,
    lost_since: Option<Instant>,
    confirmed: Option<Arc<Notify>>,
}

#[derive(Debug)]
struct Spot {
    address: NodeAddress,
    confirmed: bool,
    since: Instant,
    /// Keeps it wanted at that node.
    _channel: UserChannel,
}

impl Spot {
    fn new(shard: &Shard, user: &UserId) -> Self {
        let channel = shard.users.want(user);
        // It may be subscribed to from before.
        let confirmed = shard.users.is_subscribed(user);
        Self { address: shard.address.clone(), confirmed, since: Instant::now(), _channel: channel }
    }
}

impl Place {
    fn is_heard(&self) -> bool {
        self.at.iter().any(|spot| spot.confirmed && Some(&spot.address) == self.owner.as_ref())
    }

    /// Returns whether it was not lost already.
    fn lose(&mut self, since: Instant) -> bool {
        self.wake();
        self.lost_since.replace(self.lost_since.unwrap_or(since)).is_none()
    }

    fn wake(&mut self) {
        if let Some(confirmed) = self.confirmed.take() {
            confirmed.notify_waiters();
        }
    }
}

impl State {
    /// Subscribes at the owner of the slot and at the target of its migration, and nowhere else.
    fn arrange(&mut self, user: &UserId) -> Option<Instant> {
        let Self { slots, migrations, shards, users, lost } = self;
        let place = users.get_mut(user.as_str())?;
        let owner = slots.owner(place.slot).cloned();
        let target = migrations.get(&place.slot);
        let wanted = |address: &NodeAddress| Some(address) == owner.as_ref() || Some(address) == target;
        place.at.retain(|spot| wanted(&spot.address));
        for address in owner.iter().chain(target) {
            if let Some(shard) = shards.get(address)
                && !place.at.iter().any(|spot| spot.address == *address)
            {
                place.at.push(Spot::new(shard, user));
            }
        }
        if owner != place.owner {
            place.owner = owner;
            *lost += usize::from(place.lose(Instant::now()));
        }
        self.settle(user)
    }

    /// Returns since when messages on the user's channel may have been missed, once it is subscribed to again.
    fn settle(&mut self, user: &UserId) -> Option<Instant> {
        let place = self.users.get_mut(user.as_str()).filter(|place| place.is_heard())?;
        place.wake();
        let since = place.lost_since.take()?;
        self.lost -= 1;
        Some(since)
    }
}

impl Shards {
    /// `prefix` is the start of a user's channel.
    pub fn new(redis: Arc<Redis>, prefix: &str, limits: LiveLimits) -> Self {
        let (prefix, state) = (prefix.to_owned(), Mutex::default());
        Self { redis, prefix, limits, failures: LogRate::new(), state, migrations_changed: Notify::new() }
    }

    /// Keeps the user's channel subscribed to until the returned value is dropped.
    pub(super) fn place(self: &Arc<Self>, user: &UserId) -> Placed {
        let mut state = self.state.lock();
        let slot = slot(format!("{}{user}", self.prefix).as_bytes());
        let owner = state.slots.owner(slot).cloned();
        let shard = owner.as_ref().and_then(|owner| state.shards.get(owner));
        let is_reached = shard.is_some_and(|shard| shard.users.is_connected());
        let lost_since = (!is_reached).then(Instant::now);
        state.lost += usize::from(!is_reached);
        state.users.insert(user.clone(), Place { slot, owner, at: Vec::new(), lost_since, confirmed: None });
        // Nothing was missed before the first subscription, unless it is late.
        state.arrange(user);
        drop(state);
        Placed { shards: Arc::clone(self), user: user.clone() }
    }

    /// Waits until the user's channel is subscribed to. Returns `false` if it cannot be now: the user is told of a gap
    /// once it is.
    pub(super) async fn subscribed(&self, user: &UserId) -> bool {
        let confirmed = {
            let mut state = self.state.lock();
            match state.users.get_mut(user.as_str()) {
                Some(place) if place.is_heard() => return true,
                Some(place) if place.lost_since.is_none() => {
                    Arc::clone(place.confirmed.get_or_insert_default()).notified_owned()
                }
                _ => return false,
            }
        };
        confirmed.await;
        self.state.lock().users.get(user.as_str()).is_some_and(Place::is_heard)
    }

    /// Why this instance may miss messages on sharded channels; `None` if all of them are subscribed to.
    pub fn not_ready(&self) -> Option<String> {
        let state = self.state.lock();
        if state.shards.is_empty() {
            return Some("the slots of the redis cluster are not known yet".into());
        }
        let lost = || (state.lost > 0).then(|| format!("{} users' sharded channels are not subscribed to", state.lost));
        state.shards.values().find_map(|shard| shard.down()).or_else(lost)
    }

    /// Why new users' sharded channels cannot be subscribed to; `None` if they can.
    pub fn refusal(&self) -> Option<String> {
        let refusal = self.state.lock().shards.values().find_map(|shard| shard.users.refusal());
        refusal.map(|error| format!("redis refuses to subscribe to users' sharded channels: {error}"))
    }

    /// Redis confirmed a channel.
    pub(super) fn confirm(&self, address: &NodeAddress, user: &UserId, take: &impl Fn(Push<'_>)) {
        let mut state = self.state.lock();
        let Some(place) = state.users.get_mut(user.as_str()) else { return };
        let is_owner = place.owner.as_ref() == Some(address);
        let Some(spot) = place.at.iter_mut().find(|spot| spot.address == *address) else { return };
        spot.confirmed = true;
        // At the target of a slot on its way, messages may have been missed since it set out.
        let set_out = spot.since.checked_sub(POLL).filter(|_| !is_owner);
        let lost_since = state.settle(user).or(set_out);
        drop(state);
        self.regain(user, lost_since, take);
    }

    fn regain(&self, user: &UserId, lost_since: Option<Instant>, take: &impl Fn(Push<'_>)) {
        if let Some(lost_since) = lost_since {
            self.redis.metrics().sharded_gaps.inc();
            take(Push::Regained { user, lost_since });
        }
    }

    /// A node ended one subscription: the slot is another's.
    pub(super) fn lose_one(&self, address: &NodeAddress, user: &UserId) {
        let mut state = self.state.lock();
        let State { users, lost, .. } = &mut *state;
        if let Some(place) = users.get_mut(user.as_str()) {
            *lost += usize::from(lose_at(place, address, Instant::now()));
        }
        self.outdate();
    }

    /// The connection to a node is lost, and with it every subscription.
    pub(super) fn lose(&self, address: &NodeAddress, since: Instant) {
        let mut state = self.state.lock();
        let State { users, lost, .. } = &mut *state;
        *lost += users.values_mut().map(|place| usize::from(lose_at(place, address, since))).sum::<usize>();
    }

    /// The slots seem to have moved.
    pub(super) fn outdate(&self) {
        if let Ok(cluster) = self.cluster() {
            cluster.outdate();
        }
    }

    pub(super) fn cluster(&self) -> Result<&Cluster, Error> {
        match &self.redis.topology {
            Topology::Cluster(cluster) => Ok(cluster),
            _ => Err(Error::NoCluster),
        }
    }

    /// Passes each push to `take`, which must not block. Runs until dropped.
    pub async fn run(&self, take: impl Fn(Push<'_>)) -> Infallible {
        let Ok(cluster) = self.cluster() else { return std::future::pending().await };
        let following = self.follow(cluster, &take);
        let polling = self.poll_migrations(cluster);
        tokio::select! {
            never = Box::pin(following) => match never {},
            never = Box::pin(polling) => match never {},
        }
    }

    /// Runs the subscription of each shard, and follows the slots.
    async fn follow(&self, cluster: &Cluster, take: &impl Fn(Push<'_>)) -> Infallible {
        let mut changes = cluster.changes();
        let mut running = FuturesUnordered::new();
        loop {
            for shard in self.arrange(cluster.slots(), take) {
                running.push(Box::pin(self.run_shard(shard, take)));
            }
            let changed = async {
                tokio::select! {
                    Ok(()) = changes.changed() => {}
                    () = self.migrations_changed.notified() => {}
                }
            };
            tokio::pin!(changed);
            loop {
                tokio::select! {
                    () = &mut changed => break,
                    Some(()) = running.next(), if !running.is_empty() => {}
                }
            }
        }
    }

    /// Subscribes where the slots are now; returns the shards that are new.
    fn arrange(&self, slots: SlotMap, take: &impl Fn(Push<'_>)) -> Vec<Arc<Shard>> {
        let mut state = self.state.lock();
        state.slots = slots;
        let wanted: Vec<_> = state.slots.masters.iter().chain(state.migrations.values()).cloned().collect();
        state.shards.retain(|address, shard| {
            let stays = wanted.contains(address);
            if !stays {
                shard.retired.cancel();
            }
            stays
        });
        let mut new = Vec::new();
        for address in wanted {
            state.shards.entry(address.clone()).or_insert_with(|| {
                let users = UserChannels::of_shard(&self.prefix, Arc::clone(self.redis.metrics()));
                let shard = Arc::new(Shard::new(address, users));
                new.push(Arc::clone(&shard));
                shard
            });
        }
        let users: Vec<UserId> = state.users.keys().cloned().collect();
        let regained: Vec<_> =
            users.into_iter().filter_map(|user| state.arrange(&user).map(|since| (user, since))).collect();
        drop(state);
        regained.iter().for_each(|(user, since)| self.regain(user, Some(*since), take));
        take(Push::Pause);
        new
    }

    /// Asks each master for the slots that it gives away.
    async fn poll_migrations(&self, cluster: &Cluster) -> Infallible {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = HashMap::<NodeAddress, Vec<(u16, NodeAddress)>>::new();
        loop {
            ticks.tick().await;
            let masters = cluster.slots().masters;
            let asked = join_all(masters.iter().map(|master| self.migrations_of(cluster, master))).await;
            known.retain(|address, _| masters.contains(address));
            // What a node that does not reply said last remains.
            known.extend(masters.into_iter().zip(asked).filter_map(|(master, asked)| Some((master, asked?))));
            let migrations: Migrations = known.values().flatten().cloned().collect();
            let mut state = self.state.lock();
            if state.migrations != migrations {
                state.migrations = migrations;
                self.migrations_changed.notify_one();
            }
        }
    }

    async fn migrations_of(&self, cluster: &Cluster, master: &NodeAddress) -> Option<Vec<(u16, NodeAddress)>> {
        let nodes = cmd("CLUSTER").arg("NODES").to_owned();
        let asking = async {
            let ran = cluster.server(master)?.run(Lane::Commands, &[Call::Command(&nodes)], Asking::Owner).await?;
            let (reply, _) = ran.into_iter().next().ok_or_else(|| Error::unexpected("none"))?;
            Ok(String::from_redis_value(reply?).map_err(RedisError::from)?)
        };
        let nodes = self.redis.counted(asking.await).ok()?;
        Some(migration::parse(&nodes, &master.host))
    }
}

/// Returns whether the user's channel was lost by this.
fn lose_at(place: &mut Place, address: &NodeAddress, since: Instant) -> bool {
    let Some(spot) = place.at.iter_mut().find(|spot| spot.address == *address) else { return false };
    spot.confirmed = false;
    place.owner.as_ref() == Some(address) && place.lose(since)
}

/// Keeps a user's sharded channel subscribed to until it is dropped.
#[derive(Debug)]
pub(super) struct Placed {
    shards: Arc<Shards>,
    user: UserId,
}

impl Drop for Placed {
    fn drop(&mut self) {
        let mut state = self.shards.state.lock();
        if let Some(mut place) = state.users.remove(self.user.as_str()) {
            place.wake();
            state.lost -= usize::from(place.lost_since.is_some());
        }
    }
}
