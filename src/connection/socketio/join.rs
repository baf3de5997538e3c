//! The beginning of a session: its open packet, and the CONNECT that joins its user or is refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::SocketIo;
use super::transport::Transport;
use crate::auth::Identity;
use crate::connection::client::close_for;
use crate::connection::{Context, Known, Peer};
use crate::delivery::Registration;
use crate::protocol::socketio::{Auth, Open, SessionId, refused};
use crate::protocol::{Close, millis, text_frame};

/// How long after its CONNECT a client is closed that has to come back later: it is closed about a second before its next
/// attempt, however many attempts failed before.
const DELAY_MS: std::ops::Range<u64> = 1_000..5_000;

/// An accepted handshake, whose 101 is not sent yet.
#[derive(Debug)]
pub struct SocketIoHandshake {
    /// For a CONNECT without a token.
    pub identity: Result<Identity, Unidentified>,
    pub device: Option<Box<str>>,
    pub sid: SessionId,
    /// The head of the 101, unless the client polls.
    pub head: Vec<u8>,
    pub peer: Peer,
}

/// Why a request does not authenticate a user.
#[derive(Debug)]
pub struct Unidentified {
    pub close: Close,
    pub known: Known,
}

/// The answer to a CONNECT that is not accepted.
enum Answer {
    /// A `44`, after which the client stops.
    Refuse,
    /// A close after a delay, after which the client retries.
    Delay,
    /// A close at once.
    Close,
}

impl Answer {
    fn to(close: Close) -> Self {
        match close {
            Close::BadToken
            | Close::Revoked
            | Close::TokenExpired
            | Close::SessionEnded
            | Close::Forbidden
            | Close::TooManyOfUser => Self::Refuse,
            Close::RateLimited | Close::TooManyOrDead | Close::KeysUnavailable | Close::BackplaneDown => Self::Delay,
            _ => Self::Close,
        }
    }
}

/// The first packet of a session, which tells the client its settings.
pub(super) fn open_packet(context: &Context, sid: SessionId, upgrades: &[&str]) -> String {
    let open = Open {
        sid: &sid.to_string(),
        upgrades,
        ping_interval: millis(context.server.heartbeat),
        ping_timeout: millis(context.server.pong_timeout),
        max_payload: context.limits.get().max_inbound_bytes,
    };
    open.encode()
}

impl SocketIo {
    /// Returns the registration that a session is live by; until then, it is refused or closed.
    pub(super) async fn join(&mut self, handshake: Box<SocketIoHandshake>) -> Result<Registration, Close> {
        if let Transport::WebSocket(_) = self.transport {
            self.say_open(&handshake);
        }
        let timeout = self.client.context.server.hello_timeout;
        let mut end = (Instant::now() + timeout, Close::HelloTimeout);
        let mut refused = false;
        loop {
            let auth = match self.next_connect(end).await {
                Ok(auth) => auth,
                Err(close) if refused && close == end.1 => {
                    // Old clients would come back after a close that follows a refusal.
                    self.dismiss().await;
                    return Err(close);
                }
                Err(close) => {
                    self.client.context.refusals.hello(&handshake.peer, close, &Known::default());
                    return Err(close);
                }
            };
            let connect_at = Instant::now();
            let mut known = Known::default();
            let (close, answer) = match self.identify(&auth, &handshake, &mut known).await {
                Err(close) => (close, Answer::to(close)),
                Ok(identity) => {
                    let start = auth.start(handshake.device.clone());
                    match self.client.greet(&identity, &start, Vec::new()).await {
                        Ok(registration) => return Ok(registration),
                        Err(Close::BackplaneDown) => (Close::BackplaneDown, Answer::Delay),
                        Err(close) => (close, Answer::Close),
                    }
                }
            };
            self.client.context.refusals.hello(&handshake.peer, close, &known);
            match answer {
                Answer::Close => return Err(close),
                Answer::Delay => {
                    self.client.release_user();
                    let at = connect_at + Duration::from_millis(fastrand::u64(DELAY_MS));
                    // No other CONNECT is accepted meanwhile.
                    return self.next_connect((at, close)).await.and(Err(Close::Protocol));
                }
                Answer::Refuse => {
                    self.refuse(close, &known);
                    // For the client to close, or to send another token; once, so that it cannot stay by repeating it.
                    let at = if refused { end.0 } else { Instant::now() + timeout };
                    (end, refused) = ((at, close), true);
                }
            }
        }
    }

    /// Sends the 101 and the open packet in one write.
    fn say_open(&self, handshake: &SocketIoHandshake) {
        let open = open_packet(&self.client.context, handshake.sid, &[]);
        let open = text_frame(&[open.as_bytes()]);
        self.client.handle.queue.send([handshake.head.as_slice(), &open].concat().into());
    }

    async fn next_connect(&mut self, end: (Instant, Close)) -> Result<Box<Auth>, Close> {
        let context = Arc::clone(&self.client.context);
        tokio::select! {
            connect = self.receive(None, Some(&end)) => connect,
            () = context.shutdown.draining().cancelled() => Err(Close::Draining),
        }
    }

    /// The user of a CONNECT, whose permit is taken. `known` is for the client and the log, if it is refused.
    async fn identify(
        &mut self,
        auth: &Auth,
        handshake: &SocketIoHandshake,
        known: &mut Known,
    ) -> Result<Identity, Close> {
        let authenticator = &self.client.context.authenticator;
        let identity = match (&auth.token, &handshake.identity) {
            (Some(token), _) => authenticator.authenticate(token).await.map_err(|error| {
                let why = Some(error.to_string());
                *known = Known { user: authenticator.refused_user(token, &error), why };
                close_for(&error)
            })?,
            (None, Ok(identity)) if authenticator.is_revoked(identity) => return Err(Close::Revoked),
            (None, Ok(identity)) => identity.clone(),
            (None, Err(Unidentified { close, known: why })) => {
                *known = why.clone();
                return Err(*close);
            }
        };
        known.user = Some(identity.user.clone());
        self.client.admit_user(&identity.user).await?;
        Ok(identity)
    }

    fn refuse(&mut self, close: Close, known: &Known) {
        self.say(&refused(close, known.why.as_deref().unwrap_or(close.reason())));
        self.session.refuse();
    }
}
