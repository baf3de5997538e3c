//! Engine.IO 4 and Socket.IO 5 as far as a gateway to users needs them: the packets of clients are parsed, within their own
//! size and without copying, and those of the server are written. One namespace, `/`; no binary data is kept.
//!
//! Crates that were considered, and are not used: `engineioxide-core` 0.2 is small and has no server of its own, but
//! requires a newer Rust than this project and a second base64, decodes bodies only as streams, and of the packets of
//! clients it judges a single byte. `socketioxide-parser-common` 0.17 passes the JSON of a packet on unchecked, drops an
//! ack id that is too large, and brings the adapters of its server. `rust_engineio` and `rust_socketio` 0.6 are clients:
//! their packets are private or copied, and they bring an HTTP client, an older WebSocket library and a second TLS.

mod auth;
mod event;
mod id;
mod packet;
mod reply;
mod session;

pub use auth::Auth;
pub use event::event;
pub use id::SessionId;
pub use packet::{BadPacket, ClientPacket, RESERVED_EVENTS, packets};
pub use reply::{
    CLOSE, DISCONNECT, NOOP, Open, PING, PROBED, SEPARATOR, UPGRADES, connected, invalid_namespace, refused,
};
pub use session::{Action, Session};
