//! The backplane connects instances and backends: Redis, or memory for a single instance. It delivers published
//! messages, reports its own health and publishes commands; each domain keeps its shared state in a store of its own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::config::{Config, Subscribe};
use crate::metrics::Metrics;
use crate::protocol::{InstanceId, UserId};
pub use crate::redis::Error as BackplaneError;
use crate::redis::{Channels, Message, Push, Redis, Shards, Subscriber, UserChannels};
use crate::shutdown::Shutdown;

#[derive(Debug, Clone, Copy)]
pub enum BackplaneEvent<'a> {
    /// A subscription begins. After a lost one, messages published since this moment may have been missed: the last one
    /// received.
    Subscribed {
        lost_since: Option<Instant>,
    },
    Message {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    /// Messages for this user since this moment may have been missed.
    UserMissed {
        user: &'a UserId,
        since: Instant,
    },
    /// A user's, control or broadcast message larger than `limits.max_payload_bytes`, discarded. `channel` is empty if
    /// its name was too large, too.
    Oversize {
        channel: &'a [u8],
    },
    Control {
        payload: &'a [u8],
    },
    /// For every connection of every user.
    Broadcast {
        payload: &'a [u8],
    },
    /// From another instance, to a question of this one.
    Answer {
        payload: &'a [u8],
    },
    /// Received only if `server.demo` is on.
    Presence {
        payload: &'a [u8],
    },
    /// The messages that follow, up to the next [`BackplaneEvent::Pause`], were read at this moment.
    Read {
        at: Instant,
    },
    /// No more messages are buffered: write the routed frames.
    Pause,
}

/// Handles one event at a time. It must not block.
pub type Sink = Arc<dyn Fn(BackplaneEvent<'_>) + Send + Sync>;

#[derive(Debug, Clone)]
pub enum Backplane {
    Memory(Arc<MemoryBackplane>),
    Redis(Arc<RedisBackplane>),
}

impl Backplane {
    /// Connects to nothing yet. Fails with [`BackplaneError::Config`] if the Redis URL or its certificate is unusable.
    pub fn new(config: &Config, instance: &InstanceId, metrics: &Arc<Metrics>) -> Result<Self, BackplaneError> {
        let Some(url) = &config.redis.url else {
            metrics.backplane_up.set(1);
            return Ok(Self::Memory(Arc::new(MemoryBackplane::new(&config.redis.user_channel))));
        };
        let redis = Arc::new(Redis::new(&config.redis, url, instance, Arc::clone(metrics))?);
        Ok(Self::Redis(Arc::new(RedisBackplane::new(redis, config, instance))))
    }

    pub fn redis(&self) -> Option<&Arc<Redis>> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(backplane) => Some(&backplane.redis),
        }
    }

    /// The start of a user's channel, before the user id.
    pub fn user_channel(&self) -> &str {
        match self {
            Self::Memory(memory) => memory.user_channel(),
            Self::Redis(backplane) => &backplane.user_channel,
        }
    }

    /// Passes each event to `sink` until the instance stops.
    pub fn subscribe(&self, sink: Sink, shutdown: &Shutdown) {
        match self {
            Self::Memory(memory) => *memory.sink.lock() = Some(sink),
            Self::Redis(redis) => {
                let (receiving, sharded, shard_sink) = (Arc::clone(redis), Arc::clone(redis), Arc::clone(&sink));
                shutdown.spawn_until_stop(async move { receiving.run(&sink).await });
                if redis.shards.is_some() {
                    shutdown.spawn_until_stop(async move { sharded.run_shards(&shard_sink).await });
                }
                let probing = Arc::clone(redis);
                shutdown.spawn_until_stop(async move { probing.probe().await });
                let redis = Arc::clone(&redis.redis);
                shutdown.spawn_until_stop(async move { match redis.follow().await {} });
            }
        }
    }

    /// Publishes a command to every instance. After an error, the command may or may not have been published.
    pub async fn publish_command(&self, json: &str) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(memory) => {
                if let Some(sink) = memory.sink.lock().as_ref() {
                    sink(BackplaneEvent::Control { payload: json.as_bytes() });
                }
                Ok(())
            }
            Self::Redis(redis) => redis.publish(&redis.control_channel, json).await.map(drop),
        }
    }

    /// Publishes a message to all connections of the fleet. After an error, it may or may not have been published.
    pub async fn broadcast(&self, message: &str) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(memory) => {
                memory.broadcast(message);
                Ok(())
            }
            Self::Redis(redis) => redis.publish(&redis.broadcast_channel, message).await.map(drop),
        }
    }

    /// Sends the parts of an answer to the instance that asked. The in-process backplane has no other instance.
    pub async fn answer(&self, instance: &str, parts: &[String]) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Redis(redis) => redis.answer(instance, parts).await,
        }
    }

    /// Counts subscriptions: before each new one, messages may have been missed.
    pub fn subscriptions(&self) -> watch::Receiver<u64> {
        match self {
            Self::Memory(memory) => memory.subscriptions(),
            Self::Redis(redis) => redis.subscriber.subscriptions(),
        }
    }

    /// Why this instance may miss messages now; `None` while it is subscribed.
    pub fn not_ready(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => {
                let sharded = || redis.shards.as_ref().and_then(|shards| shards.not_ready());
                redis.subscriber.not_ready().or_else(sharded)
            }
        }
    }

    /// What is wrong with the sentinels or the cluster; `None` if nothing is.
    pub fn problem(&self) -> Option<String> {
        self.redis()?.problem()
    }

    /// The delay with which this instance receives from the backplane.
    pub fn lag(&self) -> Duration {
        match self {
            Self::Memory(_) => Duration::ZERO,
            Self::Redis(redis) => redis.subscriber.lag().current(),
        }
    }

    /// The features that Redis refuses until someone changes its configuration or its users' rights, with its errors.
    pub fn refused(&self) -> BTreeMap<&'static str, String> {
        self.redis().map(|redis| redis.health().refused()).unwrap_or_default()
    }

    /// Why a new connection would be served wrongly though this instance is subscribed; `None` if it would not.
    pub fn refused_condition(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => {
                let sharded = || redis.shards.as_ref().and_then(|shards| shards.refusal());
                redis.redis.health().not_ready().or_else(|| redis.subscriber.refusal()).or_else(sharded)
            }
        }
    }

    /// The channels of this instance's users, if it subscribes to each of them. Otherwise it receives the messages of all
    /// users.
    pub fn user_channels(&self) -> Option<&Arc<UserChannels>> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => redis.subscriber.user_channels(),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(_) => "redis",
        }
    }
}

