//! Receives for all clients on one thread, so that receiving costs less CPU than the server's sending.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::LoadError;
use crate::args::{ClientProtocol, Plan};
use crate::connect::Greeted;
use crate::tally::{Sequence, Tally};
use crate::wire::{client_frame, message_header, parse_frame};

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
    pub(crate) fn add(&self, number: u32, greeted: Greeted, received: u64) -> Result<(), LoadError> {
        let failed = |error: std::io::Error| LoadError::Connect(number, error.to_string());
        let socket = TcpStream::from_std(greeted.socket.into_std().map_err(failed)?);
        let client = Client { socket, partial: greeted.buffer, sequence: Sequence::after(received) };
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

struct Checker {
    protocol: ClientProtocol,
    tally: Arc<Tally>,
}

struct Client {
    socket: TcpStream,
    /// The beginning of an incomplete frame.
    partial: Vec<u8>,
    sequence: Sequence,
}

impl Client {
    /// Reads until the socket is empty. An error means that the connection has ended.
    fn read(&mut self, bytes: &mut [u8], checker: &Checker) -> std::io::Result<()> {
        loop {
            let count = match self.socket.read(bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.process(bytes.get(..count).unwrap_or_default(), checker)?;
            // A short read has emptied the socket; more data causes another event.
            if count < bytes.len() {
                return Ok(());
            }
        }
    }

    /// Processes all complete frames, and stores the incomplete one for the next read.
    fn process(&mut self, read: &[u8], checker: &Checker) -> std::io::Result<()> {
        let mut joined = std::mem::take(&mut self.partial);
        let bytes = if joined.is_empty() {
            read
        } else {
            joined.extend_from_slice(read);
            &joined
        };
        let done = self.process_frames(bytes, checker)?;
        self.partial.extend_from_slice(bytes.get(done..).unwrap_or_default());
        Ok(())
    }

    /// Processes all complete frames, and returns their total length.
    fn process_frames(&mut self, bytes: &[u8], checker: &Checker) -> std::io::Result<usize> {
        let mut done = 0;
        while let Some((opcode, payload, end)) = parse_frame(bytes.get(done..).unwrap_or_default()) {
            done += end;
            let reply: &[u8] = match (opcode, checker.protocol, payload) {
                (8, ..) => return Err(ErrorKind::UnexpectedEof.into()),
                (9, ..) => b"",
                (_, ClientProtocol::WebSocket, br#"{"type":"ping"}"#) => br#"{"type":"pong"}"#,
                (_, ClientProtocol::SocketIo, b"2") => b"3",
                _ => {
                    if let Some((number, due)) = message_header(payload) {
                        self.sequence.record(&checker.tally, number, due);
                    }
                    continue;
                }
            };
            self.socket.write_all(&client_frame(reply))?;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::args::tests::plan;
    use crate::tally::Counts;
    use crate::wire::tests::server_frame;

    /// A server's frames: a duplicate, a message out of order, and a ping.
    fn sent() -> Vec<u8> {
        let padding = "x".repeat(200);
        let mut bytes =
            [1, 2, 2, 5, 4].map(|number| server_frame(&format!(r#"{{"n":{number},"t":1,"p":"{padding}"}}"#))).concat();
        bytes.extend(server_frame(r#"{"type":"ping"}"#));
        bytes
    }

    #[tokio::test]
    async fn frames_split_at_any_byte_are_processed_and_pings_are_answered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for cut in [0, 1, 3, 5, 208, 300, sent().len() - 1, sent().len()] {
            let tally = Arc::new(Tally::new(1));
            let receiver = Receiver::start(&plan(&[]), &tally).unwrap();
            let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // Some bytes were read together with the greeting, the others arrive later.
            receiver.add(0, Greeted { socket, buffer: sent()[..cut].to_vec() }, 0).unwrap();
            server.write_all(&sent()[cut..]).unwrap();
            let mut reply = [0; 21];
            server.read_exact(&mut reply).unwrap();
            assert_eq!(&reply[6..], br#"{"type":"pong"}"#);
            let expected = Counts { delivered: 4, duplicates: 1, out_of_order: 1, ..Counts::default() };
            assert_eq!(tally.counts(), expected, "{cut}");
            drop(server);
            let start = Instant::now();
            while tally.counts().closed == 0 && start.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            assert_eq!(tally.counts().closed, 1);
        }
    }
}
