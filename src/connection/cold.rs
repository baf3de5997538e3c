//! What few connections have, and not for long: on the heap, so that the others do not pay for it.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::auth::{Identity, TokenError};
use crate::history::Reading;

/// See the module.
#[derive(Default)]
pub(super) struct ColdState {
    /// A fresh token that waits for keys. It ends by itself, within one fetch of keys.
    pub(super) verifying: Option<BoxFuture<'static, Result<Identity, TokenError>>>,
    /// What follows the client's position in the history, while it is behind.
    pub(super) following: Option<BoxFuture<'static, Option<Reading>>>,
    /// Whose read position it moves; none: the default one.
    pub(super) device: Option<Box<str>>,
}

/// What was waited for.
pub(super) enum ColdEvent {
    Verified(Result<Identity, TokenError>),
    Read(Option<Reading>),
}

impl ColdState {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ColdEvent> {
        if let Some(Poll::Ready(verified)) = self.verifying.as_mut().map(|wait| wait.poll_unpin(cx)) {
            self.verifying = None;
            return Poll::Ready(ColdEvent::Verified(verified));
        }
        if let Some(Poll::Ready(reading)) = self.following.as_mut().map(|wait| wait.poll_unpin(cx)) {
            self.following = None;
            return Poll::Ready(ColdEvent::Read(reading));
        }
        Poll::Pending
    }
}
