//! A connection that sends every message back, for conformance tests. It is read, written, timed and closed as any other;
//! only [`send_back`] differs.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

use super::inbound::{Inbound, Read, inbound};
use super::websocket::finish;
use super::{Connection, Context};
use crate::delivery::{ConnectionHandle, Registry};
use crate::protocol::{UserId, text_frame};

/// The first byte of a binary frame that is a whole message (RFC 6455, section 5.2).
const FIN_BINARY: u8 = 0x82;

impl Connection {
    /// Runs to the connection's end. No message can be published to it: its registry is its own.
    pub async fn echo(mut self) {
        self.echo = true;
        let Ok(user) = UserId::new("echo") else { return };
        let registration = Arc::<Registry>::default().register(user, Arc::clone(&self.client.handle));
        let close = self.live(&registration).await;
        self.client.handle.queue.close(close);
        Box::pin(finish(&mut self.socket, &self.client.handle, close)).await;
    }
}

/// Sends a message back as an event is sent; also a binary one, which otherwise closes the connection with 1003.
pub(super) fn send_back(read: Read, context: &Context, handle: &ConnectionHandle) -> Inbound {
    let frame = match &read {
        Some(Ok(Message::Text(text))) => text_frame(&[text.as_bytes()]),
        Some(Ok(Message::Binary(data))) => binary_frame(data),
        _ => return inbound(read),
    };
    handle.queue.push(frame, None, &context.send_queue);
    handle.queue.flush();
    ControlFlow::Continue(None)
}

fn binary_frame(data: &[u8]) -> Bytes {
    let mut frame = Vec::from(text_frame(&[data]));
    if let Some(first) = frame.first_mut() {
        *first = FIN_BINARY;
    }
    frame.into()
}
