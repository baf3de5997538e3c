//! Broadcasts: one message to every connection of this instance, in the order of publishing.
//!
//! Few connections are written to at once, like those of one user. Many are written to in slices by a task, so that other
//! messages go between them.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::{DropReason, Router};
use crate::delivery::ConnectionHandle;
use crate::protocol::{DEFAULT_EVENT, ENVELOPE_START, Encoded, Envelope, Event};

/// Maximum number of connections that are written to at once.
const AT_ONCE: usize = 512;

/// Connections that are written to before other tasks have their turn: a fraction of a millisecond.
const SLICE: usize = 64;

/// Maximum number of broadcasts that wait; further ones are dropped.
const MAX_WAITING: usize = 256;

/// Maximum number of bytes of them together, which a single one may exceed.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// The broadcasts that wait for others to be written.
#[derive(Debug, Default)]
pub(super) struct Broadcasts {
    waiting: Mutex<Waiting>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Broadcast>,
    bytes: usize,
    /// Another one, taken from the queue, is being written.
    is_writing: bool,
}

#[derive(Debug)]
struct Broadcast {
    event: String,
    data: String,
}

impl Broadcasts {
    /// Whether a broadcast that is written at once overtakes no other.
    fn is_idle(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.queue.is_empty() && !waiting.is_writing
    }

    fn add(&self, event: &str, data: &str) -> Result<(), DropReason> {
        let mut waiting = self.waiting.lock();
        let is_full = waiting.queue.len() >= MAX_WAITING || waiting.bytes + data.len() > MAX_WAITING_BYTES;
        if is_full && !waiting.queue.is_empty() {
            return Err(DropReason::Overflow);
        }
        waiting.bytes += data.len();
        waiting.queue.push_back(Broadcast { event: event.to_owned(), data: data.to_owned() });
        drop(waiting);
        self.added.notify_one();
        Ok(())
    }

    /// The next one; the previous one is written.
    fn next(&self) -> Option<Broadcast> {
        let mut waiting = self.waiting.lock();
        let next = waiting.queue.pop_front();
        waiting.is_writing = next.is_some();
        waiting.bytes -= next.as_ref().map_or(0, |next| next.data.len());
        next
    }
}

impl Router {
    /// Sends one message to every connection. Never blocks.
    pub(super) fn broadcast(&self, payload: &[u8]) -> Result<(), DropReason> {
        let text = str::from_utf8(payload).map_err(|_| DropReason::Utf8)?;
        let envelope = if payload.starts_with(&[ENVELOPE_START]) {
            // Nothing that is stored is a broadcast.
            let envelope = Envelope::parse(text).filter(|envelope| envelope.stored.is_none());
            Some(envelope.ok_or(DropReason::Envelope)?)
        } else {
            None
        };
        let (name, data) =
            envelope.as_ref().map_or((DEFAULT_EVENT, text), |envelope| (envelope.event.as_str(), envelope.data));
        let event = self.event(name, data)?;
        if self.registry.connections() > AT_ONCE || !self.broadcasts.is_idle() {
            return self.broadcasts.add(event.name, event.data);
        }
        let mut batch = self.batch.lock();
        batch.write();
        // No user has an empty id: the next message of any user is written after this one.
        batch.user.clear();
        self.push_to_all(&self.registry.handles(), event, None, &mut batch.handles);
        self.metrics.broadcasts.inc();
        Ok(())
    }

    /// Writes the broadcasts to many connections, one after the other. Runs until dropped.
    pub async fn run_broadcasts(&self) {
        loop {
            match self.broadcasts.next() {
                Some(broadcast) => self.write_in_slices(&broadcast).await,
                None => self.broadcasts.added.notified().await,
            }
        }
    }

    async fn write_in_slices(&self, Broadcast { event, data }: &Broadcast) {
        let event = Event::ephemeral(event, data);
        let (mut encoded, mut written, mut is_reserved) = (Encoded::new(event), 0, false);
        for part in self.registry.parts() {
            for slice in part.chunks(SLICE) {
                is_reserved |= self.write_slice(slice, &mut encoded);
                written += slice.len();
                // The parts of an instance with few connections are smaller than a slice.
                if written >= SLICE {
                    written = 0;
                    yield_now().await;
                }
            }
        }
        if is_reserved {
            self.count_drop(DropReason::ReservedEvent, None, Some(event.data.len()));
        }
        self.metrics.broadcasts.inc();
    }

