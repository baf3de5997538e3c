//! Delivery to the clients connected here: the registry of connections, each with its send queue and its socket.

mod backlog;
mod catch_up;
mod registry;
mod send_queue;
mod socket;
mod tls;

pub use backlog::Backlog;
pub use catch_up::{CatchUpPage, Position};
pub use registry::{ConnectionHandle, CredentialSlot, Registration, Registry};
pub use send_queue::{Driven, Pushed, SendQueue};
pub use socket::Socket;
