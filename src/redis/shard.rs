//! The subscription to sharded channels at one node of a cluster.
//!
//! It speaks RESP3, in which `ASKING` is allowed between subscriptions: a node that is about to take over a slot accepts
//! its channels only so.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::channels::Confirmed;
use super::resp::Reply;
use super::stream::{CONNECT_DEADLINE, Stream};
use super::subscriber::max_part;
use super::{Error, Push, Shards, UserChannels};
use crate::backoff::Backoff;
use crate::config::NodeAddress;

/// A connection that has received nothing for so long is asked whether it is alive.
const PING_AFTER: Duration = Duration::from_secs(3);

/// A connection that has received nothing for so long is dead.
const SILENT_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) address: NodeAddress,
    pub(super) users: Arc<UserChannels>,
    /// Why there is no connection.
    down: Mutex<Option<String>>,
    /// The node no longer has a slot.
    pub(super) retired: CancellationToken,
}

impl Shard {
    pub(super) fn new(address: NodeAddress, users: UserChannels) -> Self {
        let down = Mutex::new(Some("not connected yet".into()));
        Self { address, users: Arc::new(users), down, retired: CancellationToken::new() }
    }

    pub(super) fn down(&self) -> Option<String> {
        self.down.lock().as_ref().map(|why| format!("not subscribed to sharded channels at {}: {why}", self.address))
    }
}

impl Shards {
    /// Keeps the subscription of one shard until the node has no slot.
    pub(super) async fn run_shard(&self, shard: Arc<Shard>, take: &impl Fn(Push<'_>)) {
        let retired = shard.retired.cancelled();
        tokio::select! {
            () = retired => {}
            never = self.serve(&shard, take) => match never {},
        }
        shard.users.end();
        self.lose(&shard.address, Instant::now());
    }

    async fn serve(&self, shard: &Shard, take: &impl Fn(Push<'_>)) -> Infallible {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        loop {
            let mut last_received = Instant::now();
            let Err(error) = self.subscribe(shard, take, &mut last_received).await;
            shard.users.end();
            *shard.down.lock() = Some(error.to_string());
            self.lose(&shard.address, last_received);
            self.redis.count_error(error.kind());
            if let Some(held_back) = self.failures.admit() {
                let (address, kind) = (&shard.address, error.kind());
                warn!(%address, %error, kind, held_back, "not subscribed to sharded channels");
            }
            self.outdate();
            backoff.reset_if_lasting(last_received.elapsed());
            sleep(backoff.next_delay()).await;
        }
    }

    async fn subscribe(
        &self,
        shard: &Shard,
        take: &impl Fn(Push<'_>),
        last_received: &mut Instant,
    ) -> Result<Infallible, Error> {
        let connected = timeout(CONNECT_DEADLINE, self.connect(shard)).await;
        let mut stream = connected.map_err(|_| Error::Timeout(CONNECT_DEADLINE))??;
        info!(address = %shard.address, "connected for sharded channels");
        shard.users.begin();
        *shard.down.lock() = None;
        *last_received = Instant::now();
        let mut watch = interval(Duration::from_secs(1));
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_command = Instant::now();
        loop {
            tokio::select! {
                filled = stream.fill() => {
                    filled?;
                    *last_received = Instant::now();
                    take(Push::Read { at: *last_received });
                    stream.set_max_part(max_part(&self.limits));
                    self.pass_on_all(shard, &mut stream, take)?;
                    take(Push::Pause);
                    // A flood must not starve the other tasks of this thread.
                    tokio::task::consume_budget().await;
                }
                _ = watch.tick() => {
                    check_alive(shard, &mut stream, (*last_received).max(last_command), *last_received)?;
                    shard.users.expire();
                }
                () = shard.users.due(last_command) => {
                    for command in shard.users.next_commands() {
                        stream.queue(&[b"ASKING"]);
                        stream.queue(&command.words());
                    }
                    last_command = Instant::now();
                }
            }
        }
    }

    async fn connect(&self, shard: &Shard) -> Result<Stream, Error> {
        let server = self.cluster()?.server(&shard.address)?;
        let mut stream = server.node.stream("shard-subscriber", max_part(&self.limits)).await?;
        stream.speak_resp3().await?;
        Ok(stream)
    }

    /// Passes on every reply that has arrived completely. A refused command does not end the subscription, which serves
    /// the other users.
    fn pass_on_all(&self, shard: &Shard, stream: &mut Stream, take: &impl Fn(Push<'_>)) -> Result<(), Error> {
        loop {
            match stream.each(|reply| self.pass_on(shard, &reply, take)) {
                Err(error @ Error::Refused { .. }) => {
                    shard.users.refuse(&error);
                    if error.kind() == "MOVED" {
                        self.outdate();
                    } else {
                        self.redis.counted(Err::<(), _>(error)).ok();
                    }
                }
                passed_on => return passed_on,
            }
        }
    }

    fn pass_on(&self, shard: &Shard, reply: &Reply<'_>, take: &impl Fn(Push<'_>)) {
        match reply {
            Reply::Push(parts) => match parts.as_slice() {
                [b"smessage", channel, payload] => take(Push::Named { channel, payload }),
                [kind @ (b"ssubscribe" | b"sunsubscribe"), channel, _] => {
                    match shard.users.confirm(channel, *kind == b"ssubscribe") {
                        Some(Confirmed::Subscribed(user)) => self.confirm(&shard.address, &user, take),
                        Some(Confirmed::Lost(user)) => self.lose_one(&shard.address, &user),
                        None => {}
                    }
                }
                _ => {}
            },
            Reply::Oversize(parts, _) => match parts.as_slice() {
                [b"smessage", channel] => take(Push::OversizeNamed { channel }),
                [b"smessage"] => take(Push::OversizeNamed { channel: b"" }),
                _ => {}
            },
            Reply::Status(_) | Reply::Error(_) => {}
        }
    }
}

/// Fails if the connection is silent for too long, or if commands have no reply while nothing else arrives either.
fn check_alive(shard: &Shard, stream: &mut Stream, progress: Instant, last_received: Instant) -> Result<(), Error> {
    if shard.users.is_waiting() && progress.elapsed() > CONNECT_DEADLINE {
        return Err(Error::Timeout(CONNECT_DEADLINE));
    }
    if last_received.elapsed() > SILENT_AFTER {
        return Err(Error::Silent(SILENT_AFTER));
    }
    if last_received.elapsed() > PING_AFTER {
        stream.queue(&[b"PING"]);
    }
    Ok(())
}
