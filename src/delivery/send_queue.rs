//! One connection's bounded queue of WebSocket frames, and the only code that writes to its socket.
//!
//! A task that sends a frame queues it here and then writes to the socket under the same lock, usually without waking
//! the connection's task. Bytes that the socket does not accept stay queued, and the connection's task writes them when
//! the socket has room. Only whole frames enter the queue and the lock orders them, so frames are never torn nor
//! reordered.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::backlog::{Backlog, Share};
use super::catch_up::{CatchUp, CatchUpPage, Position, Replayed};
use super::socket::Socket;
use crate::config::{SendQueue as Bound, SlowClient};
use crate::protocol::{Close, Continuity, Cursor};

const MAX_SLICES: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// Queued into an empty queue: the caller owes a [`SendQueue::flush`].
    First,
    /// Queued behind others.
    Behind,
    /// Pending, or left to be read from the history, until the client has caught up.
    Pending,
    /// The client has it already.
    Known,
    /// Queued, and this many older events were dropped for it.
    Displaced(usize),
    /// The queue was full: the connection is closing, and this many events are lost.
    Full(usize),
    /// The connection was already closing.
    Closed,
}

/// An event that the connection's task must handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driven {
    Closing(Close),
    /// The socket has accepted no bytes since this time, or it is no longer stalled.
    Stalled(Option<Instant>),
    /// The client is behind and its socket is not stalled: the history must be read.
    Behind,
}

#[derive(Debug)]
struct Frame {
    bytes: Bytes,
    /// A stored event is never dropped to make room for others.
    stored: bool,
}

#[derive(Debug)]
struct State {
    /// Oldest first. One frame is stored inline: most connections never queue a second one.
    queue: SmallVec<[Frame; 1]>,
    bytes: usize,
    /// The front frame is partly written, or is the greeting: it must be sent, even if the others are dropped.
    front_begun: bool,
    /// No frame is written between [`SendQueue::pause`] and [`SendQueue::start`].
    paused: bool,
    stalled_since: Option<Instant>,
    closing: Option<Close>,
    catch_up: CatchUp,
    share: Share,
}

#[derive(Debug)]
pub struct SendQueue {
    socket: Socket,
    state: Mutex<State>,
    waker: AtomicWaker,
}

impl SendQueue {
    pub fn new(socket: Socket, backlog: Arc<Backlog>) -> Self {
        let state = State {
            queue: SmallVec::new(),
            bytes: 0,
            front_begun: false,
            paused: false,
            stalled_since: None,
            closing: None,
            catch_up: CatchUp::new(),
            share: Share::new(backlog),
        };
        Self { socket, state: Mutex::new(state), waker: AtomicWaker::new() }
    }

    /// Holds all frames until [`SendQueue::start`] sends the greeting, and all events until [`SendQueue::replay`].
    pub fn pause(&self) {
        let mut state = self.state.lock();
        state.paused = true;
        state.catch_up.pause();
    }

    /// Sets the client's position, before [`SendQueue::replay`].
    pub fn start_at(&self, position: Position) {
        self.state.lock().catch_up.set(position);
    }

