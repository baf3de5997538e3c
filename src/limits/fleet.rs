//! A user's permits across the fleet, one for each connection.
//!
//! Each instance holds permits under a lease in Redis. One task writes how many it holds for each user, and claims more,
//! one script at a time. So two instances never get the same last permit, a lost reply is repaired by writing again, and
//! a killed instance's permits are free once another instance has watched its lease for as long as it lasts.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::redis::{Claim, Look, RedisLimits};
use super::{Common, Limit};
use crate::backoff::Backoff;
use crate::backplane::BackplaneError;
use crate::lease_watch::LeaseWatch;
use crate::log::{LogRate, OUTAGE_EVERY};
use crate::protocol::{InstanceId, UserId};

const CLAIM_DEADLINE: Duration = Duration::from_secs(1);

/// Capacity of the queue of requests; further ones wait to enter it.
const QUEUE: usize = 1_024;

/// Maximum number of users in one batch, so that no script holds Redis for long.
const BATCH: usize = 500;

#[derive(Debug)]
pub(super) struct FleetPermits {
    state: Mutex<State>,
    change: Notify,
    requests: mpsc::Sender<PermitRequest>,
    /// Until the task takes it.
    requests_rx: Mutex<Option<mpsc::Receiver<PermitRequest>>>,
    common: Arc<Common>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<UserId, u32, RandomState>,
    /// Users whose number in Redis may differ.
    changed: HashSet<UserId, RandomState>,
    /// Redis is away: no permit is claimed and no change is recorded; the next lease writes everything again.
    unsynced: bool,
    /// A holder may be dead, and its permits with it.
    unsure: bool,
}

#[derive(Debug)]
struct PermitRequest {
    user: UserId,
    reply: oneshot::Sender<Option<FleetPermit>>,
}

#[derive(Debug)]
pub(super) struct FleetPermit {
    permits: Arc<FleetPermits>,
    user: UserId,
}

impl Drop for FleetPermit {
    fn drop(&mut self) {
        let mut state = self.permits.state.lock();
        if let Entry::Occupied(mut entry) = state.held.entry(self.user.clone()) {
            match entry.get() {
                0..=1 => drop(entry.remove()),
                _ => *entry.get_mut() -= 1,
            }
        }
        self.permits.note_change(&mut state, &self.user);
    }
}

impl FleetPermits {
    pub(super) fn new(common: Arc<Common>) -> Arc<Self> {
        let (requests, requests_rx) = mpsc::channel(QUEUE);
        Arc::new(Self {
            state: Mutex::default(),
            change: Notify::new(),
            requests,
            requests_rx: Mutex::new(Some(requests_rx)),
            common,
        })
    }

    fn most(&self) -> u32 {
        self.common.limits.get().max_connections_per_user.unwrap_or(u32::MAX)
    }

    /// One more permit for this user, if the fleet has one left.
    pub(super) async fn take(self: &Arc<Self>, user: &UserId) -> Option<FleetPermit> {
        if self.common.fleet.is_none() {
            return self.take_locally(user);
        }
        let unsynced = {
            let state = self.state.lock();
            if state.of(user) >= self.most() {
                return None;
            }
            state.unsynced
        };
        if !unsynced {
            let (reply, reply_rx) = oneshot::channel();
            let reply = async {
                self.requests.send(PermitRequest { user: user.clone(), reply }).await.ok()?;
                reply_rx.await.ok()
            };
            if let Ok(Some(permit)) = timeout(CLAIM_DEADLINE, reply).await {
                return permit;
            }
        }
        self.common.count_unshared(Limit::ConnectionsPerUser);
        self.take_locally(user)
    }

    /// Whether some permits may be those of a dead instance: that a user has none left may soon be wrong.
    pub(super) fn is_unsure(&self) -> bool {
        self.state.lock().unsure
    }

    /// One more permit, by this instance's count alone.
    fn take_locally(self: &Arc<Self>, user: &UserId) -> Option<FleetPermit> {
        let mut state = self.state.lock();
        if state.of(user) >= self.most() {
            return None;
        }
        let permit = self.add(&mut state, user);
        self.note_change(&mut state, user);
        Some(permit)
    }

    fn add(self: &Arc<Self>, state: &mut State, user: &UserId) -> FleetPermit {
        *state.held.entry(user.clone()).or_default() += 1;
        FleetPermit { permits: Arc::clone(self), user: user.clone() }
    }

    fn note_change(&self, state: &mut State, user: &UserId) {
        if self.common.fleet.is_some() && !state.unsynced {
            state.changed.insert(user.clone());
            self.change.notify_one();
        }
    }

