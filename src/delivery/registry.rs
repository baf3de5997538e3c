//! The users connected here and their connections, in one concurrent map. This module never awaits.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::Notify;

use super::send_queue::SendQueue;
use super::user_map::UserMap;
use crate::protocol::{ConnectionId, CredentialId, Cursor, DEFAULT_DEVICE, Dialect, ServerFrame, UserId, unix_ms};

/// One connection, shared by its own task and all others. Its size is part of the memory that an idle one costs: with the
/// counts of its `Arc` it just fits into 256 bytes, and the next size of the allocator is 320.
#[derive(Debug)]
pub struct ConnectionHandle {
    pub id: ConnectionId,
    pub dialect: Dialect,
    pub credential: CredentialSlot,
    pub queue: SendQueue,
    opened: Ms48,
    /// That of the client; an IPv4 address is mapped. Neither needs alignment.
    address: Ipv6Addr,
    /// [`PROBED`], [`RETRACTED`]
    signals: AtomicU8,
}

/// The client must show that it is alive.
const PROBED: u8 = 1;

/// Something was retracted since [`ConnectionHandle::watch_retractions`].
const RETRACTED: u8 = 2;

/// How long a probed client may take to answer.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

impl ConnectionHandle {
    pub fn new(dialect: Dialect, address: IpAddr, queue: SendQueue) -> Self {
        let (id, credential, opened) = (ConnectionId::random(), CredentialSlot::default(), Ms48::new(unix_ms()));
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Self { id, dialect, credential, queue, opened, address, signals: AtomicU8::new(0) }
    }

    /// In ms since 1970.
    pub fn opened(&self) -> u64 {
        self.opened.get()
    }

    /// The address of the client.
    pub fn address(&self) -> IpAddr {
        self.address.to_canonical()
    }

    /// Tells the client that it sent something that is refused, with the `ref` of a request. For the connection's task.
    pub fn refuse(&self, code: u16, message: &str, reference: Option<&str>) {
        self.tell(&ServerFrame::Error { code, message, reference });
    }

    /// Notes a notice that something was retracted, before its frame is queued.
    pub fn note_retraction(&self) {
        self.signals.fetch_or(RETRACTED, Ordering::Release);
    }

    /// From now on, [`ConnectionHandle::was_retracted`] reports retractions. For the connection's task.
    pub fn watch_retractions(&self) {
        self.signals.fetch_and(!RETRACTED, Ordering::AcqRel);
    }

    /// Whether the connection has received such a notice since.
    pub fn was_retracted(&self) -> bool {
        self.signals.load(Ordering::Acquire) & RETRACTED != 0
    }

    /// Sends a frame, if the dialect has it. For the connection's task.
    pub fn tell(&self, frame: &ServerFrame<'_>) {
        if let Some(frame) = frame.encode(self.dialect) {
            self.queue.send(frame);
        }
    }

    /// As [`ConnectionHandle::tell`], for other tasks: does nothing if the connection is closing.
    pub fn tell_while_open(&self, frame: &ServerFrame<'_>) {
        if let Some(frame) = frame.encode(self.dialect) {
            self.queue.send_while_open(frame);
        }
    }

    /// As [`ConnectionHandle::tell_while_open`], if the client has all stored events up to `newest`, and none after it.
    /// Returns whether it has, or needs no such frame.
    pub fn tell_at(&self, newest: &Cursor, frame: &ServerFrame<'_>) -> bool {
        frame.encode(self.dialect).is_none_or(|frame| self.queue.send_at(newest, frame))
    }

    /// Requests the connection's task to ping the client, and to close the connection unless it answers within
    /// [`PROBE_TIMEOUT`].
    pub fn probe(&self) {
        self.signals.fetch_or(PROBED, Ordering::Release);
        self.queue.wake();
    }

