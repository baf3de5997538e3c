//! A client's requests for stored notifications. One is answered at a time, while the client reads; the others wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::Context;
use super::client::Client;
use crate::delivery::ConnectionHandle;
use crate::history::{Entry, Requested};
use crate::protocol::{BAD_FRAME, Close, PageRequest, UserId, encode_page};

/// While so many requests of a client wait, it is not read from.
const MAX_WAITING: usize = 8;

/// Reads of one page: it is read again if a notification is retracted meanwhile.
const READS: u32 = 4;

#[derive(Default)]
pub(super) struct PageRequests {
    /// The request in progress.
    answering: Option<BoxFuture<'static, ()>>,
    waiting: VecDeque<PageRequest>,
}

impl PageRequests {
    /// Ready when a request has been answered.
    pub(super) fn poll(&mut self, cx: &mut Task<'_>) -> Poll<()> {
        let Some(answering) = &mut self.answering else { return Poll::Pending };
        let answered = answering.poll_unpin(cx);
        if answered.is_ready() {
            self.answering = None;
        }
        answered
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answering.is_none() && self.waiting.is_empty()
    }
}

impl Client {
    /// Answers a request, after those before it.
    pub(super) fn request_page(&mut self, request: PageRequest) {
        self.cold.get_or_insert_default().requests.get_or_insert_default().waiting.push_back(request);
    }

    pub(super) fn has_room_for_requests(&self) -> bool {
        let requests = self.cold.as_ref().and_then(|cold| cold.requests.as_ref());
        requests.is_none_or(|requests| requests.waiting.len() < MAX_WAITING)
    }

    /// Begins the next request, if none is in progress. Not for a client that does not read: its answers would pile up.
    pub(super) fn begin_request(&mut self, user: &UserId) {
        let requests = self.cold.as_mut().and_then(|cold| cold.requests.as_mut());
        let Some(requests) = requests.filter(|requests| requests.answering.is_none()) else { return };
        if self.clock.stalled_since.is_none()
            && let Some(request) = requests.waiting.pop_front()
        {
            let (context, handle) = (Arc::clone(&self.context), Arc::clone(&self.handle));
            requests.answering = Some(answer(context, handle, user.clone(), request).boxed());
        }
    }
}

async fn answer(context: Arc<Context>, handle: Arc<ConnectionHandle>, user: UserId, request: PageRequest) {
    let reference = request.reference.as_deref();
    let mut reads = 0;
    let result = loop {
        handle.watch_retractions();
        match context.history.page(&user, &request).await {
            Requested::Page(page) => {
                let frame = encode_page(reference, page.entries.iter().map(Entry::to_event), page.next);
                reads += 1;
                // A page that lists what was retracted must not follow the frame that says so.
                if handle.queue.answer(frame, || reads == READS || !handle.was_retracted()) {
                    break "ok";
                }
            }
            Requested::Foreign => {
                let message =
                    "\"before\" is not a cursor of this user, or dates from before the history was erased or lost";
                handle.refuse(BAD_FRAME, message, reference);
                break "foreign";
            }
            Requested::Unreadable => {
                let close = Close::BackplaneDown;
                handle.refuse(close.code(), close.reason(), reference);
                break "unreadable";
            }
        }
    };
    context.metrics.history_requests.with_label_values(&[result]).inc();
}
