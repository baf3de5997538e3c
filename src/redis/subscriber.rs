//! One subscription: passes on each push, and resubscribes after each connection failure.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::node::Node;
use super::resp::{Parts, Reply};
use super::stream::{CONNECT_DEADLINE, Stream};
use super::{Error, Lag, Redis, UserChannels};
use crate::backoff::Backoff;
use crate::config::LiveLimits;
use crate::log::OUTAGE_EVERY;
use crate::metrics::Metrics;
use crate::protocol::{MAX_ENVELOPE_BYTES, UserId, millis};

/// Channels by their exact names, and those of users: by a pattern, or of this instance's users only.
#[derive(Debug)]
pub struct Channels {
    pub pattern: Option<String>,
    pub names: Vec<String>,
    pub users: Option<Arc<UserChannels>>,
}

#[derive(Debug, Clone, Copy)]
pub enum Push<'a> {
    /// All subscriptions are confirmed. After a lost one, messages published since this moment may have been missed: the
    /// last one received.
    Subscribed {
        lost_since: Option<Instant>,
    },
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
    /// The user's sharded channel is subscribed to again: messages on it since this moment may have been missed.
    Regained {
        user: &'a UserId,
        lost_since: Instant,
    },
    /// What follows, up to the next pause, was read at this moment.
    Read {
        at: Instant,
    },
    /// No more messages are buffered.
    Pause,
}

#[derive(Debug, Clone)]
enum State {
    Down { why: String },
    Up { last_received: Instant },
}

/// A subscription that ended.
struct Lost {
    last_received: Instant,
    cause: String,
}

/// The time without a subscription: its first failure has a line, and others have one at intervals.
struct Failing {
    since: Instant,
    logged: Option<Instant>,
}

impl Default for Failing {
    fn default() -> Self {
        Self { since: Instant::now(), logged: None }
    }
}

impl Failing {
    fn is_due(&mut self) -> bool {
        let is_due = self.logged.is_none_or(|logged| logged.elapsed() >= OUTAGE_EVERY);
        if is_due {
            self.logged = Some(Instant::now());
        }
        is_due
    }
}

#[derive(Debug)]
pub struct Subscriber {
    redis: Arc<Redis>,
    channels: Channels,
    limits: LiveLimits,
    silent_after: Duration,
    /// Whether frequent messages for the users of other instances are read at intervals.
    batches_reads: bool,
    state: Mutex<State>,
    subscriptions: watch::Sender<u64>,
    lag: Lag,
}

/// From this lag on, Redis is likely to have dropped a subscriber for its backlog.
const BEHIND: Duration = Duration::from_secs(1);

const OVERRUN: &str = "this instance fell behind (client-output-buffer-limit pubsub)";

const CLOSED: &str = "a restart of redis, CLIENT KILL, a proxy, or client-output-buffer-limit pubsub";

const FULL: &str = "redis has reached its maxmemory: Redis 8.6 and later then refuse new subscriptions";

impl Subscriber {
    /// A subscription that receives no message for `silent_after` counts as dead: a probe must publish more often.
    pub fn new(
        redis: Arc<Redis>,
        channels: Channels,
        limits: LiveLimits,
        silent_after: Duration,
        batches_reads: bool,
    ) -> Self {
        let state = Mutex::new(State::Down { why: "not subscribed yet".into() });
        let lag = Lag::new(!redis.is_cluster());
        let subscriptions = watch::Sender::default();
        Self { redis, channels, limits, silent_after, batches_reads, state, subscriptions, lag }
    }

    /// Counts subscriptions: before each new one, messages may have been missed.
    pub fn subscriptions(&self) -> watch::Receiver<u64> {
        self.subscriptions.subscribe()
    }

    /// Measured by the probes.
    pub fn lag(&self) -> &Lag {
        &self.lag
    }

    /// The channels of users, unless they are subscribed to by a pattern.
    pub fn user_channels(&self) -> Option<&Arc<UserChannels>> {
        self.channels.users.as_ref()
    }

