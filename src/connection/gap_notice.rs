//! Tells clients of a gap: while their instance had no subscription, events that are not stored may have been lost, and moves
//! of their read position.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::Context;
use crate::delivery::{ConnectionHandle, Registry};
use crate::history::Reading;
use crate::protocol::{DEFAULT_DEVICE, ServerFrame, UserId, millis};

/// Connections told without yielding.
const STEP: usize = 100;

/// Users whose read positions are read at a time.
const READS: usize = 64;

/// How often a client is looked at that has yet to receive stored events, and at which interval.
const ATTEMPTS: u32 = 8;
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub struct GapNotice {
    /// When the last message before the gap was received; of the first, if a gap ends while clients are told of another.
    since: Mutex<Option<Instant>>,
    ended: Notify,
}

impl GapNotice {
    /// Reports a gap that has ended. Never blocks.
    pub fn report(&self, since: Instant) {
        self.since.lock().get_or_insert(since);
        self.ended.notify_one();
    }

    /// Tells every connected client of each gap, and then of the read position of its device. Runs until dropped.
    pub async fn run(&self, context: &Context) {
        loop {
            self.ended.notified().await;
            let since = self.since.lock().take();
            if let Some(since) = since {
                tell_all(&context.registry, since).await;
                tell_read_positions(context).await;
            }
        }
    }
}

async fn tell_all(registry: &Registry, since: Instant) {
    let frame = ServerFrame::Gap { since_ms: millis(since.elapsed()) };
    for some in registry.handles().chunks(STEP) {
        some.iter().for_each(|handle| handle.tell_while_open(&frame));
        tokio::task::yield_now().await;
    }
}

async fn tell_read_positions(context: &Context) {
    let users = context.registry.user_ids();
    stream::iter(&users).for_each_concurrent(READS, |user| tell_read_position(context, user)).await;
}

/// Tells the user's clients of the read position of their device, if it has one. The unread count is of the newest position,
/// where the client must be: it counts the events that it receives by itself.
async fn tell_read_position(context: &Context, user: &UserId) {
    for (device, mut handles) in devices_of(&context.registry, user) {
        let device = device.as_deref().unwrap_or(DEFAULT_DEVICE);
        for _ in 0..ATTEMPTS {
            // A subscription that is lost again has another notice.
            let Some(Reading { newest, acked, unread, .. }) = context.history.positions(user, device).await else {
                return;
            };
            let Some(id) = acked else { break };
            let frame = ServerFrame::Read { device, id, unread };
            handles.retain(|handle| !handle.tell_at(&newest, &frame));
            if handles.is_empty() {
                break;
            }
            sleep(INTERVAL).await;
        }
    }
}

fn devices_of(registry: &Registry, user: &UserId) -> HashMap<Option<Box<str>>, Vec<Arc<ConnectionHandle>>> {
    let mut devices = HashMap::<_, Vec<_>>::new();
    registry.with(user.as_str(), |handles| {
        for handle in handles {
            devices.entry(registry.device(handle.id)).or_default().push(Arc::clone(handle));
        }
    });
    devices
}

/// Tells the clients of one user of a gap that has ended. Never blocks.
pub fn tell_user(registry: &Registry, user: &UserId, since: Instant) {
    let frame = ServerFrame::Gap { since_ms: millis(since.elapsed()) };
    registry.with(user.as_str(), |handles| handles.iter().for_each(|handle| handle.tell_while_open(&frame)));
}
