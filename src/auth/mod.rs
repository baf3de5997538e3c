//! Credentials in, identities out.

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
pub use credential::{Credential, OFFERED_PROTOCOL, offers_tidings_v1};
pub use jwks::Jwks;
pub use jwt::{TokenError, Verifier, mint};
pub use origin::OriginPolicy;
pub(crate) use origin::is_loopback_host;
pub use revocations::{MAX_REVOCATIONS, Revocations};
pub use session::{MAX_SESSION_BYTES, SessionError, SessionReader};

use crate::protocol::{CredentialId, UserId};

/// Who a verified token or session speaks for, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The end of the token, in seconds since 1970, leeway not included; `None` for a credential without an end.
    pub expires: Option<u64>,
    /// By what its connections are found again; `None` for a token without a `jti`.
    pub credential: Option<CredentialId>,
}
