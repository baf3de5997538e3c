//! A user's stored notifications over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::backplane::BackplaneError;
use crate::history::{Entry, NewestPage, PageSize, ReadFrom};
use crate::protocol::{Cursor, UserId};
use crate::server::App;
use crate::server::reply::{Refusal, unavailable};
use crate::server::request::{UserPath, bad_cursor, page_limit};

/// A page ends with the notification that reaches this size of data.
const PAGE_BYTES: usize = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    #[serde(default)]
    order: Order,
    after: Option<String>,
    before: Option<String>,
    limit: Option<usize>,
}

/// Which notifications a page lists first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    #[default]
    Oldest,
    Newest,
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
        let Entry { cursor, event, data, .. } = entry;
        let not_json = |_| BackplaneError::unexpected(format!("notification {cursor} is not JSON"));
        Ok(Self { id: cursor.to_string(), event, data: serde_json::from_str(data).map_err(not_json)?, ts: cursor.ms })
    }
}

#[derive(Serialize)]
struct Page<'a> {
    notifications: Vec<Notification<'a>>,
    next: Option<String>,
}

/// `GET /v1/users/{id}/notifications?order=&after=&before=&limit=`
pub(super) async fn page(State(app): State<Arc<App>>, UserPath(user): UserPath, uri: Uri) -> Result<Response, Refusal> {
    let expected = "expected ?order= (oldest or newest), ?after= (a cursor; of the oldest first), ?before= (a cursor; of the \
                    newest first) and ?limit= (a number)";
    let Query(query) = Query::<PageQuery>::try_from_uri(&uri).map_err(|_| Refusal::bad_request(expected))?;
    let size = PageSize { entries: page_limit(query.limit)?, bytes: PAGE_BYTES };
    match query {
        PageQuery { order: Order::Oldest, after, before: None, .. } => oldest_first(&app, &user, after, size).await,
        PageQuery { order: Order::Newest, after: None, before, .. } => newest_first(&app, &user, before, size).await,
        _ => Err(Refusal::bad_request(expected)),
    }
}

async fn newest_first(app: &App, user: &UserId, before: Option<String>, size: PageSize) -> Result<Response, Refusal> {
    let before = before.map(|before| before.parse().map_err(bad_cursor("?before="))).transpose()?;
    let page = app.history.page(user, before.as_ref(), size).await.map_err(unavailable)?;
    let Some(NewestPage { entries, next }) = page else {
        let message = "this cursor is not one of the user's history: start over without ?before=";
        return Err(Refusal::new(StatusCode::GONE, "cursor_gone", message));
    };
    respond(&entries, next)
}

async fn oldest_first(app: &App, user: &UserId, after: Option<String>, size: PageSize) -> Result<Response, Refusal> {
    let from = match after {
        None => ReadFrom::Oldest,
        Some(after) => ReadFrom::After(after.parse().map_err(bad_cursor("?after="))?),
    };
    // No device: unread counts are not returned.
    let reading = app.history.read(user, &from, "", size).await.map_err(unavailable)?;
    if !reading.whole {
        let message = "some notifications after this cursor are no longer stored: start over without ?after=";
        return Err(Refusal::new(StatusCode::GONE, "cursor_gone", message));
    }
    respond(&reading.entries, (!reading.is_complete()).then_some(reading.upto))
}

fn respond(entries: &[Entry], next: Option<Cursor>) -> Result<Response, Refusal> {
    let notifications = entries.iter().map(Notification::new).collect::<Result<_, _>>().map_err(unavailable)?;
    Ok(Json(Page { notifications, next: next.map(|next| next.to_string()) }).into_response())
}
