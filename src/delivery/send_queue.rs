//! One connection's bounded queue of WebSocket frames, and the only position that writes to its socket.
//!
//! Whoever has a frame queues it here and then tries the socket at once, under the same lock: in the common case the
//! frame is on its way without waking the connection's task. What the socket does not take stays queued, and the task
//! writes it when the socket has room. Only whole frames enter the queue and the lock orders them, so frames are never
//! torn nor swapped, whoever writes them.

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

/// Most frames in one write.
const MAX_SLICES: usize = 32;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// Queued into an empty queue: the caller owes a [`SendQueue::flush`].
    First,
    /// Queued behind others.
    Behind,
    /// It waits, or is read later, until the client is level with the history.
    Pending,
    /// The client has it already.
    Known,
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
    /// The client is behind, and takes more: the history must be read.
    Behind,
}

/// One frame in the queue.
#[derive(Debug)]
struct Frame {
    bytes: Bytes,
    /// A stored event: whoever does not get it now must be sent it later, with all that follows.
    stored: bool,
}

#[derive(Debug)]
struct State {
    /// Oldest first. One frame lies in position: most connections never have a second one pending.
    queue: SmallVec<[Frame; 1]>,
    bytes: usize,
    /// The front frame is partly on the socket, or is the greeting: it must go out, whatever happens to the others.
    front_begun: bool,
    /// Nothing is written between [`SendQueue::pause`] and [`SendQueue::start`].
    paused: bool,
    stalled_since: Option<Instant>,
    closing: Option<Close>,
    catch_up: CatchUp,
    share: Share,
}

/// See the module.
#[derive(Debug)]
pub struct SendQueue {
    socket: Socket,
    state: Mutex<State>,
    waker: AtomicWaker,
}

impl SendQueue {
    /// An empty outbox on this socket. What waits in it counts in the backlog.
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

    /// Keeps what is pushed from now on behind the greeting, which [`SendQueue::start`] gives, and events until
    /// [`SendQueue::replay`].
    pub fn pause(&self) {
        let mut state = self.state.lock();
        state.paused = true;
        state.catch_up.pause();
    }

    /// The client has everything up to this position, before anything is replayed.
    pub fn start_at(&self, position: Position) {
        self.state.lock().catch_up.set(position);
    }