    /// Why new users' channels cannot be subscribed to; `None` if they can.
    pub fn refusal(&self) -> Option<String> {
        let refusal = self.user_channels().and_then(|users| users.refusal());
        refusal.map(|error| format!("redis refuses to subscribe to users' channels: {error}"))
    }

    /// Why this instance may miss messages now; `None` while it is subscribed.
    pub fn not_ready(&self) -> Option<String> {
        match &*self.state.lock() {
            State::Down { why } => Some(match self.redis.topology.problem() {
                Some(problem) if !why.contains(&problem) => format!("not subscribed to redis: {why}; {problem}"),
                _ => format!("not subscribed to redis: {why}"),
            }),
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
        let mut lost: Option<Lost> = None;
        let mut failing: Option<Failing> = None;
        loop {
            let mut moves = self.redis.topology.moves();
            let node = timeout(CONNECT_DEADLINE, self.redis.topology.node(None)).await;
            let node = node.unwrap_or(Err(Error::Timeout(CONNECT_DEADLINE)));
            let address = node.as_ref().map_or_else(|_| self.redis.url.clone(), |node| node.address());
            let (error, cause) = match self.subscribe(node.as_deref(), &take).await {
                Ok(mut stream) => {
                    let since = Instant::now();
                    log_subscribed(&address, lost.as_ref(), failing.take());
                    self.redis.report_server(stream.server());
                    self.lag.restart();
                    // First, so that `not_ready` never reports this subscription as up before its gap is signalled.
                    self.subscriptions.send_modify(|count| *count += 1);
                    take(Push::Subscribed { lost_since: lost.map(|lost| lost.last_received) });
                    let mut last_received = since;
                    self.set_state(State::Up { last_received });
                    let Err(error) = self.receive(&mut stream, &take, &mut last_received).await;
                    metrics.backplane_gaps.inc();
                    self.redis.health.doubt();
                    backoff.reset_if_lasting(since.elapsed());
                    let cause = self.likely_cause(&error, &stream);
                    lost = Some(Lost { last_received, cause: cause.map_or_else(|| error.to_string(), str::to_owned) });
                    (error, cause)
                }
                Err(error) => {
                    let cause = (error.kind() == "OOM").then_some(FULL);
                    (error, cause)
                }
            };
            if let Some(users) = self.user_channels() {
                users.end();
            }
            metrics.backplane_errors.with_label_values(&[error.kind()]).inc();
            let delay = backoff.next_delay();
            if let Ok(node) = &node {
                node.outage.report();
            }
            if failing.get_or_insert_default().is_due() {
                let (kind, retry_ms, lag_ms) = (error.kind(), millis(delay), millis(self.lag.current()));
                warn!(%address, %error, kind, likely_cause = cause, lag_ms, retry_ms, "not subscribed to redis");
            }
            self.set_state(State::Down { why: error.to_string() });
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                Some(Ok(())) = async { Some(moves.as_mut()?.changed().await) } => backoff.reset(),
            }
        }
    }

