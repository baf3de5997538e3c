//! A request that is held until there is something to respond with, and the HTTP connection that it came on.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::task::AtomicWaker;

use super::socket::Socket;

/// The socket of an HTTP connection. Its task reads from it; while a request is held, others may write the response.
#[derive(Debug)]
pub struct HttpSocket {
    pub(super) socket: Socket,
    response: AtomicU8,
    waker: AtomicWaker,
}

const HELD: u8 = 0;
const RESPONDED: u8 = 1;
const REFUSED: u8 = 2;
const TORN: u8 = 3;

/// The end of a request that was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Responded {
    /// It has its response.
    Complete,
    /// It has none: its session ended before.
    Refused,
    /// Its response is not complete, and never will be.
    Torn,
}

impl HttpSocket {
    pub fn new(socket: Socket) -> Arc<Self> {
        Arc::new(Self { socket, response: AtomicU8::new(RESPONDED), waker: AtomicWaker::new() })
    }

    /// Like [`tokio::io::AsyncRead`], on a shared socket.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, buf)
    }

    /// Writes a whole response, while no request is held.
    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        poll_fn(|cx| {
            loop {
                let result = match bytes {
                    [] => self.socket.try_flush().map(|()| 0),
                    rest => self.socket.try_write_vectored(&[IoSlice::new(rest)]),
                };
                match result {
                    Ok(_) if bytes.is_empty() => return Poll::Ready(Ok(())),
                    Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.socket.poll_write_ready(cx))?,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        })
        .await
    }

    /// The socket, for another use; `None` while a writer of the last response still has it.
    pub fn into_socket(self: Arc<Self>) -> Option<Socket> {
        Arc::into_inner(self).map(|connection| connection.socket)
    }

    /// Shuts down writing: the client sees the end of the stream after the last byte.
    pub fn finish_writing(&self) {
        self.socket.finish_writing();
    }

    /// Ready once no request is held.
    pub fn poll_responded(&self, cx: &mut Context<'_>) -> Poll<Responded> {
        self.waker.register(cx.waker());
        match self.response.load(Ordering::Acquire) {
            HELD => Poll::Pending,
            RESPONDED => Poll::Ready(Responded::Complete),
            REFUSED => Poll::Ready(Responded::Refused),
            _ => Poll::Ready(Responded::Torn),
        }
    }

    fn end(&self, response: u8) {
        self.response.store(response, Ordering::Release);
        self.waker.wake();
    }
}

/// Dropped before its response is complete, it ends its connection.
#[derive(Debug)]
pub struct HeldRequest {
    connection: Arc<HttpSocket>,
    /// The head of the response, up to its length.
    head: Bytes,
    is_answered: bool,
}

impl HeldRequest {
    /// `head` is that of the response, without its length and the empty line.
    pub fn new(connection: Arc<HttpSocket>, head: Bytes) -> Self {
        connection.response.store(HELD, Ordering::Release);
        Self { connection, head, is_answered: false }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.connection.socket
    }

    pub(super) fn is_on(&self, connection: &Arc<HttpSocket>) -> bool {
        Arc::ptr_eq(&self.connection, connection)
    }

    /// The head of the response with a body of this length.
    pub(super) fn head(&self, length: usize) -> Vec<u8> {
        let length = format!("content-length: {length}\r\n\r\n");
        [&*self.head, length.as_bytes()].concat()
    }

    /// The response is complete; from here on, the connection may hold its next request.
    pub(super) fn responded(mut self) {
        self.is_answered = true;
        self.connection.end(RESPONDED);
    }

    /// There is no response, of which no byte may have been sent.
    pub(super) fn refuse(mut self) {
        self.is_answered = true;
        self.connection.end(REFUSED);
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        if !self.is_answered {
            self.connection.end(TORN);
        }
    }
}
