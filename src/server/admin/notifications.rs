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

use crate::history::{MAX_KEY_BYTES, Publication};
use crate::protocol::{DEFAULT_EVENT, UserId, check_event_name};
use crate::server::App;
use crate::server::reply::{Refusal, backplane_code, not_published};
use crate::server::request::{UserPath, bad_user, object};

/// Maximum number of users of one request.
const MAX_USERS: usize = 10_000;

/// Ten years; `history.ttl` expires notifications earlier.
const MAX_TTL_S: f64 = 315_360_000.0;

/// A notification from a backend; the data is passed on byte for byte.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Notification {
    pub(in crate::server) data: Box<RawValue>,
    /// Only for many users.
    pub(in crate::server) users: Option<Vec<String>>,
    pub(in crate::server) event: Option<String>,
    #[serde(default)]
    pub(in crate::server) durable: bool,
    /// A whole number; JSON encoders may write it as `60.0`.
    pub(in crate::server) ttl_s: Option<f64>,
}

impl Notification {
    /// Validates all fields.
    fn publication<'a>(&'a self, app: &App, key: Option<&'a str>) -> Result<Publication<'a>, Refusal> {
        let event = self.event.as_deref().unwrap_or(DEFAULT_EVENT);
        check_event_name(event).map_err(|error| Refusal::bad_request(format!("\"event\": {error}")))?;
        let good = |seconds: f64| (1.0..=MAX_TTL_S).contains(&seconds) && seconds.fract() == 0.0;
        if self.ttl_s.is_some_and(|seconds| !good(seconds)) {
            return Err(Refusal::bad_request(format!("\"ttl_s\": expected a whole number from 1 to {MAX_TTL_S}")));
        }
        // Without effect on an ephemeral notification, which is not stored.
        let ttl = self.ttl_s.map(Duration::from_secs_f64);
        Ok(Publication { event, data: check_size(app, self.data.get())?, durable: self.durable, ttl, key })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(key) = given.next() else { return Ok(None) };
    let visible =
        |key: &&str| (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    match (key.to_str().ok().filter(visible), given.next()) {
        (Some(key), None) => Ok(Some(key)),
        _ => {
            let accepted =
                format!("Idempotency-Key: expected a single key of 1 to {MAX_KEY_BYTES} visible ASCII characters");
            Err(Refusal::bad_request(accepted))
        }
    }
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
    let key = idempotency_key(&headers)?;
    let notification: Notification = object(body)?;
    if notification.users.is_some() {
        return Err(Refusal::bad_request("\"users\" is only accepted by POST /v1/notifications"));
    }
    publish(&app, user, &notification.publication(&app, key)?).await
}

/// `POST /v1/notifications`. A user who is listed twice gets it twice, or once with a key.
pub(super) async fn to_many(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let key = idempotency_key(&headers)?;
    let notification: Notification = object(body)?;
    let publication = notification.publication(&app, key)?;
    let users = notification.users.as_deref().ok_or_else(|| Refusal::bad_request("missing field `users`"))?;
    if users.len() > MAX_USERS {
        return Err(Refusal::bad_request(format!("{} users: expected at most {MAX_USERS}", users.len())));
    }
    let (mut good, mut failed) = (Vec::with_capacity(users.len()), Vec::new());
    for user in users {
        match UserId::new(user) {
            Ok(user) => good.push(user),
            Err(_) => failed.push(json!({"user": user, "code": "bad_user"})),
        }
    }
    let published = app.history.publish(&good, &publication).await;
    let kinds: Vec<_> = published.iter().filter_map(|outcome| outcome.err()).collect();
    if let Some(kind) = kinds.first()
        && kinds.len() == published.len()
        && kinds.iter().all(|other| backplane_code(other) == backplane_code(kind))
        // A refusal that concerns one user is reported for that user.
        && kinds.iter().all(|kind| *kind != "refused")
    {
        return Err(not_published(kind));
    }
    let accepted = published.len() - kinds.len();
    app.context.metrics.published.inc_by(accepted as u64);
    for (user, outcome) in good.iter().zip(&published) {
        if let Err(kind) = outcome {
            failed.push(json!({"user": user.as_str(), "code": backplane_code(kind)}));
        }
    }
    Ok((StatusCode::ACCEPTED, Json(json!({"accepted": accepted, "failed": failed}))).into_response())
}

/// Publishes from the demo page, for one user.
pub(in crate::server) async fn from_page(
    app: &App,
    user: &str,
    notification: &Notification,
) -> Result<Response, Refusal> {
    let user = UserId::new(user).map_err(bad_user)?;
    publish(app, user, &notification.publication(app, None)?).await
}

/// Publishes one notification; 202 with its cursor, or null for an ephemeral one.
async fn publish(app: &App, user: UserId, publication: &Publication<'_>) -> Result<Response, Refusal> {
    let published = app.history.publish(&[user], publication).await;
    let cursor = published.into_iter().next().transpose().map_err(not_published)?.flatten();
    app.context.metrics.published.inc();
    let id = cursor.map(|cursor| cursor.to_string());
    Ok((StatusCode::ACCEPTED, Json(json!({"id": id}))).into_response())
}
