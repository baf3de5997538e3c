//! The read positions of a user's devices over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use crate::history::{Acked, MAX_DEVICES};
use crate::protocol::{DEFAULT_DEVICE, UserId, check_device};
use crate::server::App;
use crate::server::reply::{Refusal, unavailable};
use crate::server::request::{UserPath, bad_cursor, object};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceQuery {
    device: Option<String>,
}

fn device(uri: &Uri) -> Result<String, Refusal> {
    let Query(query) =
        Query::<DeviceQuery>::try_from_uri(uri).map_err(|_| Refusal::bad_request("expected one ?device= (a name)"))?;
    let device = query.device.unwrap_or_else(|| DEFAULT_DEVICE.to_owned());
    check_device(&device).map_err(|error| Refusal::bad_request(format!("?device=: {error}")))?;
    Ok(device)
}

/// `GET /v1/users/{id}/read-position?device=`
pub(super) async fn get(State(app): State<Arc<App>>, UserPath(user): UserPath, uri: Uri) -> Result<Response, Refusal> {
    show(&app, &user, &device(&uri)?).await
}

async fn show(app: &App, user: &UserId, device: &str) -> Result<Response, Refusal> {
    let position = app.history.read_position(user, device).await.map_err(unavailable)?;
    let id = position.cursor.map(|cursor| cursor.to_string());
    Ok(Json(json!({"device": device, "id": id, "unread": position.unread})).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PositionBody {
    id: String,
}

/// `PUT /v1/users/{id}/read-position?device=`; may also move the position back.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    UserPath(user): UserPath,
    uri: Uri,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let device = device(&uri)?;
    let PositionBody { id } = object(body)?;
    let cursor = id.parse().map_err(bad_cursor("\"id\""))?;
    match app.history.set_read_position(&user, &device, cursor).await.map_err(unavailable)? {
        Acked::Kept => show(&app, &user, &device).await,
        Acked::Foreign => {
            let message = "\"id\" is not a position in this user's stored history";
            Err(Refusal::new(StatusCode::CONFLICT, "foreign_cursor", message))
        }
        Acked::TooManyDevices => {
            let message = format!("this user already has read positions of {MAX_DEVICES} other devices, the maximum");
            Err(Refusal::new(StatusCode::CONFLICT, "too_many_devices", message))
        }
    }
}
