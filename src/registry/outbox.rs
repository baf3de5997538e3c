//! One connection's bounded queue of WebSocket frames, and the only place that writes to its socket.
//!
//! Whoever has a frame queues it here and then tries the socket at once, under the same lock: in the common case the
//! frame is on its way without waking the connection's task. What the socket does not take stays queued, and the task
//! writes it when the socket has room. Only whole frames enter the queue and the lock orders them, so frames are never
//! torn nor swapped, whoever writes them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::config::{Outbox as Bound, SlowClient};
use crate::protocol::Close;

/// An empty queue keeps no more room than this many frames.
const IDLE_CAPACITY: usize = 8;

/// Most frames in one write.
const MAX_SLICES: usize = 32;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// Queued into an empty queue: the caller owes a [`Outbox::flush`].
    First,
    /// Queued behind others.
    Behind,
    /// Queued, and this many older ones were dropped for it.
    Displaced(usize),
    /// The queue was full: the connection is being closed, and this many events are lost with it.
    Full(usize),
    /// The connection was being closed already.
    Closed,
}

/// What the connection's task has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driven {
    /// Somebody asked for the connection to be closed.
    Closing(Close),
    /// The socket's progress changed: since this moment it takes nothing, or it takes everything again.
    Stalled(Option<Instant>),
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Bytes>,
    bytes: usize,
    /// The front frame is partly on the socket, or is the greeting: it must go out, whatever happens to the others.
    front_begun: bool,
    /// Nothing is written between [`Outbox::hold`] and [`Outbox::open`].
    held: bool,
    stalled_since: Option<Instant>,
    closing: Option<Close>,
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    socket: TcpStream,
    state: Mutex<State>,
    waker: AtomicWaker,
}

impl Outbox {
    /// An empty outbox on this socket.
    #[must_use]
    pub fn new(socket: TcpStream) -> Self {
        let state = State {
            queue: VecDeque::new(),
            bytes: 0,
            front_begun: false,
            held: false,
            stalled_since: None,
            closing: None,
        };
        Self { socket, state: Mutex::new(state), waker: AtomicWaker::new() }
    }

    /// Keeps what is pushed from now on behind the greeting, which [`Outbox::open`] gives.
    pub fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Lets frames out, the greeting before anything that was pushed so far.
    pub fn open(&self, greeting: Option<Bytes>) {
        let mut state = self.state.lock();
        state.held = false;
        if let Some(frame) = greeting {
            state.bytes += frame.len();
            // Behind a frame that is half out, such as a pong from before the hello.
            let place = usize::from(state.front_begun);
            state.queue.insert(place, frame);
            // Not to be dropped for newer ones, as if it were half out itself.
            state.front_begun = true;
        }
        self.write_queued(&mut state);
    }

