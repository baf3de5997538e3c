//! The part of a connection that does not depend on its transport: greeting, history, deadlines, end.

use std::borrow::Cow;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};

use futures::FutureExt;
use futures::future::Either;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, Level, Span, debug, debug_span, enabled, warn};

use super::clock::Clock;
use super::cold::{ColdEvent, ColdState};
use super::{Context, channel};
use crate::auth::{Identity, TokenError};
use crate::delivery::{CatchUpPage, ConnectionHandle, Driven, Registration, SendQueue, Socket, StartPage};
use crate::history::{Entry, Reading};
use crate::limits::{AdmissionPermits, UserLimit};
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::socketio::connected;
use crate::protocol::{
    Close, Continuity, Cursor, DEFAULT_DEVICE, Dialect, Event, ServerFrame, Start, UserId, millis, text_frame, unix_ms,
};
use crate::redis::UserChannel;

/// The state of one client. Its size is part of the memory that an idle one costs, so no field is redundant.
pub(super) struct Client {
    pub(super) context: Arc<Context>,
    pub(super) handle: Arc<ConnectionHandle>,
    pub(super) clock: Clock,
    pub(super) cold: Option<Box<ColdState>>,
    pub(super) channel: Option<Box<UserChannel>>,
    permits: AdmissionPermits,
    _open: OpenGauge,
}

/// The result of one step of a client.
#[derive(Debug)]
pub(super) enum Turn {
    /// The connection must close.
    Close(Close),
    /// Another connection of the user waits for room: this client must show that it is alive.
    Probed,
    /// A deadline may have changed.
    Again,
}

impl Client {
    pub(super) fn new(
        context: Arc<Context>,
        socket: Socket,
        dialect: Dialect,
        address: IpAddr,
        permits: AdmissionPermits,
    ) -> Self {
        context.metrics.connections_opened.inc();
        let open = OpenGauge::new(&context.metrics, dialect);
        let queue = SendQueue::new(socket, Arc::clone(&context.backlog));
        let handle = Arc::new(ConnectionHandle::new(dialect, address, queue));
        Self { context, handle, clock: Clock::default(), cold: None, channel: None, permits, _open: open }
    }

    /// Adds the user's permit to those of the connection.
    pub(super) async fn admit_user(&mut self, user: &UserId) -> Result<(), Close> {
        let context = Arc::clone(&self.context);
        let admitted = tokio::select! {
            admitted = context.limiter.admit_user(user, &mut self.permits) => admitted,
            () = context.shutdown.draining().cancelled() => return Err(Close::Draining),
        };
        admitted.map_err(|limit| match limit {
            UserLimit::Connections => Close::TooManyOfUser,
            UserLimit::ConnectionsOrDead => Close::TooManyOrDead,
            UserLimit::Rate => Close::RateLimited,
        })
    }

    /// `greeting` is sent before the welcome, in the same write.
    pub(super) async fn greet(
        &mut self,
        identity: &Identity,
        start: &Start,
        greeting: Vec<u8>,
    ) -> Result<Registration, Close> {
        let context = Arc::clone(&self.context);
        // Registered before the history is read, so that notifications stored after that are received.
        self.handle.queue.pause();
        self.handle.credential.set(identity.credential);
        let ends_at = context.authenticator.ends_at(identity);
        self.clock.set_expiry(ends_at);
        self.want_channel(&identity.user);
        if let Some(device) = &start.device {
            context.registry.name_device(self.handle.id, device.clone());
        }
        let registration = context.registry.register(identity.user.clone(), Arc::clone(&self.handle));
        let starting = async {
            let late = channel::subscribed(self.channel.as_deref()).await;
            (late, context.history.start(&identity.user, start).await)
        };
        let reading = tokio::select! {
            started = starting => match started {
                // `recovered:false` would be wrong: the history may be complete.
                (_, None) if start.resumes() => Err(Close::BackplaneDown),
                started => Ok(started),
            },
            close = closed_early(&self.handle, &context, ends_at) => Err(close),
        };
        match reading {
            Ok((late, reading)) => {
                self.welcome(identity, start, reading, greeting);
                if let Some(since) = late {
                    self.greeted_late(since);
                }
            }
            Err(close) => {
                self.handle.queue.start((!greeting.is_empty()).then(|| greeting.into()));
                return Err(close);
            }
        }
        // A drain or a revocation before the registration has not found this connection.
        if context.shutdown.draining().is_cancelled() {
            return Err(Close::Draining);
        }
        if context.authenticator.is_revoked(identity) {
            return Err(Close::Revoked);
        }
        let ConnectionHandle { id, dialect, .. } = &*self.handle;
        let (user, address) = (identity.user.as_str(), self.handle.address());
        debug!(connection = %id, user, %address, dialect = dialect.name().as_str(), "connection opened");
        Ok(registration)
    }

