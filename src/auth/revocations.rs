//! Tokens that were revoked before they expired.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::Identity;
use crate::protocol::{CredentialId, Revocation, unix_seconds};

/// Maximum revocations in force at once.
pub const MAX_REVOCATIONS: usize = 1_000_000;

/// The revocations in force. Each stays for the leeway after its end, because a token that expires at that end is
/// accepted for the leeway too.
#[derive(Debug)]
pub struct Revocations {
    in_force: Mutex<HashMap<CredentialId, InForce, RandomState>>,
    leeway: u64,
    most: usize,
}

#[derive(Debug)]
struct InForce {
    /// Restores the revocation where it was lost.
    jti: Box<str>,
    until: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many revocations are in force")]
pub struct Full;

impl Revocations {
    /// An empty list. `leeway` is `auth.leeway`.
    pub fn new(leeway: Duration) -> Self {
        Self { in_force: Mutex::default(), leeway: leeway.as_secs() + 1, most: MAX_REVOCATIONS }
    }

    /// Puts a revocation into force, or extends it; returns whether that changed anything. On [`Full`] it is not in
    /// force.
    pub fn insert(&self, revocation: &Revocation) -> Result<bool, Full> {
        let (token, until) = (CredentialId::of_token(&revocation.jti), revocation.until);
        let now = unix_seconds();
        if until.saturating_add(self.leeway) <= now {
            return Ok(false);
        }
        let mut all = self.in_force.lock();
        if let Some(known) = all.get_mut(&token) {
            let longer = until > known.until;
            known.until = until.max(known.until);
            return Ok(longer);
        }
        if all.len() >= self.most {
            return Err(Full);
        }
        all.insert(token, InForce { jti: revocation.jti.as_str().into(), until });
        Ok(true)
    }

    pub fn tokens(&self) -> Vec<CredentialId> {
        self.in_force.lock().keys().copied().collect()
    }

    /// The revocations of these tokens that are still in force.
    pub fn of(&self, tokens: &[CredentialId]) -> Vec<Revocation> {
        let all = self.in_force.lock();
        let found = tokens.iter().filter_map(|token| all.get(token));
        found.map(|InForce { jti, until }| Revocation { jti: jti.to_string(), until: *until }).collect()
    }

    pub fn refuses(&self, identity: &Identity) -> bool {
        let Some(token) = identity.credential else { return false };
        let all = self.in_force.lock();
        let Some(InForce { until, .. }) = all.get(&token) else { return false };
        // Revoked until it expires, and therefore also during the leeway.
        unix_seconds() < *until || identity.expires.is_some_and(|expires| expires <= *until)
    }

    /// Removes revocations that have ended; returns how many are left.
    pub fn trim(&self) -> usize {
        let (now, mut all) = (unix_seconds(), self.in_force.lock());
        all.retain(|_, InForce { until, .. }| until.saturating_add(self.leeway) > now);
        let left = all.len();
        all.shrink_to(left * 2);
        left
    }

    /// Revocations until before this moment have ended, leeway included.
    pub fn oldest(&self) -> u64 {
        unix_seconds().saturating_sub(self.leeway)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::UserId;

    fn revocation(jti: &str, until: u64) -> Revocation {
        Revocation { jti: jti.into(), until }
    }

    fn identity(jti: Option<&str>, expires: u64) -> Identity {
        let credential = jti.map(CredentialId::of_token);
        Identity { user: UserId::new("42").unwrap(), expires: Some(expires), credential }
    }

    #[test]
    fn a_token_is_refused_until_the_revocation_ends_and_a_session_of_that_name_is_not() {
        let (revocations, now) = (Revocations::new(Duration::from_secs(30)), unix_seconds());
        assert_eq!(revocations.insert(&revocation("a", now + 60)), Ok(true));
        assert!(revocations.refuses(&identity(Some("a"), now + 3_600)));
        assert!(!revocations.refuses(&identity(Some("b"), now + 3_600)));
        assert!(!revocations.refuses(&identity(None, now + 3_600)));
        let session = Identity { credential: Some(CredentialId::of_session("a")), ..identity(None, now) };
        assert!(!revocations.refuses(&session));
    }

    #[test]
    fn a_token_revoked_up_to_its_end_is_refused_in_the_leeway_too() {
        let (revocations, now) = (Revocations::new(Duration::from_secs(30)), unix_seconds());
        revocations.insert(&revocation("a", now - 1)).unwrap();
        assert!(
            revocations.refuses(&identity(Some("a"), now - 1)),
            "it expired a second ago, and the leeway accepts it"
        );
        assert!(!revocations.refuses(&identity(Some("a"), now + 60)), "the revocation has ended before the token");
        assert_eq!(revocations.trim(), 1);
        assert_eq!(revocations.insert(&revocation("b", now - 32)), Ok(false), "long over");
        assert_eq!(revocations.trim(), 1);
    }

    #[test]
    fn the_longer_end_of_two_revocations_holds_and_their_number_is_bounded() {
        let now = unix_seconds();
        let revocations = Revocations { most: 1, ..Revocations::new(Duration::ZERO) };
        assert_eq!(revocations.insert(&revocation("a", now + 60)), Ok(true));
        assert_eq!(revocations.insert(&revocation("a", now)), Ok(false));
        assert!(revocations.refuses(&identity(Some("a"), now + 120)));
        assert_eq!(revocations.insert(&revocation("a", now + 90)), Ok(true));
        assert_eq!(revocations.insert(&revocation("b", now + 60)), Err(Full));
        let tokens = revocations.tokens();
        assert_eq!(revocations.of(&tokens), [revocation("a", now + 90)]);
    }
}
