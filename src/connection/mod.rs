//! A connection: greeted, live, closed. One task owns it from the handshake to the end.

mod channel;
mod client;
mod clock;
mod cold;
mod drain;
mod echo;
mod event_stream;
mod gap_notice;
mod inbound;
mod live;
mod page_requests;
mod refusals;
mod socket;
mod socketio;
mod websocket;

use std::sync::Arc;

use tokio::time::Instant;

use crate::auth::{Authenticator, Identity};
use crate::config;
use crate::delivery::{Backlog, Registry};
use crate::history::{Acks, History};
use crate::limits::Limiter;
use crate::metrics::Metrics;
use crate::protocol::{InstanceId, Start};
use crate::redis::UserChannels;
use crate::shutdown::Shutdown;
pub use drain::drain;
pub use event_stream::{COMMENT, EventStream};
pub use gap_notice::{GapNotice, tell_user};
pub use refusals::{Known, Peer, Refusals};
pub use socketio::{
    NotPosted, PollingSession, PollingSessions, Probe, Seat, SocketIo, SocketIoHandshake, Unidentified, Upgrade,
};
pub use websocket::Connection;

/// Shared by all connections of an instance.
#[derive(Debug)]
pub struct Context {
    pub instance: InstanceId,
    pub server: config::Server,
    pub send_queue: config::SendQueue,
    pub limits: config::LiveLimits,
    pub limiter: Limiter,
    /// The bytes in all send queues.
    pub backlog: Arc<Backlog>,
    pub authenticator: Authenticator,
    pub registry: Arc<Registry>,
    /// See [`crate::backplane::Backplane::user_channels`].
    pub channels: Option<Arc<UserChannels>>,
    pub history: Arc<History>,
    pub acks: Arc<Acks>,
    /// The sessions of clients that poll.
    pub polling: Arc<PollingSessions>,
    pub metrics: Arc<Metrics>,
    pub refusals: Refusals,
    pub shutdown: Shutdown,
}

/// An accepted handshake, whose response is not sent yet.
#[derive(Debug)]
pub struct Handshake {
    /// `None`: the client must send a `hello`.
    pub identity: Option<Identity>,
    pub start: Start,
    /// The head of the response.
    pub head: Vec<u8>,
    pub peer: Peer,
    /// When the request had been read.
    pub begun: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that a function returns.
    fn size_of_future<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// tokio adds some 120 bytes to a task, and rounds up to a multiple of 128.
    #[test]
    fn the_task_of_a_connection_has_640_bytes_and_that_of_a_socket_io_client_896() {
        for (run, bytes, task) in [
            ("websocket", size_of_future(Connection::run), 640),
            ("sse", size_of_future(EventStream::run), 640),
            ("socketio", size_of_future(SocketIo::run), 896),
        ] {
            assert!(bytes + 120 <= task, "{run}: {bytes}");
        }
    }
}