    /// The span of a greeted connection, for its lines, where these are logged.
    pub(super) fn span(&self, user: &UserId) -> Option<Span> {
        let ConnectionHandle { id, dialect, .. } = &*self.handle;
        let span = || debug_span!("connection", connection = %id, user = user.as_str(), address = %self.handle.address(), dialect = dialect.name().as_str());
        enabled!(Level::DEBUG).then(span)
    }

    /// Sends the welcome, then the notifications of the history, then those received meanwhile.
    fn welcome(&self, identity: &Identity, start: &Start, reading: Option<Reading>, mut greeting: Vec<u8>) {
        let Self { context, handle, .. } = self;
        let (connection, cursor) = (handle.id.to_string(), reading.as_ref().map(|reading| reading.from));
        let recovered = start.resumes() && reading.as_ref().is_some_and(|reading| reading.whole);
        if handle.dialect == Dialect::SocketIo {
            let pid = start.pid.as_deref().filter(|_| recovered).map(Cow::Borrowed);
            let pid = pid.or_else(|| cursor.map(|cursor| cursor.to_string().into()));
            greeting.extend_from_slice(&text_frame(&[connected(&connection, pid.as_deref()).as_bytes()]));
        }
        let welcome = ServerFrame::Welcome {
            connection: &connection,
            user: identity.user.as_str(),
            instance: context.instance.as_str(),
            cursor,
            recovered,
            unread: reading.as_ref().map(|reading| reading.unread),
            expires_in_ms: identity.expires_in_ms(),
            heartbeat_ms: millis(context.server.heartbeat),
        };
        if let Some(welcome) = welcome.encode(handle.dialect) {
            greeting.extend_from_slice(&welcome);
        }
        let start = reading.map(|reading| {
            let (from, newest) = (reading.from, reading.newest);
            StartPage { from, newest, page: self.to_page(&identity.user, reading, Some(newest)) }
        });
        let replayed = handle.queue.greet((!greeting.is_empty()).then(|| greeting.into()), start);
        self.count_replayed(replayed);
    }

    /// Encodes the entries that were read for this client; those up to `replaying` were stored before its welcome. Those that
    /// its dialect cannot carry are counted.
    fn to_page(&self, user: &UserId, reading: Reading, replaying: Option<Cursor>) -> CatchUpPage {
        static DROPPED: LogRate = LogRate::new();
        let (complete, dialect) = (reading.is_complete(), self.handle.dialect);
        let frame = |entry: Entry| {
            if let Some(traceparent) = &entry.trace {
                let (connection, user) = (&self.handle.id, user.as_str());
                debug!(traceparent, %connection, user, cursor = %entry.cursor, "notification read for a connection");
            }
            let replayed = replaying.is_some_and(|upto| upto.followed_by(&entry.cursor) == Continuity::Known);
            (entry.cursor, Event { replayed, ..entry.to_event() }.encode(dialect))
        };
        let events: Vec<_> = reading.entries.into_iter().map(frame).collect();
        let reserved = events.iter().filter(|(_, bytes)| bytes.is_empty()).count();
        if reserved > 0 {
            self.context.metrics.messages_dropped.with_label_values(&["reserved_event"]).inc_by(reserved as u64);
            if let Some(held_back) = DROPPED.admit() {
                warn!(connection = %self.handle.id, reserved, held_back, "stored events dropped: their names are reserved");
            }
        }
        CatchUpPage { events, upto: reading.upto, complete, dialect }
    }

