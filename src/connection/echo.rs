//! A connection that sends every message back, for conformance tests: read, written, timed and closed as any other.
//!
//! What differs is what a message means: see [`send_back`].

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::live::Live;
use super::{Context, Inbound, Read, finish, inbound, open};
use crate::auth::Identity;
use crate::protocol::{Dialect, text_frame};
use crate::registry::Member;

/// The first byte of a binary frame that is a whole message (RFC 6455, section 5.2).
const FIN_BINARY: u8 = 0x82;

/// Runs one upgraded connection to its end. Nobody can publish to it: it is in no registry.
#[doc(hidden)]
pub async fn echo(context: Arc<Context>, socket: TcpStream, early: Vec<u8>, identity: Identity) {
    let (member, mut socket) = open(&context, socket, early, Dialect::Plain).await;
    let mut live = Live::new(&context, &member, identity);
    live.echo = true;
    let close = live.run(&mut socket).await;
    Box::pin(finish(&mut socket, &member, close)).await;
}

/// Binary messages too, which are otherwise closed with 1003. The way out is that of an event.
pub(super) fn send_back(read: Read, context: &Context, member: &Member) -> Inbound {
    let frame = match &read {
        Some(Ok(Message::Text(text))) => text_frame(&[text.as_bytes()]),
        Some(Ok(Message::Binary(data))) => binary_frame(data),
        _ => return inbound(read),
    };
    member.outbox.push(frame, &context.outbox);
    member.outbox.flush();
    ControlFlow::Continue(None)
}

fn binary_frame(data: &[u8]) -> Bytes {
    let mut frame = Vec::from(text_frame(&[data]));
    if let Some(first) = frame.first_mut() {
        *first = FIN_BINARY;
    }
    frame.into()
}
