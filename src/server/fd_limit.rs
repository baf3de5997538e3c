//! The limit of file descriptors: raised to the maximum, with some reserved from browsers.

use std::os::fd::AsRawFd;

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// Reserved for Redis, logs, operators and backends.
const RESERVE: u64 = 64;

/// Raises the soft limit to the hard limit, and logs the result.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of file descriptors could not be raised");
    }
    let (now, browsers) = (allowed(), for_browsers());
    info!(before, limit = now, browsers, "file descriptors");
}

/// How many connections of browsers the limit allows once it is raised; `u64::MAX` if there is no limit.
pub fn browsers_allowed() -> u64 {
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    most - RESERVE.min(most / 4)
}

/// The limit of this process; `u64::MAX` if it has none.
fn allowed() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many may be in use before browsers are refused.
fn for_browsers() -> u64 {
    let allowed = allowed();
    allowed - RESERVE.min(allowed / 4)
}

/// The number of file descriptors from which browsers are refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threshold(u64);

impl Threshold {
    pub(super) fn now() -> Self {
        Self(for_browsers())
    }

    /// Whether this descriptor belongs to the reserve. The system returns the lowest free one (POSIX, open(2)), so all below
    /// it are in use.
    pub(super) fn is_passed_by(self, new: &impl AsRawFd) -> bool {
        u64::try_from(new.as_raw_fd()).is_ok_and(|number| number >= self.0)
    }
}
