//! One connection's bounded queue of WebSocket frames, and the only code that writes to its socket.
//!
//! A task that sends a frame queues it here and then writes to the socket under the same lock, usually without waking
//! the connection's task. Bytes that the socket does not accept stay queued, and the connection's task writes them when
//! the socket has room. Only whole frames enter the queue and the lock orders them, so frames are never torn nor
//! reordered.

mod polling;
mod state;

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::backlog::{Backlog, Share};
use super::catch_up::{CatchUpPage, Position, StartPage};
use super::read_at::ReadAt;
use super::socket::Socket;
use crate::config::{SendQueue as Bound, SlowClient};
use crate::protocol::{Close, Continuity, Cursor};
use state::{Frame, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// Queued into an empty queue: the caller owes a [`SendQueue::flush`].
    First,
    /// Queued behind others.
    Behind,
    /// Pending, or left to be read from the history, until the client has caught up.
    Pending,
    /// The client has it already, or its dialect cannot carry it.
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
pub struct SendQueue {
    socket: Socket,
    state: Mutex<State>,
    waker: AtomicWaker,
}

impl SendQueue {
    pub fn new(socket: Socket, backlog: Arc<Backlog>) -> Self {
        let state = State::new(Share::new(backlog));
        Self { socket, state: Mutex::new(state), waker: AtomicWaker::new() }
    }

    /// Holds all frames until [`SendQueue::greet`].
    pub fn pause(&self) {
        let mut state = self.state.lock();
        state.paused = true;
        state.catch_up.pause();
    }

    /// Ends the pause in one step: sends the greeting, a page of the history after a position, then the events received
    /// since. `None`: the history could not be read. Returns as [`SendQueue::replay`] does.
    ///
    /// A write is attempted before any other event is queued: so the next one finds only those events waiting that the
    /// client's socket did not accept.
    pub fn greet(&self, greeting: Option<Bytes>, history: Option<StartPage>) -> (usize, usize) {
        let mut state = self.state.lock();
        let page = history.map(|StartPage { from, newest, page }| {
            state.catch_up.begin_at(from, newest);
            page
        });
        let replayed = state.replay(page);
        self.end_pause(&mut state, greeting);
        replayed
    }

    /// Sends a page of the history, then the pending events after it; no page if it is outdated, since the history was
    /// erased meanwhile. Returns the number of events sent, and of pending events dropped because tidings did not
    /// publish them.
    pub fn replay(&self, page: CatchUpPage) -> (usize, usize) {
        let mut state = self.state.lock();
        let replayed = state.replay(Some(page));
        self.write_queued(&mut state);
        // No wake: the caller is the connection's task, which drives the queue next.
        state.update_share(&self.socket);
        replayed
    }

    /// Compares the client with the user's newest stored position, and starts catch-up if it is behind. Returns whether
    /// it is. If the position `is_old`, clients that are catching up are left alone: they may know a newer one.
    pub fn compare(&self, newest: &Cursor, is_old: bool) -> bool {
        let mut state = self.state.lock();
        let is_due = state.closing.is_none() && !(is_old && state.catch_up.is_pending());
        let behind = is_due && state.catch_up.compare(newest);
        drop(state);
        if behind {
            self.waker.wake();
        }
        behind
    }

    /// Has the history read: events may have been missed. For the connection's task, which drives the queue next.
    pub fn fall_behind(&self) {
        self.state.lock().catch_up.fall_behind();
    }

    /// Starts a read of the history; returns the position to read from.
    pub fn begin_reading(&self) -> Position {
        self.state.lock().catch_up.begin_reading()
    }

    /// The user's history was erased: the client continues at this position, in the new epoch. The frame that says so is sent
    /// before every event of that epoch, also one that is read.
    pub fn erase(&self, erased: Cursor, frame: Option<Bytes>) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }
        if !state.catch_up.erase(erased) {
            return;
        }
        if state.paused {
            return frame.into_iter().for_each(|frame| state.catch_up.add_pending(None, frame));
        }
        for bytes in state.catch_up.take_passing().into_iter().chain(frame) {
            state.append(Frame::new(bytes, false));
        }
        self.write_queued(&mut state);
    }

    /// Whether what was read is outdated, since the history was erased meanwhile: then it is read again.
    pub fn discard_reading(&self) -> bool {
        self.state.lock().catch_up.discard_reading()
    }

    /// Events up to this position were stored before the client's welcome; `None` once the client has them.
    pub fn replaying(&self) -> Option<Cursor> {
        self.state.lock().catch_up.replaying()
    }

    /// Ends the pause of a connection that closes instead of being greeted; pending events are not sent.
    pub fn start(&self, greeting: Option<Bytes>) {
        self.end_pause(&mut self.state.lock(), greeting);
    }

    /// The greeting is sent before all frames queued so far.
    fn end_pause(&self, state: &mut State, greeting: Option<Bytes>) {
        state.paused = false;
        if let Some(bytes) = greeting {
            state.bytes += bytes.len();
            // After a partly written frame, such as a pong from before the hello.
            let position = usize::from(state.front_begun);
            state.queue.insert(position, Frame::new(bytes, false));
            // Protects the greeting from being dropped.
            state.front_begun = true;
        }
        self.write_queued(state);
        state.update_share(&self.socket);
    }

    /// Queues one event, `stored` at this position. An empty queue accepts even an event larger than the bound. An event
    /// without bytes is not sent: it moves the client's position.
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
            None | Some(Continuity::Next) if bytes.is_empty() => {
                stored.into_iter().for_each(|cursor| state.catch_up.set(Position::At(*cursor)));
                Pushed::Known
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
        state.append(Frame::new(bytes, stored.is_some()));
        if let Some(cursor) = stored {
            state.catch_up.set(Position::At(*cursor));
        }
        if state.stalled_since.is_some() && state.update_share(&self.socket) {
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

    /// Measures the delivery of the last event pushed, which was read from the backplane at this moment.
    pub fn measure(&self, read_at: Instant) {
        if let Some(frame) = self.state.lock().queue.last_mut() {
            frame.read_at = Some(ReadAt::new(read_at));
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
        let crowded = state.update_share(&self.socket);
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
        state.append(Frame::new(frame, false));
        self.write_queued(&mut state);
    }

    /// Like [`SendQueue::send`], for the answer to a request of the client: it is not dropped to make room for events.
    /// Returns whether it was sent: not if it `is_current` no longer, once no other frame can be queued before it.
    pub fn answer(&self, frame: Bytes, is_current: impl FnOnce() -> bool) -> bool {
        let mut state = self.state.lock();
        if !is_current() {
            return false;
        }
        state.append(Frame::new(frame, true));
        self.write_queued(&mut state);
        true
    }

    /// Like [`SendQueue::send`], for other tasks: does nothing if the connection is closing, since no frame may follow
    /// its close frame.
    pub fn send_while_open(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.append(Frame::new(frame, false));
            self.write_queued(&mut state);
        }
    }

    /// Like [`SendQueue::send_while_open`], if the client has all stored events up to `newest`, and none after it. Returns
    /// whether it has, or is about to be closed.
    pub fn send_at(&self, newest: &Cursor, frame: Bytes) -> bool {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return true;
        }
        let is_at = state.catch_up.is_at(newest);
        if is_at {
            state.append(Frame::new(frame, false));
            self.write_queued(&mut state);
        }
        is_at
    }

    /// Whether the socket has accepted bytes since the last call.
    pub fn take_written(&self) -> bool {
        std::mem::take(&mut self.state.lock().written)
    }

    /// Writes as much as the socket accepts now; the connection's task writes the rest.
    pub fn flush(&self) {
        self.write_queued(&mut self.state.lock());
    }

    /// Wakes the connection's task.
    pub(super) fn wake(&self) {
        self.waker.wake();
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

    /// Makes the system end the connection if the client acknowledges no written data for this long.
    pub fn limit_unacknowledged(&self, limit: Duration) {
        self.socket.limit_unacknowledged(limit);
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
            match self.socket.try_write_first(state.queue.iter().map(|frame| frame.bytes.as_ref())) {
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
                if state.update_share(&self.socket) {
                    self.waker.wake();
                }
            }
            Err(error) => {
                // The task's read fails, too. All queued frames are lost.
                let timed_out = error.kind() == ErrorKind::TimedOut;
                state.give_up(if timed_out { Close::WriteTimeout } else { Close::Gone });
                state.queue = SmallVec::new();
                state.bytes = 0;
                state.share.set(0);
                state.front_begun = false;
                state.stalled_since = None;
                self.waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests;
