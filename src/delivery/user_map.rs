//! The connections of each user, in a concurrent map of many parts, of which one at a time can be copied.

use std::hash::BuildHasher;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::registry::ConnectionHandle;
use crate::protocol::UserId;

/// Most users have one connection, which is stored inline.
pub(super) type Handles = SmallVec<[Arc<ConnectionHandle>; 1]>;

/// A map does not let its own shards be copied one by one.
type Part = DashMap<UserId, Handles, RandomState>;

/// So many that one of them has a few thousand of a million connections.
const PARTS: usize = 256;

/// Threads rarely meet in one of 512 shards.
const SHARDS: usize = 2;

/// A part that has room for few users is not shrunk.
const ROOM_KEPT: usize = 4;

#[derive(Debug)]
pub(super) struct UserMap {
    hasher: RandomState,
    parts: Box<[Part; PARTS]>,
}

impl Default for UserMap {
    fn default() -> Self {
        let part = |_| Part::with_hasher_and_shard_amount(RandomState::default(), SHARDS);
        Self { hasher: RandomState::default(), parts: Box::new(std::array::from_fn(part)) }
    }
}

impl UserMap {
    fn part_of(&self, user: &str) -> &Part {
        let [index, ..] = self.hasher.hash_one(user).to_be_bytes();
        #[allow(clippy::indexing_slicing, reason = "there is a part for each value of a byte")]
        &self.parts[usize::from(index)]
    }

    /// Calls `read` with a user's connections, under the lock of the user's shard.
    pub(super) fn with<T>(&self, user: &str, read: impl FnOnce(&Handles) -> T) -> Option<T> {
        self.part_of(user).get(user).map(|handles| read(handles.value()))
    }

    /// The entry of a user, under the lock of the user's shard.
    pub(super) fn entry(&self, user: UserId) -> Entry<'_, UserId, Handles> {
        self.part_of(user.as_str()).entry(user)
    }

    /// Frees memory after many users have left a part. No entry may be held.
    pub(super) fn shrink_part_of(&self, user: &str) {
        let part = self.part_of(user);
        if part.capacity() / 8 > part.len().max(ROOM_KEPT) {
            part.shrink_to_fit();
        }
    }

    /// The connections in the part of this index; `None` after the last part. A user's are always in the same one.
    pub(super) fn part(&self, index: usize) -> Option<Vec<Arc<ConnectionHandle>>> {
        Some(self.parts.get(index)?.iter().flat_map(|handles| handles.value().clone()).collect())
    }

    pub(super) fn users(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    pub(super) fn user_ids(&self) -> Vec<UserId> {
        self.parts.iter().flat_map(|part| part.iter().map(|entry| entry.key().clone()).collect::<Vec<_>>()).collect()
    }
}
