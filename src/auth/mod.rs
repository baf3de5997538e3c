//! Authentication: turns the credential of a handshake into an identity.

mod authenticator;
mod claims;
mod cookie;
mod credential;
mod jwk;
mod jwks;
mod jwt;
mod key;
mod origin;
mod revocations;
mod session;

pub use authenticator::Authenticator;
pub use cookie::cookie;
pub(crate) use credential::bearer;
pub use credential::{Credential, OFFERED_PROTOCOL, QueryAuth, offers_tidings_v1};
pub use jwks::Jwks;
pub use jwt::{TokenError, Verifier, mint};
pub use origin::OriginPolicy;
pub use revocations::{MAX_REVOCATIONS, Revocations};
pub use session::{MAX_SESSION_BYTES, SessionError, SessionReader};

use crate::protocol::{CredentialId, UserId, unix_ms};

/// The user that a verified token or session authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: UserId,
    /// The token's expiry in seconds since 1970, without the leeway; `None` for a session.
    pub expires: Option<u64>,
    /// Finds the connections of a revoked credential; `None` for a token without a `jti`.
    pub credential: Option<CredentialId>,
}

impl Identity {
    /// The remaining lifetime of the token by this clock, without the leeway: clients need not compare two clocks.
    pub fn expires_in_ms(&self) -> Option<u64> {
        self.expires.map(|expires| expires.saturating_mul(1_000).saturating_sub(unix_ms()))
    }
}
