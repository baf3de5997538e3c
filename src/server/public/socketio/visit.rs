//! Requests to `/socket.io/`: long-polling of Engine.IO 4, on HTTP connections that clients keep open, and the upgrade of a
//! session to a WebSocket. A request that is held costs one small task, which waits for the response and for the client's
//! end.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Request, Response};
use tokio::time::{Instant, timeout, timeout_at};

use super::http::{Http, RequestError, encode, encode_head, has_body, is_persistent};
use super::refusal::{BAD_METHOD, EngineRefusal};
use super::{Parameters, Transport, admit, new_session_id, probe, upgrade};
use crate::connection::{NotPosted, Peer, PollingSession, Seat, SocketIo, SocketIoHandshake, Upgrade};
use crate::delivery::{HeldRequest, HttpSocket, Responded, Socket};
use crate::limits::{AdmissionPermits, SocketPermits};
use crate::protocol::Close;
use crate::server::App;
use crate::server::cors::Cors;
use crate::server::host::check_host;
use crate::server::public::handshake::{Head, check_upgrade};
use crate::server::public::websocket::switch;
use crate::server::reply::Refusal;

/// The bytes of a next request that are read while one is held.
const MAX_AHEAD: usize = 4_096;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=UTF-8");

/// One HTTP connection of a client.
pub(in crate::server) struct Visit {
    app: Arc<App>,
    http: Http,
    peer: SocketAddr,
    /// The connection is one of those that its session may keep.
    seat: Option<Seat>,
}

/// A request that was read, with the permits of its socket.
pub(in crate::server) struct Arrival {
    pub(in crate::server) request: Request<()>,
    pub(in crate::server) permits: SocketPermits,
    pub(in crate::server) deadline: Instant,
}

/// What happens on the connection after a request.
enum Next {
    /// The response comes later; another request may follow it.
    Held {
        session: Arc<PollingSession>,
        persistent: bool,
    },
    Request,
    /// The session ended before the response.
    Refused,
    Close,
    /// The connection is gone, or became the WebSocket of a session.
    Over,
    /// The connection becomes a WebSocket.
    WebSocket(Box<(SocketIoHandshake, AdmissionPermits)>),
}

/// The response to a request, unless it is held.
enum Answer {
    /// Of a session, which may keep the connection.
    Kept(Arc<PollingSession>, Response<Vec<u8>>),
    Last(Response<Vec<u8>>),
    Next(Next),
}

impl Visit {
    /// `read` are the bytes behind the head of the first request.
    pub(in crate::server) fn new(app: &Arc<App>, socket: Socket, peer: SocketAddr, read: Vec<u8>) -> Self {
        Self { app: Arc::clone(app), http: Http { socket: HttpSocket::new(socket), read }, peer, seat: None }
    }

    /// Responds until the client or a deadline ends the connection.
    pub(in crate::server) async fn run(mut self, first: Box<Arrival>) {
        // Boxed: only the wait for a response must be small.
        let mut next = Box::pin(self.exchange(*first)).await;
        loop {
            next = match next {
                Next::Held { session, persistent } => self.held(&session, persistent).await,
                Next::Request => Box::pin(self.next_request()).await,
                Next::Refused => Box::pin(self.refuse_held()).await,
                Next::Close => return Box::pin(self.http.close()).await,
                Next::WebSocket(opened) => return self.open_websocket(*opened),
                Next::Over => return,
            };
        }
    }

    /// A proxy may send the handshake of a WebSocket on a connection that it kept.
    fn open_websocket(self, (handshake, permits): (SocketIoHandshake, AdmissionPermits)) {
        let (context, Http { socket, read }) = (Arc::clone(&self.app.context), self.http);
        if let Some(socket) = socket.into_socket() {
            let connection = SocketIo::open(context, socket, read, handshake.peer.address, permits);
            self.app.context.shutdown.spawn_connection(connection.run(handshake));
        }
    }

