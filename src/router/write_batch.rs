//! What is queued and still to be written.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::delivery::ConnectionHandle;
use crate::shutdown::Shutdown;

/// Fewer writes than this are done before another thread has been woken up for them.
const WORTH_A_THREAD: usize = 512;

/// What was queued for one user: while their messages come back to back they share a write, and the next one for
/// somebody else finds it done, with everything it touched still in the processor's cache.
#[derive(Debug)]
pub(super) struct WriteBatch {
    pub(super) user: String,
    /// Whose outbox was empty before.
    pub(super) handles: Vec<Arc<ConnectionHandle>>,
    /// Threads that may be asked to write for a user of many connections; as many as the machine has beside this one.
    helpers: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl WriteBatch {
    /// Nothing yet. `threads` are those of the machine, the router's own among them.
    pub(super) fn new(threads: usize, shutdown: Shutdown) -> Self {
        let helpers = Arc::new(Semaphore::new(threads.saturating_sub(1)));
        Self { user: String::new(), handles: Vec::new(), helpers, shutdown }
    }

    /// Writes it, with other threads where it is much. An outbox orders its writers, so whoever comes first is fine.
    pub(super) fn write(&mut self) {
        let share = self.handles.len().div_ceil(self.helpers.available_permits() + 1).max(WORTH_A_THREAD);
        while self.handles.len() > share
            && let Ok(helper) = Arc::clone(&self.helpers).try_acquire_owned()
        {
            let theirs = self.handles.split_off(self.handles.len() - share);
            // Not a task: one spawned here would wait in this worker's own slot until the router is done.
            self.shutdown.spawn_blocking(move || {
                theirs.iter().for_each(|handle| handle.queue.flush());
                drop(helper);
            });
        }
        for handle in self.handles.drain(..) {
            handle.queue.flush();
        }
    }
}
