//! The state of a send queue: its frames, their bytes, and what the client lacks.

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::config::SendQueue as Bound;
use crate::delivery::backlog::Share;
use crate::delivery::catch_up::{CatchUp, CatchUpPage, Replayed, ReplayedEvent};
use crate::delivery::read_at::ReadAt;
use crate::delivery::socket::Socket;
use crate::protocol::{Close, mark_replayed};

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    /// A stored event, or the answer to a request: it is never dropped to make room for others.
    pub(super) stored: bool,
    /// Of a delivery that is measured.
    pub(super) read_at: Option<ReadAt>,
}

impl Frame {
    pub(super) fn new(bytes: Bytes, stored: bool) -> Self {
        Self { bytes, stored, read_at: None }
    }
}

#[derive(Debug)]
pub(super) struct State {
    /// Oldest first. One frame is stored inline: most connections never queue a second one.
    pub(super) queue: SmallVec<[Frame; 1]>,
    pub(super) bytes: usize,
    /// The front frame is partly written, or is the greeting: it must be sent, even if the others are dropped.
    pub(super) front_begun: bool,
    /// No frame is written between [`SendQueue::pause`] and [`SendQueue::greet`].
    pub(super) paused: bool,
    /// Whether the socket has accepted bytes since [`SendQueue::take_written`].
    pub(super) written: bool,
    pub(super) stalled_since: Option<Instant>,
    pub(super) closing: Option<Close>,
    pub(super) catch_up: CatchUp,
    pub(super) share: Share,
}

impl State {
    pub(super) fn new(share: Share) -> Self {
        Self {
            queue: SmallVec::new(),
            bytes: 0,
            front_begun: false,
            paused: false,
            written: false,
            stalled_since: None,
            closing: None,
            catch_up: CatchUp::new(),
            share,
        }
    }

    pub(super) fn is_full(&self, more: usize, bound: &Bound) -> bool {
        self.queue.len() >= bound.max_messages || (self.bytes + more > bound.max_bytes && !self.queue.is_empty())
    }

    /// Queues a page of the history and the pending events after it; as [`SendQueue::replay`].
    pub(super) fn replay(&mut self, page: Option<CatchUpPage>) -> (usize, usize) {
        if self.closing.is_some() {
            return (0, 0);
        }
        let dialect = page.as_ref().map(|page| page.dialect);
        let Replayed { events, foreign } = match page {
            Some(page) => self.catch_up.replay(page),
            None => self.catch_up.replay_unread(),
        };
        let mut sent = 0;
        for ReplayedEvent { bytes, stored, is_unmarked } in events {
            let bytes = match dialect.filter(|_| is_unmarked && !bytes.is_empty()) {
                Some(dialect) => mark_replayed(&bytes, dialect),
                None => bytes,
            };
            // An event without bytes only moved the position.
            if !bytes.is_empty() {
                self.append(Frame::new(bytes, stored));
                sent += 1;
            }
        }
        (sent, foreign)
    }

    pub(super) fn append(&mut self, frame: Frame) {
        self.bytes += frame.bytes.len();
        self.queue.push(frame);
    }

    /// Removes bytes that the socket accepted.
    pub(super) fn advance(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        self.written = true;
        let mut whole = 0;
        for frame in &mut self.queue {
            if count < frame.bytes.len() {
                frame.bytes.advance(count);
                break;
            }
            count -= frame.bytes.len();
            whole += 1;
            if let Some(read_at) = frame.read_at {
                self.share.count_accepted(read_at);
            }
        }
        self.front_begun = count > 0 || (whole == 0 && self.front_begun);
        self.queue.drain(..whole);
        if self.stalled_since.is_some() {
            self.stalled_since = Some(Instant::now());
        }
    }

    /// Updates the backlog, and closes the connection if its share is too large; returns whether it did.
    pub(super) fn update_share(&mut self, socket: &Socket) -> bool {
        let bytes = self.bytes + self.catch_up.pending_bytes() + socket.unsent();
        let crowded = self.share.set(bytes) && self.closing.is_none();
        if crowded {
            let lost = self.give_up(Close::Crowded);
            self.share.count_given_up(lost);
        }
        crowded
    }

    /// Whether this many more bytes would fit if every droppable frame were dropped.
    pub(super) fn could_take(&self, more: usize, bound: &Bound) -> bool {
        let begun = usize::from(self.front_begun);
        let stays = |(position, frame): &(usize, &Frame)| *position < begun || frame.stored;
        let (count, bytes) = (self.queue.iter().enumerate().filter(stays))
            .fold((0, 0), |(count, bytes), (_, frame)| (count + 1, bytes + frame.bytes.len()));
        count == 0 || (count < bound.max_messages && bytes + more <= bound.max_bytes)
    }

    /// Closes the connection, and drops all queued and pending events, except a partly written frame. Returns the
    /// number dropped.
    pub(super) fn give_up(&mut self, close: Close) -> usize {
        self.closing.get_or_insert(close);
        let keep = usize::from(self.front_begun);
        let lost = self.queue.len().saturating_sub(keep);
        self.queue.truncate(keep);
        self.bytes = self.queue.iter().map(|frame| frame.bytes.len()).sum();
        let lost = lost + self.catch_up.drop_pending();
        self.share.set(self.bytes);
        lost
    }

    pub(super) fn drop_oldest(&mut self) -> bool {
        let begun = usize::from(self.front_begun);
        let Some(oldest) = self.queue.iter().skip(begun).position(|frame| !frame.stored) else { return false };
        let frame = self.queue.remove(begun + oldest);
        self.bytes = self.bytes.saturating_sub(frame.bytes.len());
        true
    }
}
