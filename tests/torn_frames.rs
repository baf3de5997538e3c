//! No frame is ever torn: the library's pongs and closes, answers of the connection, and events written by the router
//! share one socket, and a decoder of the test checks every byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use fastrand::Rng;
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{oneshot, watch};

use crate::support::wire::{BINARY, CLOSE, CONTINUATION, Decoder, FIN, Frame, PING, PONG, TEXT, client_frame, upgrade};
use crate::support::{Gateway, Options, RedisServer, eventually, token, within};

const USERS: [&str; 3] = ["41", "42", "43"];
const ROUNDS: usize = 100;
/// Behind it, an instance is stopped in the middle.
const STOP: usize = ROUNDS * 9 / 10;
/// Events for each user, each round.
const EVENTS: usize = 12;
/// Frames of each client, each round.
const SAID: usize = 24;

/// The last event of every user.
const LAST: &str = r#""the last""#;
const TOO_SLOW: u16 = 4203;
const STOPPED: u16 = 4200;

const LAST_EVENT_HEARD: u8 = 1;
const LAST_PONG_HEARD: u8 = 2;

/// How a client's connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The instance drains, after everything else.
    Drain,
    /// The client says goodbye, in the middle.
    Close,
    /// The client breaks the protocol, in the middle.
    Violation,
    /// The client sends an unknown frame in the middle.
    Binary,
}

impl End {
    /// What the client does for it, and the code it must get.
    fn frame_and_code(self) -> (Vec<u8>, u16) {
        match self {
            Self::Drain => (Vec::new(), STOPPED),
            Self::Close => (client_frame(FIN | CLOSE, &1000_u16.to_be_bytes()), 1000),
            Self::Violation => (client_frame(FIN | 0x3, b"reserved"), 1002),
            Self::Binary => (client_frame(FIN | BINARY, b"binary"), 1003),
        }
    }
}

struct Tab {
    user: &'static str,
    end: End,
    story: Story,
    seed: u64,
    /// Grows as the publisher goes on.
    round: watch::Receiver<usize>,
    /// Whether it has received [`LAST`], and the pong for its last ping.
    heard: Arc<AtomicU8>,
    /// How many have had their greeting: nothing was promised of what came before.
    greeted: Arc<AtomicUsize>,
}

/// What one connection sent and received.
struct Transcript {
    user: &'static str,
    end: End,
    pings: Vec<Vec<u8>>,
    /// How many texts deserve an `error`.
    unknown: usize,
    frames: Vec<Frame>,
    /// Bytes behind the last whole frame.
    rest: usize,
}

impl Tab {
    async fn run(self, gateway: &Gateway) -> Transcript {
        let socket = TcpSocket::new_v4().unwrap();
        // So small that slow turns are noticed.
        if self.seed.is_multiple_of(2) || self.story == Story::Stopped {
            socket.set_recv_buffer_size(16 * 1_024).unwrap();
        }
        let bearer = format!("Authorization: Bearer {}", token(self.user));
        let (mut socket, early) = upgrade(socket, gateway.public, &[bearer]).await;
        self.greeted.fetch_add(1, Ordering::SeqCst);
        let (read, write) = socket.split();
        let (closed, told) = oneshot::channel();
        let ((frames, rest), (pings, unknown)) =
            tokio::join!(self.listen(read, &early, closed), self.talk(write, told));
        Transcript { user: self.user, end: self.end, pings, unknown, frames, rest }
    }