    /// Sends a page of the history and the pending events after it; `None` if the history could not be read. Returns
    /// the number of events sent, and of pending events dropped because tidings did not publish them.
    pub fn replay(&self, page: Option<CatchUpPage>) -> (usize, usize) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return (0, 0);
        }
        let Replayed { events, foreign } = match page {
            Some(page) => state.catch_up.replay(page),
            None => state.catch_up.replay_unread(),
        };
        let sent = events.len();
        for (stored, bytes) in events {
            state.append(Frame { bytes, stored });
        }
        self.write_queued(&mut state);
        // No wake: the caller is the connection's task, which drives the queue next.
        state.update_share();
        (sent, foreign)
    }

    /// Compares the client with the user's newest stored position, and starts catch-up if it is behind. Returns whether
    /// it is.
    pub fn compare(&self, newest: &Cursor) -> bool {
        let mut state = self.state.lock();
        let behind = state.closing.is_none() && state.catch_up.compare(newest);
        drop(state);
        if behind {
            self.waker.wake();
        }
        behind
    }

    /// Starts a read of the history; returns the position to read from.
    pub fn begin_reading(&self) -> Position {
        self.state.lock().catch_up.begin_reading()
    }

    /// Ends the pause. The greeting is sent before all frames pushed so far.
    pub fn start(&self, greeting: Option<Bytes>) {
        let mut state = self.state.lock();
        state.paused = false;
        if let Some(bytes) = greeting {
            state.bytes += bytes.len();
            // After a partly written frame, such as a pong from before the hello.
            let position = usize::from(state.front_begun);
            state.queue.insert(position, Frame { bytes, stored: false });
            // Protects the greeting from being dropped.
            state.front_begun = true;
        }
        self.write_queued(&mut state);
        state.update_share();
    }

    /// Queues one event, `stored` at this position. An empty queue accepts even an event larger than the bound.
    pub fn push(&self, bytes: Bytes, stored: Option<&Cursor>, bound: &Bound) -> Pushed {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return Pushed::Closed;
        }
        if state.catch_up.is_pending() {
            return self.keep_pending(state, bytes, stored, bound);
        }
        match stored.map(|cursor| state.catch_up.followed_by(cursor)) {
            Some(Continuity::Known) => Pushed::Known,
            Some(Continuity::Gap) => {
                state.catch_up.fall_behind();
                self.keep_pending(state, bytes, stored, bound)
            }
            None | Some(Continuity::Next) => self.queue(state, bytes, stored, bound),
        }
    }

    fn queue(&self, mut state: MutexGuard<'_, State>, bytes: Bytes, stored: Option<&Cursor>, bound: &Bound) -> Pushed {
        let mut dropped = 0;
        if state.is_full(bytes.len(), bound) {
            // A burst does not mean a slow client: try the socket first.
            self.write_queued(&mut state);
            while state.is_full(bytes.len(), bound) {
                if bound.slow_client == SlowClient::Disconnect {
                    let lost = state.give_up(Close::TooSlow);
                    drop(state);
                    self.waker.wake();
                    return Pushed::Full(lost + 1);
                }
                if !state.could_take(bytes.len(), bound) || !state.drop_oldest() {
                    if stored.is_none() {
                        return Pushed::Displaced(dropped + 1);
                    }
                    // It will be read from the history once there is room.
                    state.catch_up.fall_behind();
                    drop(state);
                    self.waker.wake();
                    return if dropped == 0 { Pushed::Pending } else { Pushed::Displaced(dropped) };
                }
                dropped += 1;
            }
        }
        let first = state.queue.is_empty();
        state.append(Frame { bytes, stored: stored.is_some() });
        if let Some(cursor) = stored {
            state.catch_up.set(Position::At(*cursor));
        }
        if state.stalled_since.is_some() && state.update_share() {
            drop(state);
            self.waker.wake();
            return Pushed::Full(dropped);
        }
        match (dropped, first) {
            (0, true) => Pushed::First,
            (0, false) => Pushed::Behind,
            _ => Pushed::Displaced(dropped),
        }
    }

    /// Keeps an event until the client has caught up with the history.
    fn keep_pending(
        &self,
        mut state: MutexGuard<'_, State>,
        bytes: Bytes,
        stored: Option<&Cursor>,
        bound: &Bound,
    ) -> Pushed {
        let mut lost = 0;
        if !state.catch_up.has_room(bytes.len(), bound) {
            // The stored events can be read from the history; the others are not guaranteed before the greeting.
            lost = state.catch_up.drop_pending();
            if lost + usize::from(stored.is_none()) > 0 && !state.paused && bound.slow_client == SlowClient::Disconnect
            {
                lost += state.give_up(Close::TooSlow) + usize::from(stored.is_none());
                drop(state);
                self.waker.wake();
                return Pushed::Full(lost);
            }
        }
        state.catch_up.add_pending(stored.copied(), bytes);
        let crowded = state.update_share();
        let wake = crowded || state.catch_up.wants_reading();
        drop(state);
        if wake {
            self.waker.wake();
        }
        match (crowded, lost) {
            (true, _) => Pushed::Full(lost),
            (false, 0) => Pushed::Pending,
            (false, _) => Pushed::Displaced(lost),
        }
    }

    /// Queues one of the connection's own frames, which are few, and writes to the socket at once.
    pub fn send(&self, frame: Bytes) {
        let mut state = self.state.lock();
        state.append(Frame { bytes: frame, stored: false });
        self.write_queued(&mut state);
    }

    /// Like [`SendQueue::send`], for other tasks: does nothing if the connection is closing, since no frame may follow
    /// its close frame.
    pub fn send_while_open(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.append(Frame { bytes: frame, stored: false });
            self.write_queued(&mut state);
        }
    }

    /// Writes as much as the socket accepts now; the connection's task writes the rest.
    pub fn flush(&self) {
        self.write_queued(&mut self.state.lock());
    }

    /// Requests the connection's task to close; the first reason is kept.
    pub fn close(&self, close: Close) {
        self.state.lock().closing.get_or_insert(close);
        self.waker.wake();
    }

    /// Writes queued frames to the socket. Ready when the task must act. `armed` is the start of the stall for which
    /// the task has set its write timeout.
    pub fn poll_drive(&self, cx: &mut Context<'_>, armed: Option<Instant>) -> Poll<Driven> {
        self.waker.register(cx.waker());
        let _ = self.poll_flush(cx);
        let state = self.state.lock();
        match state.closing {
            Some(close) => Poll::Ready(Driven::Closing(close)),
            None if state.stalled_since != armed => Poll::Ready(Driven::Stalled(state.stalled_since)),
            None if state.stalled_since.is_none() && state.catch_up.wants_reading() => Poll::Ready(Driven::Behind),
            None => Poll::Pending,
        }
    }

    /// Ready once the queue is empty, or while it is paused.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            {
                let mut state = self.state.lock();
                self.write_queued(&mut state);
                // Not stalled: the kernel has all queued bytes.
                if state.stalled_since.is_none() || state.paused {
                    return Poll::Ready(Ok(()));
                }
            }
            ready!(self.socket.poll_write_ready(cx))?;
        }
    }

    /// Like [`tokio::io::AsyncRead`], on a shared socket.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, buf)
    }

    /// Shuts down writing: the client sees the end of the stream after the last frame.
    pub fn finish_writing(&self) {
        self.socket.finish_writing();
    }

    fn write_queued(&self, state: &mut State) {
        if state.paused {
            return;
        }
        let done = loop {
            if state.queue.is_empty() {
                break self.socket.try_flush();
            }
            match self.try_write(&state.queue) {
                Ok(count) => state.advance(count),
                Err(error) => break Err(error),
            }
        };
        match done {
            Ok(()) => {
                if state.stalled_since.take().is_some() {
                    state.share.set(state.catch_up.pending_bytes());
                    self.waker.wake();
                }
                // Free the memory of an empty queue.
                state.queue.shrink_to_fit();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Wake the task once: from here on it waits for room itself.
                if state.stalled_since.is_none() {
                    state.stalled_since = Some(Instant::now());
                    self.waker.wake();
                }
                if state.update_share() {
                    self.waker.wake();
                }
            }
            Err(_) => {
                // The task's read fails, too. All queued frames are lost.
                state.give_up(Close::Gone);
                state.queue = SmallVec::new();
                state.bytes = 0;
                state.share.set(0);
                state.front_begun = false;
                state.stalled_since = None;
                self.waker.wake();
            }
        }
    }

    fn try_write(&self, queue: &[Frame]) -> io::Result<usize> {
        if let [only] = queue {
            return self.socket.try_write(&only.bytes);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut used = 0;
        for (slice, frame) in slices.iter_mut().zip(queue) {
            *slice = IoSlice::new(&frame.bytes);
            used += 1;
        }
        self.socket.try_write_vectored(slices.get(..used).unwrap_or_default())
    }
}

