//! The channels of an instance's own users, for a subscription that receives no other user's messages.
//!
//! A channel is wanted from its user's first connection until some time after the last. One task sends the changes,
//! many channels in one command. Each channel has at most one command in flight, and Redis replies in order: so a
//! confirmation is always that of the channel's last command, and a refusal that of the oldest command.
//!
//! Redis ends sharded subscriptions unasked. If such an end crosses an `SUNSUBSCRIBE`, the refusal that follows may be taken
//! for that of a later command, whose channels are then merely subscribed to once more.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::shards::Placed;
use super::slot::slot;
use super::{Error, Shards};
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::UserId;

/// Maximum number of channels in one command, so that none holds Redis for long.
const CHUNK: usize = 1_000;

/// Commands in flight: bounds the confirmations that Redis buffers for this instance.
const MAX_IN_FLIGHT: usize = 4;

/// Minimum time between two commands: changes within it share one.
const PACE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct UserChannels {
    prefix: String,
    kind: Kind,
    /// Where the sharded channels of the same users are subscribed to, if they are.
    shards: Option<Arc<Shards>>,
    /// How long a channel is kept after its user's last connection.
    linger: Duration,
    metrics: Arc<Metrics>,
    late: LogRate,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Classic,
    /// At one node of a cluster. All channels of one command are in one slot.
    Sharded,
}

#[derive(Debug, Default)]
struct State {
    /// Whether there is a connection that takes commands.
    connected: bool,
    channels: HashMap<UserId, Channel, RandomState>,
    /// Channels that may need a command, oldest first. An absent channel is here or in `refused`.
    queue: VecDeque<UserId>,
    /// Users whose last connection ended, oldest first; outdated if the user has returned since.
    leaving: VecDeque<(Instant, UserId)>,
    /// Commands without a reply, oldest first.
    sent: VecDeque<Sent>,
    /// Channels wanted at the start of the subscription and not confirmed yet.
    missing: usize,
    /// Channels whose subscription Redis refused, to be tried again, and its error.
    refused: Vec<UserId>,
    refusal: Option<String>,
}

#[derive(Debug, Default)]
struct Channel {
    connections: usize,
    /// When the last connection ended. The channel stays wanted until [`UserChannels::expire`].
    left_at: Option<Instant>,
    status: Status,
    confirmed: Option<Arc<Notify>>,
    /// Keeps the sharded channel subscribed to as well.
    place: Option<Placed>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Status {
    #[default]
    Absent,
    Subscribing,
    Subscribed,
    Unsubscribing,
}

#[derive(Debug)]
struct Sent {
    users: Vec<UserId>,
    confirmed: usize,
}

/// The names of the channels of one command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChannelCommand {
    pub(super) verb: &'static str,
    pub(super) names: Vec<String>,
}

impl ChannelCommand {
    pub(super) fn words(&self) -> Vec<&[u8]> {
        std::iter::once(self.verb.as_bytes()).chain(self.names.iter().map(String::as_bytes)).collect()
    }
}

impl Kind {
    fn verbs(self) -> [&'static str; 2] {
        match self {
            Self::Classic => ["SUBSCRIBE", "UNSUBSCRIBE"],
            Self::Sharded => ["SSUBSCRIBE", "SUNSUBSCRIBE"],
        }
    }
}

/// What a confirmation shows of one channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    Subscribed(UserId),
    /// Redis ended the subscription, unasked: the slot is no longer that node's.
    Lost(UserId),
}

impl Channel {
    fn is_wanted(&self) -> bool {
        self.connections > 0 || self.left_at.is_some()
    }
}

impl UserChannels {
    pub fn new(prefix: &str, linger: Duration, metrics: Arc<Metrics>) -> Self {
        let (prefix, kind, late) = (prefix.to_owned(), Kind::Classic, LogRate::new());
        Self { prefix, kind, shards: None, linger, metrics, late, state: Mutex::default(), changed: Notify::new() }
    }

    /// With the sharded channel of each user.
    #[must_use]
    pub fn with_shards(self, shards: Option<Arc<Shards>>) -> Self {
        Self { shards, ..self }
    }

    /// The sharded channels at one node. Those who want them decide how long.
    pub(super) fn of_shard(prefix: &str, metrics: Arc<Metrics>) -> Self {
        Self { kind: Kind::Sharded, ..Self::new(prefix, Duration::ZERO, metrics) }
    }

    /// Keeps the user's channel wanted until the returned value is dropped, and for `linger` after the last one.
    pub fn want(self: &Arc<Self>, user: &UserId) -> UserChannel {
        let mut state = self.state.lock();
        let State { connected, channels, queue, .. } = &mut *state;
        let is_new = !channels.contains_key(user.as_str());
        let channel = channels.entry(user.clone()).or_default();
        channel.connections += 1;
        channel.left_at = None;
        if is_new {
            channel.place = self.shards.as_ref().map(|shards| shards.place(user));
        }
        if is_new && *connected {
            queue.push_back(user.clone());
            self.changed.notify_one();
        }
        UserChannel { channels: Arc::clone(self), user: user.clone() }
    }