    /// Counts an accepted handshake that has its response; `begun` is when the request had been read.
    pub(super) fn count_handshake(&self, begun: Instant) {
        self.context.metrics.handshake_seconds.observe(begun.elapsed().as_secs_f64());
    }

    /// The client has handled every stored event up to this position.
    pub(super) fn note_read(&self, user: &UserId, cursor: Cursor) {
        let device = self.context.registry.device(self.handle.id);
        self.context.acks.note(user, device.as_deref().unwrap_or(DEFAULT_DEVICE), cursor, self.handle.id);
    }

    fn count_replayed(&self, (sent, foreign): (usize, usize)) {
        self.context.metrics.deliveries.inc_by(sent as u64);
        if foreign > 0 {
            self.context.metrics.messages_dropped.with_label_values(&["stamp"]).inc_by(foreign as u64);
            warn!(connection = %self.handle.id, foreign, "dropped events whose positions are not in the history");
        }
    }

    /// Ready when something happened to the connection other than input. Cancel-safe. `user` is `None` before the greeting.
    pub(super) fn poll_turn(&mut self, cx: &mut Task<'_>, user: Option<&UserId>) -> Poll<Turn> {
        match self.handle.queue.poll_drive(cx, self.clock.stalled_since) {
            Poll::Ready(Driven::Closing(close)) => return Poll::Ready(Turn::Close(close)),
            Poll::Ready(Driven::Stalled(since)) => {
                self.clock.stalled_since = since;
                return Poll::Ready(Turn::Again);
            }
            Poll::Ready(Driven::Behind) => {
                if let Some(user) = user {
                    self.catch_up(user);
                    return Poll::Ready(Turn::Again);
                }
            }
            Poll::Pending => {}
        }
        if self.handle.poll_probed().is_ready() {
            return Poll::Ready(Turn::Probed);
        }
        let Some(user) = user else { return Poll::Pending };
        self.begin_request(user);
        let Some(cold) = &mut self.cold else { return Poll::Pending };
        let event = ready!(cold.poll(cx));
        let turn = self.take_cold(event, user);
        self.cold.take_if(|cold| cold.is_empty());
        Poll::Ready(turn)
    }

    fn take_cold(&mut self, event: ColdEvent, user: &UserId) -> Turn {
        match event {
            ColdEvent::Verified(verified) => self.refresh(user, verified),
            ColdEvent::Read(Some(reading)) if reading.whole => {
                let replaying = self.handle.queue.replaying();
                let replayed = self.handle.queue.replay(self.to_page(user, reading, replaying));
                self.count_replayed(replayed);
            }
            ColdEvent::Read(Some(_)) if self.handle.queue.discard_reading() => {}
            ColdEvent::Read(Some(_)) => return Turn::Close(Close::Gap),
            ColdEvent::Read(None) => return Turn::Close(Close::BackplaneDown),
            ColdEvent::Answered => {}
            ColdEvent::Subscribed(since) => since.into_iter().for_each(|since| self.subscribed_late(since)),
        }
        Turn::Again
    }

    /// Starts a read from the client's position, until the client has caught up.
    fn catch_up(&mut self, user: &UserId) {
        let (history, user) = (Arc::clone(&self.context.history), user.clone());
        let position = self.handle.queue.begin_reading();
        let reading = async move { history.follow(&user, position).await }.boxed();
        self.cold.get_or_insert_default().reading = Some(reading);
    }

