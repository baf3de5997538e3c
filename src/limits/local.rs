//! A number of permits for each of those who may take them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

/// Counts what is taken; who has nothing is not remembered.
#[derive(Debug)]
pub(super) struct LocalPermits<K: Eq + Hash> {
    most: u32,
    taken: Mutex<HashMap<K, u32, RandomState>>,
}

impl<K: Eq + Hash + Clone> LocalPermits<K> {
    pub(super) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// One more for this taker, if there is one left.
    pub(super) fn take(self: &Arc<Self>, taker: K) -> Option<LocalPermit<K>> {
        let mut taken = self.taken.lock();
        let count = taken.get(&taker).copied().unwrap_or_default();
        if count >= self.most {
            return None;
        }
        taken.insert(taker.clone(), count + 1);
        Some(LocalPermit { permits: Arc::clone(self), taker })
    }
}

/// One that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct LocalPermit<K: Eq + Hash + Clone> {
    permits: Arc<LocalPermits<K>>,
    taker: K,
}

impl<K: Eq + Hash + Clone> Drop for LocalPermit<K> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.permits.taken.lock().entry(self.taker.clone()) {
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
    fn each_taker_has_its_own_and_gets_back_what_it_gave_up() {
        let permits = LocalPermits::new(2);
        let (first, _second) = (permits.take("a").unwrap(), permits.take("a").unwrap());
        assert!(permits.take("a").is_none());
        assert!(permits.take("b").is_some());
        drop(first);
        assert!(permits.take("a").is_some());
    }

    #[test]
    fn who_has_none_is_not_remembered() {
        let permits = LocalPermits::new(2);
        drop((permits.take("a"), permits.take("a"), permits.take("a")));
        assert!(permits.taken.lock().is_empty());
    }
}
