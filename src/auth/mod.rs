//! Credentials in, identities out.

mod claims;
mod credential;
mod jwk;
mod jwks;
mod jwt;
mod key;
mod origin;

pub(crate) use credential::bearer;
pub use credential::{Credential, OFFERED_PROTOCOL, offers_tidings_v1};
pub use jwks::Jwks;
pub use jwt::{TokenError, Verifier, mint};
pub use origin::OriginPolicy;
pub(crate) use origin::is_loopback_host;

use crate::protocol::UserId;

/// Who a verified token speaks for, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The end of the token, in seconds since 1970, leeway not included; `None` for a credential without an end.
    pub expires: Option<u64>,
}