    /// Ready once after a probe. For the connection's task, which [`SendQueue::poll_drive`] wakes.
    pub fn poll_probed(&self) -> Poll<()> {
        let is_probed = self.signals.load(Ordering::Relaxed) & PROBED != 0
            && self.signals.fetch_and(!PROBED, Ordering::Acquire) & PROBED != 0;
        if is_probed { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Milliseconds in 6 bytes, which need no alignment: enough for 8,900 years.
#[derive(Debug, Clone, Copy)]
struct Ms48([u8; 6]);

impl Ms48 {
    fn new(ms: u64) -> Self {
        let [_, _, rest @ ..] = ms.to_be_bytes();
        Self(rest)
    }

    fn get(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

/// The token or session that authorises a connection. Atomic, because a refresh changes it while other tasks read it;
/// the lock inside `auth::Revocations` orders these accesses (see `connection`).
#[derive(Debug, Default)]
pub struct CredentialSlot(AtomicU64);

impl CredentialSlot {
    pub fn set(&self, credential: Option<CredentialId>) {
        self.0.store(CredentialId::to_bits(credential), Ordering::Relaxed);
    }

    pub fn get(&self) -> Option<CredentialId> {
        CredentialId::from_bits(self.0.load(Ordering::Relaxed))
    }
}

#[derive(Debug, Default)]
pub struct Registry {
    users: UserMap,
    connections: AtomicUsize,
    /// The devices of the connections that named one, so that the others need no memory for it.
    devices: DashMap<ConnectionId, Box<str>, RandomState>,
    /// Users with connections added or removed since the last [`Registry::take_changes`].
    changed: Mutex<HashSet<UserId, RandomState>>,
    change: Notify,
}

impl Registry {
    /// Adds a connection; dropping the registration removes it.
    pub fn register(self: &Arc<Self>, user: UserId, handle: Arc<ConnectionHandle>) -> Registration {
        match self.users.entry(user.clone()) {
            Entry::Occupied(mut entry) => entry.get_mut().push(Arc::clone(&handle)),
            Entry::Vacant(entry) => drop(entry.insert(smallvec![Arc::clone(&handle)])),
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.note_change(user.clone());
        Registration { registry: Arc::clone(self), user, handle }
    }

    fn remove(&self, user: &UserId, handle: &Arc<ConnectionHandle>) {
        // Under the entry's lock, so that a connection added concurrently is never removed with this one.
        let Entry::Occupied(mut entry) = self.users.entry(user.clone()) else { return };
        let handles = entry.get_mut();
        handles.retain(|other| !Arc::ptr_eq(other, handle));
        if handles.is_empty() {
            entry.remove();
            self.users.shrink_part_of(user.as_str());
        } else {
            handles.shrink_to_fit();
            drop(entry);
        }
        self.devices.remove(&handle.id);
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.note_change(user.clone());
    }

    /// Names the device of a connection, which must be registered next: its registration removes the name.
    pub fn name_device(&self, connection: ConnectionId, device: Box<str>) {
        self.devices.insert(connection, device);
    }

    /// The device that a connection named.
    pub fn device(&self, connection: ConnectionId) -> Option<Box<str>> {
        self.devices.get(&connection).map(|device| device.clone())
    }

    /// Whether a connection belongs to this device.
    pub fn is_of_device(&self, connection: ConnectionId, device: &str) -> bool {
        self.devices.get(&connection).map_or(device == DEFAULT_DEVICE, |own| **own == *device)
    }

    fn note_change(&self, user: UserId) {
        self.changed.lock().insert(user);
        self.change.notify_one();
    }

    /// Calls `read` with a user's connections, oldest first, if there is one. It holds the lock of one shard of the
    /// map, so `read` must not block.
    pub fn with<T>(&self, user: &str, read: impl FnOnce(&[Arc<ConnectionHandle>]) -> T) -> Option<T> {
        self.users.with(user, |handles| read(handles))
    }

    pub fn connections_of(&self, user: &str) -> usize {
        self.users.with(user, |handles| handles.len()).unwrap_or_default()
    }

    pub fn handles(&self) -> Vec<Arc<ConnectionHandle>> {
        self.parts().flatten().collect()
    }

    /// All connections, a few at a time: each part is read when it is asked for. A connection that is open from the first
    /// to the last is in exactly one of them, one that is opened meanwhile in at most one.
    pub fn parts(&self) -> impl Iterator<Item = Vec<Arc<ConnectionHandle>>> {
        (0..).map_while(|index| self.users.part(index))
    }

    pub fn user_ids(&self) -> Vec<UserId> {
        self.users.user_ids()
    }

    /// The number of connections.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The number of users.
    pub fn users(&self) -> usize {
        self.users.users()
    }

    /// Waits until [`Registry::take_changes`] may return users.
    pub async fn changed(&self) {
        self.change.notified().await;
    }

    /// Returns the users whose connections may have changed. [`Registry::connections_of`] returns the current state.
    pub fn take_changes(&self) -> HashSet<UserId, RandomState> {
        std::mem::take(&mut *self.changed.lock())
    }
}

/// Keeps a connection in the registry until it is dropped.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    user: UserId,
    handle: Arc<ConnectionHandle>,
}

impl Registration {
    pub fn user(&self) -> &UserId {
        &self.user
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.remove(&self.user, &self.handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::{Backlog, Socket};
    use crate::metrics::Metrics;
    use std::net::Ipv4Addr;
    use std::sync::atomic::AtomicBool;
    use tokio::net::{TcpListener, TcpStream};

    async fn handle() -> Arc<ConnectionHandle> {
        handle_from(Ipv4Addr::LOCALHOST.into()).await
    }

    async fn handle_from(address: IpAddr) -> Arc<ConnectionHandle> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let queue = SendQueue::new(Socket::Plain(socket), Backlog::new(&Metrics::new(), usize::MAX));
        Arc::new(ConnectionHandle::new(Dialect::TidingsV1, address, queue))
    }

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    #[test]
    fn a_handle_and_the_counts_of_its_arc_fit_into_256_bytes() {
        let counts = 2 * size_of::<usize>();
        assert_eq!(size_of::<ConnectionHandle>() + counts, 256);
    }

    #[tokio::test]
    async fn a_handle_has_the_time_and_the_address_of_its_connection() {
        let begun = unix_ms();
        let opened = handle().await.opened();
        assert!((begun..=unix_ms()).contains(&opened), "{opened}");
        for address in ["192.0.2.7", "2001:db8::7", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(handle_from(address).await.address(), address);
        }
    }

    #[tokio::test]
    async fn a_user_is_registered_from_the_first_connection_to_the_end_of_the_last() {
        let registry = Arc::new(Registry::default());
        let first = registry.register(user("42"), handle().await);
        let second = registry.register(user("42"), handle().await);
        assert_eq!((registry.users(), registry.connections()), (1, 2));
        drop(first);
        assert_eq!(registry.connections_of("42"), 1);
        drop(second);
        assert_eq!(registry.connections_of("42"), 0);
        assert_eq!((registry.users(), registry.connections()), (0, 0));
    }

    #[tokio::test]
    async fn every_arrival_and_departure_is_a_change_and_many_of_one_user_are_one() {
        let registry = Arc::new(Registry::default());
        let first = registry.register(user("42"), handle().await);
        let second = registry.register(user("42"), handle().await);
        assert_eq!(registry.take_changes().into_iter().collect::<Vec<_>>(), [user("42")]);
        assert_eq!(registry.connections_of("42"), 2);
        drop(first);
        assert_eq!(registry.take_changes().len(), 1);
        drop(second);
        assert_eq!(registry.take_changes().len(), 1);
        assert_eq!(registry.connections_of("42"), 0);
    }

    #[tokio::test]
    async fn a_connection_that_stays_is_in_exactly_one_part_while_others_come_and_go() {
        let registry = Arc::new(Registry::default());
        let (mut staying, passing) = (Vec::new(), handle().await);
        for number in 0..20 {
            // Two connections of each user.
            let handle = handle().await;
            let registration = registry.register(user(&(number / 2).to_string()), Arc::clone(&handle));
            staying.push((handle, registration));
        }
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in (0..).take_while(|_| !is_done.load(Ordering::Relaxed)) {
                    drop(registry.register(user(&(number % 1_000).to_string()), Arc::clone(&passing)));
                }
            });
            for _ in 0..500 {
                let found: Vec<_> = registry.parts().flatten().collect();
                let count = |handle| found.iter().filter(|other| Arc::ptr_eq(other, handle)).count();
                assert!(staying.iter().all(|(handle, _)| count(handle) == 1));
            }
            is_done.store(true, Ordering::Relaxed);
        });
    }

    #[tokio::test]
    async fn concurrent_arrivals_and_departures_leave_nothing_behind() {
        let registry = Arc::new(Registry::default());
        let mut handles = Vec::new();
        for _ in 0..8 {
            handles.push(handle().await);
        }
        std::thread::scope(|scope| {
            for (thread, handle) in handles.iter().enumerate() {
                let registry = &registry;
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let user = user(&((thread + round) % 3).to_string());
                        let registration = registry.register(user.clone(), Arc::clone(handle));
                        assert!(registry.connections_of(user.as_str()) > 0);
                        drop(registration);
                    }
                });
            }
        });
        assert_eq!((registry.users(), registry.connections()), (0, 0));
    }
}
