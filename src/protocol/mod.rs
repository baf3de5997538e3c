//! The wire protocol: ids, frames, close codes and dialects. Pure data and encoding, no I/O.

mod close;
mod command;
mod cursor;
mod dialect;
mod envelope;
mod frame;
mod id;
mod notice;
mod page;
mod room;
mod roster;
pub mod socketio;
mod sse;
mod start;
mod time;
mod trace;

pub use close::Close;
pub use command::{Command, CommandError, MAX_JTI_BYTES, Revocation};
pub use cursor::{BadCursorText, Continuity, Cursor};
pub use dialect::{DEFAULT_EVENT, Dialect, Encoded, Event, check_event_name, mark_replayed};
pub use envelope::{ENVELOPE_START, Envelope, EventName, MAX_ENVELOPE_BYTES, Stored, wrap, wrap_stored};
pub use frame::{BAD_FRAME, ClientFrame, FrameError, RETRY_MS, Retracted, ServerFrame, is_json, text_frame};
pub use id::{ConnectionId, CredentialId, InstanceId, UserId, UserIdError};
pub use notice::{NOTICE_START, Notice};
pub use page::{BadPageRequest, MAX_PAGE_ENTRIES, PageRequest, encode_page};
pub use room::{OldConnection, RoomMessage};
pub use roster::{OpenConnection, RosterAnswer, RosterQuestion};
pub use start::{BadDevice, DEFAULT_DEVICE, Resume, Start, check_device};
pub use time::{millis, unix_ms, unix_seconds};
pub use trace::traceparent;
