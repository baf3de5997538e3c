use std::future::poll_fn;
use std::num::NonZeroU64;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::metrics::Metrics;
use crate::protocol::{Dialect, text_frame};

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
async fn the_greeting_is_sent_before_events_pushed_earlier() {
    let (queue, mut client) = pair().await;
    let limit = bound(8, SlowClient::Disconnect);
    queue.pause();
    assert_eq!(queue.push(text_frame(&[b"event"]), None, &limit), Pushed::Pending);
    queue.flush();
    queue.greet(Some(text_frame(&[b"hello"])), None);
    let mut got = [0; 14];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"\x81\x05hello\x81\x05event");
}

#[tokio::test]
async fn events_that_waited_for_the_greeting_do_not_fill_the_queue_of_a_client_that_reads() {
    let (queue, mut client) = pair().await;
    let limit = bound(4, SlowClient::Disconnect);
    queue.pause();
    for number in 0..4 {
        assert_eq!(queue.push(numbered(number, 1), None, &limit), Pushed::Pending);
    }
    queue.greet(Some(text_frame(&[b"hello"])), None);
    assert_eq!(queue.push(numbered(4, 1), None, &limit), Pushed::First, "all that waited has been written");
    queue.flush();
    let mut got = [0; 7 + 5 * 11];
    client.read_exact(&mut got).await.unwrap();
}

/// One connect during a burst. The history is read before the event `read`, the client is greeted before the event
/// `greeted`; bit `n` of `stored` tells whether event `n` is stored.
#[derive(Debug, Clone, Copy)]
struct Connect {
    max_messages: usize,
    events: u32,
    stored: u32,
    read: u32,
    greeted: u32,
}

impl Connect {
    fn is_stored(self, number: u32) -> bool {
        self.stored & (1 << number) != 0
    }

    fn cursor(self, number: u32) -> Cursor {
        let before = (0..number).filter(|earlier| self.is_stored(*earlier)).count() as u64;
        Cursor { epoch: NonZeroU64::MIN, ms: 1_000, number: before + 1 }
    }

    /// The stored events before the event `until`, after a position.
    fn page(self, from: Cursor, until: u32) -> CatchUpPage {
        let stored = (0..until).filter(|number| self.is_stored(*number));
        let after = stored.map(|number| (self.cursor(number), numbered(number, 1)));
        let events: Vec<_> = after.filter(|(cursor, _)| cursor.number > from.number).collect();
        let upto = events.last().map_or(from, |(cursor, _)| *cursor);
        CatchUpPage { events, upto, complete: true, dialect: Dialect::Raw }
    }

    /// Returns how many events were dropped before the greeting.
    fn push(self, queue: &SendQueue, number: u32) -> usize {
        let limit = bound(self.max_messages, SlowClient::Disconnect);
        let cursor = self.is_stored(number).then(|| self.cursor(number));
        match queue.push(numbered(number, 1), cursor.as_ref(), &limit) {
            Pushed::Displaced(lost) if number < self.greeted => lost,
            pushed @ (Pushed::Displaced(_) | Pushed::Full(_) | Pushed::Closed) => {
                panic!("event {number} is {pushed:?}: {self:?}")
            }
            _ => 0,
        }
    }

    fn greet(self, queue: &SendQueue) {
        let from = Cursor { number: 0, ..self.cursor(0) };
        let start = StartPage { from, newest: from, page: self.page(from, self.read) };
        queue.greet(Some(text_frame(&[b"greeting"])), Some(start));
    }

    /// As the connection's task: reads the history while the client is behind.
    fn catch_up(self, queue: &SendQueue, until: u32) {
        while queue.state.lock().catch_up.wants_reading() {
            let Position::At(from) = queue.begin_reading() else { panic!("it has a position") };
            queue.replay(self.page(from, until));
        }
    }

    async fn run(self) {
        let (queue, mut client) = pair().await;
        queue.pause();
        let mut lost = 0;
        for number in 0..self.events {
            if number == self.greeted {
                self.greet(&queue);
                self.catch_up(&queue, number);
            }
            lost += self.push(&queue, number);
            if number >= self.greeted {
                self.catch_up(&queue, number + 1);
            }
        }
        if self.greeted == self.events {
            self.greet(&queue);
            self.catch_up(&queue, self.events);
        }
        assert!(lost == 0 || self.greeted > u32::try_from(self.max_messages).unwrap(), "{lost} lost: {self:?}");
        poll_fn(|cx| queue.poll_flush(cx)).await.unwrap();
        queue.finish_writing();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        self.check(&got, lost);
    }

