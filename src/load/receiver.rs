//! Receives for every client on one thread: whoever waits for a server must cost less than the server does.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::tally::{Sequence, Tally};
use super::wire::{frame, from_client, numbers};
use super::{LoadError, Plan, Tongue};

/// Woken for new clients, and for the end.
const WOKEN: Token = Token(usize::MAX);

/// One read: many messages, or one of the largest.
const READ_BYTES: usize = 128 * 1024;

/// Most sockets looked at between two waits.
const EVENTS: usize = 1_024;

/// The thread and its clients; dropping it ends them.
pub(super) struct Receiver {
    arrivals: SyncSender<Client>,
    waker: Waker,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    pub(super) fn start(plan: &Plan, tally: &Arc<Tally>) -> Result<Self, LoadError> {
        let poll = Poll::new().map_err(LoadError::Receiver)?;
        let waker = Waker::new(poll.registry(), WOKEN).map_err(LoadError::Receiver)?;
        let (arrivals, arriving) = mpsc::sync_channel(plan.connections.max(1) as usize);
        let stop = Arc::new(AtomicBool::new(false));
        let bytes = vec![0; READ_BYTES];
        let mut fleet =
            Fleet { poll, arriving, clients: Vec::new(), bytes, tongue: plan.tongue, tally: Arc::clone(tally) };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_capacity(EVENTS);
            while !stopped.load(Ordering::Relaxed) {
                if fleet.receive(&mut events).is_err() {
                    // Nothing is received any more: everything that follows is lost, and the report says so.
                    return fleet.tally.note_closed();
                }
            }
        });
        Ok(Self { arrivals, waker, stop, thread: Some(thread) })
    }

    /// Takes over a client that has its greeting, and what came behind it. Its user has received so many messages.
    pub(super) fn take(
        &self,
        number: u32,
        socket: tokio::net::TcpStream,
        rest: Vec<u8>,
        received: u64,
    ) -> Result<(), LoadError> {
        let connect = |error: std::io::Error| LoadError::Connect { number, why: error.to_string() };
        let socket = TcpStream::from_std(socket.into_std().map_err(connect)?);
        // There is room for every client.
        let handed = self.arrivals.send(Client { socket, rest, sequence: Sequence::after(received) });
        handed.map_err(|_| LoadError::Receiver(ErrorKind::BrokenPipe.into()))?;
        self.waker.wake().map_err(LoadError::Receiver)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It panicked, or it ended: its clients are gone either way.
            thread.join().ok();
        }
    }
}

struct Fleet {
    poll: Poll,
    arriving: mpsc::Receiver<Client>,
    /// By token; `None` where the connection has ended.
    clients: Vec<Option<Client>>,
    bytes: Vec<u8>,
    tongue: Tongue,
    tally: Arc<Tally>,
}

impl Fleet {
    /// Waits for something, and takes all that has come.
    fn receive(&mut self, events: &mut Events) -> std::io::Result<()> {
        match self.poll.poll(events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            done => done?,
        }
        for event in events.iter() {
            if event.token() == WOKEN {
                self.admit()?;
            } else {
                self.read(event.token().0);
            }
        }
        Ok(())
    }

    fn admit(&mut self) -> std::io::Result<()> {
        while let Ok(mut client) = self.arriving.try_recv() {
            let token = Token(self.clients.len());
            self.poll.registry().register(&mut client.socket, token, Interest::READABLE)?;
            // What came behind the greeting, in one read with it, makes no event.
            let ended = client.absorb(&[], self.tongue, &self.tally).is_err();
            self.clients.push((!ended).then_some(client));
            if ended {
                self.tally.note_closed();
            }
        }
        Ok(())
    }

    fn read(&mut self, index: usize) {
        let Some(place) = self.clients.get_mut(index) else { return };
        if let Some(client) = place
            && client.read(&mut self.bytes, self.tongue, &self.tally).is_err()
        {
            self.tally.note_closed();
            *place = None;
        }
    }
}

struct Client {
    socket: TcpStream,
    /// The beginning of a frame whose end has not come.
    rest: Vec<u8>,
    sequence: Sequence,
}