    /// The task that writes the permits to Redis; `None` if there is one already.
    pub(super) fn lease(
        self: &Arc<Self>,
        fleet: Arc<RedisLimits>,
        instance: &InstanceId,
        lease: Duration,
    ) -> Option<PermitLease> {
        let requests_rx = self.requests_rx.lock().take()?;
        Some(PermitLease {
            permits: Arc::clone(self),
            requests_rx,
            fleet,
            instance: instance.clone(),
            heartbeat: LeaseWatch::interval(lease, 0),
            watch: LeaseWatch::new(lease),
            holder: None,
            superseded: None,
            next_name: None,
        })
    }
}

impl State {
    fn of(&self, user: &UserId) -> u32 {
        self.held.get(user).copied().unwrap_or_default()
    }

    fn set_unsynced(&mut self) {
        self.unsynced = true;
        self.changed = HashSet::default();
    }

    fn take_changed(&mut self, count: usize) -> Vec<UserId> {
        if count >= self.changed.len() {
            return std::mem::take(&mut self.changed).into_iter().collect();
        }
        let some: Vec<UserId> = self.changed.iter().take(count).cloned().collect();
        for user in &some {
            self.changed.remove(user);
        }
        some
    }
}

/// The task that writes this instance's permits to Redis.
pub(super) struct PermitLease {
    permits: Arc<FleetPermits>,
    requests_rx: mpsc::Receiver<PermitRequest>,
    fleet: Arc<RedisLimits>,
    instance: InstanceId,
    /// Maximum time between two renewals of the lease, and so until the loss of all data in Redis is detected.
    heartbeat: Duration,
    watch: LeaseWatch,
    holder: Option<Holder>,
    /// The name of a holder that may still have a lease, to be ended when the next one is taken.
    superseded: Option<String>,
    /// The name of the next holder, kept while taking its lease is retried.
    next_name: Option<String>,
}

/// A lease under which permits are held.
struct Holder {
    name: String,
    /// The number of users whose permits Redis has for it.
    size: usize,
    /// Claims renew it too, but do not postpone this: the other holders are looked at then.
    renew_at: Instant,
}

