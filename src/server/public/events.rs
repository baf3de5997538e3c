//! `GET /events`: the response to a request for a stream of Server-Sent Events.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::encode;
use super::handshake::{Head, Parameters, admit_address, admit_user, bad_format, note_refusal};
use crate::auth::Identity;
use crate::connection::{COMMENT, Handshake, Known, Peer};
use crate::limits::AdmissionPermits;
use crate::protocol::{Close, Cursor, Dialect, RETRY_MS, ServerFrame, Start};
use crate::server::App;
use crate::server::cors::Cors;
use crate::server::host::check_host;
use crate::server::reply::{Refusal, method_not_allowed};

pub(in crate::server) const PATH: &str = "/events";

/// The type of a stream; a page that expects one names it in `Accept`.
const EVENT_STREAM: &str = "text/event-stream";

/// The headers that a page may send.
const ALLOWED_HEADERS: &str = "Authorization, Last-Event-ID, Cache-Control";

const LAST_EVENT_ID: &str = "last-event-id";

type Admitted = (Dialect, Identity, Start);

/// An accepted request; the stream begins with the head of its response.
#[derive(Debug)]
pub(in crate::server) struct Accepted {
    pub(in crate::server) dialect: Dialect,
    pub(in crate::server) handshake: Handshake,
    pub(in crate::server) permits: AdmissionPermits,
    /// A drain waits for this as for a connection.
    pub(in crate::server) in_hand: TaskTrackerToken,
}

/// Returns the response, or, for an accepted request, the head of the stream with what the connection requires.
pub(in crate::server) async fn respond(
    app: &App,
    request: &Request<()>,
    peer: SocketAddr,
    mut permits: AdmissionPermits,
    deadline: Instant,
) -> Result<Accepted, Response<Body>> {
    let (in_hand, begun) = (app.context.shutdown.connection_in_hand(), Instant::now());
    let head = Head::of(app, request, peer);
    let peer = head.peer();
    let cors = check_host(head.version, head.headers).and_then(|()| Cors::check(app, head.headers));
    let cors = cors.map_err(|refusal| refuse(app, &peer, refusal))?;
    let with_cors = |mut response: Response<Body>| {
        cors.apply(response.headers_mut());
        response
    };
    match *request.method() {
        Method::GET => {}
        Method::OPTIONS => return Err(cors.preflight("GET", ALLOWED_HEADERS)),
        _ => return Err(with_cors(only_get(app, &peer))),
    }
    let admitted = timeout_at(deadline, admit(app, &head, &mut permits)).await;
    match admitted.unwrap_or_else(|_| Err(Refusal::too_slow())) {
        Ok((dialect, identity, start)) => {
            let mut response = with_cors(stream_head());
            if let Some(remaining) = permits.remaining {
                response.headers_mut().insert("x-ratelimit-remaining", remaining.into());
            }
            let handshake = Handshake { identity: Some(identity), start, head: encode(&response), peer, begun };
            Ok(Accepted { dialect, handshake, permits, in_hand })
        }
        Err(refusal) => Err(with_cors(refuse_stream(app, &peer, request, refusal))),
    }
}

/// As for a WebSocket, except that a stream has no `hello`.
async fn admit(app: &App, head: &Head<'_>, permits: &mut AdmissionPermits) -> Result<Admitted, Refusal> {
    admit_address(app, head, permits).await?;
    let parameters = Parameters::read(head.uri)?;
    let dialect = match parameters.format.as_deref() {
        None => Dialect::Sse,
        Some("raw") => Dialect::SseRaw,
        Some(_) => return Err(bad_format()),
    };
    // A browser reconnects with the URL unchanged, so the header is the newer one. Any text is accepted.
    let last_id = head.headers.get(LAST_EVENT_ID).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let last_id = last_id.as_deref().filter(|id| !id.is_empty());
    // Only a cursor is a position here; any other text is an unknown one.
    let last_id = last_id.map(|id| if id.parse::<Cursor>().is_ok() { id } else { "" });
    let resume = last_id.or(parameters.resume.as_deref());
    let start = parameters.start(resume)?;
    let identity = admit_user(app, head.headers, parameters, permits).await?;
    let no_token = || {
        let message = "a stream requires a token: as a Bearer, in a cookie, or as ?token= where that is accepted";
        Refusal::new(StatusCode::UNAUTHORIZED, "no_token", message)
    };
    Ok((dialect, identity.ok_or_else(no_token)?, start))
}

fn stream_head() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    for (name, value) in [
        (header::CONTENT_TYPE, EVENT_STREAM),
        (header::CACHE_CONTROL, "no-store, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
        // The end of the connection is the end of the body.
        (header::CONNECTION, "close"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn only_get(app: &App, peer: &Peer) -> Response<Body> {
    app.context.refusals.handshake(peer, 405, "method_not_allowed", &Known::default());
    let mut response = method_not_allowed().into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, OPTIONS"));
    response
}

fn refuse(app: &App, peer: &Peer, refusal: Refusal) -> Response<Body> {
    note_refusal(app, peer, &refusal);
    refusal.into_response()
}

/// A browser ends its EventSource for good at any status but 200: so a temporary refusal is a stream that only says when
/// to come back, for a client that accepts one.
fn refuse_stream(app: &App, peer: &Peer, request: &Request<()>, refusal: Refusal) -> Response<Body> {
    let code = temporary(&refusal).filter(|_| accepts_stream(request.headers()));
    let Some(code) = code else { return refuse(app, peer, refusal) };
    let known = Known { user: refusal.user, why: Some(refusal.message.clone()) };
    app.context.refusals.stream(peer, code, refusal.code, &known);
    let error = ServerFrame::Error { code, message: &refusal.message, reference: None };
    let mut response = stream_head();
    let is_raw = Parameters::read(request.uri()).is_ok_and(|parameters| parameters.format.as_deref() == Some("raw"));
    let retry = || error.to_block(Some(fastrand::u64(RETRY_MS)), None);
    let block = if is_raw { Bytes::from_static(COMMENT) } else { retry() };
    *response.body_mut() = Body::from(block);
    response
}

/// The close code of a reason that passes; `None` for any other.
fn temporary(refusal: &Refusal) -> Option<u16> {
    let close = match (refusal.status, refusal.code) {
        (StatusCode::TOO_MANY_REQUESTS, _) if refusal.is_passing => Close::TooManyOrDead,
        (StatusCode::TOO_MANY_REQUESTS, "max_connections_per_user") => Close::TooManyOfUser,
        (StatusCode::TOO_MANY_REQUESTS, "connects_per_second_per_ip" | "connects_per_second_per_user") => {
            Close::RateLimited
        }
        (StatusCode::SERVICE_UNAVAILABLE, "draining") => Close::Draining,
        (StatusCode::SERVICE_UNAVAILABLE, "backplane_down" | "backplane_full") => Close::BackplaneDown,
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => Close::KeysUnavailable,
        _ => return None,
    };
    Some(close.code())
}

fn accepts_stream(headers: &HeaderMap) -> bool {
    let named = |value: &HeaderValue| {
        let ranges = value.as_bytes().split(|byte| *byte == b',');
        let mut types = ranges.filter_map(|range| range.split(|byte| *byte == b';').next());
        types.any(|name| name.trim_ascii().eq_ignore_ascii_case(EVENT_STREAM.as_bytes()))
    };
    headers.get_all(header::ACCEPT).iter().any(named)
}
