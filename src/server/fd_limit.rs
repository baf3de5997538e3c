//! File descriptors: as many as the system allows, and some kept back from browsers.

use std::os::fd::AsRawFd;

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// Kept back for Redis, logs, operators and backends.
const RESERVE: u64 = 64;

/// Raises the limit as far as the process may, and says what it allows.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of file descriptors stays as it is");
    }
    let (now, browsers) = (allowed(), for_browsers());
    info!(before, limit = now, browsers, "file descriptors");
}

/// How many the process may have; without a limit, more than there can be.
fn allowed() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many may be in use before browsers are turned away.
fn for_browsers() -> u64 {
    let allowed = allowed();
    allowed - RESERVE.min(allowed / 4)
}

/// Where browsers are turned away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threshold(u64);

impl Threshold {
    /// As the limit of this process asks for.
    pub(super) fn now() -> Self {
        Self(for_browsers())
    }

    /// Whether so many are in use that this one is of the reserve. The system gives the lowest that is free (POSIX,
    /// open(2)): all below it are in use.
    pub(super) fn is_passed_by(self, new: &impl AsRawFd) -> bool {
        u64::try_from(new.as_raw_fd()).is_ok_and(|number| number >= self.0)
    }
}
