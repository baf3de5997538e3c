//! The connections of a user over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::protocol::Command;
use crate::roster::RosterError;
use crate::server::App;
use crate::server::reply::{Refusal, unavailable};
use crate::server::request::UserPath;

/// `GET /v1/users/{id}/connections`: those on every live instance.
pub(super) async fn list(State(app): State<Arc<App>>, UserPath(user): UserPath) -> Result<Response, Refusal> {
    let own = app.context.instance.as_str();
    let live = app.presence.instances().await.map_err(unavailable)?;
    let others = live.into_iter().map(|live| live.instance).filter(|instance| instance != own).collect();
    let found = app.roster.connections(&user, others).await.map_err(|error| match error {
        RosterError::Busy => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string()),
        RosterError::Backplane(error) => unavailable(error),
    })?;
    Ok(Json(found).into_response())
}

/// `DELETE /v1/users/{id}/connections`: closes them on every instance.
pub(super) async fn close(State(app): State<Arc<App>>, UserPath(user): UserPath) -> Result<Response, Refusal> {
    app.backplane.publish_command(&Command::disconnect(&user)).await.map_err(unavailable)?;
    Ok((StatusCode::ACCEPTED, Json(json!({}))).into_response())
}
