//! The presence event stream: a snapshot of the online users, then each change.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use futures::stream::unfold;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backplane::BackplaneError;
use crate::presence::PageCursor;
use crate::server::App;

/// Maximum number of users in a snapshot.
const SNAPSHOT_USERS: usize = 1_000;

/// Between two attempts at a snapshot.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn stream(State(app): State<Arc<App>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.presence.changes();
    let stopping = app.context.shutdown.draining().clone();
    let watch = Watch { app, changes, stopping, snapshot_due: true };
    let stream = unfold(watch, |mut watch| async move { watch.next().await.map(|event| (Ok(event), watch)) });
    std::future::ready(Sse::new(stream).keep_alive(KeepAlive::default())).await
}

struct Watch {
    app: Arc<App>,
    changes: Receiver<Arc<str>>,
    stopping: CancellationToken,
    /// At the start, and after a change may have been missed.
    snapshot_due: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Event> {
        let stopping = self.stopping.clone();
        stopping.run_until_cancelled(self.event()).await
    }

    async fn snapshot(&self) -> Result<Event, BackplaneError> {
        let page = self.app.presence.online_page(SNAPSHOT_USERS, PageCursor::default()).await?;
        let online = self.app.presence.online_count().await?;
        let snapshot = json!({"users": page.users, "online": online});
        Ok(Event::default().event("snapshot").data(snapshot.to_string()))
    }

    async fn event(&mut self) -> Event {
        loop {
            if self.snapshot_due {
                match self.snapshot().await {
                    Ok(snapshot) => {
                        self.snapshot_due = false;
                        return snapshot;
                    }
                    // An outage of Redis does not end the stream.
                    Err(_) => sleep(RETRY).await,
                }
                continue;
            }
            match self.changes.recv().await {
                Ok(change) => return Event::default().event("change").data(change.as_ref()),
                Err(RecvError::Lagged(_)) => self.snapshot_due = true,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
