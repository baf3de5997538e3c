//! What goes over the wire: ids, frames, close codes and the dialects that clients speak.
//!
//! Pure data and encoding; no I/O.

mod close;
mod command;
mod dialect;
mod frame;
mod id;

pub use close::Close;
pub use command::{Command, CommandError, MAX_JTI_BYTES, Revocation};
pub use dialect::{Dialect, Encoded, Event};
pub use frame::{BAD_FRAME, ClientFrame, FrameError, ServerFrame, is_json, text_frame};
pub use id::{ConnectionId, CredentialId, InstanceId, UserId, UserIdError};
