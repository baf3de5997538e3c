//! A user's permits across the fleet: who has one may be connected.
//!
//! Each instance holds permits under a lease in Redis. One task writes how many it has of whom, and asks for more, in one
//! script at a time; so two instances never get the same last one, a lost answer is mended by saying it again, and a
//! killed instance's permits are free when its lease has ended.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::redis::{Claim, RedisLimits};
use super::{Common, Limit};
use crate::backoff::Backoff;
use crate::backplane::BackplaneError;
use crate::protocol::{InstanceId, UserId};

/// How long the fleet's word is waited for.
const ASK_DEADLINE: Duration = Duration::from_secs(1);

/// Most who wait for it at once in the queue; the others wait to get in.
const QUEUE: usize = 1_024;

/// Most users in one batch, so that no script holds Redis for long.
const BATCH: usize = 500;

/// A lease is renewed at least this often: it is also how soon a Redis that forgot everything is noticed.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct FleetPermits {
    most: u32,
    state: Mutex<State>,
    /// Something is to be written.
    change: Notify,
    requests: mpsc::Sender<PermitRequest>,
    /// The other end, until the task takes it.
    asked: Mutex<Option<mpsc::Receiver<PermitRequest>>>,
    common: Arc<Common>,
}

#[derive(Debug, Default)]
struct State {
    has: HashMap<UserId, u32, RandomState>,
    /// Users of whom the fleet may believe something else.
    changed: HashSet<UserId, RandomState>,
    /// While it does not, nothing is asked, nor remembered as changed: afterwards everything is written anew.
    silent: bool,
}

#[derive(Debug)]
struct PermitRequest {
    user: UserId,
    answer: oneshot::Sender<Option<FleetPermit>>,
}

/// One that is held, until it is dropped.
#[derive(Debug)]
pub(super) struct FleetPermit {
    permits: Arc<FleetPermits>,
    user: UserId,
}

impl Drop for FleetPermit {
    fn drop(&mut self) {
        let mut state = self.permits.state.lock();
        if let Entry::Occupied(mut entry) = state.has.entry(self.user.clone()) {
            match entry.get() {
                0..=1 => drop(entry.remove()),
                _ => *entry.get_mut() -= 1,
            }
        }
        self.permits.note_change(&mut state, &self.user);
    }
}

impl FleetPermits {
    pub(super) fn new(most: u32, common: Arc<Common>) -> Arc<Self> {
        let (requests, asked) = mpsc::channel(QUEUE);
        Arc::new(Self {
            most,
            state: Mutex::default(),
            change: Notify::new(),
            requests,
            asked: Mutex::new(Some(asked)),
            common,
        })
    }

    /// One more for this user, if the fleet has one left.
    pub(super) async fn take(self: &Arc<Self>, user: &UserId) -> Option<FleetPermit> {
        if self.common.fleet.is_none() {
            return self.take_here(user);
        }
        let silent = {
            let state = self.state.lock();
            if state.of(user) >= self.most {
                return None;
            }
            state.silent
        };
        if !silent {
            let (answer, answered) = oneshot::channel();
            let asked = async {
                self.requests.send(PermitRequest { user: user.clone(), answer }).await.ok()?;
                answered.await.ok()
            };
            if let Ok(Some(permit)) = timeout(ASK_DEADLINE, asked).await {
                return permit;
            }
        }
        self.common.count_unshared(Limit::ConnectionsPerUser);
        self.take_here(user)
    }

    /// One more, if this instance alone has one left.
    fn take_here(self: &Arc<Self>, user: &UserId) -> Option<FleetPermit> {
        let mut state = self.state.lock();
        if state.of(user) >= self.most {
            return None;
        }
        let permit = self.add(&mut state, user);
        self.note_change(&mut state, user);
        Some(permit)
    }

    fn add(self: &Arc<Self>, state: &mut State, user: &UserId) -> FleetPermit {
        *state.has.entry(user.clone()).or_default() += 1;
        FleetPermit { permits: Arc::clone(self), user: user.clone() }
    }

    fn note_change(&self, state: &mut State, user: &UserId) {
        if self.common.fleet.is_some() && !state.silent {
            state.changed.insert(user.clone());
            self.change.notify_one();
        }
    }

    pub(super) fn lease(
        self: &Arc<Self>,
        fleet: Arc<RedisLimits>,
        instance: &InstanceId,
        lease: Duration,
    ) -> PermitLease {
        PermitLease {
            permits: Arc::clone(self),
            fleet,
            instance: instance.clone(),
            heartbeat: (lease / 3).min(HEARTBEAT),
            holder: None,
            ended: None,
            fresh: None,
        }
    }
}

impl State {
    fn of(&self, user: &UserId) -> u32 {
        self.has.get(user).copied().unwrap_or_default()
    }

    fn fall_silent(&mut self) {
        self.silent = true;
        self.changed = HashSet::default();
    }

    /// Takes up to `count` of those who changed.
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

/// The task that keeps the fleet told.
pub(super) struct PermitLease {
    permits: Arc<FleetPermits>,
    fleet: Arc<RedisLimits>,
    instance: InstanceId,
    heartbeat: Duration,
    holder: Option<Holder>,
    /// A name that may still be held under, to be ended with the next lease.
    ended: Option<String>,
    /// A name for the next lease; nothing was ever held under it.
    fresh: Option<String>,
}

/// Under what name permits are held.
struct Holder {
    name: String,
    /// Of how many users, as the fleet knows it.
    size: usize,
    renew_at: Instant,
}

impl PermitLease {
    /// Runs until `stopping`. By then every connection has ended, and given its permit back.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let Some(mut asked) = self.permits.asked.lock().take() else { return };
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        while stopping.run_until_cancelled(self.step(&mut asked, &mut backoff)).await.is_some() {}
    }