    /// Queues one event within the bound. A single event larger than the bound is taken by an empty queue.
    pub fn push(&self, frame: Bytes, bound: &Bound) -> Pushed {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return Pushed::Closed;
        }
        let mut dropped = 0;
        if state.is_full(frame.len(), bound) {
            // A burst is not a slow client: ask the socket before judging.
            self.write_queued(&mut state);
            while state.is_full(frame.len(), bound) {
                if bound.slow_client == SlowClient::Disconnect {
                    let lost = state.give_up(Close::TooSlow);
                    drop(state);
                    self.waker.wake();
                    return Pushed::Full(lost + 1);
                }
                if !state.drop_oldest() {
                    return Pushed::Displaced(1);
                }
                dropped += 1;
            }
        }
        let first = state.queue.is_empty();
        state.append(frame);
        match (dropped, first) {
            (0, true) => Pushed::First,
            (0, false) => Pushed::Behind,
            _ => Pushed::Displaced(dropped),
        }
    }

    /// Queues one of the connection's own frames, which are few, and tries the socket at once.
    pub fn send(&self, frame: Bytes) {
        let mut state = self.state.lock();
        state.append(frame);
        self.write_queued(&mut state);
    }

    /// As [`Outbox::send`], for others than the connection itself: unless it is being closed, since nothing may follow
    /// its close frame.
    pub fn send_while_open(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.append(frame);
            self.write_queued(&mut state);
        }
    }

    /// Writes what the socket takes now; the connection's task sees to the rest.
    pub fn flush(&self) {
        self.write_queued(&mut self.state.lock());
    }

    /// Asks the connection's task to close; the first reason stays.
    pub fn close(&self, close: Close) {
        self.state.lock().closing.get_or_insert(close);
        self.waker.wake();
    }

    /// Drives the queue towards the socket. Ready when the task has to act: a close was asked for, or the moment since
    /// which the socket takes nothing is not `armed` any more.
    pub fn poll_drive(&self, cx: &mut Context<'_>, armed: Option<Instant>) -> Poll<Driven> {
        self.waker.register(cx.waker());
        let _ = self.poll_flush(cx);
        let state = self.state.lock();
        match state.closing {
            Some(close) => Poll::Ready(Driven::Closing(close)),
            None if state.stalled_since != armed => Poll::Ready(Driven::Stalled(state.stalled_since)),
            None => Poll::Pending,
        }
    }

    /// Ready once nothing is queued any more.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            {
                let mut state = self.state.lock();
                self.write_queued(&mut state);
                if state.queue.is_empty() || state.held {
                    return Poll::Ready(Ok(()));
                }
            }
            ready!(self.socket.poll_write_ready(cx))?;
        }
    }

    /// As [`tokio::io::AsyncRead`] does, on the shared socket.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// Tells the client that nothing more comes: it sees the end behind the last frame.
    pub fn finish_writing(&self) {
        // A socket that is broken already has told it.
        SockRef::from(&self.socket).shutdown(Shutdown::Write).ok();
    }

    fn write_queued(&self, state: &mut State) {
        if state.held {
            return;
        }
        while !state.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut used = 0;
            for (slice, frame) in slices.iter_mut().zip(&state.queue) {
                *slice = IoSlice::new(frame);
                used += 1;
            }
            let written = match slices.get(..used) {
                Some([only]) => self.socket.try_write(only),
                Some(several) => self.socket.try_write_vectored(several),
                None => return,
            };
            match written {
                Ok(count) => state.advance(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Once: from here on the task waits for room, and waking it would only make it ask again.
                    if state.stalled_since.is_none() {
                        state.stalled_since = Some(Instant::now());
                        self.waker.wake();
                    }
                    return;
                }
                Err(_) => {
                    // The reading side of the task meets the same end; whatever was queued is lost with the client.
                    state.give_up(Close::Gone);
                    state.queue.clear();
                    state.bytes = 0;
                    state.front_begun = false;
                    self.waker.wake();
                }
            }
        }
        if state.stalled_since.take().is_some() {
            self.waker.wake();
        }
        if state.queue.capacity() > IDLE_CAPACITY {
            state.queue = VecDeque::new();
        }
    }
}

impl State {
    fn is_full(&self, more: usize, bound: &Bound) -> bool {
        self.queue.len() >= bound.max_messages || (self.bytes + more > bound.max_bytes && !self.queue.is_empty())
    }

    fn append(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.queue.push_back(frame);
    }

    /// Takes note of bytes that the socket took.
    fn advance(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        while let Some(front) = self.queue.front_mut() {
            if count < front.len() {
                self.front_begun |= count > 0;
                front.advance(count);
                break;
            }
            count -= front.len();
            self.front_begun = false;
            self.queue.pop_front();
        }
        if self.stalled_since.is_some() {
            self.stalled_since = Some(Instant::now());
        }
    }

    /// Drops everything but a frame that is half out; gives how many were dropped.
    fn give_up(&mut self, close: Close) -> usize {
        self.closing.get_or_insert(close);
        let keep = usize::from(self.front_begun);
        let lost = self.queue.len().saturating_sub(keep);
        self.queue.truncate(keep);
        self.bytes = self.queue.iter().map(Bytes::len).sum();
        lost
    }