    fn release(&self, user: &UserId) {
        let mut state = self.state.lock();
        let State { connected, channels, leaving, .. } = &mut *state;
        let Some(channel) = channels.get_mut(user.as_str()) else { return };
        channel.connections -= 1;
        if channel.connections > 0 {
            return;
        }
        if *connected {
            let now = Instant::now();
            channel.left_at = Some(now);
            leaving.push_back((now, user.clone()));
        } else {
            // During an outage, the map must not grow with users who left.
            channels.remove(user.as_str());
        }
    }

    /// Waits until the user's channel is subscribed to. Returns `false` if there is no connection for it: all clients
    /// are compared with the history once there is one.
    async fn subscribed(&self, user: &UserId) -> bool {
        let confirmed = {
            let mut state = self.state.lock();
            let connected = state.connected;
            match state.channels.get_mut(user.as_str()) {
                Some(channel) if channel.status == Status::Subscribed => return true,
                Some(channel) if connected => Arc::clone(channel.confirmed.get_or_insert_default()).notified_owned(),
                _ => return false,
            }
        };
        confirmed.await;
        self.state.lock().channels.get(user.as_str()).is_some_and(|channel| channel.status == Status::Subscribed)
    }

    /// As [`UserChannels::subscribed`], for the sharded channel too.
    async fn subscribed_everywhere(&self, user: &UserId) -> bool {
        let sharded = async {
            match &self.shards {
                Some(shards) => shards.subscribed(user).await,
                None => true,
            }
        };
        let (classic, sharded) = tokio::join!(self.subscribed(user), sharded);
        classic && sharded
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state.lock().connected
    }

    pub(super) fn is_subscribed(&self, user: &UserId) -> bool {
        self.state.lock().channels.get(user.as_str()).is_some_and(|channel| channel.status == Status::Subscribed)
    }

    /// Whether a command has no reply yet.
    pub(super) fn is_waiting(&self) -> bool {
        !self.state.lock().sent.is_empty()
    }

    /// Counts a client that is greeted before its channel is subscribed to.
    pub fn count_late(&self) {
        self.metrics.subscriptions_late.inc();
        if let Some(held_back) = self.late.admit() {
            warn!(held_back, "a client was greeted before redis confirmed the subscription to its user's channel");
        }
    }

    /// Why new users' channels cannot be subscribed to; `None` if they can.
    pub(super) fn refusal(&self) -> Option<String> {
        self.state.lock().refusal.clone()
    }