    /// Reads to the end, slowly and quickly in turn.
    async fn listen(&self, mut read: ReadHalf<'_>, early: &[u8], closed: oneshot::Sender<()>) -> (Vec<Frame>, usize) {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        decoder.feed(early);
        let (mut rng, mut round, mut closed) = (Rng::with_seed(self.seed), self.round.clone(), Some(closed));
        let mut over_the_stop = self.story == Story::Stopped;
        loop {
            let now = *round.borrow();
            if rng.u8(..64) == 0 || (over_the_stop && now > ROUNDS / 10) {
                // A slow turn: nothing is read until the publisher is far ahead, or the instance is stopped.
                let far = if std::mem::take(&mut over_the_stop) { STOP + 1 } else { now + rng.usize(10..50) };
                round.wait_for(|round| *round >= far.min(ROUNDS)).await.unwrap();
            }
            let mut buffer = vec![0; rng.usize(1..=32 * 1_024)];
            let count = within("bytes of the server", read.read(&mut buffer)).await.unwrap_or(0);
            decoder.feed(&buffer[..count]);
            while let Some(frame) = decoder.next() {
                let heard = match frame.opcode {
                    TEXT if frame.text().contains(LAST) => LAST_EVENT_HEARD,
                    PONG if frame.payload.ends_with(b"last") => LAST_PONG_HEARD,
                    _ => 0,
                };
                self.heard.fetch_or(heard, Ordering::SeqCst);
                if let Some(closed) = closed.take_if(|_| frame.opcode == CLOSE) {
                    closed.send(()).ok();
                }
                frames.push(frame);
            }
            if count == 0 {
                self.heard.fetch_or(LAST_EVENT_HEARD | LAST_PONG_HEARD, Ordering::SeqCst);
                return (frames, decoder.rest());
            }
        }
    }

