//! Permits that this instance counts alone, for each key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

/// Counts the permits taken; a key without permits uses no memory.
#[derive(Debug)]
pub(super) struct LocalPermits<K: Eq + Hash> {
    taken: Mutex<HashMap<K, u32, RandomState>>,
}

impl<K: Eq + Hash> Default for LocalPermits<K> {
    fn default() -> Self {
        Self { taken: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone> LocalPermits<K> {
    /// One more permit, unless the key has `most` already.
    pub(super) fn take(self: &Arc<Self>, key: K, most: u32) -> Option<LocalPermit<K>> {
        let mut taken = self.taken.lock();
        let count = taken.get(&key).copied().unwrap_or_default();
        if count >= most {
            return None;
        }
        taken.insert(key.clone(), count + 1);
        Some(LocalPermit { permits: Arc::clone(self), key })
    }
}

#[derive(Debug)]
pub(super) struct LocalPermit<K: Eq + Hash + Clone> {
    permits: Arc<LocalPermits<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Drop for LocalPermit<K> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.permits.taken.lock().entry(self.key.clone()) {
            match entry.get() {
                0..=1 => drop(entry.remove()),
                _ => *entry.get_mut() -= 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_permits_and_a_dropped_one_is_free_again() {
        let permits = Arc::<LocalPermits<_>>::default();
        let (first, _second) = (permits.take("a", 2).unwrap(), permits.take("a", 2).unwrap());
        assert!(permits.take("a", 2).is_none());
        assert!(permits.take("a", 3).is_some() && permits.take("b", 2).is_some());
        drop(first);
        assert!(permits.take("a", 2).is_some());
    }

    #[test]
    fn a_key_without_permits_uses_no_memory() {
        let permits = Arc::<LocalPermits<_>>::default();
        drop((permits.take("a", 2), permits.take("a", 2), permits.take("a", 2)));
        assert!(permits.taken.lock().is_empty());
    }
}
