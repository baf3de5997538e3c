//! A user's slots across the fleet: who has one may be connected.
//!
//! Each instance holds slots under a lease in Redis. One task writes how many it has of whom, and asks for more, in one
//! script at a time; so two instances never get the same last one, a lost answer is mended by saying it again, and a
//! killed instance's slots are free when its lease has ended.

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

use super::{Common, Limit};
use crate::backoff::Backoff;
use crate::backplane::{BackplaneError, Claim, Redis};
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
pub(super) struct Slots {
    most: u32,
    state: Mutex<State>,
    /// Something is to be written.
    change: Notify,
    wishes: mpsc::Sender<Wish>,
    /// The other end, until the task takes it.
    asked: Mutex<Option<mpsc::Receiver<Wish>>>,
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
struct Wish {
    user: UserId,
    answer: oneshot::Sender<Option<Slot>>,
}

/// One that is held, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    user: UserId,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state.lock();
        if let Entry::Occupied(mut entry) = state.has.entry(self.user.clone()) {
            match entry.get() {
                0..=1 => drop(entry.remove()),
                _ => *entry.get_mut() -= 1,
            }
        }
        self.slots.note_change(&mut state, &self.user);
    }
}

impl Slots {
    pub(super) fn new(most: u32, common: Arc<Common>) -> Arc<Self> {
        let (wishes, asked) = mpsc::channel(QUEUE);
        Arc::new(Self {
            most,
            state: Mutex::default(),
            change: Notify::new(),
            wishes,
            asked: Mutex::new(Some(asked)),
            common,
        })
    }

