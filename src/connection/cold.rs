//! State that few connections have, on the heap so that the others do not pay for it.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::page_requests::PageRequests;
use crate::auth::{Identity, TokenError};
use crate::history::Reading;

#[derive(Default)]
pub(super) struct ColdState {
    /// A new token that waits for keys. It resolves within one fetch of keys.
    pub(super) verifying: Option<BoxFuture<'static, Result<Identity, TokenError>>>,
    /// A read from the client's position in the history, while the client is behind.
    pub(super) reading: Option<BoxFuture<'static, Option<Reading>>>,
    /// The subscription to the user's channel, if it was not confirmed in time.
    pub(super) subscribing: Option<BoxFuture<'static, Option<Instant>>>,
    pub(super) requests: Option<Box<PageRequests>>,
}

pub(super) enum ColdEvent {
    Verified(Result<Identity, TokenError>),
    Read(Option<Reading>),
    /// The user's channel is subscribed to: messages since this moment may have been missed. `None`: the connection to
    /// Redis was lost first.
    Subscribed(Option<Instant>),
    /// A request for stored notifications was answered.
    Answered,
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
        // Not during a read, which may have begun before the subscription.
        if self.reading.is_none()
            && let Some(Poll::Ready(since)) = self.subscribing.as_mut().map(|wait| wait.poll_unpin(cx))
        {
            self.subscribing = None;
            return Poll::Ready(ColdEvent::Subscribed(since));
        }
        if let Some(requests) = &mut self.requests
            && requests.poll(cx).is_ready()
        {
            self.requests.take_if(|requests| requests.is_empty());
            return Poll::Ready(ColdEvent::Answered);
        }
        Poll::Pending
    }

    /// Whether nothing of it is needed any more.
    pub(super) fn is_empty(&self) -> bool {
        let Self { verifying, reading, subscribing, requests } = self;
        verifying.is_none() && reading.is_none() && subscribing.is_none() && requests.is_none()
    }
}
