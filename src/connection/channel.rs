//! The subscription to a user's channel, where an instance receives only the messages of its own users.
//!
//! It is confirmed before the history is read and the client is greeted, so that no later message is missed. A client is
//! not refused for a confirmation that does not come: it is greeted, and compared with the history afterwards.

use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, timeout};

use super::client::Client;
use crate::protocol::{ServerFrame, UserId, millis};
use crate::redis::UserChannel;

/// How long a greeting waits for the confirmation.
const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(1);

/// The start of a subscription that was not confirmed in time.
pub(super) type Late = Option<Instant>;

/// Waits for the subscription to the channel.
pub(super) async fn subscribed(channel: Option<&UserChannel>) -> Late {
    let (channel, since) = (channel?, Instant::now());
    // Without a connection to Redis it is not confirmed either, but then all clients are compared later.
    timeout(SUBSCRIBE_DEADLINE, channel.subscribed()).await.is_err().then_some(since)
}

impl Client {
    /// Keeps the user's channel subscribed to as long as this connection exists.
    pub(super) fn want_channel(&mut self, user: &UserId) {
        self.channel = self.context.channels.as_ref().map(|channels| Box::new(channels.want(user)));
    }

    /// Goes on waiting for the subscription after the greeting.
    pub(super) fn greeted_late(&mut self, since: Instant) {
        let Some(channel) = &self.channel else { return };
        if let Some(channels) = &self.context.channels {
            channels.count_late();
        }
        let subscribed = channel.subscribed();
        let subscribing = async move { subscribed.await.then_some(since) }.boxed();
        self.cold.get_or_insert_default().subscribing = Some(subscribing);
    }

    /// Tells the client that events may be missing, and has those read that are stored.
    pub(super) fn subscribed_late(&self, since: Instant) {
        self.handle.tell(&ServerFrame::Gap { since_ms: millis(since.elapsed()) });
        self.handle.queue.fall_behind();
    }
}
