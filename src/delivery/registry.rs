//! The users connected here and their connections, in one concurrent map. This module never awaits.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};
use tokio::sync::Notify;

use super::send_queue::SendQueue;
use crate::protocol::{ConnectionId, CredentialId, Dialect, UserId};

/// One connection, shared by its own task and all others.
#[derive(Debug)]
pub struct ConnectionHandle {
    pub id: ConnectionId,
    pub dialect: Dialect,
    pub credential: CredentialSlot,
    pub queue: SendQueue,
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
    /// Most users have one connection, which is stored inline.
    users: DashMap<UserId, SmallVec<[Arc<ConnectionHandle>; 1]>, RandomState>,
    connections: AtomicUsize,
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
        } else {
            handles.shrink_to_fit();
            drop(entry);
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.note_change(user.clone());
    }

    fn note_change(&self, user: UserId) {
        self.changed.lock().insert(user);
        self.change.notify_one();
    }

    /// Calls `read` with a user's connections, oldest first, if there is one. It holds the lock of one shard of the
    /// map, so `read` must not block.
    pub fn with<T>(&self, user: &str, read: impl FnOnce(&[Arc<ConnectionHandle>]) -> T) -> Option<T> {
        self.users.get(user).map(|handles| read(&handles))
    }

    pub fn connections_of(&self, user: &str) -> usize {
        self.users.get(user).map_or(0, |handles| handles.len())
    }

    pub fn handles(&self) -> Vec<Arc<ConnectionHandle>> {
        self.users.iter().flat_map(|entry| entry.value().clone()).collect()
    }

    pub fn user_ids(&self) -> Vec<UserId> {
        self.users.iter().map(|entry| entry.key().clone()).collect()
    }

    /// The number of connections.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The number of users.
    pub fn users(&self) -> usize {
        self.users.len()
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
    use tokio::net::{TcpListener, TcpStream};

    async fn handle() -> Arc<ConnectionHandle> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let queue = SendQueue::new(Socket::Plain(socket), Backlog::new(&Metrics::new(), usize::MAX));
        let credential = CredentialSlot::default();
        Arc::new(ConnectionHandle { id: ConnectionId::random(), dialect: Dialect::TidingsV1, credential, queue })
    }

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
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
