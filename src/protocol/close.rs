//! Close codes and reasons.

/// A reason to close a connection.
///
/// 40xx: do not retry unchanged. 41xx: back off, then retry. 42xx: retry at once. Below 4000: RFC 6455, section 7.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// The client closed the connection.
    Normal,
    /// The client said that it leaves, and waits for the close.
    Left,
    /// The connection was lost without a close frame. Never on the wire.
    Gone,
    /// RFC 6455: the client broke the protocol.
    Protocol,
    /// RFC 6455: a binary frame, which no dialect accepts.
    Unsupported,
    /// RFC 6455: text that is not UTF-8.
    InvalidText,
    /// RFC 6455: a message over `limits.max_inbound_bytes`.
    TooBig,
    /// The token is of another user.
    Forbidden,
    /// A bad token in a `hello`.
    BadToken,
    Revoked,
    TokenExpired,
    /// An operator or a backend requested it.
    Disconnected,
    /// The connection's session has ended, was replaced, or now belongs to another user.
    SessionEnded,
    HelloTimeout,
    /// The first frame was not a `hello`.
    HelloExpected,
    /// Too many connections of this user in the fleet.
    TooManyOfUser,
    /// As `TooManyOfUser`, unless an instance that holds some of them is dead.
    TooManyOrDead,
    /// A newer connection of the user took its place.
    Replaced,
    /// The user connects too often, or the client sends too much.
    RateLimited,
    /// The keys that verify tokens are not available.
    KeysUnavailable,
    /// The history from which the client resumes cannot be read.
    BackplaneDown,
    /// Events that the client has not received are lost from the history.
    Gap,
    /// The instance is stopping.
    Draining,
    /// The client did not answer a ping in time.
    NoPong,
    /// Another connection of the user waited for room, and the client did not answer a ping in time.
    Unanswered,
    /// The client's send queue is full.
    TooSlow,
    /// The send queues of all clients together are full, and this client's holds more than its share.
    Crowded,
    /// A write made no progress in time.
    WriteTimeout,
}

impl Close {
    pub fn code(self) -> u16 {
        match self {
            Self::Normal | Self::Left => 1000,
            Self::Gone => 1006,
            Self::Protocol => 1002,
            Self::Unsupported => 1003,
            Self::InvalidText => 1007,
            Self::TooBig => 1009,
            Self::Forbidden => 4003,
            Self::BadToken | Self::Revoked => 4009,
            // The client reconnects once, with the current cookie: a user who is logged out gets a 401 then.
            Self::TokenExpired | Self::SessionEnded => 4010,
            Self::Disconnected => 4011,
            Self::HelloTimeout | Self::HelloExpected => 4012,
            Self::TooManyOfUser | Self::Replaced => 4004,
            Self::KeysUnavailable => 4100,
            // 4004 would end a client that only has to wait until its connections to a dead instance are released.
            Self::RateLimited | Self::TooManyOrDead => 4101,
            Self::BackplaneDown => 4102,
            Self::Draining => 4200,
            Self::NoPong | Self::Unanswered => 4201,
            Self::TooSlow | Self::Crowded | Self::WriteTimeout => 4203,
            Self::Gap => 4205,
        }
    }

    /// How a connection was released for another one of its user, as a label in metrics.
    pub fn released(self) -> Option<&'static str> {
        match self {
            Self::Unanswered => Some("unanswered"),
            Self::Replaced => Some("replaced"),
            _ => None,
        }
    }

    /// The reason for the client's developer; at most 123 bytes, as RFC 6455 requires.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Normal | Self::Left => "normal closure",
            Self::Gone => "connection lost",
            Self::Protocol => "protocol error",
            Self::Unsupported => "binary frames are not accepted",
            Self::InvalidText => "text is not UTF-8",
            Self::TooBig => "message too big",
            Self::Forbidden => "forbidden",
            Self::BadToken => "bad token",
            Self::Revoked => "token revoked",
            Self::TokenExpired => "token expired",
            Self::Disconnected => "disconnected",
            Self::SessionEnded => "the session has ended: reconnect with the current cookie",
            Self::HelloTimeout => "no hello in time",
            Self::HelloExpected => "the first frame must be a hello",
            Self::TooManyOfUser => "too many connections of this user",
            Self::TooManyOrDead => "too many connections of this user, some perhaps to a dead instance: retry",
            Self::Replaced => "replaced by a newer connection of this user",
            Self::RateLimited => "rate limited",
            Self::KeysUnavailable => "tokens cannot be verified now",
            Self::BackplaneDown => "the history cannot be read now",
            Self::Gap => "events were missed: resume",
            Self::Draining => "draining",
            Self::NoPong => "no pong",
            Self::Unanswered => "no pong, and another connection of this user waited",
            Self::TooSlow => "too slow: the send queue is full",
            Self::Crowded => "too slow: all send queues together are full",
            Self::WriteTimeout => "too slow: a write timed out",
        }
    }
}
