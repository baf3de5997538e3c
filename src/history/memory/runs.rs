//! The numbers of the entries that were taken out of a history: retracted, or ended by their own ttl.

use std::collections::BTreeMap;

/// Approximate memory of a run.
const RUN_BYTES: usize = 64;

/// Runs of numbers, each from its first to its last; no two overlap or adjoin.
#[derive(Debug, Default)]
pub(super) struct Runs(BTreeMap<u64, u64>);

impl Runs {
    /// Approximate memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.len() * RUN_BYTES
    }

    /// Adds numbers, none of which was added before.
    pub(super) fn add(&mut self, first: u64, last: u64) {
        let last = self.0.remove(&(last + 1)).unwrap_or(last);
        match self.0.range_mut(..first).next_back() {
            Some((_, before)) if *before + 1 == first => *before = last,
            _ => drop(self.0.insert(first, last)),
        }
    }

    /// Whether all numbers from one to another, if there are any, were taken out.
    pub(super) fn cover(&self, first: u64, last: u64) -> bool {
        first > last || self.0.range(..=first).next_back().is_some_and(|(_, end)| *end >= last)
    }

    /// How many of the numbers after this one were taken out.
    pub(super) fn count_after(&self, number: u64) -> u64 {
        let later = self.0.iter().rev().take_while(|(_, last)| **last > number);
        later.map(|(first, last)| last - (number + 1).max(*first) + 1).sum()
    }

    /// The first number of the run that ends with this one.
    pub(super) fn ending_with(&self, number: u64) -> Option<u64> {
        self.0.last_key_value().filter(|(_, last)| **last == number).map(|(first, _)| *first)
    }

    /// Removes the runs that end before this number.
    pub(super) fn remove_before(&mut self, number: u64) {
        while self.0.first_key_value().is_some_and(|(_, last)| *last < number) {
            self.0.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjoining_runs_are_one() {
        let mut runs = Runs::default();
        for number in [3, 7, 5, 4, 6] {
            runs.add(number, number);
        }
        assert_eq!(runs.0, BTreeMap::from([(3, 7)]));
        assert!(runs.cover(3, 7) && runs.cover(4, 6) && runs.cover(9, 8));
        assert!(!runs.cover(2, 3) && !runs.cover(7, 8) && !runs.cover(8, 8));
        runs.add(10, 12);
        assert_eq!([0, 3, 7, 10, 11, 12].map(|number| runs.count_after(number)), [8, 7, 3, 2, 1, 0]);
        assert_eq!((runs.ending_with(12), runs.ending_with(7)), (Some(10), None));
        runs.remove_before(8);
        assert_eq!(runs.0, BTreeMap::from([(10, 12)]));
    }
}