    /// Returns whether the dialect of one of the clients cannot carry the event.
    fn write_slice(&self, slice: &[Arc<ConnectionHandle>], encoded: &mut Encoded<'_>) -> bool {
        let (mut batch, mut delivered, mut is_reserved) = (Vec::with_capacity(slice.len()), 0, false);
        for handle in slice {
            let frame = encoded.frame(handle.dialect);
            is_reserved |= frame.is_empty();
            delivered += self.push(handle, frame, None, &mut batch);
        }
        batch.iter().for_each(|handle| handle.queue.flush());
        self.metrics.deliveries.inc_by(delivered);
        is_reserved
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use std::pin::pin;
    use std::task::Poll;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::backplane::BackplaneEvent;
    use crate::config::{Config, Layers};
    use crate::delivery::{Backlog, Registration, Registry, SendQueue, Socket};
    use crate::metrics::Metrics;
    use crate::protocol::{Dialect, UserId, text_frame};
    use crate::shutdown::Shutdown;

    /// So many users with one connection each, and the clients' ends.
    async fn connected(registry: &Arc<Registry>, count: usize) -> Vec<(Registration, TcpStream)> {
        let (listener, backlog) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), Backlog::new(&Metrics::new(), usize::MAX));
        let mut clients = Vec::new();
        for user in 0..count {
            let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            let (near, (client, _)) = (near.unwrap(), far.unwrap());
            near.writable().await.unwrap();
            let queue = SendQueue::new(Socket::Plain(near), Arc::clone(&backlog));
            let handle = Arc::new(ConnectionHandle::new(Dialect::Raw, Ipv4Addr::LOCALHOST.into(), queue));
            clients.push((registry.register(UserId::new(&user.to_string()).unwrap(), handle), client));
        }
        clients
    }

    #[tokio::test]
    async fn other_messages_are_written_between_the_slices_of_a_broadcast() {
        let (registry, metrics) = (Arc::<Registry>::default(), Arc::new(Metrics::new()));
        let clients = connected(&registry, AT_ONCE + 1).await;
        let Config { send_queue: bound, limits, .. } = Config::load(Layers::default()).unwrap();
        let acks = Arc::default();
        let router = Router::new(registry, acks, Arc::clone(&metrics), bound, "user:", limits, Shutdown::default());
        let [all, own] = ["\"all\"", "\"own\""].map(str::as_bytes);
        router.take(BackplaneEvent::Broadcast { payload: all });
        let mut running = pin!(router.run_broadcasts());
        let mut step = async || poll_fn(|cx| Poll::Ready(running.as_mut().poll(cx).is_pending())).await;
        assert!(step().await, "it waits after the first slice");
        for (registration, _) in &clients {
            let channel = format!("user:{}", registration.user());
            router.take(BackplaneEvent::Message { channel: channel.as_bytes(), payload: own });
        }
        router.take(BackplaneEvent::Pause);
        while metrics.broadcasts.get() == 0 {
            step().await;
        }
        let [all, own] = [all, own].map(|payload| text_frame(&[payload]));
        let mut first = 0;
        for (_, mut client) in clients {
            let mut received = vec![0; all.len() + own.len()];
            client.read_exact(&mut received).await.unwrap();
            let is_first = received == [&all[..], &own[..]].concat();
            assert!(is_first || received == [&own[..], &all[..]].concat(), "{received:?}");
            first += usize::from(is_first);
        }
        assert!((SLICE..2 * SLICE).contains(&first), "{first} had the broadcast before the other messages");
    }

    #[test]
    fn waiting_broadcasts_keep_their_order_and_are_bounded_in_number_and_bytes() {
        let broadcasts = Broadcasts::default();
        for number in 0..MAX_WAITING {
            broadcasts.add("n", &number.to_string()).unwrap();
        }
        assert!(matches!(broadcasts.add("n", "1"), Err(DropReason::Overflow)));
        for number in 0..MAX_WAITING {
            assert_eq!(broadcasts.next().unwrap().data, number.to_string());
        }
        assert!(!broadcasts.is_idle(), "the last one is being written");
        assert!(broadcasts.next().is_none() && broadcasts.is_idle());

        let large = "x".repeat(MAX_WAITING_BYTES + 1);
        broadcasts.add("n", &large).unwrap();
        assert!(matches!(broadcasts.add("n", "1"), Err(DropReason::Overflow)));
        broadcasts.next().unwrap();
        broadcasts.add("n", "1").unwrap();
    }
}