    /// Sends what was found behind the client's position, and what waited for it; where the history could not be read, what
    /// waited alone. Gives how many events that was, and how many that waited belong to no history of ours.
    pub fn replay(&self, found: Option<CatchUpPage>) -> (usize, usize) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return (0, 0);
        }
        let Replayed { events, foreign } = match found {
            Some(found) => state.catch_up.replay(found),
            None => state.catch_up.replay_unread(),
        };
        let sent = events.len();
        for (stored, bytes) in events {
            state.append(Frame { bytes, stored });
        }
        self.write_queued(&mut state);
        // Whoever releases drives the outbox, and so sees what this gave.
        state.settle();
        (sent, foreign)
    }

    /// Hears where the newest stored event of the user is; a client that turns out to be behind is brought level.
    /// Gives whether it was.
    pub fn compare(&self, newest: &Cursor) -> bool {
        let mut state = self.state.lock();
        let behind = state.closing.is_none() && state.catch_up.compare(newest);
        drop(state);
        if behind {
            self.waker.wake();
        }
        behind
    }

    /// Where to read the history from, for a client that is behind.
    pub fn begin_reading(&self) -> Position {
        self.state.lock().catch_up.begin_reading()
    }

    /// Lets frames out, the greeting before anything that was pushed so far.
    pub fn start(&self, greeting: Option<Bytes>) {
        let mut state = self.state.lock();
        state.paused = false;
        if let Some(bytes) = greeting {
            state.bytes += bytes.len();
            // Behind a frame that is half out, such as a pong from before the hello.
            let position = usize::from(state.front_begun);
            state.queue.insert(position, Frame { bytes, stored: false });
            // Not to be dropped for newer ones, as if it were half out itself.
            state.front_begun = true;
        }
        self.write_queued(&mut state);
        state.settle();
    }

    /// Queues one event within the bound, `stored` at this position, if it is. A single event larger than the bound is taken
    /// by an empty queue.
    pub fn push(&self, bytes: Bytes, stored: Option<&Cursor>, bound: &Bound) -> Pushed {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return Pushed::Closed;
        }
        if state.catch_up.is_pending() {
            return self.wait(state, bytes, stored, bound);
        }
        match stored.map(|cursor| state.catch_up.followed_by(cursor)) {
            Some(Continuity::Known) => Pushed::Known,
            Some(Continuity::Gap) => {
                state.catch_up.fall_behind();
                self.wait(state, bytes, stored, bound)
            }
            None | Some(Continuity::Next) => self.queue(state, bytes, stored, bound),
        }
    }

    fn queue(&self, mut state: MutexGuard<'_, State>, bytes: Bytes, stored: Option<&Cursor>, bound: &Bound) -> Pushed {
        let mut dropped = 0;
        if state.is_full(bytes.len(), bound) {
            // A burst is not a slow client: ask the socket before judging.
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
                    // It is read from the history once there is room.
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
        if state.stalled_since.is_some() && state.settle() {
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

    /// Keeps an event until the client is level with the history.
    fn wait(&self, mut state: MutexGuard<'_, State>, bytes: Bytes, stored: Option<&Cursor>, bound: &Bound) -> Pushed {
        let mut lost = 0;
        if !state.catch_up.has_room(bytes.len(), bound) {
            // The stored ones are found in the history; before the greeting, nothing was promised of the others.
            lost = state.catch_up.forget();
            if lost + usize::from(stored.is_none()) > 0 && !state.paused && bound.slow_client == SlowClient::Disconnect
            {
                lost += state.give_up(Close::TooSlow) + usize::from(stored.is_none());
                drop(state);
                self.waker.wake();
                return Pushed::Full(lost);
            }
        }
        state.catch_up.wait(stored.copied(), bytes);
        let crowded = state.settle();
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

    /// Queues one of the connection's own frames, which are few, and tries the socket at once.
    pub fn send(&self, frame: Bytes) {
        let mut state = self.state.lock();
        state.append(Frame { bytes: frame, stored: false });
        self.write_queued(&mut state);
    }

    /// As [`SendQueue::send`], for others than the connection itself: unless it is being closed, since nothing may follow
    /// its close frame.
    pub fn send_while_open(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.append(Frame { bytes: frame, stored: false });
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
            None if state.stalled_since.is_none() && state.catch_up.wants_reading() => Poll::Ready(Driven::Behind),
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
                // Not stalled: whatever was queued is with the kernel.
                if state.stalled_since.is_none() || state.paused {
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
        self.socket.poll_read(cx, buf)
    }

    /// Tells the client that nothing more comes: it sees the end behind the last frame.
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
                // Empty: its room is given back.
                state.queue.shrink_to_fit();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Once: from here on the task waits for room, and waking it would only make it ask again.
                if state.stalled_since.is_none() {
                    state.stalled_since = Some(Instant::now());
                    self.waker.wake();
                }
                if state.settle() {
                    self.waker.wake();
                }
            }
            Err(_) => {
                // The reading side of the task meets the same end; whatever was queued is lost with the client.
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

    /// As much of the queue as one write takes.
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

    /// Takes note of bytes that the socket took.
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

    /// Tells the backlog what waits here, and gives up where that is too much for all; gives whether it did.
    fn settle(&mut self) -> bool {
        let crowded = self.share.set(self.bytes + self.catch_up.pending_bytes()) && self.closing.is_none();
        if crowded {
            let lost = self.give_up(Close::Crowded);
            self.share.count_given_up(lost);
        }
        crowded
    }

    /// Whether this much more would fit if everything were dropped that can be.
    fn could_take(&self, more: usize, bound: &Bound) -> bool {
        let begun = usize::from(self.front_begun);
        let stays = |(position, frame): &(usize, &Frame)| *position < begun || frame.stored;
        let (count, bytes) = (self.queue.iter().enumerate().filter(stays))
            .fold((0, 0), |(count, bytes), (_, frame)| (count + 1, bytes + frame.bytes.len()));
        count == 0 || (count < bound.max_messages && bytes + more <= bound.max_bytes)
    }

    /// Drops everything but a frame that is half out, and what waits; gives how many were dropped.
    fn give_up(&mut self, close: Close) -> usize {
        self.closing.get_or_insert(close);
        let keep = usize::from(self.front_begun);
        let lost = self.queue.len().saturating_sub(keep);
        self.queue.truncate(keep);
        self.bytes = self.queue.iter().map(|frame| frame.bytes.len()).sum();
        let lost = lost + self.catch_up.forget();
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
mod tests {
    use std::future::poll_fn;
    use std::num::NonZeroU64;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;
    use crate::metrics::Metrics;
    use crate::protocol::text_frame;

    fn bound(max_messages: usize, slow_client: SlowClient) -> Bound {
        Bound {
            max_messages,
            max_bytes: 1 << 20,
            max_total_bytes: 1 << 28,
            slow_client,
            write_timeout: Duration::from_secs(1),
        }
    }

    async fn pair() -> (SendQueue, TcpStream) {
        pair_within(&Backlog::new(&Metrics::new(), 1 << 28)).await
    }

    async fn pair_within(backlog: &Arc<Backlog>) -> (SendQueue, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(4_096).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
        let queue = SendQueue::new(Socket::Plain(near.unwrap()), Arc::clone(backlog));
        poll_fn(|cx| queue.socket.poll_write_ready(cx)).await.unwrap();
        (queue, far.unwrap().0)
    }

    fn numbered(number: u32, size: usize) -> Bytes {
        text_frame(&[format!("{number:08}").as_bytes(), &vec![b'.'; size]])
    }

    #[tokio::test]
    async fn the_greeting_goes_before_what_was_pushed_earlier() {
        let (outbox, mut client) = pair().await;
        let limit = bound(8, SlowClient::Disconnect);
        outbox.pause();
        assert_eq!(outbox.push(text_frame(&[b"event"]), None, &limit), Pushed::Pending);
        outbox.flush();
        outbox.replay(None);
        outbox.start(Some(text_frame(&[b"hello"])));
        let mut got = [0; 14];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x81\x05hello\x81\x05event");
    }

    #[tokio::test]
    async fn a_burst_beyond_the_bound_reaches_a_client_that_reads() {
        let (outbox, mut client) = pair().await;
        let limit = bound(4, SlowClient::Disconnect);
        for number in 0..40 {
            assert!(!matches!(outbox.push(numbered(number, 10), None, &limit), Pushed::Full(_)), "{number}");
        }
        outbox.flush();
        let mut got = vec![0; 40 * 20];
        client.read_exact(&mut got).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up_and_its_memory_with_it() {
        let (outbox, _client) = pair().await;
        let limit = bound(16, SlowClient::Disconnect);
        let lost = (0..10_000).find_map(|n| match outbox.push(numbered(n, 10_000), None, &limit) {
            Pushed::Full(lost) => Some(lost),
            _ => None,
        });
        assert!(lost.unwrap() >= 16, "{lost:?}");
        assert!(outbox.state.lock().queue.len() <= 1);
        assert_eq!(outbox.push(numbered(0, 1), None, &limit), Pushed::Closed);
        let driven = poll_fn(|cx| outbox.poll_drive(cx, None)).await;
        assert_eq!(driven, Driven::Closing(Close::TooSlow));
    }

    #[tokio::test]
    async fn dropping_the_oldest_keeps_the_order_and_whole_frames() {
        let (outbox, mut client) = pair().await;
        let limit = bound(16, SlowClient::DropOldest);
        let size = 10_000;
        for number in 0..2_000 {
            let pushed = outbox.push(numbered(number, size), None, &limit);
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
    async fn an_event_that_cannot_fit_behind_what_is_half_out_costs_the_others_nothing() {
        let (outbox, mut client) = pair().await;
        let limit = Bound { max_bytes: 10_000_000, ..bound(1_000, SlowClient::DropOldest) };
        assert_eq!(outbox.push(numbered(0, 9_000_000), None, &limit), Pushed::First);
        outbox.flush();
        for number in 1..=10 {
            assert_eq!(outbox.push(numbered(number, 10), None, &limit), Pushed::Behind);
        }
        assert_eq!(outbox.push(numbered(11, 9_500_000), None, &limit), Pushed::Displaced(1));
        let mut got = vec![0; 9_000_000 + 8 + 10 + 10 * 20];
        let (read, flushed) = tokio::join!(client.read_exact(&mut got), poll_fn(|cx| outbox.poll_flush(cx)));
        read.unwrap();
        flushed.unwrap();
        assert_eq!(got[got.len() - 20..][2..10], *b"00000010");
    }

    #[tokio::test]
    async fn a_stored_event_without_room_is_not_dropped_but_read_later() {
        let (outbox, _client) = pair().await;
        let limit = bound(4, SlowClient::DropOldest);
        let at = |number| Cursor { epoch: NonZeroU64::MIN, ms: 1_000, number };
        outbox.start_at(Position::At(at(0)));
        let mut last = 0;
        while !outbox.state.lock().catch_up.is_pending() {
            last += 1;
            assert!(last < 10_000, "it takes everything");
            outbox.push(numbered(1, 10_000), Some(&at(last)), &limit);
        }
        assert_eq!(outbox.state.lock().queue.len(), 4, "what is queued stays");
        assert_eq!(outbox.begin_reading(), Position::At(at(last - 1)));
    }

    #[tokio::test]
    async fn a_stall_is_told_once_and_its_end_too() {
        let (outbox, mut client) = pair().await;
        let limit = bound(1_000, SlowClient::Disconnect);
        let mut sent = 0;
        while outbox.state.lock().stalled_since.is_none() {
            outbox.push(numbered(0, 10_000), None, &limit);
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
        outbox.pause();
        for number in 0..100 {
            outbox.push(numbered(number, 1), None, &limit);
        }
        outbox.replay(None);
        outbox.start(None);
        let mut got = vec![0; 100 * 11];
        client.read_exact(&mut got).await.unwrap();
        assert!(!outbox.state.lock().queue.spilled());
    }

    #[tokio::test]
    async fn while_all_together_are_too_full_nobody_keeps_more_than_a_share() {
        let metrics = Metrics::new();
        let (gauge, backlog) = (&metrics.backlog_bytes, Backlog::new(&metrics, 100_000));
        let limit = bound(1_000, SlowClient::DropOldest);
        let mut pairs = Vec::new();
        for _ in 0..20 {
            pairs.push(pair_within(&backlog).await);
        }
        let (mut most, mut given_up) = (0, 0);
        for round in 0..100 {
            for (outbox, _) in &pairs {
                given_up += usize::from(matches!(outbox.push(numbered(round, 10_000), None, &limit), Pushed::Full(_)));
                outbox.flush();
                most = most.max(gauge.get());
            }
        }
        assert!(given_up > 0);
        assert_eq!(metrics.limited.with_label_values(&["max_total_bytes"]).get(), given_up as u64);
        assert!(metrics.deliveries_dropped.get() >= given_up as u64);
        assert!(most <= 100_000 + 20 * (16 * 1024 + 10_012), "{most} bytes");
        let (outbox, client) = &mut pairs[19];
        let driven = poll_fn(|cx| outbox.poll_drive(cx, None)).await;
        assert_eq!(driven, Driven::Closing(Close::Crowded));
        // Also one whose very first event is more than its share.
        let (late, _late_client) = pair_within(&backlog).await;
        late.push(numbered(0, 10_000_000), None, &limit);
        late.flush();
        assert_eq!(late.push(numbered(1, 1), None, &limit), Pushed::Closed);
        // Those who read are served all the while.
        let (ready, mut reader) = pair_within(&backlog).await;
        for round in 0..10 {
            assert_eq!(ready.push(numbered(round, 100), None, &limit), Pushed::First);
            ready.flush();
            reader.read_exact(&mut [0; 110]).await.unwrap();
        }
        drop(client.shutdown().await);
        assert!(gauge.get() > 0, "what is half out is still there");
        drop((pairs, late));
        assert_eq!(gauge.get(), 0, "who is gone keeps nothing");
    }

    #[tokio::test]
    async fn what_is_written_at_once_is_no_backlog_and_what_waits_is() {
        let metrics = Metrics::new();
        let gauge = &metrics.backlog_bytes;
        let (outbox, mut client) = pair_within(&Backlog::new(&metrics, usize::MAX)).await;
        let limit = bound(1_000, SlowClient::Disconnect);
        outbox.push(numbered(0, 100), None, &limit);
        outbox.flush();
        assert_eq!(gauge.get(), 0);
        let mut sent = 110;
        while gauge.get() == 0 {
            outbox.push(numbered(0, 10_000), None, &limit);
            outbox.flush();
            sent += 10_012;
        }
        let pending = gauge.get();
        outbox.push(numbered(0, 10_000), None, &limit);
        assert_eq!(gauge.get(), pending + 10_012, "behind what waits");
        let mut got = vec![0; sent + 10_012];
        let (_, flushed) = tokio::join!(client.read_exact(&mut got), poll_fn(|cx| outbox.poll_flush(cx)));
        flushed.unwrap();
        assert_eq!(gauge.get(), 0);
    }
}
