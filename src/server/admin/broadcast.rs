//! Broadcasts over HTTP, for backends without a Redis client.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::notifications::check_size;
use crate::protocol::{EventName, check_event_name, wrap};
use crate::server::App;
use crate::server::reply::{Refusal, not_published};
use crate::server::request::object;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Broadcast {
    data: Box<RawValue>,
    event: Option<String>,
}

/// `POST /v1/broadcast`: to every connection of the fleet; not stored.
pub(super) async fn send(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    if headers.contains_key("idempotency-key") {
        let message =
            "Idempotency-Key: nothing of a broadcast is stored, so a repeated one would be sent again; omit the header";
        return Err(Refusal::bad_request(message));
    }
    let Broadcast { data, event } = object(body)?;
    let data = check_size(&app, data.get())?;
    let message = match &event {
        None => data.to_owned(),
        Some(event) => {
            check_event_name(event).map_err(|error| Refusal::bad_request(format!("\"event\": {error}")))?;
            wrap(&EventName::quote(event, None), data)
        }
    };
    app.backplane.broadcast(&message).await.map_err(|error| not_published(error.kind()))?;
    app.context.metrics.published.inc();
    Ok((StatusCode::ACCEPTED, Json(json!({}))).into_response())
}
