//! The connections whose queued frames are still to be written.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::sampler::Sampler;
use crate::delivery::ConnectionHandle;
use crate::shutdown::Shutdown;

/// Fewer writes than this finish before another thread would have been woken.
const WORTH_A_THREAD: usize = 512;

/// The connections of one user with queued frames. Consecutive messages of the user share one write, which is done
/// before the next user's message, while the data is still in the processor's cache.
#[derive(Debug)]
pub(super) struct WriteBatch {
    pub(super) user: String,
    /// Connections whose send queue was empty before.
    pub(super) handles: Vec<Arc<ConnectionHandle>>,
    pub(super) sampler: Sampler,
    /// Limits the other threads that write for a user with many connections.
    helpers: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl WriteBatch {
    /// `threads` includes the router's own.
    pub(super) fn new(threads: usize, shutdown: Shutdown) -> Self {
        let helpers = Arc::new(Semaphore::new(threads.saturating_sub(1)));
        Self { user: String::new(), handles: Vec::new(), sampler: Sampler::default(), helpers, shutdown }
    }

    /// Writes the frames, on several threads if there are many. Each send queue orders its writers.
    pub(super) fn write(&mut self) {
        let share = self.handles.len().div_ceil(self.helpers.available_permits() + 1).max(WORTH_A_THREAD);
        while self.handles.len() > share
            && let Ok(helper) = Arc::clone(&self.helpers).try_acquire_owned()
        {
            let share_of_helper = self.handles.split_off(self.handles.len() - share);
            // Not a task: one spawned here would stay in this worker's own slot until the router is done.
            self.shutdown.spawn_blocking(move || {
                share_of_helper.iter().for_each(|handle| handle.queue.flush());
                drop(helper);
            });
        }
        for handle in self.handles.drain(..) {
            handle.queue.flush();
        }
    }
}