pub struct MemoryBackplane {
    user_channel: String,
    /// Locked while a message is stored and passed on, to keep the publishing order.
    sink: Mutex<Option<Sink>>,
    /// Never changes: the one subscription lasts as long as the process.
    subscriptions: watch::Sender<u64>,
}

impl std::fmt::Debug for MemoryBackplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBackplane").finish_non_exhaustive()
    }
}

impl MemoryBackplane {
    pub fn new(user_channel: &str) -> Self {
        Self { user_channel: user_channel.to_owned(), sink: Mutex::default(), subscriptions: watch::Sender::default() }
    }

    pub fn user_channel(&self) -> &str {
        &self.user_channel
    }

    /// There is one subscription, from the beginning to the end.
    pub fn subscriptions(&self) -> watch::Receiver<u64> {
        self.subscriptions.subscribe()
    }

    fn broadcast(&self, message: &str) {
        if let Some(sink) = self.sink.lock().as_ref() {
            sink(BackplaneEvent::Broadcast { payload: message.as_bytes() });
            sink(BackplaneEvent::Pause);
        }
    }

    /// Passes on the messages that `store` returns, and returns its second value. Both happen under one lock.
    pub fn publish<'a, M: IntoIterator<Item = Cow<'a, str>>, T>(
        &self,
        channel: impl FnOnce() -> String,
        store: impl FnOnce() -> (M, T),
    ) -> T {
        let sink = self.sink.lock();
        let (messages, stored) = store();
        let mut messages = messages.into_iter().peekable();
        if let (Some(sink), Some(_)) = (sink.as_ref(), messages.peek()) {
            let channel = channel();
            sink(BackplaneEvent::Read { at: Instant::now() });
            for message in messages {
                sink(BackplaneEvent::Message { channel: channel.as_bytes(), payload: message.as_bytes() });
            }
            sink(BackplaneEvent::Pause);
        }
        stored
    }
}

/// The subscription of this instance, and the probe that detects a dead one.
#[derive(Debug)]
pub struct RedisBackplane {
    redis: Arc<Redis>,
    subscriber: Subscriber,
    /// Only if sharded channels are subscribed to.
    shards: Option<Arc<Shards>>,
    user_channel: String,
    control_channel: String,
    broadcast_channel: String,
    /// The start of the channel on which an instance receives answers, before its id.
    answers: String,
    /// That of this instance.
    answer_channel: String,
    probe_channel: String,
    /// Subscribed to only if `server.demo` is on.
    presence_channel: Option<String>,
    probe_interval: Duration,
}

/// Channels are kept for at least this long after a user's last connection, so that a reload changes nothing.
const MIN_LINGER: Duration = Duration::from_secs(1);

