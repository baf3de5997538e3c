//! The backplane connects instances and backends: Redis, or this process alone.
//!
//! It passes on what is published, reports its own health, and publishes commands. The state that instances share
//! (presence, history, limits, revocations) belongs to the domains, each of which has its own store on top of it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::cmd;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::protocol::{InstanceId, MAX_ENVELOPE_BYTES};
/// Only Redis can fail.
pub use crate::redis::Error as BackplaneError;
use crate::redis::{Channels, Push, Redis, Subscriber};
use crate::shutdown::Shutdown;

/// The prefix of a user's channel, before the user id.
pub const USER_CHANNEL: &str = "user:";

/// The one fixed pattern; a user id never becomes part of a pattern.
const PATTERN: &str = "user:*";

/// One event of the backplane.
#[derive(Debug, Clone, Copy)]
pub enum BackplaneEvent<'a> {
    /// A subscription begins: whatever was published since the last event may be missing.
    Subscribed,
    /// A message on a user's channel.
    Message { channel: &'a [u8], payload: &'a [u8] },
    /// A message larger than `limits.max_payload_bytes`, which was not kept. The channel is empty where its name was too
    /// large, too.
    Oversize { channel: &'a [u8] },
    /// A message on the control channel.
    Control { payload: &'a [u8] },
    /// A message on the presence channel; only where `server.demo` shows it.
    Presence { payload: &'a [u8] },
    /// Nothing more is buffered: write what was routed.
    Pause,
}

/// Takes the events, one at a time. It must not block.
pub type Sink = Arc<dyn Fn(BackplaneEvent<'_>) + Send + Sync>;

/// The two kinds.
#[derive(Debug, Clone)]
pub enum Backplane {
    /// This process alone.
    Memory(Arc<MemoryBackplane>),
    /// A Redis that all instances and backends share.
    Redis(Arc<RedisBackplane>),
}

impl Backplane {
    /// The configured one; nothing is connected yet.
    ///
    /// # Errors
    /// [`BackplaneError::Config`] where the Redis URL or its certificate cannot be used.
    pub fn new(config: &Config, instance: &InstanceId, metrics: &Arc<Metrics>) -> Result<Self, BackplaneError> {
        let Some(url) = &config.redis.url else {
            metrics.backplane_up.set(1);
            return Ok(Self::Memory(Arc::default()));
        };
        let redis = Arc::new(Redis::new(&config.redis, url, instance, Arc::clone(metrics))?);
        Ok(Self::Redis(Arc::new(RedisBackplane::new(redis, config, instance))))
    }

    /// The Redis that the stores of the domains use; none for the in-process backplane.
    pub fn redis(&self) -> Option<&Arc<Redis>> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(backplane) => Some(&backplane.redis),
        }
    }

    /// Passes each event to `sink` for as long as the instance runs.
    pub fn subscribe(&self, sink: Sink, shutdown: &Shutdown) {
        match self {
            Self::Memory(memory) => *memory.sink.lock() = Some(sink),
            Self::Redis(redis) => {
                let receiving = Arc::clone(redis);
                shutdown.spawn_until_stop(async move { receiving.run(&sink).await });
                let probing = Arc::clone(redis);
                shutdown.spawn_until_stop(async move { probing.probe().await });
            }
        }
    }

    /// Publishes a command to every instance.
    ///
    /// # Errors
    /// [`BackplaneError`] where it is not known to have been published.
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

    /// How many subscriptions there have been: with each new one, messages may have been missed.
    pub fn subscriptions(&self) -> watch::Receiver<u64> {
        match self {
            Self::Memory(memory) => memory.subscriptions.subscribe(),
            Self::Redis(redis) => redis.subscriber.subscriptions(),
        }
    }

    /// Why this instance would not receive everything now; `None` while it would.
    pub fn not_ready(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => redis.subscriber.not_ready(),
        }
    }

    /// `memory` or `redis`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(_) => "redis",
        }
    }
}