    /// Replaces the token by a new one of the same user; if that is refused, the old one stays in force.
    pub(super) fn refresh(&mut self, user: &UserId, verified: Result<Identity, TokenError>) {
        let identity = match verified {
            Ok(identity) => identity,
            Err(error) => return self.refuse(close_for(&error).code(), &error.to_string()),
        };
        if *user != identity.user {
            return self.refuse(Close::Forbidden.code(), "the token belongs to another user");
        }
        self.handle.credential.set(identity.credential);
        // A revocation is put into force before connections are checked: so either that check or this one finds the token.
        if self.context.authenticator.is_revoked(&identity) {
            return self.handle.queue.close(Close::Revoked);
        }
        self.clock.set_expiry(self.context.authenticator.ends_at(&identity));
        // Only a token, which always expires, comes in an `auth`.
        let (expires, expires_in_ms) = (identity.expires.unwrap_or(u64::MAX), identity.expires_in_ms());
        self.handle.tell(&ServerFrame::Authenticated { expires, expires_in_ms });
    }

    /// Returns the user's permit before the end.
    pub(super) fn release_user(&mut self) {
        self.permits.release_user();
    }

    /// Notes the end of the connection, of a user if it was greeted; its transport has yet to be closed.
    pub(super) fn end(&mut self, close: Close, user: Option<&UserId>) {
        static SLOW: LogRate = LogRate::new();
        // A drain may have found the handle in the registry just before it was removed.
        self.handle.queue.close(close);
        // The user's next connection need not wait for the close handshake.
        self.release_user();
        count_closed(&self.context.metrics, close);
        let ConnectionHandle { id, dialect, .. } = &*self.handle;
        let (user, address, dialect) = (user.map(UserId::as_str), self.handle.address(), dialect.name().as_str());
        let (code, reason, lasted_ms) = (close.code(), close.reason(), unix_ms().saturating_sub(self.handle.opened()));
        debug!(connection = %id, user, %address, dialect, code, reason, lasted_ms, "connection closed");
        // At any level: the operator should know whose client it was.
        if code == Close::TooSlow.code()
            && let Some(held_back) = SLOW.admit()
        {
            warn!(connection = %id, user, %address, reason, held_back, "slow connection closed");
        }
    }

    /// Tells the client that it sent something that is refused.
    pub(super) fn refuse(&self, code: u16, message: &str) {
        self.handle.refuse(code, message, None);
    }
}

/// Runs a connection in its span. Boxed if it has one: a span would be part of the memory that an idle connection costs.
pub(super) fn in_span<F: Future>(live: F, span: Option<Span>) -> impl Future<Output = F::Output> {
    match span {
        Some(span) => Either::Left(Box::pin(live.instrument(span))),
        None => Either::Right(live),
    }
}

/// Waits for an event that ends a connection before it is greeted.
async fn closed_early(handle: &ConnectionHandle, context: &Context, ends_at: Option<Instant>) -> Close {
    let closing = poll_fn(|cx| match handle.queue.poll_drive(cx, None) {
        Poll::Ready(Driven::Closing(close)) => Poll::Ready(close),
        _ => Poll::Pending,
    });
    let token_ends = async {
        match ends_at {
            Some(ends_at) => sleep_until(ends_at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        close = closing => close,
        () = context.shutdown.draining().cancelled() => Close::Draining,
        () = token_ends => Close::TokenExpired,
    }
}

fn count_closed(metrics: &Metrics, close: Close) {
    metrics.connections_closed.with_label_values(&[&close.code().to_string()]).inc();
    if let Some(reason) = close.released() {
        metrics.connections_released.with_label_values(&[reason]).inc();
    }
}

pub(super) fn close_for(error: &TokenError) -> Close {
    match error {
        TokenError::Expired => Close::TokenExpired,
        TokenError::Revoked => Close::Revoked,
        TokenError::Bad(_) | TokenError::Claims(_) | TokenError::User(_) => Close::BadToken,
        TokenError::Unavailable => Close::KeysUnavailable,
    }
}

/// Counts an open connection until it is dropped.
struct OpenGauge(prometheus::IntGauge);

impl OpenGauge {
    fn new(metrics: &Metrics, dialect: Dialect) -> Self {
        let open = metrics.transport_connections.with_label_values(&[dialect.transport()]);
        open.inc();
        Self(open)
    }
}

impl Drop for OpenGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}
