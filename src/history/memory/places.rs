//! The places of users whose notifications have all expired.

use std::collections::{BTreeMap, HashMap};

use super::history::{Moment, Place};
use crate::protocol::UserId;

/// Approximate memory of a place, without the user's id.
const PLACE_BYTES: usize = 160;

/// Places removed in one step.
const STEP: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Places {
    users: HashMap<UserId, (u64, Place)>,
    /// In the order of their addition, so approximately by age.
    order: BTreeMap<u64, UserId>,
    added: u64,
    bytes: usize,
}

fn cost(user: &UserId) -> usize {
    PLACE_BYTES + 2 * user.as_str().len()
}

impl Places {
    /// Approximate memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, user: &UserId) -> Option<Place> {
        self.users.get(user).map(|(_, place)| *place)
    }

    pub(super) fn add(&mut self, user: UserId, place: Place) {
        self.take(&user);
        self.added += 1;
        self.bytes += cost(&user);
        self.order.insert(self.added, user.clone());
        self.users.insert(user, (self.added, place));
    }

    pub(super) fn take(&mut self, user: &UserId) -> Option<Place> {
        let (added, place) = self.users.remove(user)?;
        self.order.remove(&added);
        self.bytes -= cost(user);
        Some(place)
    }

    /// Removes the oldest place.
    pub(super) fn drop_oldest(&mut self) -> Option<Place> {
        let oldest = self.order.first_key_value()?.1.clone();
        self.take(&oldest)
    }

    /// Removes some of the places that are older than their ttl.
    pub(super) fn trim(&mut self, at: Moment) {
        for _ in 0..STEP {
            let oldest = self.order.first_key_value().and_then(|(_, user)| self.get(user));
            match oldest {
                Some(place) if place.newest.ms < at.places_since => self.drop_oldest(),
                _ => return,
            };
        }
    }
}
