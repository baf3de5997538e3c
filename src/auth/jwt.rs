//! JSON Web Tokens (RFC 7519), signed with a shared secret.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use secrecy::SecretString;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::Identity;
use crate::config::{Auth, secret_bytes};
use crate::protocol::{CredentialId, MAX_JTI_BYTES, UserId, UserIdError};

/// Why a token is refused. No text of the token is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Over, leeway included.
    #[error("the token has expired")]
    Expired,
    /// Not signed with our key, not a token, or with claims that do not hold.
    #[error("bad token: {0}")]
    Bad(String),
    /// The user claim is no user id.
    #[error("bad token: its user claim is not a user id: {0}")]
    User(#[from] UserIdError),
    /// Good, but a backend has revoked it.
    #[error("the token was revoked")]
    Revoked,
}

/// Verifies tokens with the configured secrets.
pub struct Verifier {
    keys: Vec<DecodingKey>,
    validation: Validation,
    user_claim: String,
    leeway: Duration,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("user_claim", &self.user_claim).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Takes the keys and the required claims from the configuration.
    #[must_use]
    pub fn new(auth: &Auth) -> Self {
        let secrets = [&auth.hmac_secret, &auth.previous_hmac_secret];
        let keys = secrets.into_iter().flatten().map(|s| DecodingKey::from_secret(secret_bytes(s))).collect();
        // A secret serves the HMAC algorithms and no other: the token's own `alg` never chooses the kind of key.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.algorithms = vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        // The library knows whole seconds: rounded up, so that it never refuses what the leeway allows.
        validation.leeway = auth.leeway.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX);
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &auth.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &auth.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.validate_aud = auth.audience.is_some();
        validation.set_required_spec_claims(&required);
        Self { keys, validation, user_claim: auth.user_claim.clone(), leeway: auth.leeway }
    }

    /// Verifies a token.
    ///
    /// # Errors
    /// [`TokenError`], worded for the client's developer.
    pub fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        let mut refused = TokenError::Bad("no key to verify it with".into());
        for key in &self.keys {
            match decode::<HashMap<String, Box<RawValue>>>(token, key, &self.validation) {
                Ok(data) => return self.identity(&data.claims),
                Err(error) => {
                    refused = token_error(error.kind());
                    // Another key can mend nothing but a signature.
                    if *error.kind() != ErrorKind::InvalidSignature {
                        break;
                    }
                }
            }
        }
        Err(refused)
    }

    /// When a connection of this identity must close: its end and the leeway. `None`: never, or in more than a year,
    /// since the clock cannot hold every moment that a token can name.
    #[must_use]
    pub fn ends_at(&self, identity: &Identity) -> Option<Instant> {
        const FAR: Duration = Duration::from_secs(365 * 86_400);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_secs(identity.expires?).saturating_add(self.leeway).saturating_sub(now);
        (left < FAR).then(|| Instant::now() + left)
    }

    fn identity(&self, claims: &HashMap<String, Box<RawValue>>) -> Result<Identity, TokenError> {
        let claim = |name: &str| claims.get(name).map(|raw| raw.get());
        // The library takes a list for the issuer; RFC 7519 has one.
        if self.validation.iss.is_some() && claim("iss").is_some_and(|issuer| !issuer.starts_with('"')) {
            return Err(TokenError::Bad("its \"iss\" is of the wrong type".into()));
        }
        let user =
            claim(&self.user_claim).ok_or_else(|| TokenError::Bad(format!("it has no \"{}\"", self.user_claim)))?;
        let user = user_text(user).ok_or_else(|| {
            TokenError::Bad(format!("its \"{}\" is neither a string nor an integer", self.user_claim))
        })?;
        // The library has checked that it is a number, which may have a fraction.
        let expires = claim("exp").and_then(|exp| exp.parse::<f64>().ok()).unwrap_or_default();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let expires = expires as u64;
        let credential = claim("jti").map(token_id).transpose()?;
        Ok(Identity { user: UserId::new(&user)?, expires: Some(expires), credential })
    }
}

