//! One subscription: passes on each push, and resubscribes after each connection failure.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::resp::{Parts, Reply};
use super::stream::{CONNECT_DEADLINE, Stream};
use super::{Error, Redis};
use crate::backoff::Backoff;

/// One pattern, and channels by their exact names.
#[derive(Debug)]
pub struct Channels {
    pub pattern: &'static str,
    pub names: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
pub enum Push<'a> {
    /// All subscriptions are confirmed: messages published since the last push may have been missed.
    Subscribed,
    /// A message on a channel that matches the pattern.
    Pattern {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    Named {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    /// A discarded message, over `max_part`. `channel` is empty if its name was too large, too.
    OversizePattern {
        channel: &'a [u8],
    },
    OversizeNamed {
        channel: &'a [u8],
    },
    /// No more messages are buffered.
    Pause,
}

#[derive(Debug, Clone)]
enum State {
    Down { why: String },
    Up { last_received: Instant },
}

#[derive(Debug)]
pub struct Subscriber {
    redis: Arc<Redis>,
    channels: Channels,
    /// Messages with a larger part are not buffered.
    max_part: usize,
    silent_after: Duration,
    state: Mutex<State>,
    subscriptions: watch::Sender<u64>,
}

impl Subscriber {
    /// A subscription that receives no message for `silent_after` counts as dead: a probe must publish more often.
    pub fn new(redis: Arc<Redis>, channels: Channels, max_part: usize, silent_after: Duration) -> Self {
        let state = Mutex::new(State::Down { why: "not subscribed yet".into() });
        Self { redis, channels, max_part, silent_after, state, subscriptions: watch::Sender::default() }
    }

    /// Counts subscriptions: before each new one, messages may have been missed.
    pub fn subscriptions(&self) -> watch::Receiver<u64> {
        self.subscriptions.subscribe()
    }

    /// Why this instance may miss messages now; `None` while it is subscribed.
    pub fn not_ready(&self) -> Option<String> {
        match &*self.state.lock() {
            State::Down { why } => Some(format!("not subscribed to redis: {why}")),
            State::Up { last_received } if last_received.elapsed() > self.silent_after => {
                Some(format!("no message received from redis for {} s", last_received.elapsed().as_secs()))
            }
            State::Up { .. } => None,
        }
    }

    /// Passes each push to `take`, which must not block. Runs until dropped.
    pub async fn run(&self, take: impl Fn(Push<'_>)) -> Infallible {
        let metrics = self.redis.metrics();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let error = match self.subscribe(&take).await {
                Ok(stream) => {
                    info!("subscribed to redis");
                    backoff.reset();
                    // First, so that `not_ready` never reports this subscription as up before its gap is signalled.
                    self.subscriptions.send_modify(|count| *count += 1);
                    take(Push::Subscribed);
                    self.set_state(State::Up { last_received: Instant::now() });
                    let Err(error) = self.receive(stream, &take).await;
                    metrics.backplane_gaps.inc();
                    error
                }
                Err(error) => error,
            };
            metrics.backplane_errors.with_label_values(&[error.kind()]).inc();
            let delay = backoff.next_delay();
            warn!(%error, kind = error.kind(), retry_ms = delay.as_millis(), "not subscribed to redis");
            self.set_state(State::Down { why: error.to_string() });
            tokio::time::sleep(delay).await;
        }
    }

    async fn subscribe(&self, take: &impl Fn(Push<'_>)) -> Result<Stream, Error> {
        let subscribing = async {
            let mut stream = self.redis.commands().stream("subscriber", self.max_part).await?;
            stream.send(&[b"PSUBSCRIBE", self.channels.pattern.as_bytes()]).await?;
            for name in &self.channels.names {
                stream.send(&[b"SUBSCRIBE", name.as_bytes()]).await?;
            }
            let mut unconfirmed = 1 + self.channels.names.len();
            while unconfirmed > 0 {
                stream.fill().await?;
                stream.each(|reply| if is_confirmation(&reply) { unconfirmed -= 1 } else { pass_on(&reply, take) })?;
                take(Push::Pause);
            }
            Ok(stream)
        };
        timeout(CONNECT_DEADLINE, subscribing).await.map_err(|_| Error::Timeout(CONNECT_DEADLINE))?
    }

    async fn receive(&self, mut stream: Stream, take: &impl Fn(Push<'_>)) -> Result<Infallible, Error> {
        let mut watch = interval(Duration::from_secs(1));
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_received = Instant::now();
        loop {
            tokio::select! {
                filled = stream.fill() => {
                    filled?;
                    last_received = Instant::now();
                    stream.each(|reply| pass_on(&reply, take))?;
                    take(Push::Pause);
                    // A flood must not starve the other tasks of this thread.
                    tokio::task::consume_budget().await;
                }
                _ = watch.tick() => {
                    if last_received.elapsed() > self.silent_after {
                        return Err(Error::Silent(self.silent_after));
                    }
                    self.set_state(State::Up { last_received });
                }
            }
        }
    }

    fn set_state(&self, state: State) {
        self.redis.metrics().backplane_up.set(i64::from(matches!(state, State::Up { .. })));
        *self.state.lock() = state;
    }
}

fn is_confirmation(reply: &Reply<'_>) -> bool {
    matches!(reply, Reply::Push(parts) if matches!(parts.as_slice(), [b"subscribe" | b"psubscribe", ..]))
}

fn pass_on(reply: &Reply<'_>, take: &impl Fn(Push<'_>)) {
    match reply {
        Reply::Push(parts) => pass_on_push(parts, take),
        Reply::Oversize(parts, _) => match parts.as_slice() {
            [b"pmessage", _, channel] => take(Push::OversizePattern { channel }),
            [b"pmessage", _] => take(Push::OversizePattern { channel: b"" }),
            [b"message", channel] => take(Push::OversizeNamed { channel }),
            _ => {}
        },
        Reply::Status(_) | Reply::Error(_) => {}
    }
}

fn pass_on_push(parts: &Parts<'_>, take: &impl Fn(Push<'_>)) {
    match parts.as_slice() {
        [b"pmessage", _, channel, payload] => take(Push::Pattern { channel, payload }),
        [b"message", channel, payload] => take(Push::Named { channel, payload }),
        _ => {}
    }
}
