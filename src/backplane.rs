//! The backplane connects instances and backends: Redis, or memory for a single instance. It delivers published
//! messages, reports its own health and publishes commands; each domain keeps its shared state in a store of its own.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::cmd;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::protocol::{InstanceId, MAX_ENVELOPE_BYTES};
pub use crate::redis::Error as BackplaneError;
use crate::redis::{Channels, Push, Redis, Subscriber};
use crate::shutdown::Shutdown;

/// The prefix of a user's channel, before the user id.
pub const USER_CHANNEL: &str = "user:";

/// The one fixed pattern; a user id never becomes part of a pattern.
const PATTERN: &str = "user:*";

#[derive(Debug, Clone, Copy)]
pub enum BackplaneEvent<'a> {
    /// A subscription begins: messages published since the last event may have been missed.
    Subscribed,
    Message {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    /// A user's or control message larger than `limits.max_payload_bytes`, discarded. `channel` is empty if its name
    /// was too large, too.
    Oversize {
        channel: &'a [u8],
    },
    Control {
        payload: &'a [u8],
    },
    /// Received only if `server.demo` is on.
    Presence {
        payload: &'a [u8],
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
            return Ok(Self::Memory(Arc::default()));
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

    /// Passes each event to `sink` until the instance stops.
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
            Self::Redis(redis) => redis.subscriber.not_ready(),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(_) => "redis",
        }
    }
}

#[derive(Default)]
pub struct MemoryBackplane {
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
    /// There is one subscription, from the beginning to the end.
    pub fn subscriptions(&self) -> watch::Receiver<u64> {
        self.subscriptions.subscribe()
    }

    /// Passes on the message that `store` returns, and returns its second value. Both happen under one lock.
    pub fn publish<'a, T>(
        &self,
        channel: impl FnOnce() -> String,
        store: impl FnOnce() -> (Option<Cow<'a, str>>, T),
    ) -> T {
        let sink = self.sink.lock();
        let (message, stored) = store();
        if let (Some(sink), Some(message)) = (sink.as_ref(), message) {
            sink(BackplaneEvent::Message { channel: channel().as_bytes(), payload: message.as_bytes() });
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
    control_channel: String,
    probe_channel: String,
    probe_interval: Duration,
}

impl RedisBackplane {
    pub fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    fn new(redis: Arc<Redis>, config: &Config, instance: &InstanceId) -> Self {
        let control_channel = format!("{}control", config.redis.prefix);
        let probe_channel = format!("{}probe:{instance}", config.redis.prefix);
        let presence_channel = config.server.demo.then(|| config.presence.channel.clone());
        let names = [control_channel.clone(), probe_channel.clone()].into_iter().chain(presence_channel).collect();
        let probe_interval = config.redis.probe_interval;
        // Three lost probes, plus the latency of the last one.
        let silent_after = probe_interval * 3 + Duration::from_secs(1);
        let max_part = config.limits.max_payload_bytes + MAX_ENVELOPE_BYTES;
        let channels = Channels { pattern: PATTERN, names };
        let subscriber = Subscriber::new(Arc::clone(&redis), channels, max_part, silent_after);
        Self { redis, subscriber, control_channel, probe_channel, probe_interval }
    }

    async fn run(&self, sink: &Sink) {
        let Self { control_channel, probe_channel, .. } = self;
        let subscription = self.subscriber.run(|push| match push {
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
        match subscription.await {}
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
            // The error is counted and logged; the subscription then counts as silent.
            self.publish(&self.probe_channel, "").await.ok();
        }
    }

    /// Returns the number of subscribers on this Redis node that received the message.
    pub async fn publish(&self, channel: &str, payload: &str) -> Result<u64, BackplaneError> {
        let publish = cmd("PUBLISH").arg(channel).arg(payload).to_owned();
        self.redis.counted(self.redis.commands().command(&publish).await)
    }
}