    /// One more for this user, if the fleet has one left.
    pub(super) async fn take(self: &Arc<Self>, user: &UserId) -> Option<Slot> {
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
                self.wishes.send(Wish { user: user.clone(), answer }).await.ok()?;
                answered.await.ok()
            };
            if let Ok(Some(slot)) = timeout(ASK_DEADLINE, asked).await {
                return slot;
            }
        }
        self.common.count_unshared(Limit::ConnectionsPerUser);
        self.take_here(user)
    }

    /// One more, if this instance alone has one left.
    fn take_here(self: &Arc<Self>, user: &UserId) -> Option<Slot> {
        let mut state = self.state.lock();
        if state.of(user) >= self.most {
            return None;
        }
        let slot = self.add(&mut state, user);
        self.note_change(&mut state, user);
        Some(slot)
    }

    fn add(self: &Arc<Self>, state: &mut State, user: &UserId) -> Slot {
        *state.has.entry(user.clone()).or_default() += 1;
        Slot { slots: Arc::clone(self), user: user.clone() }
    }

    fn note_change(&self, state: &mut State, user: &UserId) {
        if self.common.fleet.is_some() && !state.silent {
            state.changed.insert(user.clone());
            self.change.notify_one();
        }
    }

    pub(super) fn keeper(self: &Arc<Self>, fleet: Arc<Redis>, instance: &InstanceId, lease: Duration) -> Keeper {
        Keeper {
            slots: Arc::clone(self),
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
pub(super) struct Keeper {
    slots: Arc<Slots>,
    fleet: Arc<Redis>,
    instance: InstanceId,
    heartbeat: Duration,
    holder: Option<Holder>,
    /// A name that may still be held under, to be ended with the next lease.
    ended: Option<String>,
    /// A name for the next lease; nothing was ever held under it.
    fresh: Option<String>,
}

/// Under what name slots are held.
struct Holder {
    name: String,
    /// Of how many users, as the fleet knows it.
    size: usize,
    renew_at: Instant,
}

impl Keeper {
    /// Runs until `stopping`. By then every connection has ended, and given its slot back.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let Some(mut asked) = self.slots.asked.lock().take() else { return };
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        while stopping.run_until_cancelled(self.step(&mut asked, &mut backoff)).await.is_some() {}
    }

    async fn step(&mut self, asked: &mut mpsc::Receiver<Wish>, backoff: &mut Backoff) {
        let done = match &self.holder {
            None => self.begin().await,
            Some(holder) => {
                let first = tokio::select! {
                    wish = asked.recv() => wish,
                    () = self.slots.change.notified() => None,
                    () = sleep_until(holder.renew_at) => None,
                };
                self.write(first, asked).await
            }
        };
        match done {
            Ok(()) => backoff.reset(),
            Err(error) => {
                debug!(%error, "slots not written");
                self.slots.state.lock().fall_silent();
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
        self.fleet.hold_slots(&name, self.ended.as_deref()).await?;
        (self.fresh, self.ended) = (None, None);
        let mut state = self.slots.state.lock();
        let State { has, changed, silent } = &mut *state;
        changed.extend(has.keys().cloned());
        *silent = false;
        self.slots.change.notify_one();
        self.holder = Some(Holder { name, size: 0, renew_at: Instant::now() + self.heartbeat });
        Ok(())
    }

    /// Writes what changed, and answers those who wait.
    async fn write(&mut self, first: Option<Wish>, asked: &mut mpsc::Receiver<Wish>) -> Result<(), BackplaneError> {
        let mut wishes = self.wishes(first, asked);
        let now = Instant::now();
        let claims = self.claims(&wishes);
        let Some(mut holder) = self.holder.take_if(|holder| !claims.is_empty() || now >= holder.renew_at) else {
            return Ok(());
        };
        self.ended = Some(holder.name.clone());
        let most = self.slots.most;
        let Some(granted) = self.fleet.claim_slots(&holder.name, holder.size, most, &claims).await? else {
            warn!(holder = holder.name, "slots are held under a new name: the lease had ended, or Redis lost its data");
            return Ok(());
        };
        for (claim, granted) in claims.iter().zip(granted.slots) {
            self.hand_out(wishes.remove(&claim.user).unwrap_or_default(), granted);
        }
        (holder.size, holder.renew_at) = (granted.size, now + self.heartbeat);
        (self.holder, self.ended) = (Some(holder), None);
        Ok(())
    }

    /// Takes those who wait, by user. Up to half of a batch is left for what changed: they may wait for just those slots.
    fn wishes(&self, first: Option<Wish>, asked: &mut mpsc::Receiver<Wish>) -> HashMap<UserId, Vec<Wish>> {
        let left = self.slots.state.lock().changed.len().min(BATCH / 2);
        let mut wishes: HashMap<UserId, Vec<Wish>> = HashMap::new();
        let more = std::iter::from_fn(|| asked.try_recv().ok());
        for wish in first.into_iter().chain(more).take(BATCH - left) {
            wishes.entry(wish.user.clone()).or_default().push(wish);
        }
        wishes
    }

    fn claims(&self, wishes: &HashMap<UserId, Vec<Wish>>) -> Vec<Claim> {
        let mut state = self.slots.state.lock();
        let mut users: HashSet<UserId> = wishes.keys().cloned().collect();
        users.extend(state.take_changed(BATCH.saturating_sub(users.len())));
        if !state.changed.is_empty() {
            self.slots.change.notify_one();
        }
        let wants = |user: &UserId| wishes.get(user).map_or(0, |all| u32::try_from(all.len()).unwrap_or(u32::MAX));
        users.into_iter().map(|user| Claim { has: state.of(&user), wants: wants(&user), user }).collect()
    }

    /// Gives the first of them what was granted. Who does not wait any more drops it again, which is a change.
    fn hand_out(&self, wishes: Vec<Wish>, granted: u32) {
        let mut left = granted;
        for Wish { user, answer } in wishes {
            let slot = (left > 0).then(|| self.slots.add(&mut self.slots.state.lock(), &user));
            left = left.saturating_sub(1);
            // Dropped, where nobody waits any more.
            answer.send(slot).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};
    use crate::log::LogRate;
    use crate::metrics::Metrics;

    #[test]
    fn those_who_wait_leave_room_in_a_batch_for_those_who_have_gone() {
        let (config, metrics) = (Config::load(Layers::default()).unwrap(), Arc::new(Metrics::new()));
        let instance = InstanceId::random();
        let fleet = Redis::new(&config, &"redis://127.0.0.1:1".into(), &instance, Arc::clone(&metrics)).unwrap();
        let fleet = Arc::new(fleet);
        let (unshared, refused) = (LogRate::new(), LogRate::new());
        let slots = Slots::new(1, Arc::new(Common { fleet: Some(Arc::clone(&fleet)), metrics, unshared, refused }));
        let keeper = slots.keeper(fleet, &instance, HEARTBEAT);
        let mut asked = slots.asked.lock().take().unwrap();
        let wait = |count: usize| {
            for number in 0..count {
                let user = UserId::new(&format!("waits {number}")).unwrap();
                slots.wishes.try_send(Wish { user, answer: oneshot::channel().0 }).unwrap();
            }
        };
        let claimed = |asked: &mut mpsc::Receiver<Wish>| {
            let claims = keeper.claims(&keeper.wishes(None, asked));
            let waits = claims.iter().filter(|claim| claim.wants > 0).count();
            (waits, claims.len() - waits)
        };
        wait(BATCH + 1);
        assert_eq!(claimed(&mut asked), (BATCH, 0), "where nobody has gone, all of it");
        wait(BATCH);
        let gone = (0..BATCH).map(|number| UserId::new(&format!("gone {number}")).unwrap());
        slots.state.lock().changed.extend(gone);
        assert_eq!(claimed(&mut asked), (BATCH / 2, BATCH / 2));
    }
}
