//! Hears what is published: subscribes, hands each message on, and begins anew whenever the link fails.

use std::time::Duration;

use futures::StreamExt;
use redis::Msg;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::link::{CONNECT_DEADLINE, deadline};
use super::{Redis, SILENT_AFTER, Subscription};
use crate::backoff::Backoff;
use crate::backplane::{BackplaneError, Heard, Sink};

/// The one fixed pattern; a user's id never becomes part of a pattern.
const PATTERN: &str = "user:*";

/// Most messages routed before what they caused is written.
const BATCH: usize = 64;

/// Runs for ever; ends by being dropped.
pub(super) async fn run(redis: &Redis, sink: &Sink) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let why = match subscription(redis, sink, &mut backoff).await {
            Ok(ended) => {
                redis.metrics.backplane_gaps.inc();
                ended.to_owned()
            }
            Err(error) => {
                redis.metrics.backplane_errors.with_label_values(&[error.kind()]).inc();
                error.to_string()
            }
        };
        let delay = backoff.next_delay();
        warn!(%why, retry_ms = delay.as_millis(), "not subscribed to redis");
        redis.set_subscription(Subscription::Down { why });
        tokio::time::sleep(delay).await;
    }
}

/// Subscribes and hears until the subscription ends, and says how it did; an error is one that never came to hearing.
async fn subscription(redis: &Redis, sink: &Sink, backoff: &mut Backoff) -> Result<&'static str, BackplaneError> {
    let mut pubsub = redis.link.pubsub().await?;
    deadline(CONNECT_DEADLINE, async {
        pubsub.psubscribe(PATTERN).await?;
        pubsub.subscribe(&redis.probe_channel).await?;
        match &redis.presence_channel {
            Some(channel) => pubsub.subscribe(channel).await,
            None => Ok(()),
        }
    })
    .await?;
    info!("subscribed to redis");
    backoff.reset();
    redis.set_subscription(Subscription::Up { last_heard: Instant::now() });

    let (_sink_half, messages) = pubsub.split();
    let mut messages = messages.ready_chunks(BATCH);
    let mut watch = interval(Duration::from_secs(1));
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_heard = Instant::now();
    loop {
        tokio::select! {
            batch = messages.next() => {
                let Some(batch) = batch else { return Ok("the connection ended") };
                last_heard = Instant::now();
                batch.iter().for_each(|message| hand_on(redis, sink, message));
                sink(Heard::Pause);
            }
            _ = watch.tick() => {
                if last_heard.elapsed() > SILENT_AFTER {
                    return Ok("it went silent");
                }
                redis.set_subscription(Subscription::Up { last_heard });
            }
        }
    }
}

fn hand_on(redis: &Redis, sink: &Sink, message: &Msg) {
    let channel = message.get_channel_name();
    if message.from_pattern() {
        sink(Heard::Message { channel: channel.as_bytes(), payload: message.get_payload_bytes() });
    } else if redis.presence_channel.as_deref() == Some(channel)
        && let Ok(event) = str::from_utf8(message.get_payload_bytes())
    {
        // Nobody watching the demo is fine.
        redis.events.send(event.into()).ok();
    }
}
