//! The limits, which a reload changes while they are in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::Limits;

/// The limits in force; clones share them.
#[derive(Debug, Clone)]
pub struct LiveLimits(Arc<Live>);

#[derive(Debug)]
struct Live {
    current: ArcSwap<Limits>,
    /// Apart from the others: it is read for every message.
    max_payload_bytes: AtomicUsize,
}

impl LiveLimits {
    pub(super) fn new(limits: Limits) -> Self {
        let max_payload_bytes = AtomicUsize::new(limits.max_payload_bytes);
        Self(Arc::new(Live { current: ArcSwap::from_pointee(limits), max_payload_bytes }))
    }

    /// The limits as they are now.
    #[must_use]
    pub fn get(&self) -> Arc<Limits> {
        self.0.current.load_full()
    }

    /// As in [`LiveLimits::get`].
    #[must_use]
    pub fn max_payload_bytes(&self) -> usize {
        self.0.max_payload_bytes.load(Ordering::Relaxed)
    }

    /// The same limits, which change independently of these.
    pub(crate) fn detached(&self) -> Self {
        Self::new(Limits::clone(&self.get()))
    }

    /// Puts the limits of another configuration into force.
    pub(crate) fn replace(&self, other: &Self) {
        let limits = other.get();
        self.0.max_payload_bytes.store(limits.max_payload_bytes, Ordering::Relaxed);
        self.0.current.store(limits);
    }
}