    /// Of a connection that the server closed. Late probes, or an end within a message, show that this instance fell
    /// behind.
    fn likely_cause(&self, error: &Error, stream: &Stream) -> Option<&'static str> {
        let closed = match error {
            Error::Ended => true,
            Error::Io(error) => error.kind() == ErrorKind::ConnectionReset,
            _ => false,
        };
        let behind = stream.is_within_reply() || self.lag.current() >= BEHIND;
        closed.then_some(if behind { OVERRUN } else { CLOSED })
    }

    async fn subscribe(&self, node: Result<&Node, &Error>, take: &impl Fn(Push<'_>)) -> Result<Stream, Error> {
        let node = node.map_err(Error::again)?;
        let subscribed = timeout(CONNECT_DEADLINE, self.subscribe_channels(node, take)).await;
        let mut stream = subscribed.map_err(|_| Error::Timeout(CONNECT_DEADLINE))??;
        if let Some(users) = self.user_channels() {
            self.subscribe_users(users, &mut stream, take).await?;
        }
        Ok(stream)
    }

    async fn subscribe_channels(&self, node: &Node, take: &impl Fn(Push<'_>)) -> Result<Stream, Error> {
        let mut stream = node.stream("subscriber", max_part(&self.limits)).await?;
        if let Some(pattern) = &self.channels.pattern {
            stream.send(&[b"PSUBSCRIBE", pattern.as_bytes()]).await?;
        }
        for name in &self.channels.names {
            stream.send(&[b"SUBSCRIBE", name.as_bytes()]).await?;
        }
        let mut unconfirmed = usize::from(self.channels.pattern.is_some()) + self.channels.names.len();
        while unconfirmed > 0 {
            stream.fill().await?;
            stream.each(|reply| if is_confirmation(&reply) { unconfirmed -= 1 } else { self.pass_on(&reply, take) })?;
            take(Push::Pause);
        }
        Ok(stream)
    }

    /// Subscribes to the channels of all present users. There may be many: the deadline is that of the next confirmation.
    async fn subscribe_users(
        &self,
        users: &UserChannels,
        stream: &mut Stream,
        take: &impl Fn(Push<'_>),
    ) -> Result<(), Error> {
        users.begin();
        let (mut missing, mut progress) = (users.missing(), Instant::now());
        while missing > 0 {
            let why = format!("{missing} users' channels are not subscribed to yet");
            self.set_state(State::Down { why });
            queue_commands(users, stream);
            let filled = timeout_at(progress + CONNECT_DEADLINE, stream.fill()).await;
            filled.map_err(|_| Error::Timeout(CONNECT_DEADLINE))??;
            stream.each(|reply| self.pass_on(&reply, take))?;
            take(Push::Pause);
            let before = std::mem::replace(&mut missing, users.missing());
            if missing < before {
                progress = Instant::now();
            }
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    async fn receive(
        &self,
        stream: &mut Stream,
        take: &impl Fn(Push<'_>),
        last_received: &mut Instant,
    ) -> Result<Infallible, Error> {
        let mut watch = interval(Duration::from_secs(1));
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (users, mut last_command) = (self.user_channels(), Instant::now());
        let mut traffic = Traffic::of(self.redis.metrics());
        loop {
            tokio::select! {
                filled = stream.fill() => {
                    filled?;
                    *last_received = Instant::now();
                    take(Push::Read { at: *last_received });
                    stream.set_max_part(max_part(&self.limits));
                    self.pass_on_all(stream, take)?;
                    take(Push::Pause);
                    // A flood must not starve the other tasks of this thread.
                    tokio::task::consume_budget().await;
                }
                _ = watch.tick() => {
                    // In a cluster the messages of one node may be lost while those of the others arrive.
                    let is_partial = self.redis.is_cluster() && self.lag.oldest() > self.silent_after;
                    if is_partial || last_received.elapsed() > self.silent_after {
                        return Err(Error::Silent(self.silent_after));
                    }
                    self.set_state(State::Up { last_received: *last_received });
                    if let Some(users) = users {
                        users.expire();
                    }
                    let since = std::mem::replace(&mut traffic, Traffic::of(self.redis.metrics()));
                    let is_paced = self.batches_reads && traffic.is_mostly_for_others(&since);
                    if stream.pacing().set(is_paced) {
                        debug!(is_paced, "changed how often the subscription is read");
                    }
                }
                Some(users) = changes_due(users, last_command), if users.is_some() => {
                    queue_commands(users, stream);
                    last_command = Instant::now();
                }
            }
        }
    }

    /// Passes on every reply that has arrived completely. An error reply to a later command for users' channels does not
    /// end the subscription, which serves the other users.
    fn pass_on_all(&self, stream: &mut Stream, take: &impl Fn(Push<'_>)) -> Result<(), Error> {
        loop {
            match stream.each(|reply| self.pass_on(&reply, take)) {
                Err(error @ Error::Refused { .. })
                    if self.user_channels().is_some_and(|users| users.refuse(&error)) =>
                {
                    self.redis.counted(Err::<(), _>(error)).ok();
                }
                passed_on => return passed_on,
            }
        }
    }

    fn pass_on(&self, reply: &Reply<'_>, take: &impl Fn(Push<'_>)) {
        match reply {
            Reply::Push(parts) => self.pass_on_push(parts, take),
            Reply::Oversize(parts, _) => match parts.as_slice() {
                [b"pmessage", _, channel] => take(Push::OversizePattern { channel }),
                [b"pmessage", _] => take(Push::OversizePattern { channel: b"" }),
                [b"message", channel] => take(Push::OversizeNamed { channel }),
                _ => {}
            },
            Reply::Status(_) | Reply::Error(_) => {}
        }
    }

    fn pass_on_push(&self, parts: &Parts<'_>, take: &impl Fn(Push<'_>)) {
        match parts.as_slice() {
            [b"pmessage", _, channel, payload] => take(Push::Pattern { channel, payload }),
            [b"message", channel, payload] => take(Push::Named { channel, payload }),
            [kind @ (b"subscribe" | b"unsubscribe"), channel, _] => {
                if let Some(users) = self.user_channels() {
                    users.confirm(channel, *kind == b"subscribe");
                }
            }
            _ => {}
        }
    }

    fn set_state(&self, state: State) {
        self.redis.metrics().backplane_up.set(i64::from(matches!(state, State::Up { .. })));
        *self.state.lock() = state;
    }
}

/// Messages since the start.
struct Traffic {
    received: u64,
    /// Those for users without a connection here.
    missed: u64,
    at: Instant,
}

/// Messages per second from which a wake-up for each costs more than one per millisecond.
const FREQUENT: f64 = 2_000.0;

impl Traffic {
    fn of(metrics: &Metrics) -> Self {
        Self { received: metrics.messages_received.get(), missed: metrics.messages_missed.get(), at: Instant::now() }
    }

    /// Whether messages have been frequent since then, and at most a quarter of them for users of this instance, whom the
    /// interval would delay.
    fn is_mostly_for_others(&self, since: &Self) -> bool {
        let (received, missed) = (self.received - since.received, self.missed - since.missed);
        let seconds = self.at.duration_since(since.at).as_secs_f64();
        received as f64 >= FREQUENT * seconds && missed >= received / 4 * 3
    }
}

fn log_subscribed(address: &str, lost: Option<&Lost>, failing: Option<Failing>) {
    match lost {
        None => {
            let failed_ms = failing.map(|failing| millis(failing.since.elapsed()));
            info!(%address, failed_ms, "subscribed to redis");
        }
        Some(Lost { last_received, cause }) => {
            let gap_ms = millis(last_received.elapsed());
            warn!(
                %address,
                gap_ms, cause, "subscribed to redis again: events that are not stored may have been lost meanwhile"
            );
        }
    }
}

/// The bytes of the largest message that is buffered.
pub(super) fn max_part(limits: &LiveLimits) -> usize {
    limits.max_payload_bytes() + MAX_ENVELOPE_BYTES
}

fn is_confirmation(reply: &Reply<'_>) -> bool {
    matches!(reply, Reply::Push(parts) if matches!(parts.as_slice(), [b"subscribe" | b"psubscribe", ..]))
}

/// Waits until users' channels have changed; `None` without such channels.
async fn changes_due(users: Option<&Arc<UserChannels>>, last_command: Instant) -> Option<&UserChannels> {
    let users = users?;
    users.due(last_command).await;
    Some(users)
}

fn queue_commands(users: &UserChannels, stream: &mut Stream) {
    for command in users.next_commands() {
        stream.queue(&command.words());
    }
}