impl Client {
    /// Takes all that has come. An error is the end of the connection.
    fn read(&mut self, bytes: &mut [u8], tongue: Tongue, tally: &Tally) -> std::io::Result<()> {
        loop {
            let count = match self.socket.read(bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.absorb(bytes.get(..count).unwrap_or_default(), tongue, tally)?;
            // A read that leaves room has emptied the socket: the next event tells of more.
            if count < bytes.len() {
                return Ok(());
            }
        }
    }

    /// Takes what is whole, with what was held, and holds the rest.
    fn absorb(&mut self, read: &[u8], tongue: Tongue, tally: &Tally) -> std::io::Result<()> {
        if self.rest.is_empty() {
            let done = self.take(read, tongue, tally)?;
            self.rest.extend_from_slice(read.get(done..).unwrap_or_default());
        } else {
            self.rest.extend_from_slice(read);
            let held = std::mem::take(&mut self.rest);
            let done = self.take(&held, tongue, tally)?;
            self.rest.extend_from_slice(held.get(done..).unwrap_or_default());
        }
        Ok(())
    }

    /// Takes every whole frame, and gives where the last one ends.
    fn take(&mut self, bytes: &[u8], tongue: Tongue, tally: &Tally) -> std::io::Result<usize> {
        let mut done = 0;
        while let Some((opcode, payload, end)) = frame(bytes.get(done..).unwrap_or_default()) {
            done += end;
            let answer: &[u8] = match (opcode, tongue, payload) {
                (8, ..) => return Err(ErrorKind::UnexpectedEof.into()),
                (9, ..) => b"",
                (_, Tongue::WebSocket, br#"{"type":"ping"}"#) => br#"{"type":"pong"}"#,
                (_, Tongue::SocketIo, b"2") => b"3",
                _ => {
                    if let Some((number, due)) = numbers(payload) {
                        self.sequence.take(tally, number, due);
                    }
                    continue;
                }
            };
            self.socket.write_all(&from_client(answer))?;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::load::{Admin, Mode, Pace, Phase, Way};
    use crate::protocol::text_frame;

    fn plan() -> Plan {
        let second = Duration::from_secs(1);
        let phase = Phase {
            mode: Mode::Unicast,
            way: Way::Pubsub,
            stored: 0,
            pace: Pace::OpenLoop(1),
            burst: 1,
            payload: 0,
            warm_up: second,
            duration: second,
            linger: second,
        };
        Plan {
            target: (Ipv4Addr::LOCALHOST, 0).into(),
            path: String::new(),
            redis_url: String::new(),
            redis_prefix: String::new(),
            admin: Admin { url: String::new(), key: None },
            connections: 1,
            users: 1,
            connect_rate: 1,
            sources: 1,
            tongue: Tongue::WebSocket,
            settle: second,
            server_pid: None,
            seed: 1,
            phases: vec![phase],
        }
    }

    /// What a server would have to send, cut anywhere.
    fn sent() -> Vec<u8> {
        let frames = [1, 2, 2, 5, 4].map(|number| {
            text_frame(&[format!(r#"{{"n":{number},"t":1,"p":"{}"}}"#, "x".repeat(200)).as_bytes()]).to_vec()
        });
        [frames.concat(), text_frame(&[br#"{"type":"ping"}"#]).to_vec()].concat()
    }

    #[tokio::test]
    async fn every_frame_is_taken_wherever_it_is_cut_and_pings_are_answered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for cut in [0, 1, 3, 5, 208, 300, sent().len() - 1, sent().len()] {
            let tally = Arc::new(Tally::new(1));
            let receiver = Receiver::start(&plan(), &tally).unwrap();
            let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // What was read behind the greeting, and what comes later.
            receiver.take(0, client, sent()[..cut].to_vec(), 0).unwrap();
            server.write_all(&sent()[cut..]).unwrap();
            let mut answer = [0; 21];
            server.read_exact(&mut answer).unwrap();
            assert_eq!(&answer[6..], br#"{"type":"pong"}"#);
            assert_eq!((tally.delivered(), tally.twice(), tally.out_of_order()), (4, 1, 1), "{cut}");
            drop(server);
            let begun = Instant::now();
            while tally.closed() == 0 && begun.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            assert_eq!(tally.closed(), 1);
        }
    }
}
