//! Whether everything stored has been heard: the fleet counts what it stores, and every stored notification that is
//! published carries the count.

use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use redis::Script;

use super::link::Link;
use crate::backplane::{BackplaneError, USER_CHANNEL};
use crate::protocol::Stamped;

/// The fleet's memory, as it was at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fleet {
    pub(super) epoch: String,
    pub(super) count: u64,
}

/// What one instance knows of it.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The count that was heard last; none since the subscription began.
    last: Option<u64>,
    /// As it was looked at last.
    fleet: Option<Fleet>,
}

impl Heard {
    /// A subscription begins: whatever was published before it is unknown, but not what had been heard until then.
    pub(super) fn start_over(&mut self) {
        if let (Some(fleet), Some(last)) = (&mut self.fleet, self.last.take()) {
            fleet.count = fleet.count.max(last);
        }
    }

    /// Something was heard; gives whether a stored notification before it was not. What is not stamped by this fleet, for
    /// this very user, says nothing: anybody may publish what begins alike.
    pub(super) fn note(&mut self, channel: &[u8], payload: &[u8]) -> bool {
        let Some(count) = self.count_of(channel, payload) else { return false };
        let before = self.last.replace(count);
        before.is_some_and(|before| count != before + 1)
    }

    fn count_of(&self, channel: &[u8], payload: &[u8]) -> Option<u64> {
        let fleet = self.fleet.as_ref()?;
        let user = str::from_utf8(channel.strip_prefix(USER_CHANNEL.as_bytes())?).ok()?;
        let (count, cursor) = Stamped::parse(str::from_utf8(payload).ok()?)?.stored?;
        (cursor.epoch == user_epoch(&fleet.epoch, user)?).then_some(count)
    }

    /// What must not have been lost: the epoch, and what was counted in it as far as is known.
    pub(super) fn known(&self) -> (&str, u64) {
        let Some(fleet) = &self.fleet else { return ("", 0) };
        (&fleet.epoch, fleet.count.max(self.last.unwrap_or_default()))
    }

    /// Takes another look at the fleet; gives whether another epoch has begun, or something that was counted at the last
    /// look has still not been heard.
    pub(super) fn look(&mut self, fleet: Fleet) -> bool {
        let (epoch, count) = (fleet.epoch.clone(), fleet.count);
        let before = self.fleet.replace(fleet);
        match (self.last, before) {
            (_, Some(before)) if before.epoch != epoch => {
                self.last = None;
                true
            }
            (Some(last), Some(before)) if last < before.count => {
                self.last = Some(before.count);
                true
            }
            (None, _) => {
                // Whoever is behind was found out when the subscription began.
                self.last = Some(count);
                false
            }
            _ => false,
        }
    }
}

/// A user's epoch within the fleet's, as the scripts make it.
fn user_epoch(fleet: &str, user: &str) -> Option<NonZeroU64> {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{fleet}:{user}").as_bytes());
    NonZeroU64::new(u64::from_be_bytes(*digest.as_ref().first_chunk()?))
}

/// Looks at the fleet's memory, where another epoch begins if it has lost something.
pub(super) async fn look(link: &Link, script: &Script, key: &str, known: (&str, u64)) -> Result<Fleet, BackplaneError> {
    let mut call = script.key(key);
    call.arg(format!("{:016x}", fastrand::u64(..))).arg(known.0).arg(known.1);
    let (epoch, count) = link.script(&call).await?;
    Ok(Fleet { epoch, count })
}
