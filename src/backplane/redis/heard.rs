//! Whether everything stored has been heard: the fleet counts what it stores, and every stored notification that is
//! published carries the count.

use redis::Script;

use super::link::Link;
use crate::backplane::BackplaneError;

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
    /// A subscription begins: whatever was published before is unknown.
    pub(super) fn start_over(&mut self) {
        self.last = None;
    }

    /// A stored notification was heard; gives whether one before it was not.
    pub(super) fn note(&mut self, count: u64) -> bool {
        let before = self.last.replace(count);
        before.is_some_and(|before| count != before + 1)
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

/// The count in front of a stored notification; none where it has none.
pub(super) fn count_of(payload: &[u8]) -> Option<u64> {
    let digits = payload.strip_prefix(b"~")?.split(|byte| *byte == b' ').next()?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Looks at the fleet's memory, where another epoch begins if it has lost something.
pub(super) async fn look(link: &Link, script: &Script, key: &str, known: (&str, u64)) -> Result<Fleet, BackplaneError> {
    let mut call = script.key(key);
    call.arg(format!("{:016x}", fastrand::u64(..))).arg(known.0).arg(known.1);
    let (epoch, count) = link.script(&call).await?;
    Ok(Fleet { epoch, count })
}
