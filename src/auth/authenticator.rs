//! Token authentication: the verifier and the revocations together.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Identity, Jwks, Revocations, TokenError, Verifier};

#[derive(Debug)]
pub struct Authenticator {
    verifier: Verifier,
    revocations: Arc<Revocations>,
}

impl Authenticator {
    pub fn new(verifier: Verifier, revocations: Arc<Revocations>) -> Self {
        Self { verifier, revocations }
    }

    /// Verifies a token; may wait for the key set.
    pub async fn authenticate(&self, token: &str) -> Result<Identity, TokenError> {
        self.unless_revoked(self.verifier.verify(token).await)
    }

    /// Verifies a token without waiting; `None` if [`Authenticator::authenticate`] would wait for the key set.
    pub fn authenticate_now(&self, token: &str) -> Option<Result<Identity, TokenError>> {
        self.verifier.verify_now(token).map(|verified| self.unless_revoked(verified))
    }

    fn unless_revoked(&self, verified: Result<Identity, TokenError>) -> Result<Identity, TokenError> {
        let identity = verified?;
        if self.is_revoked(&identity) { Err(TokenError::Revoked) } else { Ok(identity) }
    }

    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.revocations.refuses(identity)
    }

    /// When a connection of this identity must close, leeway included.
    pub fn ends_at(&self, identity: &Identity) -> Option<Instant> {
        self.verifier.ends_at(identity)
    }

    /// The key set that a background task must refresh, if one is configured.
    pub fn jwks(&self) -> Option<&Arc<Jwks>> {
        self.verifier.jwks()
    }

    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }
}
