//! Which users were erased: their epochs differ from those before.

use std::collections::{HashMap, VecDeque};

/// At this many users, the one erased first is dropped.
const MAX_USERS: usize = 65_536;

/// Nothing in it names a user: each is known by a hash.
#[derive(Debug, Default)]
pub(super) struct Erased {
    salts: HashMap<u64, u64>,
    /// Hash, salt and time of each erasure, oldest first.
    order: VecDeque<(u64, u64, u64)>,
}

impl Erased {
    /// From which, with the id, the user's epoch follows; `None` if the user was never erased.
    pub(super) fn salt(&self, user: u64) -> Option<u64> {
        self.salts.get(&user).copied()
    }

    /// Returns the time of an erasure that was dropped for this one.
    pub(super) fn add(&mut self, user: u64, salt: u64, ms: u64) -> Option<u64> {
        self.salts.insert(user, salt);
        self.order.push_back((user, salt, ms));
        if self.order.len() <= MAX_USERS {
            return None;
        }
        let (oldest, its_salt, its_ms) = self.order.pop_front()?;
        if self.salt(oldest) == Some(its_salt) {
            self.salts.remove(&oldest);
        }
        Some(its_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_a_bound_the_first_erasure_is_forgotten() {
        let (mut erased, most) = (Erased::default(), MAX_USERS as u64);
        assert!((0..most).all(|user| erased.add(user, 7, user).is_none()));
        assert_eq!(erased.add(0, 8, most), Some(0), "it was erased again");
        assert_eq!((erased.salt(0), erased.salt(1)), (Some(8), Some(7)));
        assert_eq!(erased.add(most, 7, most), Some(1));
        assert_eq!((erased.salt(1), erased.salt(2), erased.order.len()), (None, Some(7), MAX_USERS));
    }
}
