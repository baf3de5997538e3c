//! Receives for all clients on one thread, so that receiving costs less CPU than the server's sending.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use mio::{Events, Interest, Poll, Token, Waker};

use crate::LoadError;
use crate::args::Plan;
use crate::client::{Checker, Client};
use crate::greeting::Greeted;
use crate::tally::Tally;

/// Signals new clients and the shutdown.
const WAKE: Token = Token(usize::MAX);

/// Bytes per read: many small messages, or one of the maximum size.
const READ_BYTES: usize = 128 * 1024;

/// Maximum number of sockets processed per poll.
const EVENTS: usize = 1_024;

/// A handle of the receiver's thread; dropping it closes the clients.
pub(crate) struct Receiver {
    new_clients: SyncSender<Client>,
    waker: Waker,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    pub(crate) fn start(plan: &Plan, tally: &Arc<Tally>) -> Result<Self, LoadError> {
        let poll = Poll::new().map_err(LoadError::Receiver)?;
        let waker = Waker::new(poll.registry(), WAKE).map_err(LoadError::Receiver)?;
        let (sender, new_clients) = mpsc::sync_channel(plan.connections.max(1) as usize);
        let stop = Arc::new(AtomicBool::new(false));
        let (bytes, checker) = (vec![0; READ_BYTES], Checker { protocol: plan.client, tally: Arc::clone(tally) });
        let mut event_loop = EventLoop { poll, new_clients, clients: Vec::new(), bytes, checker };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_capacity(EVENTS);
            while !stopped.load(Ordering::Relaxed) {
                if event_loop.run_once(&mut events).is_err() {
                    // All further messages are lost; the report shows that.
                    return event_loop.checker.tally.record_closed();
                }
            }
        });
        Ok(Self { new_clients: sender, waker, stop, thread: Some(thread) })
    }

    /// Adds a client whose user has received this many messages.
    pub(crate) fn add(&self, greeted: Greeted, received: u64) -> Result<(), LoadError> {
        let client = Client::new(greeted, received).map_err(LoadError::Receiver)?;
        // The channel has room for every client.
        self.new_clients.send(client).map_err(|_| LoadError::Receiver(ErrorKind::BrokenPipe.into()))?;
        self.waker.wake().map_err(LoadError::Receiver)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // Even if the thread panicked, its clients are closed.
            thread.join().ok();
        }
    }
}

struct EventLoop {
    poll: Poll,
    new_clients: mpsc::Receiver<Client>,
    /// Indexed by token; `None` after the connection ended.
    clients: Vec<Option<Client>>,
    bytes: Vec<u8>,
    checker: Checker,
}

impl EventLoop {
    /// Waits for events and processes them.
    fn run_once(&mut self, events: &mut Events) -> std::io::Result<()> {
        match self.poll.poll(events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            done => done?,
        }
        for event in events.iter() {
            if event.token() == WAKE {
                self.register_new_clients()?;
            } else if let Some(slot) = self.clients.get_mut(event.token().0)
                && let Some(client) = slot
                && client.read(&mut self.bytes, &self.checker).is_err()
            {
                self.checker.tally.record_closed();
                *slot = None;
            }
        }
        Ok(())
    }

    fn register_new_clients(&mut self) -> std::io::Result<()> {
        while let Ok(mut client) = self.new_clients.try_recv() {
            let token = Token(self.clients.len());
            self.poll.registry().register(&mut client.socket, token, Interest::READABLE)?;
            // Bytes that were read together with the greeting cause no event.
            let ended = client.process(&[], &self.checker).is_err();
            self.clients.push((!ended).then_some(client));
            if ended {
                self.checker.tally.record_closed();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::args::tests::plan;
    use crate::greeting::Polling;
    use crate::tally::Counts;
    use crate::wire::tests::server_frame;

    const NUMBERS: [u64; 5] = [1, 2, 2, 5, 4];

    fn message(number: u64) -> String {
        format!(r#"{{"n":{number},"t":1,"p":"{}"}}"#, "x".repeat(200))
    }

    /// What a server sends: a duplicate, a message out of order, and a ping, which a stream does not have.
    fn sent(protocol: &str) -> Vec<u8> {
        let messages = NUMBERS.map(message);
        match protocol {
            "sse" => messages.map(|message| format!("id: 1\ndata: {message}\n\n")).concat().into_bytes(),
            // Two frames, the first of which ends within a message.
            "nats" => {
                let all = messages.map(|message| format!("MSG user.0 1 {}\r\n{message}\r\n", message.len())).concat();
                let (first, second) = all.split_at(300);
                [server_frame(first), server_frame(&format!("{second}PING\r\n"))].concat()
            }
            "polling" => {
                let packets = [&messages[..], &["2".to_owned()]].concat().join("\x1e");
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{packets}", packets.len()).into_bytes()
            }
            _ => {
                let ping = match protocol {
                    "nchan" => vec![0x89, 0],
                    "socket-io" => server_frame("2"),
                    _ => server_frame(r#"{"type":"ping"}"#),
                };
                [messages.map(|message| server_frame(&message)).concat(), ping].concat()
            }
        }
    }

    #[tokio::test]
    async fn messages_split_at_any_byte_are_processed_and_pings_are_answered() {
        for (protocol, reply) in [
            ("websocket", &b"\x81\x8f\0\0\0\0{\"type\":\"pong\"}"[..]),
            ("socket-io", &b"\x81\x81\0\0\0\x003"[..]),
            ("sse", b""),
            ("nchan", b"\x8a\x80\0\0\0\0"),
            ("nats", b"\x82\x86\0\0\0\0PONG\r\n"),
            ("polling", b"POST 3"),
        ] {
            let sent = sent(protocol);
            for cut in [0, 1, 3, 5, 208, 300, sent.len() - 1, sent.len()] {
                check(protocol, (&sent[..cut], &sent[cut..]), reply).await;
            }
        }
    }

    /// Some bytes were read together with the greeting, the others arrive later.
    async fn check(protocol: &str, (read, later): (&[u8], &[u8]), expected_reply: &[u8]) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tally = Arc::new(Tally::new(1));
        let receiver = Receiver::start(&plan(&["--client", protocol]), &tally).unwrap();
        let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let polling = (protocol == "polling").then(|| Polling { get: b"GET".into(), pong: b"POST 3".into() });
        receiver.add(Greeted { socket, buffer: read.to_vec(), polling }, 0).unwrap();
        server.write_all(later).unwrap();
        let mut reply = vec![0; expected_reply.len()];
        server.read_exact(&mut reply).unwrap();
        assert_eq!(reply, expected_reply, "{protocol}");
        let expected = Counts { delivered: 4, duplicates: 1, out_of_order: 1, ..Counts::default() };
        wait_until(|| tally.counts() == expected).await;
        drop(server);
        wait_until(|| tally.counts().closed == 1).await;
    }

    async fn wait_until(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10));
            tokio::task::yield_now().await;
        }
    }
}
