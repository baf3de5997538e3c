//! State that few connections have, on the heap so that the others do not pay for it.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::auth::{Identity, TokenError};
use crate::history::Reading;

#[derive(Default)]
pub(super) struct ColdState {
    /// A new token that waits for keys. It resolves within one fetch of keys.
    pub(super) verifying: Option<BoxFuture<'static, Result<Identity, TokenError>>>,
    /// A read from the client's position in the history, while the client is behind.
    pub(super) reading: Option<BoxFuture<'static, Option<Reading>>>,
    /// The device whose read position the client moves; `None`: the default device.
    pub(super) device: Option<Box<str>>,
}

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
        if let Some(Poll::Ready(reading)) = self.reading.as_mut().map(|wait| wait.poll_unpin(cx)) {
            self.reading = None;
            return Poll::Ready(ColdEvent::Read(reading));
        }
        Poll::Pending
    }
}