impl PermitLease {
    /// Runs until `stopping`. By then every connection has ended and returned its permit.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        while stopping.run_until_cancelled(self.step(&mut backoff)).await.is_some() {}
    }

    async fn step(&mut self, backoff: &mut Backoff) {
        static FAILURES: LogRate = LogRate::every(OUTAGE_EVERY);
        let done = match &self.holder {
            None => self.take_lease().await,
            Some(holder) => {
                let first = tokio::select! {
                    request = self.requests_rx.recv() => request,
                    () = self.permits.change.notified() => None,
                    () = sleep_until(holder.renew_at) => None,
                };
                self.write(first).await
            }
        };
        match done {
            Ok(()) => backoff.reset(),
            Err(error) => {
                if let Some(held_back) = FAILURES.admit() {
                    debug!(%error, held_back, "permits not written");
                }
                self.permits.state.lock().set_unsynced();
                // Waiting handshakes fall back to the local count now rather than at their deadline.
                while self.requests_rx.try_recv().is_ok() {}
                sleep(backoff.next_delay()).await;
            }
        }
    }

    /// Takes a lease under a new name, and marks all permits to be written.
    async fn take_lease(&mut self) -> Result<(), BackplaneError> {
        let new_name = || format!("{}-{:08x}", self.instance, fastrand::u32(..));
        let name = self.next_name.get_or_insert_with(new_name).clone();
        self.fleet.hold(&name, self.superseded.as_deref()).await?;
        (self.next_name, self.superseded) = (None, None);
        let mut state = self.permits.state.lock();
        let State { held, changed, unsynced, .. } = &mut *state;
        changed.extend(held.keys().cloned());
        *unsynced = false;
        self.permits.change.notify_one();
        self.holder = Some(Holder { name, size: 0, renew_at: Instant::now() + self.heartbeat });
        Ok(())
    }

    /// Writes the changes, and replies to the requests.
    async fn write(&mut self, first: Option<PermitRequest>) -> Result<(), BackplaneError> {
        static FAILURES: LogRate = LogRate::every(OUTAGE_EVERY);
        let mut requests = self.requests(first);
        let now = Instant::now();
        let claims = self.claims(&requests);
        let Some(mut holder) = self.holder.take_if(|holder| !claims.is_empty() || now >= holder.renew_at) else {
            return Ok(());
        };
        self.superseded = Some(holder.name.clone());
        let most = self.permits.most();
        let Some(granted) = self.fleet.claim(&holder.name, holder.size, most, &claims).await? else {
            warn!(holder = holder.name, "permit lease lost: another instance ended it, or Redis lost its data");
            return Ok(());
        };
        for (claim, granted) in claims.iter().zip(granted.permits) {
            self.grant(requests.remove(&claim.user).unwrap_or_default(), granted);
        }
        let is_due = now >= holder.renew_at;
        holder.size = granted.size;
        if is_due {
            holder.renew_at = now + self.heartbeat;
        }
        (self.holder, self.superseded) = (Some(holder), None);
        // This instance's own lease was renewed. What could not be read or removed is tried again at the next renewal.
        if is_due
            && let Err(error) = self.expel_dead().await
            && let Some(held_back) = FAILURES.admit()
        {
            debug!(%error, held_back, "dead instances' permits not released");
        }
        Ok(())
    }

    /// Removes the holders that are dead. Called after a renewal: when those fail, others' missing renewals prove nothing.
    async fn expel_dead(&mut self) -> Result<(), BackplaneError> {
        let sought = self.watch.dead_up_to(Instant::now());
        let Look { era, last, oldest, found } = self.fleet.look(sought).await?;
        let now = Instant::now();
        self.watch.observe(now, era, last);
        self.permits.state.lock().unsure = oldest.is_some_and(|oldest| self.watch.is_overdue(oldest, now));
        // What was dead by the time of the request may not be by that of the reply: it may have taken long.
        let dead_up_to = self.watch.dead_up_to(now);
        for (holder, number) in found.into_iter().filter(|(_, number)| *number <= dead_up_to) {
            self.fleet.expel(&holder, number).await?;
            info!(holder, "permits of a dead instance released");
        }
        Ok(())
    }

    /// Takes the waiting requests, by user. Up to half of a batch is left for changes, which may release the very permits
    /// that the requests wait for.
    fn requests(&mut self, first: Option<PermitRequest>) -> HashMap<UserId, Vec<PermitRequest>> {
        let left = self.permits.state.lock().changed.len().min(BATCH / 2);
        let mut requests: HashMap<UserId, Vec<PermitRequest>> = HashMap::new();
        let more = std::iter::from_fn(|| self.requests_rx.try_recv().ok());
        for request in first.into_iter().chain(more).take(BATCH - left) {
            requests.entry(request.user.clone()).or_default().push(request);
        }
        requests
    }

    fn claims(&self, requests: &HashMap<UserId, Vec<PermitRequest>>) -> Vec<Claim> {
        let mut state = self.permits.state.lock();
        let mut users: HashSet<UserId> = requests.keys().cloned().collect();
        users.extend(state.take_changed(BATCH.saturating_sub(users.len())));
        if !state.changed.is_empty() {
            self.permits.change.notify_one();
        }
        let wants = |user: &UserId| requests.get(user).map_or(0, |all| u32::try_from(all.len()).unwrap_or(u32::MAX));
        users.into_iter().map(|user| Claim { has: state.of(&user), wants: wants(&user), user }).collect()
    }

    /// Replies to the first requests with a permit. If a request is gone, its permit is dropped, which is a change.
    fn grant(&self, requests: Vec<PermitRequest>, granted: u32) {
        let mut left = granted;
        for PermitRequest { user, reply } in requests {
            let permit = (left > 0).then(|| self.permits.add(&mut self.permits.state.lock(), &user));
            left = left.saturating_sub(1);
            reply.send(permit).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers, RedisUrl};
    use crate::metrics::Metrics;
    use crate::redis::Redis;

    #[test]
    fn waiting_requests_leave_room_in_a_batch_for_changes() {
        let (config, metrics) = (Config::load(Layers::default()).unwrap(), Arc::new(Metrics::new()));
        let instance = InstanceId::random();
        let redis = Redis::new(&config.redis, &RedisUrl::default(), &instance, Arc::clone(&metrics)).unwrap();
        let fleet = Arc::new(RedisLimits::new(redis.into(), ""));
        let limits = config.limits.clone();
        let common = Common { fleet: Some(Arc::clone(&fleet)), limits, metrics, unshared: LogRate::new() };
        let permits = FleetPermits::new(Arc::new(common));
        let mut lease = permits.lease(Arc::clone(&fleet), &instance, Duration::from_secs(1)).unwrap();
        assert!(permits.lease(fleet, &instance, Duration::from_secs(1)).is_none(), "one task writes");
        let wait = |count: usize| {
            for number in 0..count {
                let user = UserId::new(&format!("waits {number}")).unwrap();
                permits.requests.try_send(PermitRequest { user, reply: oneshot::channel().0 }).unwrap();
            }
        };
        let mut claimed = || {
            let requests = lease.requests(None);
            let claims = lease.claims(&requests);
            let waits = claims.iter().filter(|claim| claim.wants > 0).count();
            (waits, claims.len() - waits)
        };
        wait(BATCH + 1);
        assert_eq!(claimed(), (BATCH, 0), "without departures, the whole batch");
        wait(BATCH);
        let gone = (0..BATCH).map(|number| UserId::new(&format!("gone {number}")).unwrap());
        permits.state.lock().changed.extend(gone);
        assert_eq!(claimed(), (BATCH / 2, BATCH / 2));
    }
}
