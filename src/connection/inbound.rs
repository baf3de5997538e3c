//! The meaning of a read from the WebSocket library.

use std::ops::ControlFlow;

use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Error, Message, Result, Utf8Bytes};

use crate::protocol::Close;

/// An item of the library's stream.
pub(super) type Read = Option<Result<Message>>;

/// A text to handle, nothing to handle, or the end.
pub(super) type Inbound = ControlFlow<Close, Option<Utf8Bytes>>;

pub(super) fn inbound(read: Read) -> Inbound {
    match read {
        Some(Ok(Message::Text(text))) => ControlFlow::Continue(Some(text)),
        Some(Ok(Message::Binary(_))) => ControlFlow::Break(Close::Unsupported),
        Some(Ok(Message::Close(_))) => ControlFlow::Break(Close::Normal),
        Some(Ok(_)) => ControlFlow::Continue(None),
        Some(Err(Error::Capacity(_))) => ControlFlow::Break(Close::TooBig),
        Some(Err(Error::Utf8(_))) => ControlFlow::Break(Close::InvalidText),
        Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => ControlFlow::Break(Close::Gone),
        Some(Err(Error::Protocol(_))) => ControlFlow::Break(Close::Protocol),
        Some(Err(_)) | None => ControlFlow::Break(Close::Gone),
    }
}
