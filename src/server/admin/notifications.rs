//! Publishing over HTTP, for backends without a Redis client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::history::{MAX_COLLAPSE_BYTES, MAX_ESCALATE, MAX_KEY_BYTES, Publication, Published};
use crate::protocol::{DEFAULT_EVENT, UserId, check_event_name, traceparent};
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
    pub(in crate::server) event: Option<String>,
    #[serde(default)]
    pub(in crate::server) durable: bool,
    /// A whole number; JSON encoders may write it as `60.0`.
    pub(in crate::server) ttl_s: Option<f64>,
    pub(in crate::server) collapse: Option<String>,
    pub(in crate::server) escalate_s: Option<f64>,
}

/// The body for many users. Its own type, so that each path names only the fields that it accepts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotificationForMany {
    users: Vec<String>,
    data: Box<RawValue>,
    event: Option<String>,
    #[serde(default)]
    durable: bool,
    ttl_s: Option<f64>,
    collapse: Option<String>,
    escalate_s: Option<f64>,
}

impl NotificationForMany {
    fn split(self) -> (Vec<String>, Notification) {
        let Self { users, data, event, durable, ttl_s, collapse, escalate_s } = self;
        (users, Notification { data, event, durable, ttl_s, collapse, escalate_s })
    }
}

impl Notification {
    /// Validates all fields.
    fn publication<'a>(&'a self, app: &App, given: Given<'a>) -> Result<Publication<'a>, Refusal> {
        let event = self.event.as_deref().unwrap_or(DEFAULT_EVENT);
        check_event_name(event).map_err(|error| Refusal::bad_request(format!("\"event\": {error}")))?;
        // Without effect on an ephemeral notification, which is not stored.
        let ttl = whole_seconds("ttl_s", self.ttl_s, MAX_TTL_S)?;
        let escalate = whole_seconds("escalate_s", self.escalate_s, MAX_ESCALATE.as_secs_f64())?;
        if escalate.is_some() {
            self.check_escalates(app)?;
        }
        let data = check_size(app, self.data.get())?;
        let (durable, collapse) = (self.durable, self.collapse()?);
        let Given { key, trace } = given;
        Ok(Publication { event, data, durable, ttl, key, collapse, escalate, trace })
    }

    fn collapse(&self) -> Result<Option<&str>, Refusal> {
        let Some(key) = self.collapse.as_deref() else { return Ok(None) };
        if !(1..=MAX_COLLAPSE_BYTES).contains(&key.len()) {
            let message = format!("\"collapse\": expected a key of 1 to {MAX_COLLAPSE_BYTES} bytes");
            return Err(Refusal::bad_request(message));
        }
        if !self.durable {
            return Err(Refusal::bad_request(
                "\"collapse\" requires \"durable\":true: only what is stored is replaced",
            ));
        }
        Ok(Some(key))
    }

    fn check_escalates(&self, app: &App) -> Result<(), Refusal> {
        if !self.durable {
            return Err(Refusal::bad_request("\"escalate_s\": requires \"durable\": true"));
        }
        if app.backplane.redis().is_none() {
            let message = "\"escalate_s\": requires Redis: no redis.url is configured";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "needs_redis", message));
        }
        Ok(())
    }
}

fn whole_seconds(field: &str, seconds: Option<f64>, most: f64) -> Result<Option<Duration>, Refusal> {
    let good = |seconds: &f64| (1.0..=most).contains(seconds) && seconds.fract() == 0.0;
    match seconds {
        Some(seconds) if !good(&seconds) => {
            Err(Refusal::bad_request(format!("{field:?}: expected a whole number from 1 to {most}")))
        }
        seconds => Ok(seconds.map(Duration::from_secs_f64)),
    }
}

/// What the headers of a request say about its notification.
#[derive(Debug, Clone, Copy, Default)]
struct Given<'a> {
    key: Option<&'a str>,
    trace: Option<&'a str>,
}

impl<'a> Given<'a> {
    fn read(headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let trace = headers.get("traceparent").and_then(|trace| traceparent(trace.to_str().ok()?));
        Ok(Self { key: idempotency_key(headers)?, trace })
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

pub(super) fn check_size<'a>(app: &App, data: &'a str) -> Result<&'a str, Refusal> {
    let most = app.config.limits.max_payload_bytes();
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
    let given = Given::read(&headers)?;
    let notification: Notification = object(body)?;
    publish(&app, user, &notification.publication(&app, given)?).await
}

/// `POST /v1/notifications`. A user who is listed twice gets it twice, or once with a key.
pub(super) async fn to_many(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let given = Given::read(&headers)?;
    let (users, notification) = object::<NotificationForMany>(body)?.split();
    let publication = notification.publication(&app, given)?;
    if users.len() > MAX_USERS {
        return Err(Refusal::bad_request(format!("{} users: expected at most {MAX_USERS}", users.len())));
    }
    let (mut good, mut failed) = (Vec::with_capacity(users.len()), Vec::new());
    for user in &users {
        match UserId::new(user) {
            Ok(user) => good.push(user),
            Err(_) => failed.push(json!({"user": user, "code": "bad_user"})),
        }
    }
    let published = publish_each(&app, &good, &publication).await;
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
    publish(app, user, &notification.publication(app, Given::default())?).await
}

async fn publish_each(app: &App, users: &[UserId], publication: &Publication<'_>) -> Vec<Published> {
    let begun = Instant::now();
    let published = app.history.publish(users, publication).await;
    if publication.durable && published.iter().any(Result::is_ok) {
        app.context.metrics.store_seconds.observe(begun.elapsed().as_secs_f64());
    }
    published
}

/// Publishes one notification; 202 with its cursor, or null for an ephemeral one.
async fn publish(app: &App, user: UserId, publication: &Publication<'_>) -> Result<Response, Refusal> {
    let published = publish_each(app, &[user], publication).await;
    let cursor = published.into_iter().next().transpose().map_err(not_published)?.flatten();
    app.context.metrics.published.inc();
    let id = cursor.map(|cursor| cursor.to_string());
    Ok((StatusCode::ACCEPTED, Json(json!({"id": id}))).into_response())
}
