//! Presence over HTTP, for backends without a Redis client.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use crate::presence::PageCursor;
use crate::protocol::UserId;
use crate::server::App;
use crate::server::reply::{Refusal, unavailable};
use crate::server::request::{UserPath, bad_user, object, page_limit};

/// `GET /v1/users/{id}/presence`
pub(super) async fn one(State(app): State<Arc<App>>, UserPath(user): UserPath) -> Result<Response, Refusal> {
    let mut found = app.presence.of(&[user]).await.map_err(unavailable)?;
    Ok(Json(found.pop()).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsersBody {
    users: Vec<String>,
}

/// `POST /v1/presence`: for as many users as fit into a body, in their order.
pub(super) async fn many(
    State(app): State<Arc<App>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let UsersBody { users } = object(body)?;
    let users: Vec<UserId> = users.iter().map(|user| UserId::new(user)).collect::<Result<_, _>>().map_err(bad_user)?;
    let found = app.presence.of(&users).await.map_err(unavailable)?;
    Ok(Json(json!({"users": found})).into_response())
}

#[derive(Debug, Deserialize)]
struct PageQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

/// `GET /v1/presence?limit=&cursor=`
pub(super) async fn page(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Refusal> {
    let Query(query) = Query::<PageQuery>::try_from_uri(&uri)
        .map_err(|_| Refusal::bad_request("expected ?limit= (a number) and ?cursor="))?;
    let limit = page_limit(query.limit)?;
    let from = match query.cursor.as_deref() {
        None | Some("") => PageCursor::default(),
        Some(cursor) => cursor.parse().map_err(|error| Refusal::bad_request(format!("?cursor=: {error}")))?,
    };
    let page = app.presence.online_page(limit, from).await.map_err(unavailable)?;
    Ok(Json(page).into_response())
}

/// `GET /v1/presence/count`
pub(super) async fn count(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    let online = app.presence.online_count().await.map_err(unavailable)?;
    Ok(Json(json!({"online": online})).into_response())
}
