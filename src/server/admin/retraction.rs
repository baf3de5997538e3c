//! Taking notifications back over HTTP: one, or all that is kept of a user.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use tracing::debug;

use crate::escalation;
use crate::history::Retracted;
use crate::outbox;
use crate::protocol::UserId;
use crate::server::App;
use crate::server::reply::{Refusal, unavailable};
use crate::server::request::{UserPath, bad_user};

/// `DELETE /v1/users/{id}/notifications/{cursor}`
pub(super) async fn retract(
    State(app): State<Arc<App>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<StatusCode, Refusal> {
    let Path((user, cursor)) = path.map_err(|_| Refusal::bad_request("the path is not UTF-8"))?;
    let user = UserId::new(&user).map_err(bad_user)?;
    let retracted = match cursor.parse() {
        Ok(cursor) => app.history.retract(&user, &cursor).await.map_err(unavailable)?,
        Err(_) => Retracted::Foreign,
    };
    match retracted {
        Retracted::Gone => {
            debug!(user = user.as_str(), cursor, "notification retracted by a request");
            Ok(StatusCode::NO_CONTENT)
        }
        Retracted::Foreign => {
            let message = "the last part of the path is not a position in this user's stored history";
            Err(Refusal::new(StatusCode::NOT_FOUND, "foreign_cursor", message))
        }
    }
}

/// `DELETE /v1/users/{id}`. May be repeated after an error.
pub(super) async fn erase(State(app): State<Arc<App>>, UserPath(user): UserPath) -> Result<StatusCode, Refusal> {
    // First, so that nothing of it can reach the streams later.
    app.history.erase(&user).await.map_err(unavailable)?;
    app.presence.forget(&user).await.map_err(unavailable)?;
    if let Some(redis) = app.backplane.redis() {
        escalation::interrupt(redis, &app.config).await.map_err(unavailable)?;
        for stream in [outbox::rejected_stream(redis, &app.config), escalation::unread_stream(&app.config)] {
            outbox::erase_entries(redis, &stream, &user).await.map_err(unavailable)?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
