//! Token authentication: the verifier and the revocations together.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Identity, Jwks, Revocations, TokenError, Verifier};
use crate::config::{Auth, ConfigError};
use crate::metrics::Metrics;
use crate::protocol::UserId;

#[derive(Debug)]
pub struct Authenticator {
    verifier: ArcSwap<Verifier>,
    /// The verifier has another key set.
    key_set_replaced: Notify,
    revocations: Arc<Revocations>,
}

impl Authenticator {
    pub fn new(verifier: Verifier, revocations: Arc<Revocations>) -> Self {
        Self { verifier: ArcSwap::from_pointee(verifier), key_set_replaced: Notify::new(), revocations }
    }

    /// Replaces the keys by those of another configuration; tokens that were accepted remain so. The key set that was fetched
    /// is kept unless `is_other_set`. Changes nothing if it fails.
    pub fn replace(&self, auth: &Auth, is_other_set: bool) -> Result<(), ConfigError> {
        let verifier =
            if is_other_set { Verifier::new(auth)? } else { Verifier::with_key_set_of(auth, &self.verifier.load())? };
        self.verifier.store(Arc::new(verifier));
        if is_other_set {
            self.key_set_replaced.notify_one();
        }
        Ok(())
    }

    /// Verifies a token; may wait for the key set.
    pub async fn authenticate(&self, token: &str) -> Result<Identity, TokenError> {
        let verifier = self.verifier.load_full();
        self.unless_revoked(verifier.verify(token).await)
    }

    /// Verifies a token without waiting; `None` if [`Authenticator::authenticate`] would wait for the key set.
    pub fn authenticate_now(&self, token: &str) -> Option<Result<Identity, TokenError>> {
        self.verifier.load().verify_now(token).map(|verified| self.unless_revoked(verified))
    }

    fn unless_revoked(&self, verified: Result<Identity, TokenError>) -> Result<Identity, TokenError> {
        let identity = verified?;
        if self.is_revoked(&identity) { Err(TokenError::Revoked) } else { Ok(identity) }
    }

    /// The user of a token that was refused with this error, if its signature is good.
    pub fn refused_user(&self, token: &str, error: &TokenError) -> Option<UserId> {
        self.verifier.load().refused_user(token, error)
    }

    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.revocations.refuses(identity)
    }

    /// When a connection of this identity must close, leeway included.
    pub fn ends_at(&self, identity: &Identity) -> Option<Instant> {
        self.verifier.load().ends_at(identity)
    }

    /// Refreshes the key set of the verifier, if it has one. Never returns.
    pub async fn run_refresh(&self, metrics: &Arc<Metrics>) {
        loop {
            let jwks = self.verifier.load().jwks().cloned();
            let refreshing = async {
                match jwks {
                    Some(jwks) => Jwks::run_refresh(jwks, Arc::clone(metrics)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = refreshing => {}
                () = self.key_set_replaced.notified() => {}
            }
        }
    }

    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }
}
