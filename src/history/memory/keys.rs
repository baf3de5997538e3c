//! What was published under a key, so that it is published once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::history::store::KEY_KEPT;
use crate::protocol::{Cursor, UserId, millis};

/// Most keys remembered; beyond, the oldest are forgotten early.
const MAX_KEYS: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Keys {
    positions: HashMap<Arc<str>, Option<Cursor>>,
    /// When each ends, oldest first.
    ends: VecDeque<(u64, Arc<str>)>,
}

impl Keys {
    /// What was published under it; the inner is none for what is not stored.
    pub(super) fn get(&mut self, user: &UserId, key: &str, now: u64) -> Option<Option<Cursor>> {
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            self.forget_oldest();
        }
        self.positions.get(name(user, key).as_str()).copied()
    }

    /// Remembers a new one; whether another had to be forgotten for it.
    pub(super) fn insert(&mut self, user: &UserId, key: &str, position: Option<Cursor>, now: u64) -> bool {
        let full = self.positions.len() >= MAX_KEYS;
        if full {
            self.forget_oldest();
        }
        let name: Arc<str> = name(user, key).into();
        self.positions.insert(Arc::clone(&name), position);
        self.ends.push_back((now + millis(KEY_KEPT), name));
        full
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.ends.pop_front() {
            self.positions.remove(&oldest);
        }
    }
}

/// One text for both: no user id has a line feed.
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
    fn beyond_a_bound_the_oldest_key_goes() {
        let user = UserId::new("42").unwrap();
        let mut keys = Keys::default();
        let lost = (0..MAX_KEYS + 2).filter(|key| keys.insert(&user, &key.to_string(), None, 0)).count();
        assert_eq!((lost, keys.positions.len(), keys.ends.len()), (2, MAX_KEYS, MAX_KEYS));
        assert_eq!((keys.get(&user, "1", 0), keys.get(&user, "2", 0)), (None, Some(None)));
    }
}