    async fn step(&mut self, asked: &mut mpsc::Receiver<PermitRequest>, backoff: &mut Backoff) {
        let done = match &self.holder {
            None => self.begin().await,
            Some(holder) => {
                let first = tokio::select! {
                    request = asked.recv() => request,
                    () = self.permits.change.notified() => None,
                    () = sleep_until(holder.renew_at) => None,
                };
                self.write(first, asked).await
            }
        };
        match done {
            Ok(()) => backoff.reset(),
            Err(error) => {
                debug!(%error, "permits not written");
                self.permits.state.lock().fall_silent();
                // Whoever waits decides alone, now rather than at the deadline.
                while asked.try_recv().is_ok() {}
                sleep(backoff.next_delay()).await;
            }
        }
    }

    /// Takes a lease under a new name; everything held is then to be written.
    async fn begin(&mut self) -> Result<(), BackplaneError> {
        let fresh = || format!("{}-{:08x}", self.instance, fastrand::u32(..));
        let name = self.fresh.get_or_insert_with(fresh).clone();
        self.fleet.hold(&name, self.ended.as_deref()).await?;
        (self.fresh, self.ended) = (None, None);
        let mut state = self.permits.state.lock();
        let State { has, changed, silent } = &mut *state;
        changed.extend(has.keys().cloned());
        *silent = false;
        self.permits.change.notify_one();
        self.holder = Some(Holder { name, size: 0, renew_at: Instant::now() + self.heartbeat });
        Ok(())
    }

    /// Writes what changed, and answers those who wait.
    async fn write(
        &mut self,
        first: Option<PermitRequest>,
        asked: &mut mpsc::Receiver<PermitRequest>,
    ) -> Result<(), BackplaneError> {
        let mut requests = self.requests(first, asked);
        let now = Instant::now();
        let claims = self.claims(&requests);
        let Some(mut holder) = self.holder.take_if(|holder| !claims.is_empty() || now >= holder.renew_at) else {
            return Ok(());
        };
        self.ended = Some(holder.name.clone());
        let most = self.permits.most;
        let Some(granted) = self.fleet.claim(&holder.name, holder.size, most, &claims).await? else {
            warn!(
                holder = holder.name,
                "permits are held under a new name: the lease had ended, or Redis lost its data"
            );
            return Ok(());
        };
        for (claim, granted) in claims.iter().zip(granted.permits) {
            self.hand_out(requests.remove(&claim.user).unwrap_or_default(), granted);
        }
        (holder.size, holder.renew_at) = (granted.size, now + self.heartbeat);
        (self.holder, self.ended) = (Some(holder), None);
        Ok(())
    }

    /// Takes those who wait, by user. Up to half of a batch is left for what changed: they may wait for just those permits.
    fn requests(
        &self,
        first: Option<PermitRequest>,
        asked: &mut mpsc::Receiver<PermitRequest>,
    ) -> HashMap<UserId, Vec<PermitRequest>> {
        let left = self.permits.state.lock().changed.len().min(BATCH / 2);
        let mut requests: HashMap<UserId, Vec<PermitRequest>> = HashMap::new();
        let more = std::iter::from_fn(|| asked.try_recv().ok());
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

    /// Gives the first of them what was granted. Who does not wait any more drops it again, which is a change.
    fn hand_out(&self, requests: Vec<PermitRequest>, granted: u32) {
        let mut left = granted;
        for PermitRequest { user, answer } in requests {
            let permit = (left > 0).then(|| self.permits.add(&mut self.permits.state.lock(), &user));
            left = left.saturating_sub(1);
            // Dropped, where nobody waits any more.
            answer.send(permit).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};
    use crate::log::LogRate;
    use crate::metrics::Metrics;
    use crate::redis::Redis;

    #[test]
    fn those_who_wait_leave_room_in_a_batch_for_those_who_have_gone() {
        let (config, metrics) = (Config::load(Layers::default()).unwrap(), Arc::new(Metrics::new()));
        let instance = InstanceId::random();
        let redis = Redis::new(&config.redis, &"redis://127.0.0.1:1".into(), &instance, Arc::clone(&metrics)).unwrap();
        let fleet = Arc::new(RedisLimits::new(redis.into(), "", HEARTBEAT));
        let (unshared, refused) = (LogRate::new(), LogRate::new());
        let permits =
            FleetPermits::new(1, Arc::new(Common { fleet: Some(Arc::clone(&fleet)), metrics, unshared, refused }));
        let lease = permits.lease(fleet, &instance, HEARTBEAT);
        let mut asked = permits.asked.lock().take().unwrap();
        let wait = |count: usize| {
            for number in 0..count {
                let user = UserId::new(&format!("waits {number}")).unwrap();
                permits.requests.try_send(PermitRequest { user, answer: oneshot::channel().0 }).unwrap();
            }
        };
        let claimed = |asked: &mut mpsc::Receiver<PermitRequest>| {
            let claims = lease.claims(&lease.requests(None, asked));
            let waits = claims.iter().filter(|claim| claim.wants > 0).count();
            (waits, claims.len() - waits)
        };
        wait(BATCH + 1);
        assert_eq!(claimed(&mut asked), (BATCH, 0), "where nobody has gone, all of it");
        wait(BATCH);
        let gone = (0..BATCH).map(|number| UserId::new(&format!("gone {number}")).unwrap());
        permits.state.lock().changed.extend(gone);
        assert_eq!(claimed(&mut asked), (BATCH / 2, BATCH / 2));
    }
}
