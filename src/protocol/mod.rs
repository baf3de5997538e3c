//! The wire protocol: ids, frames, close codes and dialects. Pure data and encoding, no I/O.

mod close;
mod command;
mod cursor;
mod dialect;
mod envelope;
mod frame;
mod id;
mod start;
mod time;

pub use close::Close;
pub use command::{Command, CommandError, MAX_JTI_BYTES, Revocation};
pub use cursor::{BadCursorText, Continuity, Cursor};
pub use dialect::{DEFAULT_EVENT, Dialect, Encoded, Event, check_event_name};
pub use envelope::{ENVELOPE_START, Envelope, MAX_ENVELOPE_BYTES, wrap, wrap_stored};
pub use frame::{BAD_FRAME, ClientFrame, FrameError, ServerFrame, is_json, text_frame};
pub use id::{ConnectionId, CredentialId, InstanceId, UserId, UserIdError};
pub use start::{BadDevice, DEFAULT_DEVICE, Resume, Start, check_device};
pub use time::{millis, unix_ms, unix_seconds};
