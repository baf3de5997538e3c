//! Publishing over HTTP, for backends without a Redis client.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::App;
use super::reply::Refusal;
use super::request::{UserPath, bad_user, object};
use crate::backplane::Publication;
use crate::protocol::{DEFAULT_EVENT, UserId, check_event_name};

/// Most users of one request.
const MAX_USERS: usize = 10_000;

/// A notification as a backend sends it; the data is kept byte for byte.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Notification {
    pub(super) data: Box<RawValue>,
    /// Only where it is for many.
    pub(super) users: Option<Vec<String>>,
    pub(super) event: Option<String>,
    #[serde(default)]
    pub(super) durable: bool,
    pub(super) ttl_s: Option<u64>,
}

impl Notification {
    /// The data, where this version can do what is asked.
    fn data(&self, app: &App) -> Result<&str, Refusal> {
        let named = self.event.as_deref().is_some_and(|event| event != DEFAULT_EVENT);
        if self.durable || named || self.ttl_s.is_some() {
            return Err(not_stored("\"durable\", \"ttl_s\" and an \"event\" other than \"notification\""));
        }
        check_size(app, self.data.get())
    }
}

/// Publishing twice what was asked for once would be worse than a refusal.
fn check_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key("idempotency-key") { Err(not_stored("Idempotency-Key")) } else { Ok(()) }
}

fn not_stored(what: &str) -> Refusal {
    let message = format!("this version stores nothing: {what} cannot be had");
    Refusal::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", message)
}

fn check_size<'a>(app: &App, data: &'a str) -> Result<&'a str, Refusal> {
    let most = app.config.limits.max_payload_bytes;
    if data.len() > most {
        let message = format!("the data is larger than {most} bytes (limits.max_payload_bytes)");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
    }
    Ok(data)
}

/// `POST /v1/users/{id}/notifications`
pub(super) async fn to_one(
    State(app): State<Arc<App>>,
    UserPath(user): UserPath,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    check_headers(&headers)?;
    let notification: Notification = object(body)?;
    if notification.users.is_some() {
        return Err(Refusal::bad_request("\"users\" is for POST /v1/notifications"));
    }
    publish(&app, user, notification.data(&app)?).await
}

/// `POST /v1/notifications`
pub(super) async fn to_many(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    check_headers(&headers)?;
    let notification: Notification = object(body)?;
    let data = notification.data(&app)?;
    let users = notification.users.as_deref().ok_or_else(|| Refusal::bad_request("missing field `users`"))?;
    if users.len() > MAX_USERS {
        return Err(Refusal::bad_request(format!("{} users: accepted are at most {MAX_USERS}", users.len())));
    }
    let (mut good, mut failed) = (Vec::with_capacity(users.len()), Vec::new());
    for user in users {
        match UserId::new(user) {
            Ok(user) => good.push(user),
            Err(_) => failed.push(json!({"user": user, "code": "bad_user"})),
        }
    }
    let published = app.backplane.publish(&good, &ephemeral(data)).await;
    let accepted = published.iter().filter(|outcome| outcome.is_ok()).count();
    if let (0, Some(Err(kind))) = (accepted, published.first()) {
        return Err(not_published(kind));
    }
    app.context.metrics.published.inc_by(accepted as u64);
    for (user, outcome) in good.iter().zip(&published) {
        if outcome.is_err() {
            failed.push(json!({"user": user.as_str(), "code": "backplane_down"}));
        }
    }
    Ok((StatusCode::ACCEPTED, Json(json!({"accepted": accepted, "failed": failed}))).into_response())
}

fn ephemeral(data: &str) -> Publication<'_> {
    Publication { event: DEFAULT_EVENT, data, durable: false, ttl: None, key: None }
}

fn not_published(kind: &str) -> Refusal {
    let message = format!("the backplane did not take it ({kind})");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "backplane_down", message)
}

/// From the demo page, for one user.
pub(super) async fn from_page(app: &App, user: &str, notification: &Notification) -> Result<Response, Refusal> {
    let user = UserId::new(user).map_err(bad_user)?;
    let Notification { data, event, durable, ttl_s, .. } = notification;
    let event = event.as_deref().unwrap_or(DEFAULT_EVENT);
    check_event_name(event).map_err(|error| Refusal::bad_request(format!("\"event\": {error}")))?;
    if ttl_s.is_some_and(|seconds| seconds == 0 || !durable) {
        return Err(Refusal::bad_request("\"ttl_s\": accepted is a whole number from 1, with \"durable\":true"));
    }
    let ttl = ttl_s.map(Duration::from_secs);
    let publication = Publication { event, data: check_size(app, data.get())?, durable: *durable, ttl, key: None };
    let published = app.backplane.publish(&[user], &publication).await;
    let cursor = published.into_iter().next().transpose().map_err(not_published)?.flatten();
    app.context.metrics.published.inc();
    Ok((StatusCode::ACCEPTED, Json(json!({"id": cursor.map(|cursor| cursor.to_string())}))).into_response())
}

/// Publishes one notification; 202 and its cursor, which an ephemeral one does not have.
async fn publish(app: &App, user: UserId, data: &str) -> Result<Response, Refusal> {
    if let Some(Err(kind)) = app.backplane.publish(&[user], &ephemeral(data)).await.first() {
        return Err(not_published(kind));
    }
    app.context.metrics.published.inc();
    Ok((StatusCode::ACCEPTED, Json(json!({"id": null}))).into_response())
}
