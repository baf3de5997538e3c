//! Why a connection ends, and the code that tells the client.

/// A reason to close a connection.
///
/// 40xx: do not retry unchanged. 41xx: back off, then retry. 42xx: retry at once. Below 4000: RFC 6455, section 7.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// The client said goodbye.
    Normal,
    /// The client is gone without a word. Never on the wire.
    Gone,
    /// RFC 6455: the client broke the protocol.
    Protocol,
    /// RFC 6455: a binary frame, which no dialect takes.
    Unsupported,
    /// RFC 6455: text that is no UTF-8.
    InvalidText,
    /// RFC 6455: a message over `limits.max_inbound_bytes`.
    TooBig,
    /// The token names a user who may not do this.
    Forbidden,
    /// A bad token in a `hello`.
    BadToken,
    /// The token was revoked.
    Revoked,
    /// The token ended.
    TokenExpired,
    /// An operator or a backend asked for it.
    Disconnected,
    /// The session that the connection came with has ended, or is another user's now.
    LoggedOut,
    /// No `hello` in time.
    HelloTimeout,
    /// The first frame was no `hello`.
    HelloExpected,
    /// Too many connections of this user, on all instances together.
    TooManyOfUser,
    /// The user connects too often, or the client sends too much.
    RateLimited,
    /// Over capacity: the keys that would tell whether the token is good cannot be had just now.
    KeysUnavailable,
    /// The history that the client resumes from cannot be read just now.
    BackplaneDown,
    /// Something of the history that the client should have had is gone.
    Gap,
    /// The instance stops.
    Draining,
    /// The client answered nothing in time.
    NoPong,
    /// The client's outbox filled.
    TooSlow,
    /// The outboxes of all clients together are too full for more than a little of this one's.
    Crowded,
    /// A write made no progress in time.
    WriteTimeout,
}

impl Close {
    /// The close code on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::Gone => 1006,
            Self::Protocol => 1002,
            Self::Unsupported => 1003,
            Self::InvalidText => 1007,
            Self::TooBig => 1009,
            Self::Forbidden => 4003,
            Self::BadToken | Self::Revoked => 4009,
            Self::TokenExpired => 4010,
            Self::Disconnected | Self::LoggedOut => 4011,
            Self::HelloTimeout | Self::HelloExpected => 4012,
            Self::TooManyOfUser => 4004,
            Self::KeysUnavailable => 4100,
            Self::RateLimited => 4101,
            Self::BackplaneDown => 4102,
            Self::Draining => 4200,
            Self::NoPong => 4201,
            Self::TooSlow | Self::Crowded | Self::WriteTimeout => 4203,
            Self::Gap => 4205,
        }
    }

    /// What the client's developer reads beside the code; at most 123 bytes, as RFC 6455 asks.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Normal => "goodbye",
            Self::Gone => "gone",
            Self::Protocol => "protocol error",
            Self::Unsupported => "binary frames are not accepted",
            Self::InvalidText => "text is not UTF-8",
            Self::TooBig => "message too big",
            Self::Forbidden => "forbidden",
            Self::BadToken => "bad token",
            Self::Revoked => "token revoked",
            Self::TokenExpired => "token expired",
            Self::Disconnected => "disconnected",
            Self::LoggedOut => "logged out",
            Self::HelloTimeout => "no hello in time",
            Self::HelloExpected => "the first frame must be a hello",
            Self::TooManyOfUser => "too many connections of this user",
            Self::RateLimited => "rate limited",
            Self::KeysUnavailable => "tokens cannot be verified just now",
            Self::BackplaneDown => "the history cannot be read just now",
            Self::Gap => "events were missed: resume",
            Self::Draining => "draining",
            Self::NoPong => "no pong",
            Self::TooSlow => "too slow",
            Self::Crowded => "too slow while many are",
            Self::WriteTimeout => "too slow: a write timed out",
        }
    }
}