    /// Says something each round: its pings, and how many of its texts deserve an `error`.
    async fn talk(&self, mut write: WriteHalf<'_>, mut closed: oneshot::Receiver<()>) -> (Vec<Vec<u8>>, usize) {
        let (mut rng, mut round) = (Rng::with_seed(self.seed + 1), self.round.clone());
        let (mut pings, mut unknown) = (Vec::new(), 0);
        let last = if self.end == End::Drain { ROUNDS } else { rng.usize(ROUNDS / 2..ROUNDS) };
        for now in 0..last {
            round.wait_for(|round| *round >= now).await.unwrap();
            for _ in 0..SAID {
                let frame = match rng.u8(..8) {
                    0..4 => {
                        let payload = format!("{:06}{}", pings.len(), ".".repeat(rng.usize(..=119)));
                        pings.push(payload.clone().into_bytes());
                        client_frame(FIN | PING, payload.as_bytes())
                    }
                    4 => client_frame(FIN | PONG, b"unasked"),
                    5 | 6 => {
                        unknown += 1;
                        client_frame(FIN | TEXT, format!(r#"{{"type":"shout {}"}}"#, unknown - 1).as_bytes())
                    }
                    _ => {
                        // A ping between the fragments of a text (section 5.4).
                        unknown += 1;
                        let parts = [format!(r#"{{"type":"shout {}"#, unknown - 1), r#""}"#.to_owned()];
                        let ping = format!("{:06}", pings.len());
                        pings.push(ping.clone().into_bytes());
                        let frames = [(TEXT, &parts[0]), (FIN | PING, &ping), (FIN | CONTINUATION, &parts[1])];
                        frames.map(|(first, payload)| client_frame(first, payload.as_bytes())).concat()
                    }
                };
                // After the server's own close, the socket may be gone.
                within("bytes are written", write.write_all(&frame)).await.ok();
            }
        }
        let ping = format!("{:06}last", pings.len()).into_bytes();
        let end = [client_frame(FIN | PING, &ping), self.end.frame_and_code().0].concat();
        pings.push(ping);
        write.write_all(&end).await.ok();
        if self.end != End::Close {
            (&mut closed).await.ok();
            write.write_all(&client_frame(FIN | CLOSE, &1000_u16.to_be_bytes())).await.ok();
        }
        (pings, unknown)
    }
}

/// How the connections end, and so how much of what was sent must have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    /// The send queue accepts everything, so each client must receive everything, up to its close.
    Whole,
    /// The oldest are dropped: what is left is in order.
    Thinned,
    /// A slow client is closed with 4203: it received everything up to that.
    TooSlow,
    /// The instance is stopped while it has more to come for all clients than sockets hold: everything, up to the close.
    Stopped,
}

impl Transcript {
    fn close_code(&self) -> Option<u16> {
        self.frames.last().filter(|frame| frame.opcode == CLOSE)?.close_code()
    }

    /// Checks the whole; gives how many pongs there were.
    fn check(&self, published: &[String], story: Story) -> usize {
        let who = format!("user {}, {:?}", self.user, self.end);
        let rest = match self.close_code() {
            // A client that pauses for longer than it is waited for sees only the end.
            None if matches!(story, Story::TooSlow | Story::Stopped) => &self.frames[..],
            code => {
                let too_slow = story == Story::TooSlow && code == Some(TOO_SLOW);
                let stopped = story == Story::Stopped && code == Some(STOPPED);
                let asked_for = code == Some(self.end.frame_and_code().1);
                assert!(too_slow || stopped || asked_for, "{who}: closed with {code:?}");
                assert_eq!(self.rest, 0, "{who}: half a frame at the end");
                &self.frames[..self.frames.len() - 1]
            }
        };

        let of = |opcode| rest.iter().filter(move |frame| frame.opcode == opcode);
        let mut answered = None;
        for pong in of(PONG) {
            let number: usize = std::str::from_utf8(&pong.payload[..6]).unwrap().parse().unwrap();
            assert_eq!(pong.payload, self.pings[number], "{who}: a pong carries its ping's payload");
            assert!(answered < Some(number), "{who}: {number} answered behind {answered:?}");
            answered = Some(number);
        }
        let mut texts = of(TEXT).map(Frame::text);
        assert!(texts.next().unwrap().starts_with(r#"{"type":"welcome","#), "{who}");
        let (mut events, mut errors, mut reconnects) = (Vec::new(), Vec::new(), 0);
        for text in texts {
            if let Some(event) = text.strip_prefix(r#"{"type":"event","event":"notification","data":"#) {
                events.push(event.strip_suffix('}').unwrap());
            } else if text.starts_with(r#"{"type":"error","code":4000,"#) {
                errors.push(text.split_once("shout ").unwrap().1.split_once('\\').unwrap().0.parse::<usize>().unwrap());
            } else {
                assert!(text.starts_with(r#"{"type":"reconnect","#), "{who}: {text}");
                reconnects += 1;
            }
        }
        assert!(reconnects <= 1, "{who}: {reconnects} reconnects");
        match story {
            Story::Whole if self.end == End::Drain => {
                assert_eq!(events.len(), published.len(), "{who}: events");
                assert_eq!(errors.len(), self.unknown, "{who}: errors");
                // Some may be answered by the pong of a later one, but the last must be.
                assert_eq!(answered, self.pings.len().checked_sub(1), "{who}: the last ping");
                self.check_prefix(&who, published, &events, &errors);
            }
            Story::Whole | Story::TooSlow | Story::Stopped => self.check_prefix(&who, published, &events, &errors),
            Story::Thinned => {
                assert!(errors.is_sorted_by(|a, b| a < b), "{who}: errors out of order");
                let mut from = published.iter();
                let known = events.iter().all(|event| from.any(|published| published == event));
                assert!(known, "{who}: events out of order");
            }
        }
        of(PONG).count()
    }

    fn check_prefix(&self, who: &str, published: &[String], events: &[&str], errors: &[usize]) {
        assert!(events.len() <= published.len() && errors.len() <= self.unknown, "{who}: more than there was");
        for (number, (event, published)) in events.iter().zip(published).enumerate() {
            assert!(event == published, "{who}: event {number} is {event:.60}, not {published:.60}");
        }
        assert!(errors.iter().copied().eq(0..errors.len()), "{who}: errors out of order");
    }
}

/// JSON of 1 byte to 64 KiB, as often small as large.
fn payload(rng: &mut Rng) -> String {
    let size = 1 << rng.u32(0..=16);
    let size = rng.usize(size / 2 + 1..=size);
    if size < 3 {
        rng.digit(10).to_string().repeat(size).replace("00", "10")
    } else {
        format!("\"{}\"", ".".repeat(size - 2))
    }
}

/// Publishes all rounds, and calls `late` behind [`STOP`]: what was published, for each user.
async fn publish(
    redis: &RedisServer,
    rng: &mut Rng,
    round: &watch::Sender<usize>,
    late: impl FnOnce(),
) -> [Vec<String>; 3] {
    let mut published = [const { Vec::new() }; 3];
    let mut late = Some(late);
    for now in 0..ROUNDS {
        for (user, published) in USERS.iter().zip(&mut published) {
            let payloads: Vec<String> = (0..EVENTS).map(|_| payload(rng)).collect();
            redis.publish_all(user, payloads.clone()).await;
            published.extend(payloads);
        }
        round.send_modify(|round| *round += 1);
        if let Some(late) = late.take_if(|_| now == STOP) {
            late();
        }
    }
    for (user, published) in USERS.iter().zip(&mut published) {
        redis.publish(user, LAST).await;
        published.push(LAST.to_owned());
    }
    published
}

async fn no_frame_is_torn(options: Options, redis: &RedisServer, story: Story) -> Vec<Transcript> {
    let seed = fastrand::u64(..u64::MAX / 2);
    let mut gateway = options.set("send_queue.write_timeout", "1h").start().await;
    let (sender, round) = watch::channel(0);
    let greeted = Arc::<AtomicUsize>::default();
    let ends = [End::Drain, End::Drain, End::Close, End::Violation, End::Binary];
    let tabs: Vec<Tab> = (seed..)
        .zip(USERS.iter().flat_map(|user| ends.map(|end| (*user, end))))
        .map(|(seed, (user, end))| {
            let (round, heard, greeted) = (round.clone(), Arc::default(), Arc::clone(&greeted));
            Tab { user, end, story, seed, round, heard, greeted }
        })
        .collect();
    let staying: Vec<_> = tabs.iter().filter(|tab| tab.end == End::Drain).map(|tab| Arc::clone(&tab.heard)).collect();
    let count = tabs.len();
    let orchestra = async {
        eventually("all are greeted", async || greeted.load(Ordering::SeqCst) == count).await;
        let stop_late = || {
            if story == Story::Stopped {
                gateway.signal("TERM");
            }
        };
        let published = publish(redis, &mut Rng::with_seed(seed), &sender, stop_late).await;
        if story != Story::Stopped {
            // A client that stays has received everything before it is closed; a pong may have been dropped with the oldest.
            let due = if story == Story::Whole { LAST_EVENT_HEARD | LAST_PONG_HEARD } else { LAST_EVENT_HEARD };
            eventually("everything arrives", async || {
                staying.iter().all(|heard| heard.load(Ordering::SeqCst) & due == due)
            })
            .await;
            let dropped = gateway.metric("tidings_deliveries_dropped_total").await;
            assert_eq!(dropped > 0.0, story != Story::Whole, "{dropped} dropped");
            gateway.signal("TERM");
        }
        published
    };
    let (transcripts, published) = tokio::join!(join_all(tabs.into_iter().map(|tab| tab.run(&gateway))), orchestra);
    assert!(gateway.exit().await.success());
    let mut pongs = 0;
    for transcript in &transcripts {
        let at = USERS.iter().position(|user| *user == transcript.user).unwrap();
        pongs += transcript.check(&published[at], story);
    }
    assert!(pongs > 1_000, "only {pongs} pongs: nothing was between the events");
    transcripts
}

/// Clients were told why they were closed, by whole frames up to it. How many saw only the end depends on the machine: a client
/// is waited for only so long.
fn some_are_told(transcripts: &[Transcript], code: u16) {
    let told = transcripts.iter().any(|transcript| transcript.close_code() == Some(code));
    assert!(told, "none of {} was closed with {code}", transcripts.len());
}

fn ample(redis: &RedisServer) -> Options {
    Options::redis(redis).set("send_queue.max_bytes", "1000000000").set("send_queue.max_messages", "1000000")
}

fn scant(redis: &RedisServer) -> Options {
    Options::redis(redis).set("send_queue.max_bytes", "200000").set("send_queue.max_messages", "20")
}

#[tokio::test]
async fn whatever_is_said_and_published_at_once_is_heard_as_whole_frames_in_order() {
    let redis = RedisServer::start().await;
    no_frame_is_torn(ample(&redis), &redis, Story::Whole).await;
}

#[tokio::test]
async fn what_is_left_when_the_oldest_are_dropped_is_whole_frames_in_order() {
    let redis = RedisServer::start().await;
    no_frame_is_torn(scant(&redis).set("send_queue.slow_client", "drop_oldest"), &redis, Story::Thinned).await;
}

#[tokio::test]
async fn who_is_too_slow_hears_whole_frames_up_to_the_close() {
    let redis = RedisServer::start().await;
    some_are_told(&no_frame_is_torn(scant(&redis), &redis, Story::TooSlow).await, TOO_SLOW);
}

#[tokio::test]
async fn who_is_sent_away_in_the_middle_hears_whole_frames_up_to_the_close() {
    let redis = RedisServer::start().await;
    // Time for a slow machine to deliver the rest.
    let options = ample(&redis).set("drain.window", "12s");
    some_are_told(&no_frame_is_torn(options, &redis, Story::Stopped).await, STOPPED);
}