    /// Starts a subscription: every wanted channel must be subscribed to. Until none of them is missing, call neither
    /// [`UserChannels::expire`] nor [`UserChannels::refuse`].
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        let State { channels, queue, .. } = &mut *state;
        queue.extend(channels.keys().cloned());
        state.missing = state.queue.len();
        state.connected = true;
    }

    /// The connection is lost, and with it every subscription.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        let mut channels = std::mem::take(&mut state.channels);
        let is_counted = |channel: &&Channel| matches!(channel.status, Status::Subscribed | Status::Unsubscribing);
        let counted = i64::try_from(channels.values().filter(is_counted).count()).unwrap_or_default();
        self.metrics.subscribed_channels.sub(counted);
        let confirmed = channels.values_mut().filter_map(|channel| channel.confirmed.take());
        confirmed.for_each(|confirmed| confirmed.notify_waiters());
        channels.retain(|_, channel| channel.connections > 0);
        channels.values_mut().for_each(|channel| channel.status = Status::Absent);
        *state = State { channels, ..State::default() };
    }

    /// Channels wanted at the start of this subscription that Redis has not confirmed yet.
    pub(super) fn missing(&self) -> usize {
        self.state.lock().missing
    }

    /// Waits until a command is due, `PACE` after the last one.
    pub(super) async fn due(&self, last_sent: Instant) {
        while !self.state.lock().has_next() {
            self.changed.notified().await;
        }
        sleep_until(last_sent + PACE).await;
    }

    /// The next commands; none if nothing changes or enough commands are in flight.
    pub(super) fn next_commands(&self) -> Vec<ChannelCommand> {
        let mut state = self.state.lock();
        let mut commands = Vec::new();
        while state.has_next() {
            for (verb, users) in self.kind.verbs().into_iter().zip(state.next_changes()) {
                for users in self.by_command(users) {
                    let names = users.iter().map(|user| format!("{}{user}", self.prefix)).collect();
                    commands.push(ChannelCommand { verb, names });
                    state.sent.push_back(Sent { users, confirmed: 0 });
                }
            }
        }
        commands
    }

    /// Groups users whose channels may share a command.
    fn by_command(&self, users: Vec<UserId>) -> Vec<Vec<UserId>> {
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for user in users {
            let group = (self.kind == Kind::Sharded).then(|| slot(format!("{}{user}", self.prefix).as_bytes()));
            groups.entry(group).or_default().push(user);
        }
        groups.into_values().collect()
    }

    /// Redis confirmed one channel of the oldest command, or ended the subscription to a sharded one.
    pub(super) fn confirm(&self, channel: &[u8], is_subscribed: bool) -> Option<Confirmed> {
        let user = str::from_utf8(channel).ok().and_then(|name| name.strip_prefix(&self.prefix))?;
        let mut state = self.state.lock();
        let State { channels, queue, sent, refused, .. } = &mut *state;
        let (user, channel) = UserId::new(user).ok().zip(channels.get_mut(user))?;
        if !is_subscribed && channel.status == Status::Subscribed {
            channel.status = Status::Absent;
            refused.push(user.clone());
            self.metrics.subscribed_channels.dec();
            return Some(Confirmed::Lost(user));
        }
        let expected = if is_subscribed { Status::Subscribing } else { Status::Unsubscribing };
        if channel.status != expected {
            return None;
        }
        channel.status = if is_subscribed { Status::Subscribed } else { Status::Absent };
        // Unless it stays: to be left, subscribed to again, or forgotten.
        if !is_subscribed || !channel.is_wanted() {
            queue.push_back(user.clone());
        }
        if let Some(confirmed) = channel.confirmed.take_if(|_| is_subscribed) {
            confirmed.notify_waiters();
        }
        let is_last = sent.front_mut().is_some_and(|command| {
            command.confirmed += 1;
            command.confirmed == command.users.len()
        });
        if is_last {
            sent.pop_front();
        }
        if is_subscribed {
            state.missing = state.missing.saturating_sub(1);
            state.refusal = None;
            self.metrics.subscribed_channels.inc();
            return Some(Confirmed::Subscribed(user));
        }
        self.metrics.subscribed_channels.dec();
        None
    }

    /// Redis refused the oldest command; its channels are tried again at the next [`UserChannels::expire`]. Returns
    /// whether there was one.
    pub(super) fn refuse(&self, error: &Error) -> bool {
        // The slot is another node's, and with it every subscription.
        let is_elsewhere = error.kind() == "MOVED";
        let mut state = self.state.lock();
        let Some(Sent { users, .. }) = state.sent.pop_front() else { return false };
        for user in &users {
            let Some(channel) = state.channels.get_mut(user.as_str()) else { continue };
            let was_subscribing = channel.status == Status::Subscribing;
            if !was_subscribing && is_elsewhere {
                self.metrics.subscribed_channels.dec();
            }
            channel.status = if was_subscribing || is_elsewhere { Status::Absent } else { Status::Subscribed };
            if was_subscribing && !is_elsewhere {
                state.refusal = Some(error.to_string());
            }
        }
        state.refused.extend(users);
        true
    }

    /// Stops wanting the channels of users who left long enough ago, and tries the refused ones again.
    pub(super) fn expire(&self) {
        let mut state = self.state.lock();
        let State { channels, queue, leaving, refused, .. } = &mut *state;
        queue.extend(refused.drain(..));
        while let Some((at, _)) = leaving.front()
            && at.elapsed() >= self.linger
            && let Some((at, user)) = leaving.pop_front()
        {
            if let Some(channel) = channels.get_mut(user.as_str())
                && channel.left_at == Some(at)
            {
                channel.left_at = None;
                queue.push_back(user);
            }
        }
    }
}

impl State {
    fn has_next(&self) -> bool {
        !self.queue.is_empty() && self.sent.len() < MAX_IN_FLIGHT
    }

    /// Takes up to [`CHUNK`] changes from the queue: the users to subscribe to, and those to unsubscribe from.
    fn next_changes(&mut self) -> [Vec<UserId>; 2] {
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        while subscribe.len() + unsubscribe.len() < CHUNK
            && let Some(user) = self.queue.pop_front()
        {
            let Some(channel) = self.channels.get_mut(user.as_str()) else { continue };
            match (channel.is_wanted(), channel.status) {
                (true, Status::Absent) => {
                    channel.status = Status::Subscribing;
                    subscribe.push(user);
                }
                (false, Status::Subscribed) => {
                    channel.status = Status::Unsubscribing;
                    unsubscribe.push(user);
                }
                (false, Status::Absent) => drop(self.channels.remove(user.as_str())),
                // As wanted, or to be compared again once the command in flight is confirmed.
                _ => {}
            }
        }
        [subscribe, unsubscribe]
    }
}

/// Keeps a user's channel wanted until it is dropped.
#[derive(Debug)]
pub struct UserChannel {
    channels: Arc<UserChannels>,
    user: UserId,
}

impl UserChannel {
    /// Waits until the channel is subscribed to. Returns `false` if there is no connection for it: all clients are
    /// compared with the history once there is one. Does not borrow, so that it may be kept.
    pub fn subscribed(&self) -> impl Future<Output = bool> + Send + use<> {
        let (channels, user) = (Arc::clone(&self.channels), self.user.clone());
        async move { channels.subscribed_everywhere(&user).await }
    }
}

impl Drop for UserChannel {
    fn drop(&mut self) {
        self.channels.release(&self.user);
    }
}

#[cfg(test)]
mod tests;
