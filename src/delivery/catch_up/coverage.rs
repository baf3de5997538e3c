//! What a page of the history says about the events that were pending while it was read.

use super::CatchUpPage;
use crate::protocol::{Continuity, Cursor};

/// Pending events are in publishing order. The page supplies the events before the first stored pending one; the pending
/// events supply the rest.
pub(super) struct Coverage {
    upto: Cursor,
    complete: bool,
    /// The positions of the page's events, ascending.
    listed: Vec<(u64, u64)>,
    first_pending: Option<Cursor>,
}

impl Coverage {
    /// `pending`: the positions of the stored pending events, in their order.
    pub(super) fn of(page: &CatchUpPage, mut pending: impl Iterator<Item = Cursor>) -> Self {
        Self {
            upto: page.upto,
            complete: page.complete,
            listed: page.events.iter().map(|(cursor, _)| (cursor.ms, cursor.number)).collect(),
            // One of an earlier epoch may still arrive after an erasure.
            first_pending: pending.find(|cursor| cursor.epoch == page.upto.epoch),
        }
    }

    /// Whether the page, and no pending event, supplies what is stored here.
    pub(super) fn is_before_pending(&self, cursor: &Cursor) -> bool {
        self.first_pending.is_none_or(|first| (cursor.ms, cursor.number) < (first.ms, first.number))
    }

    /// Whether another page must be read before the pending events can follow.
    pub(super) fn needs_more(&self) -> bool {
        !self.complete && self.is_before_pending(&self.upto)
    }

    pub(super) fn is_first_pending(&self, cursor: &Cursor) -> bool {
        self.first_pending == Some(*cursor)
    }

    /// Whether all stored events before it have just been sent, or have expired by their own ttl.
    pub(super) fn leads_to(&self, cursor: &Cursor) -> bool {
        self.is_first_pending(cursor) && self.covers(cursor)
    }

    /// Whether the event was published before the read, and taken back before it.
    pub(super) fn is_taken_back(&self, cursor: &Cursor) -> bool {
        self.covers(cursor) && self.listed.binary_search(&(cursor.ms, cursor.number)).is_err()
    }

    /// Whether the history does not have the position of an event that was published before the read.
    pub(super) fn is_foreign(&self, cursor: &Cursor) -> bool {
        !self.covers(cursor) && (self.complete || cursor.epoch != self.upto.epoch)
    }

    fn covers(&self, cursor: &Cursor) -> bool {
        self.upto.followed_by(cursor) == Continuity::Known
    }
}
