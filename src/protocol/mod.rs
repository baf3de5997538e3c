//! What goes over the wire: ids, frames, close codes and the dialects that clients speak.
//!
//! Pure data and encoding; no I/O.

mod close;
mod command;
mod cursor;
mod dialect;
mod frame;
mod id;
mod stamp;
mod start;

pub use close::Close;
pub use command::{Command, CommandError, MAX_JTI_BYTES, Revocation};
pub use cursor::{BadCursorText, Cursor, Following};
pub use dialect::{BadEventName, DEFAULT_EVENT, Dialect, Encoded, Event, check_event_name};
pub use frame::{BAD_FRAME, ClientFrame, FrameError, ServerFrame, is_json, text_frame};
pub use id::{ConnectionId, CredentialId, InstanceId, UserId, UserIdError};
pub use stamp::{MAX_STAMP_BYTES, STAMP, Stamped, stamp, stamp_stored};
pub use start::{BadDevice, DEFAULT_DEVICE, Resume, Start, check_device};
