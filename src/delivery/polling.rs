//! The socket of a client that polls: it accepts frames only while a request of the client is held, and sends them as the
//! body of its response. It becomes a WebSocket's socket when the client upgrades.
//!
//! Only whole frames leave the send queue, so that an upgrade neither loses nor repeats one.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::held_request::{HeldRequest, HttpSocket};

/// Separates the packets of one body (Engine.IO 4).
const SEPARATOR: u8 = 0x1e;

/// The packet that ends a request with nothing to send.
const NOOP: &[u8] = b"6";

/// Responses without a packet during one probe: a client sends very few requests before it stops polling.
const MAX_NOOPS: u8 = 16;

#[derive(Debug)]
pub struct PollingSocket {
    state: Mutex<State>,
    /// The socket that the client has moved to.
    upgraded: OnceLock<Arc<HttpSocket>>,
    /// Maximum size of a body, unless one frame is larger.
    max_bytes: usize,
}

#[derive(Debug)]
struct State {
    exchange: Exchange,
    /// The connection's task, if it waits for a request.
    waker: Option<Waker>,
    /// How many more requests are answered without a packet, so that the client can move to a WebSocket.
    noops: u8,
}

#[derive(Debug)]
enum Exchange {
    /// No request has been held since this time.
    Idle(Instant),
    Held(HeldRequest),
    /// The bytes of the response that its socket has not accepted.
    Responding(HeldRequest, Bytes),
    /// The session has ended.
    Over,
}

/// The client has sent a request although an earlier one is held, or has moved to a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotHeld;

impl PollingSocket {
    pub fn new(max_bytes: usize) -> Self {
        let state = State { exchange: Exchange::Idle(Instant::now()), waker: None, noops: 0 };
        Self { state: Mutex::new(state), upgraded: OnceLock::new(), max_bytes }
    }

    /// Holds a request until [`PollingSocket::try_write_first`] responds to it.
    pub(super) fn hold(&self, request: HeldRequest) -> Result<(), NotHeld> {
        let mut state = self.state.lock();
        if self.upgraded.get().is_some() || !matches!(state.exchange, Exchange::Idle(_)) {
            return Err(NotHeld);
        }
        state.exchange = Exchange::Held(request);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    /// Holds no further request.
    pub(super) fn abandon(&self) {
        let exchange = std::mem::replace(&mut self.state.lock().exchange, Exchange::Over);
        if let Exchange::Held(request) = exchange {
            request.refuse();
        }
    }

    /// Since when no request has been held.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        match &self.state.lock().exchange {
            Exchange::Idle(since) if self.upgraded.get().is_none() => Some(*since),
            _ => None,
        }
    }

    /// Whether a request of this connection is held, or its response is not complete.
    pub(super) fn is_held_on(&self, connection: &Arc<HttpSocket>) -> bool {
        match &self.state.lock().exchange {
            Exchange::Held(request) | Exchange::Responding(request, _) => request.is_on(connection),
            Exchange::Idle(_) | Exchange::Over => false,
        }
    }

    /// During a probe, requests are not held: the client waits for their responses before it moves to a WebSocket.
    pub(super) fn set_probed(&self, probed: bool) {
        self.state.lock().noops = if probed { MAX_NOOPS } else { 0 };
    }

    /// Responds to a request that is held during a probe, and so must not wait for a frame.
    pub(super) fn release_probed(&self) {
        let mut state = self.state.lock();
        if state.noops > 0 && matches!(state.exchange, Exchange::Held(_)) {
            state.noops -= 1;
            state.release();
        }
    }

    /// Responds to a held request without a frame.
    pub(super) fn release(&self) {
        self.state.lock().release();
    }

    /// Moves to a WebSocket's socket, unless a response is still being sent; then the caller retries.
    pub(super) fn upgrade(&self, socket: Arc<HttpSocket>) -> Result<(), Arc<HttpSocket>> {
        let mut state = self.state.lock();
        // A client that follows the protocol has no request open. A broken one ends the connection at the next write.
        state.release();
        if matches!(state.exchange, Exchange::Responding(..)) {
            return Err(socket);
        }
        self.upgraded.set(socket)?;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    /// Accepts whole frames; [`ErrorKind::WouldBlock`] while no request is held.
    pub(super) fn try_write_first<'a>(&self, frames: impl ExactSizeIterator<Item = &'a [u8]>) -> io::Result<usize> {
        if let Some(upgraded) = self.upgraded.get() {
            return upgraded.socket.try_write_first(frames);
        }
        let mut state = self.state.lock();
        state.finish_response()?;
        if !matches!(state.exchange, Exchange::Held(_)) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let (accepted, body) = join_packets(frames, self.max_bytes);
        // Frames without bytes only move the client's position.
        if body.is_empty() {
            return Ok(accepted);
        }
        match state.respond(body) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(accepted),
        }
    }

    pub(super) fn try_flush(&self) -> io::Result<()> {
        match self.upgraded.get() {
            Some(upgraded) => upgraded.socket.try_flush(),
            None => self.state.lock().finish_response(),
        }
    }

    /// The bytes accepted from the send queue that the kernel has not accepted.
    pub(super) fn unsent(&self) -> usize {
        match &self.state.lock().exchange {
            Exchange::Responding(_, rest) => rest.len(),
            _ => 0,
        }
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.lock();
        if let Some(upgraded) = self.upgraded.get() {
            return upgraded.socket.poll_write_ready(cx);
        }
        match &state.exchange {
            Exchange::Held(_) => Poll::Ready(Ok(())),
            Exchange::Responding(request, _) => request.socket().poll_write_ready(cx),
            Exchange::Idle(_) | Exchange::Over => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// A WebSocket is read once the client has moved to it; its requests are read by their connections.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.upgraded.get().map_or(Poll::Pending, |upgraded| upgraded.socket.poll_read(cx, buf))
    }

    pub(super) fn finish_writing(&self) {
        self.upgraded.get().into_iter().for_each(|upgraded| upgraded.socket.finish_writing());
    }
}