impl State {
    fn is_full(&self, more: usize, bound: &Bound) -> bool {
        self.queue.len() >= bound.max_messages || (self.bytes + more > bound.max_bytes && !self.queue.is_empty())
    }

    fn append(&mut self, frame: Frame) {
        self.bytes += frame.bytes.len();
        self.queue.push(frame);
    }

    /// Removes bytes that the socket accepted.
    fn advance(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        let mut whole = 0;
        for frame in &mut self.queue {
            if count < frame.bytes.len() {
                frame.bytes.advance(count);
                break;
            }
            count -= frame.bytes.len();
            whole += 1;
        }
        self.front_begun = count > 0 || (whole == 0 && self.front_begun);
        self.queue.drain(..whole);
        if self.stalled_since.is_some() {
            self.stalled_since = Some(Instant::now());
        }
    }

    /// Updates the backlog, and closes the connection if its share is too large; returns whether it did.
    fn update_share(&mut self) -> bool {
        let crowded = self.share.set(self.bytes + self.catch_up.pending_bytes()) && self.closing.is_none();
        if crowded {
            let lost = self.give_up(Close::Crowded);
            self.share.count_given_up(lost);
        }
        crowded
    }

    /// Whether this many more bytes would fit if every droppable frame were dropped.
    fn could_take(&self, more: usize, bound: &Bound) -> bool {
        let begun = usize::from(self.front_begun);
        let stays = |(position, frame): &(usize, &Frame)| *position < begun || frame.stored;
        let (count, bytes) = (self.queue.iter().enumerate().filter(stays))
            .fold((0, 0), |(count, bytes), (_, frame)| (count + 1, bytes + frame.bytes.len()));
        count == 0 || (count < bound.max_messages && bytes + more <= bound.max_bytes)
    }

    /// Closes the connection, and drops all queued and pending events, except a partly written frame. Returns the
    /// number dropped.
    fn give_up(&mut self, close: Close) -> usize {
        self.closing.get_or_insert(close);
        let keep = usize::from(self.front_begun);
        let lost = self.queue.len().saturating_sub(keep);
        self.queue.truncate(keep);
        self.bytes = self.queue.iter().map(|frame| frame.bytes.len()).sum();
        let lost = lost + self.catch_up.drop_pending();
        self.share.set(self.bytes);
        lost
    }

    fn drop_oldest(&mut self) -> bool {
        let begun = usize::from(self.front_begun);
        let Some(oldest) = self.queue.iter().skip(begun).position(|frame| !frame.stored) else { return false };
        let frame = self.queue.remove(begun + oldest);
        self.bytes = self.bytes.saturating_sub(frame.bytes.len());
        true
    }
}

#[cfg(test)]
mod tests;
