//! The idempotency keys of recent publications.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::history::store::KEY_KEPT;
use crate::protocol::{Cursor, UserId, millis};

/// At this many keys, the oldest are dropped before they expire.
const MAX_KEYS: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Keys {
    positions: HashMap<Arc<str>, Option<Cursor>>,
    /// When each key expires, oldest first.
    expiries: VecDeque<(u64, Arc<str>)>,
}

impl Keys {
    /// The publication with this key: its cursor, or `Some(None)` if it is not stored.
    pub(super) fn get(&mut self, user: &UserId, key: &str, now: u64) -> Option<Option<Cursor>> {
        while self.expiries.front().is_some_and(|(expiry, _)| *expiry <= now) {
            self.drop_oldest();
        }
        self.positions.get(name(user, key).as_str()).copied()
    }

    /// Adds a key; returns whether an older one was dropped for it.
    pub(super) fn insert(&mut self, user: &UserId, key: &str, position: Option<Cursor>, now: u64) -> bool {
        let full = self.positions.len() >= MAX_KEYS;
        if full {
            self.drop_oldest();
        }
        let name: Arc<str> = name(user, key).into();
        self.positions.insert(Arc::clone(&name), position);
        self.expiries.push_back((now + millis(KEY_KEPT), name));
        full
    }

    pub(super) fn erase(&mut self, user: &UserId) {
        let of_user = name(user, "");
        self.positions.retain(|name, _| !name.starts_with(&of_user));
        self.expiries.retain(|(_, name)| !name.starts_with(&of_user));
    }

    fn drop_oldest(&mut self) {
        if let Some((_, oldest)) = self.expiries.pop_front() {
            self.positions.remove(&oldest);
        }
    }
}

/// One text for both: a user id never contains a line feed.
fn name(user: &UserId, key: &str) -> String {
    format!("{user}\n{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_remembered_for_a_day() {
        let (user, day) = (UserId::new("42").unwrap(), millis(KEY_KEPT));
        let mut keys = Keys::default();
        assert!(!keys.insert(&user, "a", None, 1_000) && !keys.insert(&user, "b", None, 2_000));
        assert_eq!(keys.get(&user, "a", 999 + day), Some(None));
        assert_eq!(keys.get(&user, "a", 1_000 + day), None);
        assert_eq!(keys.get(&user, "b", 1_000 + day), Some(None));
    }

    #[test]
    fn the_keys_of_one_user_are_erased() {
        let (user, other) = (UserId::new("42").unwrap(), UserId::new("4").unwrap());
        let mut keys = Keys::default();
        assert!(!keys.insert(&user, "a", None, 0) && !keys.insert(&other, "2\nb", None, 0));
        keys.erase(&user);
        assert_eq!((keys.get(&user, "a", 0), keys.get(&other, "2\nb", 0)), (None, Some(None)));
        assert_eq!(keys.expiries.len(), 1);
    }

    #[test]
    fn beyond_a_bound_the_oldest_key_goes() {
        let user = UserId::new("42").unwrap();
        let mut keys = Keys::default();
        let lost = (0..MAX_KEYS + 2).filter(|key| keys.insert(&user, &key.to_string(), None, 0)).count();
        assert_eq!((lost, keys.positions.len(), keys.expiries.len()), (2, MAX_KEYS, MAX_KEYS));
        assert_eq!((keys.get(&user, "1", 0), keys.get(&user, "2", 0)), (None, Some(None)));
    }
}