/// One that could not be revoked is not let in.
fn token_id(jti: &str) -> Result<CredentialId, TokenError> {
    match serde_json::from_str::<String>(jti) {
        Ok(jti) if jti.len() <= MAX_JTI_BYTES => Ok(CredentialId::of_token(&jti)),
        Ok(_) => Err(TokenError::Bad(format!("its \"jti\" has more than {MAX_JTI_BYTES} bytes"))),
        Err(_) => Err(TokenError::Bad("its \"jti\" is not a string".into())),
    }
}

/// The text of a string, or of an integer of any size as it was written.
fn user_text(raw: &str) -> Option<String> {
    let digits = raw.strip_prefix('-').unwrap_or(raw);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Some(raw.to_owned());
    }
    serde_json::from_str::<String>(raw).ok()
}

fn token_error(kind: &ErrorKind) -> TokenError {
    let why = match kind {
        ErrorKind::ExpiredSignature => return TokenError::Expired,
        ErrorKind::InvalidSignature => "its signature does not match".into(),
        ErrorKind::MissingRequiredClaim(claim) => format!("its \"{claim}\" is missing or of the wrong type"),
        ErrorKind::InvalidClaimFormat(claim) => format!("its \"{claim}\" is of the wrong type"),
        ErrorKind::InvalidIssuer => "its \"iss\" is not the one expected".into(),
        ErrorKind::InvalidAudience => "its \"aud\" is not the one expected".into(),
        ErrorKind::ImmatureSignature => "its \"nbf\" lies ahead".into(),
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            "its algorithm is not one that the configured key serves".into()
        }
        _ => "it is not a JSON Web Token".into(),
    };
    TokenError::Bad(why)
}