/// One instance, nothing to install; nothing survives the process.
#[derive(Default)]
pub struct MemoryBackplane {
    /// Locked while a message is stored and passed on, which keeps the publishing order.
    sink: Mutex<Option<Sink>>,
    /// There is one, from the beginning to the end.
    subscriptions: watch::Sender<u64>,
}

impl std::fmt::Debug for MemoryBackplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBackplane").finish_non_exhaustive()
    }
}

impl MemoryBackplane {
    /// Passes on the message that `make` gives, with its channel, and returns what `make` gives beside it. No other
    /// message comes between.
    pub fn publish<T>(&self, channel: &str, make: impl FnOnce() -> (Option<String>, T)) -> T {
        let sink = self.sink.lock();
        let (message, made) = make();
        if let (Some(sink), Some(message)) = (sink.as_ref(), message) {
            sink(BackplaneEvent::Message { channel: channel.as_bytes(), payload: message.as_bytes() });
            sink(BackplaneEvent::Pause);
        }
        made
    }
}

/// The subscription of this instance, and the probe that keeps it from being quiet.
#[derive(Debug)]
pub struct RedisBackplane {
    redis: Arc<Redis>,
    subscriber: Subscriber,
    control_channel: String,
    probe_channel: String,
    probe_interval: Duration,
}

impl RedisBackplane {
    /// The plumbing underneath.
    pub fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    fn new(redis: Arc<Redis>, config: &Config, instance: &InstanceId) -> Self {
        let control_channel = format!("{}control", config.redis.prefix);
        let probe_channel = format!("{}probe:{instance}", config.redis.prefix);
        let presence_channel = config.server.demo.then(|| config.presence.channel.clone());
        let names = [control_channel.clone(), probe_channel.clone()].into_iter().chain(presence_channel).collect();
        let probe_interval = config.redis.probe_interval;
        // Three probes lost, and a little for the way of the last one.
        let silent_after = probe_interval * 3 + Duration::from_secs(1);
        let max_part = config.limits.max_payload_bytes + MAX_ENVELOPE_BYTES;
        let channels = Channels { pattern: PATTERN, names };
        let subscriber = Subscriber::new(Arc::clone(&redis), channels, max_part, silent_after);
        Self { redis, subscriber, control_channel, probe_channel, probe_interval }
    }

    async fn run(&self, sink: &Sink) {
        let Self { control_channel, probe_channel, .. } = self;
        let never = self.subscriber.run(|push| match push {
            Push::Subscribed => sink(BackplaneEvent::Subscribed),
            Push::Pattern { channel, payload } => sink(BackplaneEvent::Message { channel, payload }),
            Push::Named { channel, payload } if channel == control_channel.as_bytes() => {
                sink(BackplaneEvent::Control { payload });
            }
            Push::Named { channel, .. } if channel == probe_channel.as_bytes() => {}
            Push::Named { payload, .. } => sink(BackplaneEvent::Presence { payload }),
            Push::OversizePattern { channel } => sink(BackplaneEvent::Oversize { channel }),
            Push::OversizeNamed { channel } if channel == control_channel.as_bytes() => {
                sink(BackplaneEvent::Oversize { channel });
            }
            Push::OversizeNamed { .. } => {}
            Push::Pause => sink(BackplaneEvent::Pause),
        });
        match never.await {}
    }

    /// Publishes an empty message to this instance on the other connection, so that silence means a dead subscription.
    async fn probe(&self) {
        let mut subscriptions = self.subscriber.subscriptions();
        let mut ticks = interval(self.probe_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = subscriptions.changed() => {}
            }
            // Counted and logged: without it the subscription will be found silent.
            self.publish(&self.probe_channel, "").await.ok();
        }
    }

    /// Publishes one message; gives how many subscribers of this node received it.
    ///
    /// # Errors
    /// [`BackplaneError`] where it is not known to have been published.
    pub async fn publish(&self, channel: &str, payload: &str) -> Result<u64, BackplaneError> {
        let publish = cmd("PUBLISH").arg(channel).arg(payload).to_owned();
        self.redis.counted(self.redis.commands().command(&publish).await)
    }
}