impl State {
    /// Ends the held request without a frame. The next write reports an error of its socket.
    fn release(&mut self) {
        let _ = self.respond(NOOP.into());
    }

    /// Sends a body as the response to the held request, if there is one.
    fn respond(&mut self, body: Vec<u8>) -> io::Result<()> {
        let exchange = std::mem::replace(&mut self.exchange, Exchange::Idle(Instant::now()));
        let Exchange::Held(request) = exchange else {
            self.exchange = exchange;
            return Ok(());
        };
        let head = request.head(body.len());
        let accepted = match request.socket().try_write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            accepted => accepted?,
        };
        let rest = match accepted.checked_sub(head.len()) {
            Some(of_body) => Bytes::from(body).slice(of_body..),
            None => [head.get(accepted..).unwrap_or_default(), &body].concat().into(),
        };
        self.exchange = Exchange::Responding(request, rest);
        self.finish_response()
    }

    /// Sends the rest of a response; [`ErrorKind::WouldBlock`] if some of it is left.
    fn finish_response(&mut self) -> io::Result<()> {
        let Exchange::Responding(request, rest) = &mut self.exchange else { return Ok(()) };
        while !rest.is_empty() {
            let accepted = request.socket().try_write_vectored(&[IoSlice::new(rest)])?;
            rest.advance(accepted);
        }
        request.socket().try_flush()?;
        let responded = std::mem::replace(&mut self.exchange, Exchange::Idle(Instant::now()));
        if let Exchange::Responding(request, _) = responded {
            request.responded();
        }
        Ok(())
    }
}

/// Joins the packets in the first of these text frames; returns the size of those frames, too.
fn join_packets<'a>(frames: impl Iterator<Item = &'a [u8]>, most: usize) -> (usize, Vec<u8>) {
    let (mut accepted, mut body) = (0, Vec::new());
    for frame in frames.filter(|frame| !frame.is_empty()) {
        let packet = packet(frame);
        if accepted > 0 {
            if body.len() + 1 + packet.len() > most {
                break;
            }
            body.push(SEPARATOR);
        }
        body.extend_from_slice(packet);
        accepted += frame.len();
    }
    (accepted, body)
}

/// The payload of an unmasked WebSocket frame (RFC 6455, section 5.2).
fn packet(frame: &[u8]) -> &[u8] {
    let header = match frame.get(1) {
        Some(127) => 10,
        Some(126) => 4,
        _ => 2,
    };
    frame.get(header..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