/// A token for this user, as [`Verifier`] with the same configuration accepts it.
///
/// # Errors
/// [`TokenError`] where the secret cannot sign.
pub fn mint(auth: &Auth, secret: &SecretString, user: &UserId, ttl: Duration) -> Result<String, TokenError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut claims = Map::new();
    for (claim, value) in [("iss", &auth.issuer), ("aud", &auth.audience)] {
        if let Some(value) = value {
            claims.insert(claim.into(), value.clone().into());
        }
    }
    claims.insert("iat".into(), now.as_secs().into());
    claims.insert("exp".into(), (now + ttl).as_secs().into());
    claims.insert("jti".into(), format!("{:032x}", fastrand::u128(..)).into());
    claims.insert(auth.user_claim.clone(), user.as_str().into());
    encode(&Header::new(Algorithm::HS256), &Value::Object(claims), &EncodingKey::from_secret(secret_bytes(secret)))
        .map_err(|_| TokenError::Bad("the configured secret cannot sign".into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Config, Layers};

    const SECRET: &str = "a secret of the tests, long enough";

    fn auth(extra: &[(&str, &str)]) -> Auth {
        let mut env = vec![("TIDINGS_AUTH__HMAC_SECRET".to_owned(), SECRET.to_owned())];
        env.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Config::load(Layers { env, ..Layers::default() }).unwrap().auth
    }

    fn sign(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn verify(claims: &Value) -> Result<Identity, TokenError> {
        Verifier::new(&auth(&[])).verify(&sign(Algorithm::HS256, SECRET, claims))
    }

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[test]
    fn each_hmac_algorithm_is_accepted_and_the_user_may_be_an_integer_of_any_size() {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let token = sign(algorithm, SECRET, &json!({"sub": "42", "exp": now() + 60}));
            assert_eq!(Verifier::new(&auth(&[])).verify(&token).unwrap().user.as_str(), "42");
        }
        assert_eq!(verify(&json!({"sub": 42, "exp": now() + 60})).unwrap().user.as_str(), "42");
        assert_eq!(user_text("123456789012345678901234567890").unwrap(), "123456789012345678901234567890");
    }

    #[test]
    fn claims_that_are_missing_or_of_the_wrong_type_are_refused() {
        let soon = now() + 60;
        for claims in [
            json!({"sub": "42"}),
            json!({"sub": "42", "exp": soon.to_string()}),
            json!({"sub": "42", "exp": null}),
            json!({"sub": "42", "exp": -1}),
            json!({"sub": "42", "exp": soon, "nbf": "now"}),
            json!({"sub": "42", "exp": soon, "nbf": now() + 50}),
            json!({"exp": soon}),
            json!({"sub": "", "exp": soon}),
            json!({"sub": "a\nb", "exp": soon}),
            json!({"sub": "x".repeat(257), "exp": soon}),
            json!({"sub": 4.5, "exp": soon}),
            json!({"sub": true, "exp": soon}),
            json!({"sub": ["42"], "exp": soon}),
            json!({"sub": "42", "exp": soon, "jti": 7}),
            json!({"sub": "42", "exp": soon, "jti": "x".repeat(257)}),
        ] {
            let error = verify(&claims).unwrap_err();
            assert_ne!(error, TokenError::Expired, "{claims}");
        }
    }

    #[test]
    fn an_expired_token_is_told_from_a_bad_one_and_leeway_is_given() {
        assert_eq!(verify(&json!({"sub": "42", "exp": now() - 60})), Err(TokenError::Expired));
        assert!(verify(&json!({"sub": "42", "exp": now() - 10})).is_ok());
    }

    #[test]
    fn a_foreign_signature_alg_none_and_garbage_are_bad() {
        let verifier = Verifier::new(&auth(&[]));
        let claims = json!({"sub": "42", "exp": now() + 60});
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiI0MiIsImV4cCI6OTk5OTk5OTk5OX0.";
        for token in [sign(Algorithm::HS256, "another", &claims), none.into(), "a.b.c".into(), String::new()] {
            assert!(matches!(verifier.verify(&token), Err(TokenError::Bad(_))), "{token}");
        }
    }

    #[test]
    fn issuer_and_audience_are_required_only_where_configured() {
        let with = auth(&[("TIDINGS_AUTH__ISSUER", "me"), ("TIDINGS_AUTH__AUDIENCE", "you")]);
        let check = |claims: Value| Verifier::new(&with).verify(&sign(Algorithm::HS256, SECRET, &claims));
        let exp = now() + 60;
        assert!(check(json!({"sub": "42", "exp": exp, "iss": "me", "aud": ["you", "x"]})).is_ok());
        assert!(check(json!({"sub": "42", "exp": exp, "iss": "me"})).is_err());
        assert!(check(json!({"sub": "42", "exp": exp, "iss": ["me"], "aud": "you"})).is_err());
        assert!(check(json!({"sub": "42", "exp": exp, "aud": "you"})).is_err());
        assert!(check(json!({"sub": "42", "exp": exp, "iss": "x", "aud": "you"})).is_err());
        assert!(verify(&json!({"sub": "42", "exp": exp, "iss": "any", "aud": "any"})).is_ok());
    }

    #[test]
    fn the_previous_secret_still_verifies_and_a_minted_token_is_accepted() {
        let old = auth(&[]);
        let user = UserId::new("42").unwrap();
        let ttl = Duration::from_secs(60);
        let token = mint(&old, old.hmac_secret.as_ref().unwrap(), &user, ttl).unwrap();
        let rotated = [("TIDINGS_AUTH__HMAC_SECRET", "new"), ("TIDINGS_AUTH__PREVIOUS_HMAC_SECRET", SECRET)];
        assert_eq!(Verifier::new(&auth(&rotated)).verify(&token).unwrap().user, user);
        assert!(Verifier::new(&auth(&rotated[..1])).verify(&token).is_err());
    }

    #[test]
    fn a_token_that_never_ends_does_not_overflow_a_clock() {
        let identity = verify(&json!({"sub": "42", "exp": 1e18})).unwrap();
        assert_eq!(Verifier::new(&auth(&[])).ends_at(&identity), None);
    }
}
