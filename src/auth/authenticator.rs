//! Who may connect with a token: the verifier and the revocations together.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Identity, Jwks, Revocations, TokenError, Verifier};

/// Verifies tokens, and refuses revoked ones.
#[derive(Debug)]
pub struct Authenticator {
    verifier: Verifier,
    revocations: Arc<Revocations>,
}

impl Authenticator {
    /// Combines the two.
    pub fn new(verifier: Verifier, revocations: Arc<Revocations>) -> Self {
        Self { verifier, revocations }
    }

    /// Verifies a token, which may wait for keys.
    ///
    /// # Errors
    /// [`TokenError`], worded for the client's developer.
    pub async fn authenticate(&self, token: &str) -> Result<Identity, TokenError> {
        self.unless_revoked(self.verifier.verify(token).await)
    }

    /// As [`Authenticator::authenticate`]; `None` where that would have to wait for keys.
    pub fn authenticate_now(&self, token: &str) -> Option<Result<Identity, TokenError>> {
        self.verifier.verify_now(token).map(|verified| self.unless_revoked(verified))
    }

    fn unless_revoked(&self, verified: Result<Identity, TokenError>) -> Result<Identity, TokenError> {
        let identity = verified?;
        if self.is_revoked(&identity) { Err(TokenError::Revoked) } else { Ok(identity) }
    }

    /// Whether the token of a connection is revoked by now.
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.revocations.refuses(identity)
    }

    /// When a connection of this identity has to end, leeway included.
    pub fn ends_at(&self, identity: &Identity) -> Option<Instant> {
        self.verifier.ends_at(identity)
    }

    /// The key set that has to be kept fresh, if there is one.
    pub fn jwks(&self) -> Option<&Arc<Jwks>> {
        self.verifier.jwks()
    }

    /// The revocations in force.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }
}