impl RedisBackplane {
    pub fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    fn new(redis: Arc<Redis>, config: &Config, instance: &InstanceId) -> Self {
        let named = |name: &str| format!("{}{name}", config.redis.prefix);
        let (control_channel, broadcast_channel, answers) = (named("control"), named("broadcast"), named("answers:"));
        let (answer_channel, probe_channel) = (format!("{answers}{instance}"), named(&format!("probe:{instance}")));
        let presence_channel = config.server.demo.then(|| config.presence.channel.clone());
        let names = [&control_channel, &broadcast_channel, &answer_channel, &probe_channel];
        let names = names.into_iter().chain(&presence_channel).cloned().collect();
        let probe_interval = config.redis.probe_interval;
        // Three lost probes, plus the latency of the last one.
        let silent_after = probe_interval * 3 + Duration::from_secs(1);
        let user_channel = config.redis.user_channel.clone();
        let is_sharded = config.redis.subscribe == Subscribe::Sharded;
        let shards =
            is_sharded.then(|| Arc::new(Shards::new(Arc::clone(&redis), &user_channel, config.limits.clone())));
        let (pattern, users) = match config.redis.subscribe {
            Subscribe::Pattern => (Some(pattern(&user_channel)), None),
            Subscribe::Exact | Subscribe::Sharded => {
                let linger = config.presence.offline_delay.max(MIN_LINGER);
                let metrics = Arc::clone(redis.metrics());
                let users = UserChannels::new(&user_channel, linger, metrics).with_shards(shards.clone());
                (None, Some(Arc::new(users)))
            }
        };
        let channels = Channels { pattern, names, users };
        let (limits, batches_reads) = (config.limits.clone(), config.redis.batch_reads);
        let subscriber = Subscriber::new(Arc::clone(&redis), channels, limits, silent_after, batches_reads);
        Self {
            redis,
            subscriber,
            shards,
            user_channel,
            control_channel,
            broadcast_channel,
            answers,
            answer_channel,
            probe_channel,
            presence_channel,
            probe_interval,
        }
    }

    async fn run(&self, sink: &Sink) {
        match self.subscriber.run(|push| self.pass_on(push, sink)).await {}
    }

    async fn run_shards(&self, sink: &Sink) {
        if let Some(shards) = &self.shards {
            match shards.run(|push| self.pass_on(push, sink)).await {}
        }
    }

    fn pass_on(&self, push: Push<'_>, sink: &Sink) {
        let Self { control_channel, broadcast_channel, answer_channel, probe_channel, presence_channel, .. } = self;
        let is_presence = |channel: &[u8]| presence_channel.as_ref().is_some_and(|own| own.as_bytes() == channel);
        match push {
            Push::Subscribed { lost_since } => sink(BackplaneEvent::Subscribed { lost_since }),
            Push::Pattern { channel, payload } => sink(BackplaneEvent::Message { channel, payload }),
            Push::Named { channel, payload } if channel == control_channel.as_bytes() => {
                sink(BackplaneEvent::Control { payload });
            }
            Push::Named { channel, payload } if channel == broadcast_channel.as_bytes() => {
                sink(BackplaneEvent::Broadcast { payload });
            }
            Push::Named { channel, payload } if channel == answer_channel.as_bytes() => {
                sink(BackplaneEvent::Answer { payload });
            }
            Push::Named { channel, payload } if channel == probe_channel.as_bytes() => {
                self.subscriber.lag().receive(payload);
            }
            Push::Named { channel, payload } if is_presence(channel) => sink(BackplaneEvent::Presence { payload }),
            Push::Named { channel, payload } => sink(BackplaneEvent::Message { channel, payload }),
            Push::OversizePattern { channel } => sink(BackplaneEvent::Oversize { channel }),
            Push::OversizeNamed { channel } if channel == probe_channel.as_bytes() || is_presence(channel) => {}
            Push::OversizeNamed { channel } => sink(BackplaneEvent::Oversize { channel }),
            Push::Regained { user, lost_since } => sink(BackplaneEvent::UserMissed { user, since: lost_since }),
            Push::Read { at } => sink(BackplaneEvent::Read { at }),
            Push::Pause => sink(BackplaneEvent::Pause),
        }
    }

    /// Publishes to this instance through the command connection, so that a silent subscription is known to be dead.
    async fn probe(&self) {
        let mut subscriptions = self.subscriber.subscriptions();
        let mut ticks = interval(self.probe_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = subscriptions.changed() => {}
            }
            // An error is counted and logged; the subscription then counts as silent.
            self.redis.probe(&self.probe_channel, self.subscriber.lag()).await;
        }
    }

    /// Returns the number of subscribers on this Redis node that received the message.
    pub async fn publish(&self, channel: &str, payload: &str) -> Result<u64, BackplaneError> {
        self.redis.counted(self.redis.publish(&[Message { channel: channel.to_owned(), payload, beside: None }]).await)
    }

    async fn answer(&self, instance: &str, parts: &[String]) -> Result<(), BackplaneError> {
        let channel = || format!("{}{instance}", self.answers);
        let messages = parts.iter().map(|part| Message { channel: channel(), payload: part, beside: None });
        let messages: Vec<_> = messages.collect();
        self.redis.counted(self.redis.publish(&messages).await).map(drop)
    }
}

/// The one fixed pattern, of all users' channels; a user id never becomes part of a pattern.
fn pattern(user_channel: &str) -> String {
    let mut pattern = String::with_capacity(user_channel.len() + 1);
    for c in user_channel.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_matches_the_configured_channels_literally() {
        for (channel, expected) in [("user:", "user:*"), ("notify/", "notify/*"), ("a*?[b]\\", "a\\*\\?\\[b\\]\\\\*")] {
            assert_eq!(pattern(channel), expected);
        }
    }
}