    /// Waits for the response to the held request. A client that closes the connection earlier has left.
    async fn held(&mut self, session: &PollingSession, persistent: bool) -> Next {
        let http = &mut self.http;
        // An empty buffer would hold its memory for as long as the request is held.
        http.read.shrink_to_fit();
        poll_fn(|cx| {
            if let Poll::Ready(responded) = http.socket.poll_responded(cx) {
                return Poll::Ready(match responded {
                    Responded::Complete if persistent => Next::Request,
                    Responded::Complete => Next::Close,
                    Responded::Refused => Next::Refused,
                    Responded::Torn => Next::Over,
                });
            }
            while http.read.len() < MAX_AHEAD {
                match http.poll_read(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => {
                        session.left(&http.socket);
                        return Poll::Ready(Next::Over);
                    }
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn next_request(&mut self) -> Next {
        let server = &self.app.context.server;
        // A session without a request for this long has ended.
        let idle = server.heartbeat + server.pong_timeout;
        if self.http.read.is_empty() && !matches!(timeout(idle, self.http.read_some()).await, Ok(Ok(()))) {
            return Next::Over;
        }
        let deadline = Instant::now() + server.handshake_timeout;
        match timeout_at(deadline, self.http.read_head()).await {
            // Any other path is for a new connection: the client repeats its request there (RFC 9112, section 9.3.1).
            Ok(Ok(request)) if request.uri().path() != super::PATH => Next::Over,
            Ok(Ok(request)) => self.exchange(Arrival { request, permits: SocketPermits::default(), deadline }).await,
            Ok(Err(RequestError::Malformed | RequestError::TooLarge)) => {
                let refusal = malformed();
                refusal.note(&self.app, &Peer::of_socket(self.peer));
                self.refuse_unread(&refusal, deadline).await
            }
            Ok(Err(RequestError::Gone)) | Err(_) => Next::Over,
        }
    }

    async fn refuse_held(&mut self) -> Next {
        self.refuse_unread(&EngineRefusal::session_unknown(), Instant::now()).await
    }

    async fn refuse_unread(&self, refusal: &EngineRefusal, deadline: Instant) -> Next {
        let response = encode(&refusal.response(), &Method::GET, false);
        if self.write(&response, deadline).await { Next::Close } else { Next::Over }
    }

    async fn exchange(&mut self, arrival: Arrival) -> Next {
        let Arrival { request, permits, deadline } = arrival;
        let cors = Cors::check(&self.app, request.headers());
        let answer = match &cors {
            Ok(cors) => self.answer(&request, cors, permits, deadline).await,
            Err(Refusal { status, code, message, .. }) => Err(Refusal::new(*status, code, message.clone()).into()),
        };
        let (session, mut response) = match answer {
            Ok(Answer::Next(next)) => return next,
            Ok(Answer::Kept(session, response)) => (Some(session), response),
            Ok(Answer::Last(response)) => (None, response),
            Err(refusal) => (None, self.refuse(&request, &refusal)),
        };
        if let Ok(cors) = &cors {
            cors.apply(response.headers_mut());
        }
        let persistent = is_persistent(&request) && session.is_some_and(|session| self.take_seat(&session));
        let written = self.write(&encode(&response, request.method(), persistent), deadline).await;
        match (written, persistent) {
            (false, _) => Next::Over,
            (true, true) => Next::Request,
            (true, false) => Next::Close,
        }
    }

    async fn write(&self, response: &[u8], deadline: Instant) -> bool {
        // The request may have taken its whole time.
        let deadline = deadline.max(Instant::now() + self.app.config.send_queue.write_timeout);
        matches!(timeout_at(deadline, self.http.socket.write(response)).await, Ok(Ok(())))
    }

    /// Gives the connection a seat of this session, instead of its previous one.
    fn take_seat(&mut self, session: &Arc<PollingSession>) -> bool {
        if !self.seat.as_ref().is_some_and(|seat| session.is_of(seat)) {
            self.seat = session.seat();
        }
        self.seat.is_some()
    }

    fn head<'a>(&self, request: &'a Request<()>) -> Head<'a> {
        Head::of(&self.app, request, self.peer)
    }

    fn refuse(&self, request: &Request<()>, refusal: &EngineRefusal) -> Response<Vec<u8>> {
        refusal.note(&self.app, &self.head(request).peer());
        refusal.response()
    }

    async fn answer(
        &mut self,
        request: &Request<()>,
        cors: &Cors,
        permits: SocketPermits,
        deadline: Instant,
    ) -> Result<Answer, EngineRefusal> {
        check_host(request.version(), request.headers())?;
        // A body that is not read would be taken for the next request.
        if request.method() != Method::POST && has_body(request) {
            return Err(malformed());
        }
        if request.method() == Method::OPTIONS {
            let preflight = cors.preflight("GET, POST", "Content-Type");
            return Ok(Answer::Last(preflight.map(|_: Body| Vec::new())));
        }
        let (parameters, transport) = Parameters::parse(&self.app, request.uri())?;
        let session = match &parameters.sid {
            None => None,
            Some(sid) => {
                let session = sid.parse().ok().and_then(|id| self.app.context.polling.get(id));
                Some(session.ok_or_else(|| self.unknown())?)
            }
        };
        // Without permits for requests of a session, which has its own.
        match (transport, session, request.method()) {
            (Transport::Polling, None, &Method::GET) => self.open(request, parameters, permits, deadline).await,
            (Transport::Polling, None, _) => Err(EngineRefusal::bad(BAD_METHOD, "Bad handshake method")),
            (Transport::Polling, Some(session), &Method::GET) => self.hold(request, cors, session),
            (Transport::Polling, Some(session), &Method::POST) => {
                drop(permits);
                self.post(request, session, deadline).await
            }
            (Transport::Polling, Some(_), _) => Err(EngineRefusal::bad_request("Bad request")),
            (Transport::WebSocket, Some(session), _) => {
                drop(permits);
                self.upgrade(request, &session, deadline).await
            }
            (Transport::WebSocket, None, _) => self.begin_websocket(request, permits, deadline).await,
        }
    }

    /// While this instance drains, a proxy may have begun the session on another one.
    fn unknown(&self) -> EngineRefusal {
        if self.app.context.shutdown.draining().is_cancelled() {
            Refusal::draining().into()
        } else {
            EngineRefusal::session_unknown()
        }
    }

    /// Opens a session.
    async fn open(
        &mut self,
        request: &Request<()>,
        parameters: Parameters,
        permits: SocketPermits,
        deadline: Instant,
    ) -> Result<Answer, EngineRefusal> {
        let (in_hand, begun) = (self.app.context.shutdown.connection_in_hand(), Instant::now());
        let (mut permits, head, device) = (permits.connection, self.head(request), parameters.device()?);
        let admitting = admit(&self.app, &head, parameters, &mut permits);
        let identity = timeout_at(deadline, admitting).await.map_err(|_| Refusal::too_slow())??;
        let (sid, peer) = (new_session_id()?, head.peer());
        let context = Arc::clone(&self.app.context);
        let (connection, packet, session) = SocketIo::open_polling(context, sid, peer.address, permits);
        let handshake = SocketIoHandshake { identity, device, sid, head: Vec::new(), peer };
        self.app.context.shutdown.spawn_connection(connection.run(handshake));
        drop(in_hand);
        self.app.context.metrics.handshake_seconds.observe(begun.elapsed().as_secs_f64());
        Ok(Answer::Kept(session, text(packet)))
    }

    async fn begin_websocket(
        &mut self,
        request: &Request<()>,
        permits: SocketPermits,
        deadline: Instant,
    ) -> Result<Answer, EngineRefusal> {
        let (mut permits, head) = (permits.connection, self.head(request));
        let peer = head.peer();
        let upgrading = upgrade(&self.app, &head, &peer, &mut permits);
        let handshake = timeout_at(deadline, upgrading).await.map_err(|_| Refusal::too_slow())??;
        Ok(Answer::Next(Next::WebSocket(Box::new((handshake, permits)))))
    }

    /// Leaves the response to the session.
    fn hold(
        &mut self,
        request: &Request<()>,
        cors: &Cors,
        session: Arc<PollingSession>,
    ) -> Result<Answer, EngineRefusal> {
        let persistent = is_persistent(request) && self.take_seat(&session);
        let mut response = text(String::new());
        cors.apply(response.headers_mut());
        let head = encode_head(&response, persistent);
        let held = HeldRequest::new(Arc::clone(&self.http.socket), head.into());
        session.hold(held).map_err(|_| EngineRefusal::bad_request("another request is open"))?;
        Ok(Answer::Next(Next::Held { session, persistent }))
    }

    async fn post(
        &mut self,
        request: &Request<()>,
        session: Arc<PollingSession>,
        deadline: Instant,
    ) -> Result<Answer, EngineRefusal> {
        let reading = self.http.read_body(request, self.app.config.limits.get().max_inbound_bytes);
        let body = match timeout_at(deadline, reading).await {
            Ok(Ok(body)) => body,
            Ok(Err(RequestError::TooLarge)) => {
                session.end(Close::TooBig);
                return Err(EngineRefusal::too_large());
            }
            Ok(Err(RequestError::Malformed)) => return Err(malformed()),
            Ok(Err(RequestError::Gone)) | Err(_) => return Ok(Answer::Next(Next::Over)),
        };
        let handled = session.post(body.into()).map_err(|error| match error {
            NotPosted::Overlap => EngineRefusal::bad_request("another POST is open"),
            NotPosted::Over => self.unknown(),
        })?;
        handled.await.map_err(|_| EngineRefusal::bad_request("Bad request"))?;
        Ok(Answer::Kept(session, text("ok".to_owned())))
    }

    /// Responds to the handshake of a WebSocket that continues a session.
    async fn upgrade(
        &mut self,
        request: &Request<()>,
        session: &Arc<PollingSession>,
        deadline: Instant,
    ) -> Result<Answer, EngineRefusal> {
        let accept =
            check_upgrade(&self.head(request)).map_err(|refusal| EngineRefusal::bad_request(refusal.message))?;
        let probe = session.probe().ok_or_else(|| EngineRefusal::bad_request("another probe is running"))?;
        if !self.take_seat(session) {
            return Err(EngineRefusal::bad_request("too many connections of this session"));
        }
        if !self.write(&switch(&accept, false, None), deadline).await || !probe::run(&mut self.http, &probe).await {
            return Ok(Answer::Next(Next::Close));
        }
        let socket = Arc::clone(&self.http.socket);
        probe.upgrade(Upgrade { socket, early: std::mem::take(&mut self.http.read) });
        Ok(Answer::Next(Next::Over))
    }
}

/// A response that carries packets.
fn text(packets: String) -> Response<Vec<u8>> {
    let mut response = Response::new(packets.into_bytes());
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

fn malformed() -> EngineRefusal {
    EngineRefusal::bad_request("the request is malformed")
}