    /// First the greeting, then all events but the dropped ones, once: every stored one, and each kind in order; all of
    /// them in order, unless too many were pending.
    fn check(self, got: &[u8], lost: usize) {
        let events = got.strip_prefix(text_frame(&[b"greeting"]).as_ref()).unwrap_or_else(|| panic!("{self:?}"));
        let number = |frame: &[u8]| std::str::from_utf8(&frame[2..10]).unwrap().parse::<u32>().unwrap();
        let numbers: Vec<u32> = events.chunks(11).map(number).collect();
        let (stored, passing): (Vec<u32>, Vec<u32>) = numbers.iter().partition(|number| self.is_stored(**number));
        let all_stored: Vec<u32> = (0..self.events).filter(|number| self.is_stored(*number)).collect();
        assert_eq!(stored, all_stored, "{self:?}");
        assert!(passing.is_sorted_by(|a, b| a < b), "{numbers:?}: {self:?}");
        assert_eq!(numbers.len() + lost, self.events as usize, "{numbers:?}: {self:?}");
        let overflows = self.greeted as usize > self.max_messages;
        assert!(overflows || numbers.is_sorted(), "{numbers:?}: {self:?}");
    }
}

#[tokio::test]
async fn no_interleaving_of_a_burst_with_a_connect_closes_a_client_that_reads() {
    const EVENTS: u32 = 5;
    for max_messages in 1..=3 {
        for stored in 0..1 << EVENTS {
            for greeted in 0..=EVENTS {
                for read in 0..=greeted {
                    Connect { max_messages, events: EVENTS, stored, read, greeted }.run().await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_burst_beyond_the_bound_reaches_a_client_that_reads() {
    let (queue, mut client) = pair().await;
    let limit = bound(4, SlowClient::Disconnect);
    for number in 0..40 {
        assert!(!matches!(queue.push(numbered(number, 10), None, &limit), Pushed::Full(_)), "{number}");
    }
    queue.flush();
    let mut got = vec![0; 40 * 20];
    client.read_exact(&mut got).await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_its_queue_freed() {
    let (queue, _client) = pair().await;
    let limit = bound(16, SlowClient::Disconnect);
    let lost = (0..10_000).find_map(|n| match queue.push(numbered(n, 10_000), None, &limit) {
        Pushed::Full(lost) => Some(lost),
        _ => None,
    });
    assert!(lost.unwrap() >= 16, "{lost:?}");
    assert!(queue.state.lock().queue.len() <= 1);
    assert_eq!(queue.push(numbered(0, 1), None, &limit), Pushed::Closed);
    let driven = poll_fn(|cx| queue.poll_drive(cx, None)).await;
    assert_eq!(driven, Driven::Closing(Close::TooSlow));
}

#[tokio::test]
async fn dropping_the_oldest_keeps_the_order_and_whole_frames() {
    let (queue, mut client) = pair().await;
    let limit = bound(16, SlowClient::DropOldest);
    let size = 10_000;
    for number in 0..2_000 {
        let pushed = queue.push(numbered(number, size), None, &limit);
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
    let (numbers, flushed) = tokio::join!(reader, poll_fn(|cx| queue.poll_flush(cx)));
    flushed.unwrap();
    assert!(numbers.len() < 2_000 && numbers.is_sorted(), "{numbers:?}");
}

#[tokio::test]
async fn an_event_that_cannot_fit_behind_a_partly_written_frame_displaces_no_other() {
    let (queue, mut client) = pair().await;
    let limit = Bound { max_bytes: 10_000_000, ..bound(1_000, SlowClient::DropOldest) };
    assert_eq!(queue.push(numbered(0, 9_000_000), None, &limit), Pushed::First);
    queue.flush();
    for number in 1..=10 {
        assert_eq!(queue.push(numbered(number, 10), None, &limit), Pushed::Behind);
    }
    assert_eq!(queue.push(numbered(11, 9_500_000), None, &limit), Pushed::Displaced(1));
    let mut got = vec![0; 9_000_000 + 8 + 10 + 10 * 20];
    let (read, flushed) = tokio::join!(client.read_exact(&mut got), poll_fn(|cx| queue.poll_flush(cx)));
    read.unwrap();
    flushed.unwrap();
    assert_eq!(got[got.len() - 20..][2..10], *b"00000010");
}

#[tokio::test]
async fn a_stored_event_without_room_is_not_dropped_but_read_later() {
    let (queue, _client) = pair().await;
    let limit = bound(4, SlowClient::DropOldest);
    let at = |number| Cursor { epoch: NonZeroU64::MIN, ms: 1_000, number };
    queue.state.lock().catch_up.set(Position::At(at(0)));
    let mut last = 0;
    while !queue.state.lock().catch_up.is_pending() {
        last += 1;
        assert!(last < 10_000, "the queue accepts everything");
        queue.push(numbered(1, 10_000), Some(&at(last)), &limit);
    }
    assert_eq!(queue.state.lock().queue.len(), 4, "queued frames are kept");
    assert_eq!(queue.begin_reading(), Position::At(at(last - 1)));
}

#[tokio::test]
async fn a_stall_and_its_end_are_reported_once_each() {
    let (queue, mut client) = pair().await;
    let limit = bound(1_000, SlowClient::Disconnect);
    let mut sent = 0;
    while queue.state.lock().stalled_since.is_none() {
        queue.push(numbered(0, 10_000), None, &limit);
        queue.flush();
        sent += 10_012;
    }
    let Driven::Stalled(since) = poll_fn(|cx| queue.poll_drive(cx, None)).await else { panic!("closing") };
    assert!(since.is_some());
    let mut got = vec![0; sent];
    let (_, flushed) = tokio::join!(client.read_exact(&mut got), poll_fn(|cx| queue.poll_flush(cx)));
    flushed.unwrap();
    assert_eq!(poll_fn(|cx| queue.poll_drive(cx, since)).await, Driven::Stalled(None));
}

#[tokio::test]
async fn an_emptied_queue_frees_its_memory() {
    let (queue, mut client) = pair().await;
    let limit = bound(1_000, SlowClient::Disconnect);
    queue.pause();
    for number in 0..100 {
        queue.push(numbered(number, 1), None, &limit);
    }
    queue.greet(None, None);
    let mut got = vec![0; 100 * 11];
    client.read_exact(&mut got).await.unwrap();
    assert!(!queue.state.lock().queue.spilled());
}

#[tokio::test]
async fn while_the_backlog_is_too_large_no_queue_keeps_more_than_its_share() {
    let metrics = Metrics::new();
    let (gauge, backlog) = (&metrics.backlog_bytes, Backlog::new(&metrics, 100_000));
    let limit = bound(1_000, SlowClient::DropOldest);
    let mut pairs = Vec::new();
    for _ in 0..20 {
        pairs.push(pair_within(&backlog).await);
    }
    let (mut most, mut given_up) = (0, 0);
    for round in 0..100 {
        for (queue, _) in &pairs {
            given_up += usize::from(matches!(queue.push(numbered(round, 10_000), None, &limit), Pushed::Full(_)));
            queue.flush();
            most = most.max(gauge.get());
        }
    }
    assert!(given_up > 0);
    assert_eq!(metrics.limited.with_label_values(&["max_total_bytes"]).get(), given_up as u64);
    assert!(metrics.deliveries_dropped.get() >= given_up as u64);
    assert!(most <= 100_000 + 20 * (16 * 1024 + 10_012), "{most} bytes");
    let (queue, client) = &mut pairs[19];
    let driven = poll_fn(|cx| queue.poll_drive(cx, None)).await;
    assert_eq!(driven, Driven::Closing(Close::Crowded));
    // The same holds for a queue whose first event exceeds its share.
    let (late, _late_client) = pair_within(&backlog).await;
    late.push(numbered(0, 10_000_000), None, &limit);
    late.flush();
    assert_eq!(late.push(numbered(1, 1), None, &limit), Pushed::Closed);
    // Clients that read are served meanwhile.
    let (ready, mut reader) = pair_within(&backlog).await;
    for round in 0..10 {
        assert_eq!(ready.push(numbered(round, 100), None, &limit), Pushed::First);
        ready.flush();
        reader.read_exact(&mut [0; 110]).await.unwrap();
    }
    drop(client.shutdown().await);
    assert!(gauge.get() > 0, "partly written frames are kept");
    drop((pairs, late));
    assert_eq!(gauge.get(), 0, "a closed connection holds no bytes");
}

#[tokio::test]
async fn only_bytes_that_the_socket_does_not_accept_count_as_backlog() {
    let metrics = Metrics::new();
    let gauge = &metrics.backlog_bytes;
    let (queue, mut client) = pair_within(&Backlog::new(&metrics, usize::MAX)).await;
    let limit = bound(1_000, SlowClient::Disconnect);
    queue.push(numbered(0, 100), None, &limit);
    queue.flush();
    assert_eq!(gauge.get(), 0);
    let mut sent = 110;
    while gauge.get() == 0 {
        queue.push(numbered(0, 10_000), None, &limit);
        queue.flush();
        sent += 10_012;
    }
    let pending = gauge.get();
    queue.push(numbered(0, 10_000), None, &limit);
    assert_eq!(gauge.get(), pending + 10_012, "queued behind the others");
    let mut got = vec![0; sent + 10_012];
    let (_, flushed) = tokio::join!(client.read_exact(&mut got), poll_fn(|cx| queue.poll_flush(cx)));
    flushed.unwrap();
    assert_eq!(gauge.get(), 0);
}
