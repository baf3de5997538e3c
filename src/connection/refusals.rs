//! Refused handshakes and hellos: a counter by code, and a log line at a bounded rate.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tracing::info;

use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Close, UserId};

/// Maximum length of a logged Origin, in characters: a client can send one of any size.
const MAX_ORIGIN: usize = 256;

/// The client of a handshake, as the log names it.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: IpAddr,
    pub origin: Option<String>,
}

impl Peer {
    pub fn new(address: IpAddr, origin: Option<&str>) -> Self {
        Self { address, origin: origin.map(|origin| origin.chars().take(MAX_ORIGIN).collect()) }
    }

    /// The remote end of a socket, where no headers could be read: they name the Origin, and the client behind a proxy.
    pub fn of_socket(end: SocketAddr) -> Self {
        Self { address: end.ip().to_canonical(), origin: None }
    }
}

/// What is known of a refused client beyond its code.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Only with a good signature.
    pub user: Option<UserId>,
    /// The reason, worded for the client's developer; never quotes a token.
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Handshake,
    Hello,
    Stream,
}

#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    /// One for each reason: a flood of one hides no other.
    rates: Mutex<HashMap<(At, &'static str), LogRate, RandomState>>,
}

impl Refusals {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, rates: Mutex::default() }
    }

    /// `code` is the one in the body of the response.
    pub fn handshake(&self, peer: &Peer, status: u16, code: &'static str, known: &Known) {
        let Some(held_back) = self.count(At::Handshake, code, code) else { return };
        let (address, origin) = (peer.address, peer.origin.as_deref());
        let (user, why) = (known.user.as_ref().map(UserId::as_str), known.why.as_deref());
        info!(status, code, why, origin, %address, user, held_back, "handshake refused");
    }

    /// A request for a stream that is refused by the close code `close` in a block, instead of a status.
    pub fn stream(&self, peer: &Peer, close: u16, code: &'static str, known: &Known) {
        let Some(held_back) = self.count(At::Stream, code, &close.to_string()) else { return };
        let (address, origin) = (peer.address, peer.origin.as_deref());
        let (user, why) = (known.user.as_ref().map(UserId::as_str), known.why.as_deref());
        info!(close, code, why, origin, %address, user, held_back, "stream refused");
    }

    /// A stream that was accepted and ends before its welcome. Does nothing for a client that left.
    pub fn unwelcomed(&self, peer: &Peer, refused: Close, user: &UserId) {
        if refused.code() >= 4_000 {
            let known = Known { user: Some(user.clone()), why: Some(refused.reason().to_owned()) };
            self.stream(peer, refused.code(), code(refused), &known);
        }
    }

    /// Does nothing for a client that left, or broke the protocol.
    pub fn hello(&self, peer: &Peer, refused: Close, known: &Known) {
        let (close, code) = (refused.code(), code(refused));
        if close < 4_000 {
            return;
        }
        let Some(held_back) = self.count(At::Hello, code, &close.to_string()) else { return };
        let (address, origin) = (peer.address, peer.origin.as_deref());
        let (user, why) = (known.user.as_ref().map(UserId::as_str), known.why.as_deref().unwrap_or(refused.reason()));
        info!(close, code, why, origin, %address, user, held_back, "hello refused");
    }

    /// `Some` if a line may be logged, with the number of those held back.
    fn count(&self, at: At, code: &'static str, label: &str) -> Option<u64> {
        self.metrics.refusals.with_label_values(&[label]).inc();
        self.rates.lock().entry((at, code)).or_default().admit()
    }
}

/// The code with which a handshake is refused for the same reason, where there is one.
fn code(refused: Close) -> &'static str {
    match refused {
        Close::BadToken => "bad_token",
        Close::Revoked => "token_revoked",
        Close::TokenExpired => "token_expired",
        Close::HelloTimeout => "hello_timeout",
        Close::HelloExpected => "hello_expected",
        Close::TooManyOfUser | Close::TooManyOrDead => "max_connections_per_user",
        Close::RateLimited => "connects_per_second_per_user",
        Close::KeysUnavailable => "keys_unavailable",
        Close::BackplaneDown => "backplane_down",
        Close::Draining => "draining",
        Close::Disconnected => "disconnected",
        other => other.reason(),
    }
}
