//! Hears what is published: subscribes, hands each message on, and begins anew whenever the link fails.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::link::CONNECT_DEADLINE;
use super::resp::{Parts, Reply};
use super::stream::Stream;
use super::{Redis, Subscription};
use crate::backoff::Backoff;
use crate::backplane::{BackplaneError, Heard, Sink};
use crate::protocol::{MAX_STAMP_BYTES, STAMP};

/// The one fixed pattern; a user's id never becomes part of a pattern.
const PATTERN: &[u8] = b"user:*";

/// Runs for ever; ends by being dropped.
pub(super) async fn run(redis: &Redis, sink: &Sink) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let error = match subscribe(redis, sink).await {
            Ok(stream) => {
                info!("subscribed to redis");
                backoff.reset();
                // First, so that whoever reads what was missed is seen to be behind as soon as this one is up.
                redis.subscriptions.send_modify(|count| *count += 1);
                redis.heard.lock().start_over();
                redis.miss();
                redis.set_subscription(Subscription::Up { last_heard: Instant::now() });
                let Err(error) = hear(redis, sink, stream).await;
                redis.metrics.backplane_gaps.inc();
                error
            }
            Err(error) => error,
        };
        redis.metrics.backplane_errors.with_label_values(&[error.kind()]).inc();
        let delay = backoff.next_delay();
        warn!(%error, kind = error.kind(), retry_ms = delay.as_millis(), "not subscribed to redis");
        redis.set_subscription(Subscription::Down { why: error.to_string() });
        tokio::time::sleep(delay).await;
    }
}

async fn subscribe(redis: &Redis, sink: &Sink) -> Result<Stream, BackplaneError> {
    let subscribing = async {
        let mut stream = redis.link.stream("subscriber", redis.max_payload_bytes + MAX_STAMP_BYTES).await?;
        stream.send(&[b"PSUBSCRIBE", PATTERN]).await?;
        let mut awaited = 1;
        let channels = [Some(&redis.control_channel), Some(&redis.probe_channel), redis.presence_channel.as_ref()];
        for channel in channels.into_iter().flatten() {
            stream.send(&[b"SUBSCRIBE", channel.as_bytes()]).await?;
            awaited += 1;
        }
        while awaited > 0 {
            stream.fill().await?;
            stream.each(|reply| if is_confirmation(&reply) { awaited -= 1 } else { hand_on(redis, sink, &reply) })?;
            sink(Heard::Pause);
        }
        Ok(stream)
    };
    timeout(CONNECT_DEADLINE, subscribing).await.map_err(|_| BackplaneError::Timeout(CONNECT_DEADLINE))?
}

fn is_confirmation(reply: &Reply<'_>) -> bool {
    matches!(reply, Reply::Push(parts) if matches!(parts.as_slice(), [b"subscribe" | b"psubscribe", ..]))
}

/// Hears until the subscription fails.
async fn hear(redis: &Redis, sink: &Sink, mut stream: Stream) -> Result<std::convert::Infallible, BackplaneError> {
    let mut watch = interval(Duration::from_secs(1));
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_heard = Instant::now();
    loop {
        tokio::select! {
            filled = stream.fill() => {
                filled?;
                last_heard = Instant::now();
                stream.each(|reply| hand_on(redis, sink, &reply))?;
                sink(Heard::Pause);
                // A flood must not keep this thread from everybody else.
                tokio::task::consume_budget().await;
            }
            _ = watch.tick() => {
                if last_heard.elapsed() > redis.silent_after {
                    return Err(BackplaneError::Silent(redis.silent_after));
                }
                redis.set_subscription(Subscription::Up { last_heard });
            }
        }
    }
}

fn hand_on(redis: &Redis, sink: &Sink, reply: &Reply<'_>) {
    match reply {
        Reply::Push(parts) => hand_on_push(redis, sink, parts),
        Reply::Oversize(parts, _) => match parts.as_slice() {
            [b"pmessage", _, channel] => sink(Heard::Oversize { channel }),
            // Not even the channel's name could be that of a user.
            [b"pmessage", _] => sink(Heard::Oversize { channel: b"" }),
            [b"message", channel] if *channel == redis.control_channel.as_bytes() => sink(Heard::Oversize { channel }),
            _ => {}
        },
        Reply::Status(_) | Reply::Error(_) => {}
    }
}

fn hand_on_push(redis: &Redis, sink: &Sink, parts: &Parts<'_>) {
    match parts.as_slice() {
        [b"pmessage", _, channel, payload] => {
            sink(Heard::Message { channel, payload });
            if payload.first() == Some(&STAMP) && redis.heard.lock().note(channel, payload) {
                redis.miss();
            }
        }
        [b"message", channel, payload] if *channel == redis.control_channel.as_bytes() => {
            sink(Heard::Control { payload });
        }
        [b"message", channel, payload] => {
            let presence = redis.presence_channel.as_ref().is_some_and(|name| name.as_bytes() == *channel);
            if let (true, Ok(event)) = (presence, str::from_utf8(payload)) {
                // Nobody watching the demo is fine.
                redis.events.send(event.into()).ok();
            }
        }
        _ => {}
    }
}
