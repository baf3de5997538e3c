//! For this project's own tests, benchmarks, fuzz targets and examples; no other program may rely on it.

use crate::Gateway;
pub use crate::auth::{Identity, TokenError, Verifier, cookie};
pub use crate::backoff::Backoff;
pub use crate::backplane::{Backplane, BackplaneEvent};
pub use crate::config::{SendQueue as SendQueueConfig, SlowClient};
pub use crate::connection::{Connection, Context};
pub use crate::delivery::{
    Backlog, ConnectionHandle, CredentialSlot, Driven, Pushed, Registration, Registry, SendQueue, Socket,
};
pub use crate::escalation::start_with_layout as start_escalation_with_layout;
pub use crate::history::{
    Ack, Acked, Acks, HistoryStore, Layout, MAX_DEVICES, Move, NewestPage, PageSize, Publication, Published, ReadFrom,
    ReadPosition, Reading, Retracted,
};
pub use crate::lease_watch::LeaseWatch;
pub use crate::limits::{AdmissionPermits, Claim, RedisLimits};
pub use crate::metrics::{Format as MetricsFormat, Metrics};
pub use crate::outbox::{start as start_outbox_relay, start_with_layout as start_outbox_relay_with_layout};
pub use crate::presence::{Batch, Ledger, PageCursor, PresenceStore, run_reaper};
pub use crate::protocol::{
    BadPageRequest, ClientFrame, Command, ConnectionId, Cursor, Dialect, Encoded, Envelope, Event, FrameError,
    InstanceId, MAX_JTI_BYTES, MAX_PAGE_ENTRIES, Notice, PageRequest, Revocation, Start, Stored, UserId, is_json,
    socketio, text_frame,
};
pub use crate::redis::resp;
pub use crate::router::Router;
pub use crate::server::{client_address, read_header};
pub use crate::shutdown::Shutdown;

/// Reads all whole replies of a buffer; gives how many there are.
pub fn count_replies(mut buffer: &[u8]) -> usize {
    let mut count = 0;
    while let Ok(Some((reply, consumed))) = resp::read(buffer, usize::MAX) {
        std::hint::black_box(reply);
        buffer = buffer.get(consumed..).unwrap_or_default();
        count += 1;
    }
    count
}

/// The context of an instance's connections.
pub fn context(gateway: &Gateway) -> &std::sync::Arc<Context> {
    gateway.context()
}
