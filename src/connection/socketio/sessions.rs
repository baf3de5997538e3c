//! The polling sessions of this instance, by their id.

use std::sync::Arc;

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::polling::PollingSession;
use crate::protocol::socketio::SessionId;

/// As many as there are connections that poll, which the limits on connections bound.
#[derive(Debug, Default)]
pub struct PollingSessions(DashMap<SessionId, Arc<PollingSession>, RandomState>);

impl PollingSessions {
    pub fn get(&self, id: SessionId) -> Option<Arc<PollingSession>> {
        self.0.get(&id).map(|session| Arc::clone(&session))
    }

    pub(super) fn add(self: &Arc<Self>, id: SessionId, session: Arc<PollingSession>) -> Listed {
        self.0.insert(id, session);
        Listed { sessions: Arc::clone(self), id }
    }
}

/// Keeps a session listed until it is dropped.
#[derive(Debug)]
pub(super) struct Listed {
    sessions: Arc<PollingSessions>,
    id: SessionId,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.sessions.0.remove(&self.id);
    }
}