    fn drop_oldest(&mut self) -> bool {
        match self.queue.remove(usize::from(self.front_begun)) {
            Some(frame) => {
                self.bytes = self.bytes.saturating_sub(frame.len());
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;
    use crate::protocol::text_frame;

    fn bound(max_messages: usize, slow_client: SlowClient) -> Bound {
        Bound { max_messages, max_bytes: 1 << 20, slow_client, write_timeout: Duration::from_secs(1) }
    }

    async fn pair() -> (Outbox, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(4_096).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
        let outbox = Outbox::new(near.unwrap());
        outbox.socket.writable().await.unwrap();
        (outbox, far.unwrap().0)
    }

    fn numbered(number: u32, size: usize) -> Bytes {
        text_frame(&[format!("{number:08}").as_bytes(), &vec![b'.'; size]])
    }

    #[tokio::test]
    async fn the_greeting_goes_before_what_was_pushed_earlier() {
        let (outbox, mut client) = pair().await;
        let limit = bound(8, SlowClient::Disconnect);
        outbox.hold();
        assert_eq!(outbox.push(text_frame(&[b"event"]), &limit), Pushed::First);
        outbox.flush();
        outbox.open(Some(text_frame(&[b"hello"])));
        let mut got = [0; 14];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x81\x05hello\x81\x05event");
    }

    #[tokio::test]
    async fn a_burst_beyond_the_bound_reaches_a_client_that_reads() {
        let (outbox, mut client) = pair().await;
        let limit = bound(4, SlowClient::Disconnect);
        for number in 0..40 {
            assert!(!matches!(outbox.push(numbered(number, 10), &limit), Pushed::Full(_)), "{number}");
        }
        outbox.flush();
        let mut got = vec![0; 40 * 20];
        client.read_exact(&mut got).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up_and_its_memory_with_it() {
        let (outbox, _client) = pair().await;
        let limit = bound(16, SlowClient::Disconnect);
        let lost = (0..10_000).find_map(|n| match outbox.push(numbered(n, 10_000), &limit) {
            Pushed::Full(lost) => Some(lost),
            _ => None,
        });
        assert!(lost.unwrap() >= 16, "{lost:?}");
        assert!(outbox.state.lock().queue.len() <= 1);
        assert_eq!(outbox.push(numbered(0, 1), &limit), Pushed::Closed);
        let driven = poll_fn(|cx| outbox.poll_drive(cx, None)).await;
        assert_eq!(driven, Driven::Closing(Close::TooSlow));
    }

    #[tokio::test]
    async fn dropping_the_oldest_keeps_the_order_and_whole_frames() {
        let (outbox, mut client) = pair().await;
        let limit = bound(16, SlowClient::DropOldest);
        let size = 10_000;
        for number in 0..2_000 {
            let pushed = outbox.push(numbered(number, size), &limit);
            assert!(!matches!(pushed, Pushed::Full(_) | Pushed::Closed));
        }
        let reader = async {
            let mut numbers = Vec::new();
            while numbers.last() != Some(&1_999) {
                let mut frame = vec![0; size + 8 + 4];
                client.read_exact(&mut frame).await.unwrap();
                assert_eq!(frame[..2], [0x81, 126]);
                numbers.push(std::str::from_utf8(&frame[4..12]).unwrap().parse::<u32>().unwrap());
            }
            numbers
        };
        let (numbers, flushed) = tokio::join!(reader, poll_fn(|cx| outbox.poll_flush(cx)));
        flushed.unwrap();
        assert!(numbers.len() < 2_000 && numbers.is_sorted(), "{numbers:?}");
    }

    #[tokio::test]
    async fn a_stall_is_told_once_and_its_end_too() {
        let (outbox, mut client) = pair().await;
        let limit = bound(1_000, SlowClient::Disconnect);
        let mut sent = 0;
        while outbox.state.lock().stalled_since.is_none() {
            outbox.push(numbered(0, 10_000), &limit);
            outbox.flush();
            sent += 10_012;
        }
        let Driven::Stalled(since) = poll_fn(|cx| outbox.poll_drive(cx, None)).await else { panic!("closing") };
        assert!(since.is_some());
        let mut got = vec![0; sent];
        let (_, flushed) = tokio::join!(client.read_exact(&mut got), poll_fn(|cx| outbox.poll_flush(cx)));
        flushed.unwrap();
        assert_eq!(poll_fn(|cx| outbox.poll_drive(cx, since)).await, Driven::Stalled(None));
    }

    #[tokio::test]
    async fn an_emptied_queue_gives_its_room_back() {
        let (outbox, mut client) = pair().await;
        let limit = bound(1_000, SlowClient::Disconnect);
        outbox.hold();
        for number in 0..100 {
            outbox.push(numbered(number, 1), &limit);
        }
        outbox.open(None);
        let mut got = vec![0; 100 * 11];
        client.read_exact(&mut got).await.unwrap();
        assert!(outbox.state.lock().queue.capacity() <= IDLE_CAPACITY);
    }
}
