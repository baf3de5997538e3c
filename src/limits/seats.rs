//! A number of seats for each of those who may take them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

/// Counts what is taken; who has nothing is not remembered.
#[derive(Debug)]
pub(super) struct Seats<K: Eq + Hash> {
    most: u32,
    taken: Mutex<HashMap<K, u32, RandomState>>,
}

impl<K: Eq + Hash + Clone> Seats<K> {
    pub(super) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// One more for this taker, if there is one left.
    pub(super) fn take(self: &Arc<Self>, taker: K) -> Option<Seat<K>> {
        let mut taken = self.taken.lock();
        let count = taken.get(&taker).copied().unwrap_or_default();
        if count >= self.most {
            return None;
        }
        taken.insert(taker.clone(), count + 1);
        Some(Seat { seats: Arc::clone(self), taker })
    }
}

/// One that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat<K: Eq + Hash + Clone> {
    seats: Arc<Seats<K>>,
    taker: K,
}

impl<K: Eq + Hash + Clone> Drop for Seat<K> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.seats.taken.lock().entry(self.taker.clone()) {
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
        let seats = Seats::new(2);
        let (first, _second) = (seats.take("a").unwrap(), seats.take("a").unwrap());
        assert!(seats.take("a").is_none());
        assert!(seats.take("b").is_some());
        drop(first);
        assert!(seats.take("a").is_some());
    }

    #[test]
    fn who_has_none_is_not_remembered() {
        let seats = Seats::new(2);
        drop((seats.take("a"), seats.take("a"), seats.take("a")));
        assert!(seats.taken.lock().is_empty());
    }
}
