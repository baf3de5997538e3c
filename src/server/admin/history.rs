//! A user's stored notifications over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::backplane::BackplaneError;
use crate::history::{Entry, PageSize, ReadFrom};
use crate::server::App;
use crate::server::reply::{Refusal, unavailable};
use crate::server::request::{UserPath, bad_cursor, page_limit};

/// A page ends with the notification that reaches this size of data.
const PAGE_BYTES: usize = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Notification<'a> {
    id: String,
    event: &'a str,
    data: &'a RawValue,
    ts: u64,
}

impl<'a> Notification<'a> {
    fn new(entry: &'a Entry) -> Result<Self, BackplaneError> {
        let Entry { cursor, event, data } = entry;
        let not_json = |_| BackplaneError::unexpected(format!("notification {cursor} is not JSON"));
        Ok(Self { id: cursor.to_string(), event, data: serde_json::from_str(data).map_err(not_json)?, ts: cursor.ms })
    }
}

#[derive(Serialize)]
struct Page<'a> {
    notifications: Vec<Notification<'a>>,
    next: Option<String>,
}

/// `GET /v1/users/{id}/notifications?after=&limit=`
pub(super) async fn page(State(app): State<Arc<App>>, UserPath(user): UserPath, uri: Uri) -> Result<Response, Refusal> {
    let Query(query) = Query::<PageQuery>::try_from_uri(&uri)
        .map_err(|_| Refusal::bad_request("expected ?after= (a cursor) and ?limit= (a number)"))?;
    let entries = page_limit(query.limit)?;
    let from = match query.after {
        None => ReadFrom::Oldest,
        Some(after) => ReadFrom::After(after.parse().map_err(bad_cursor("?after="))?),
    };
    // No device: unread counts are not returned.
    let page = PageSize { entries, bytes: PAGE_BYTES };
    let reading = app.history.read(&user, &from, "", page).await.map_err(unavailable)?;
    if !reading.whole {
        let message = "some notifications after this cursor are no longer stored: start over without ?after=";
        return Err(Refusal::new(StatusCode::GONE, "cursor_gone", message));
    }
    let notifications = reading.entries.iter().map(Notification::new).collect::<Result<_, _>>().map_err(unavailable)?;
    let next = (!reading.is_complete()).then(|| reading.upto.to_string());
    Ok(Json(Page { notifications, next }).into_response())
}
