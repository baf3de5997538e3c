//! Delivery to the clients connected here: the registry of connections, each with its send queue and its socket.

mod backlog;
mod catch_up;
mod held_request;
mod polling;
mod read_at;
mod registry;
mod send_queue;
mod socket;
mod tls;
mod tls_session;
mod user_map;

pub use backlog::Backlog;
pub use catch_up::{CatchUpPage, Position, StartPage};
pub use held_request::{HeldRequest, HttpSocket, Responded};
pub use polling::{NotHeld, PollingSocket};
pub use registry::{ConnectionHandle, CredentialSlot, PROBE_TIMEOUT, Registration, Registry};
pub use send_queue::{Driven, Pushed, SendQueue};
pub use socket::{Socket, limit_unacknowledged};
pub use tls::TlsSocket;
