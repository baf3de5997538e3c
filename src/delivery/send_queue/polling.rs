//! The send queue of a client that polls: see [`crate::delivery::PollingSocket`].

use std::sync::Arc;

use tokio::time::Instant;

use super::SendQueue;
use crate::delivery::{HeldRequest, HttpSocket, NotHeld, PollingSocket};

impl SendQueue {
    /// Holds a request of the client until there is a frame to respond with. `Err`: the client broke the protocol.
    pub fn hold(&self, request: HeldRequest) -> Result<(), NotHeld> {
        let mut state = self.state.lock();
        let polling = self.socket.polling().ok_or(NotHeld)?;
        polling.hold(request)?;
        self.write_queued(&mut state);
        polling.release_probed();
        self.write_queued(&mut state);
        Ok(())
    }

    /// Since when the client has had no request held; `None` while it has one, or if it does not poll.
    pub fn idle_since(&self) -> Option<Instant> {
        self.socket.polling()?.idle_since()
    }

    /// Whether the client waits for a response on this connection.
    pub fn is_held_on(&self, connection: &Arc<HttpSocket>) -> bool {
        self.socket.polling().is_some_and(|polling| polling.is_held_on(connection))
    }

    /// Since when the socket has accepted no bytes, although a request is held or the client does not poll.
    pub fn write_stall(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.stalled_since.filter(|_| self.idle_since().is_none())
    }

    /// While the client probes a WebSocket, its requests are answered at once.
    pub fn set_probed(&self, probed: bool) {
        let mut state = self.state.lock();
        if let Some(polling) = self.socket.polling() {
            polling.set_probed(probed);
            polling.release_probed();
            self.write_queued(&mut state);
        }
    }

    /// Responds to a held request without a frame.
    pub fn release(&self) {
        let mut state = self.state.lock();
        if let Some(polling) = self.socket.polling() {
            polling.release();
            self.write_queued(&mut state);
        }
    }

    /// Holds no further request, and drops the one that is held.
    pub fn abandon(&self) {
        self.socket.polling().into_iter().for_each(PollingSocket::abandon);
    }

    /// Moves a client that polls to a WebSocket, to which every frame is sent that no response has carried.
    /// `Err`: a response is still being sent.
    pub fn upgrade(&self, socket: Arc<HttpSocket>) -> Result<(), Arc<HttpSocket>> {
        let mut state = self.state.lock();
        let Some(polling) = self.socket.polling() else { return Err(socket) };
        polling.upgrade(socket)?;
        self.write_queued(&mut state);
        Ok(())
    }
}
