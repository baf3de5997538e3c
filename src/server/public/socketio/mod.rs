//! `GET /socket.io/`: the handshake of a socket.io client. A bad token is not refused here, because a client would retry
//! the request without a limit: its CONNECT is.

mod body;
mod http;
mod probe;
mod refusal;
mod visit;

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::Query;
use axum::http::{HeaderMap, Method, Request, Response, Uri};
use axum::response::IntoResponse;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::handshake::{Head, admit_address, check_upgrade, identify};
use super::websocket::switch;
use crate::auth::{Identity, QueryAuth};
use crate::connection::{Known, Peer, SocketIoHandshake, Unidentified};
use crate::limits::AdmissionPermits;
use crate::protocol::socketio::SessionId;
use crate::protocol::{Close, DEFAULT_DEVICE, check_device};
use crate::server::App;
use crate::server::host::check_host;
use crate::server::origin::check_origin;
use crate::server::reply::Refusal;
use refusal::{BAD_METHOD, EngineRefusal};
pub(in crate::server) use visit::{Arrival, Visit};

pub(in crate::server) const PATH: &str = "/socket.io/";

/// The version of Engine.IO that clients of socket.io 3 and 4 speak.
const VERSION: &str = "4";

/// An accepted handshake; the connection begins with the 101.
#[derive(Debug)]
pub(in crate::server) struct SocketIoUpgrade {
    pub(in crate::server) handshake: SocketIoHandshake,
    pub(in crate::server) permits: AdmissionPermits,
    /// A drain waits for this as for a connection.
    pub(in crate::server) in_hand: TaskTrackerToken,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    #[serde(rename = "EIO")]
    version: Option<String>,
    transport: Option<String>,
    sid: Option<String>,
    token: Option<String>,
    auth: Option<String>,
    device: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Polling,
}

impl Parameters {
    fn parse(app: &App, uri: &Uri) -> Result<(Self, Transport), EngineRefusal> {
        let query = Query::<Self>::try_from_uri(uri);
        let Query(parameters) = query.map_err(|_| EngineRefusal::bad_request("the query is malformed"))?;
        // Before anything is opened: a client of another version would wait without a limit.
        if parameters.version.as_deref() != Some(VERSION) {
            return Err(EngineRefusal::protocol_unsupported());
        }
        let transport = match parameters.transport.as_deref() {
            Some("websocket") => Transport::WebSocket,
            Some("polling") if app.config.server.socketio_polling => Transport::Polling,
            _ => return Err(EngineRefusal::transport_unknown()),
        };
        Ok((parameters, transport))
    }

    /// The device whose read position the client moves; `None`: the default device.
    fn device(&self) -> Result<Option<Box<str>>, EngineRefusal> {
        let device = self.device.as_deref().filter(|name| *name != DEFAULT_DEVICE);
        let checked = device.map_or(Ok(()), check_device);
        checked.map_err(|error| EngineRefusal::bad_request(format!("?device=: {error}")))?;
        Ok(device.map(Box::from))
    }
}

/// Whether a request can be that of a WebSocket that begins a session, and not that of a client that polls.
pub(in crate::server) fn opens_websocket(uri: &Uri) -> bool {
    let query = Query::<Parameters>::try_from_uri(uri);
    query.is_ok_and(|Query(given)| given.sid.is_none() && given.transport.as_deref() == Some("websocket"))
}

/// Decides on a request; `Err` is the response to one that does not become a WebSocket.
pub(in crate::server) async fn respond(
    app: &App,
    request: &Request<()>,
    peer: SocketAddr,
    mut permits: AdmissionPermits,
    deadline: Instant,
) -> Result<SocketIoUpgrade, Response<Body>> {
    let in_hand = app.context.shutdown.connection_in_hand();
    let head = Head::of(app, request, peer);
    let peer = head.peer();
    let upgraded = timeout_at(deadline, upgrade(app, &head, &peer, &mut permits)).await;
    match upgraded.unwrap_or_else(|_| Err(Refusal::too_slow().into())) {
        Ok(handshake) => Ok(SocketIoUpgrade { handshake, permits, in_hand }),
        Err(refusal) => {
            refusal.note(app, &peer);
            Err(refusal.into_response())
        }
    }
}

async fn upgrade(
    app: &App,
    head: &Head<'_>,
    peer: &Peer,
    permits: &mut AdmissionPermits,
) -> Result<SocketIoHandshake, EngineRefusal> {
    let begun = Instant::now();
    let (parameters, transport) = Parameters::parse(app, head.uri)?;
    if transport == Transport::Polling {
        return Err(EngineRefusal::transport_unknown());
    }
    if parameters.sid.is_some() {
        return Err(EngineRefusal::session_unknown());
    }
    check_method(head)?;
    let accept = check_upgrade(head).map_err(|refusal| EngineRefusal::bad_request(refusal.message))?;
    let device = parameters.device()?;
    let identity = admit(app, head, parameters, permits).await?;
    let sid = new_session_id()?;
    app.context.metrics.handshake_seconds.observe(begun.elapsed().as_secs_f64());
    Ok(SocketIoHandshake { identity, device, sid, head: switch(&accept, false, None), peer: peer.clone() })
}

/// A session begins with a GET, whichever its transport.
fn check_method(head: &Head<'_>) -> Result<(), EngineRefusal> {
    if head.method == Method::GET { Ok(()) } else { Err(EngineRefusal::bad(BAD_METHOD, "Bad handshake method")) }
}

fn new_session_id() -> Result<SessionId, EngineRefusal> {
    SessionId::random().map_err(|_| EngineRefusal::bad_request("no randomness for a session id"))
}

/// Admits a new session, whichever its transport: everything but the user, who is known at the CONNECT. Returns the user of
/// the request's own credential, for a CONNECT without a token.
async fn admit(
    app: &App,
    head: &Head<'_>,
    parameters: Parameters,
    permits: &mut AdmissionPermits,
) -> Result<Result<Identity, Unidentified>, EngineRefusal> {
    check_host(head.version, head.headers)?;
    check_origin(app, head.headers)?;
    admit_address(app, head, permits).await?;
    Ok(authenticate(app, head.headers, parameters).await)
}

async fn authenticate(app: &App, headers: &HeaderMap, parameters: Parameters) -> Result<Identity, Unidentified> {
    let no_cookies = parameters.auth.as_deref() == Some("hello");
    let query = QueryAuth { token: parameters.token, no_cookies };
    let unidentified = |close, user, why: String| Unidentified { close, known: Known { user, why: Some(why) } };
    match identify(app, headers, query).await {
        Ok(Some(identity)) => Ok(identity),
        Ok(None) => Err(unidentified(Close::BadToken, None, "no token: give one in \"auth\"".to_owned())),
        Err(Refusal { code, message, user, .. }) => Err(unidentified(close_for(code), user, message)),
    }
}

/// The close code for the reason that would refuse the handshake of a WebSocket.
fn close_for(code: &str) -> Close {
    match code {
        "token_expired" => Close::TokenExpired,
        "session_ended" => Close::SessionEnded,
        "token_revoked" => Close::Revoked,
        "keys_unavailable" | "too_many_sessions" => Close::KeysUnavailable,
        "backplane_down" | "backplane_full" => Close::BackplaneDown,
        _ => Close::BadToken,
    }
}
