//! Tells which keys of two configurations differ, without keeping what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;

/// The hash is keyed, so that no secret can be guessed from one.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A hash of each key's value, of secrets and of the contents of files too.
#[derive(Clone, Default)]
pub(super) struct Fingerprints(BTreeMap<String, u64>);

impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Fingerprints {
    /// Adds to the fingerprint of a key.
    pub(super) fn add(&mut self, key: &str, value: impl Hash) {
        let known = self.0.entry(key.to_owned()).or_default();
        *known = HASHES.hash_one((*known, value));
    }

    /// The keys whose values differ, also those that only one of them has.
    pub(super) fn differing<'a>(&'a self, other: &'a Self) -> BTreeSet<&'a str> {
        let keys = self.0.keys().chain(other.0.keys());
        keys.filter(|key| self.0.get(*key) != other.0.get(*key)).map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_differs_if_its_value_does_or_only_one_has_it() {
        let [mut one, mut other] = [Fingerprints::default(), Fingerprints::default()];
        for fingerprints in [&mut one, &mut other] {
            fingerprints.add("same", "value");
            fingerprints.add("same", "file");
        }
        one.add("changed", "before");
        other.add("changed", "after");
        one.add("gone", "");
        assert_eq!(one.differing(&other).into_iter().collect::<Vec<_>>(), ["changed", "gone"]);
        assert!(one.differing(&one).is_empty());
        assert_eq!(format!("{one:?}"), r#"{"changed", "gone", "same"}"#);
    }
}
