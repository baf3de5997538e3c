//! JSON Web Tokens (RFC 7519) in the compact form of JWS (RFC 7515).
//!
//! jsonwebtoken signs and verifies. Headers and claims are parsed here, more strictly than it does: a header only
//! selects among the configured keys, and a duplicate claim is refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use serde_json::Map;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::Identity;
use super::claims::{self, Claims};
use super::jwks::Jwks;
use super::key::{Algorithm, Key};
use crate::config::{Auth, ConfigError, secret_bytes};
use crate::protocol::{CredentialId, MAX_JTI_BYTES, UserId, UserIdError};

/// Why a token is refused, worded for the client's developer. The message never quotes the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Expired, leeway included.
    #[error("the token has expired")]
    Expired,
    /// Not a token, or not signed with a configured key.
    #[error("bad token: {0}")]
    Bad(String),
    /// Signed, with invalid claims.
    #[error("bad token: {0}")]
    Claims(String),
    #[error("bad token: its user claim is not a user id: {0}")]
    User(#[from] UserIdError),
    #[error("the token was revoked")]
    Revoked,
    /// The key set that may have its key has not been fetched yet.
    #[error("the keys that verify the token are not available: try again")]
    Unavailable,
}

impl TokenError {
    fn bad(why: &str) -> Self {
        Self::Bad(why.into())
    }

    fn claims(why: &str) -> Self {
        Self::Claims(why.into())
    }

    /// Whether it is one of a token whose signature is good.
    fn is_signed(&self) -> bool {
        match self {
            Self::Expired | Self::Claims(_) | Self::User(_) | Self::Revoked => true,
            Self::Bad(_) | Self::Unavailable => false,
        }
    }
}

#[derive(Debug)]
pub struct Verifier {
    keys: Vec<Key>,
    jwks: Option<Arc<Jwks>>,
    issuer: Option<String>,
    audience: Option<String>,
    user_claim: String,
    leeway: Duration,
}

/// The result of checking a token against the keys at hand.
enum Verdict {
    Signed,
    Refused(TokenError),
    /// Its key may be in a key set that is not at hand.
    UnknownKey,
}

impl Verifier {
    /// Reads `auth.public_key_file`; fails with the configuration key whose value has no usable key.
    pub fn new(auth: &Auth) -> Result<Self, ConfigError> {
        let jwks = auth.jwks_url.as_ref().map(|url| Jwks::new(url, auth.jwks_ca_file.as_deref())).transpose()?;
        Self::with_key_set(auth, jwks)
    }

    /// As [`Verifier::new`], with the key set that another one has fetched.
    pub(super) fn with_key_set_of(auth: &Auth, other: &Self) -> Result<Self, ConfigError> {
        Self::with_key_set(auth, other.jwks.clone())
    }

    fn with_key_set(auth: &Auth, jwks: Option<Arc<Jwks>>) -> Result<Self, ConfigError> {
        let mut keys = Vec::new();
        let secrets =
            [("auth.hmac_secret", &auth.hmac_secret), ("auth.previous_hmac_secret", &auth.previous_hmac_secret)];
        for (name, secret) in secrets.into_iter().filter_map(|(name, secret)| Some((name, secret.as_ref()?))) {
            let refuse = |why| ConfigError::new(format!("{name}: {why}: expected a non-empty string"));
            keys.extend(Key::shared(secret_bytes(secret)).map_err(refuse)?);
        }
        if let Some(path) = &auth.public_key_file {
            let refuse = |why: String| {
                ConfigError::new(format!(
                    "auth.public_key_file = {path:?}: {why}: expected PEM with public keys (PUBLIC KEY, RSA PUBLIC \
                     KEY) or one CERTIFICATE: RSA of 2048 to 8192 bits, P-256, P-384, P-521 or Ed25519"
                ))
            };
            let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
            keys.extend(Key::from_pem(&pem).map_err(|error| refuse(error.to_string()))?);
        }
        Ok(Self {
            keys,
            jwks,
            issuer: auth.issuer.clone(),
            audience: auth.audience.clone(),
            user_claim: auth.user_claim.clone(),
            leeway: auth.leeway,
        })
    }

    pub fn jwks(&self) -> Option<&Arc<Jwks>> {
        self.jwks.as_ref()
    }

    /// Verifies a token with the keys at hand; `None` if [`Verifier::verify`] would wait for a fetch of the key set.
    pub fn verify_now(&self, token: &str) -> Option<Result<Identity, TokenError>> {
        let token = match Token::parse(token) {
            Ok(token) => token,
            Err(error) => return Some(Err(error)),
        };
        match self.judge(&token) {
            Verdict::Signed => Some(self.identity(&token)),
            Verdict::Refused(error) => Some(Err(error)),
            Verdict::UnknownKey if self.jwks.as_ref().is_some_and(|jwks| jwks.request_fetch()) => None,
            Verdict::UnknownKey => Some(Err(self.unknown_key())),
        }
    }

    /// Verifies a token. If its key is not at hand, waits for one fetch of the key set.
    pub async fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        if let Some(verified) = self.verify_now(token) {
            return verified;
        }
        if let Some(jwks) = &self.jwks {
            Box::pin(jwks.fetched()).await;
        }
        let token = Token::parse(token)?;
        match self.judge(&token) {
            Verdict::Signed => self.identity(&token),
            Verdict::Refused(error) => Err(error),
            Verdict::UnknownKey => Err(self.unknown_key()),
        }
    }

    /// When a connection of this identity must close: its expiry plus the leeway. `None`: never, or in more than a
    /// year, because the clock cannot represent every expiry that a token can have.
    pub fn ends_at(&self, identity: &Identity) -> Option<Instant> {
        const FAR: Duration = Duration::from_secs(365 * 86_400);
        let left = self.time_left(identity.expires?);
        (left < FAR).then(|| Instant::now() + left)
    }

    fn time_left(&self, expires: u64) -> Duration {
        Duration::from_secs(expires).saturating_add(self.leeway).saturating_sub(now())
    }

    fn judge(&self, token: &Token<'_>) -> Verdict {
        let Header { algorithm, key_id, .. } = &token.header;
        let mut served = false;
        let mut signed = |key: &Key| {
            let serves = key.serves(*algorithm, key_id.as_deref());
            served |= serves;
            serves && key.verifies(token.message.as_bytes(), token.signature)
        };
        if self.keys.iter().any(&mut signed) {
            return Verdict::Signed;
        }
        if let Some(jwks) = self.jwks.as_ref().filter(|_| algorithm.is_asymmetric()) {
            let Some(set) = jwks.keys() else { return Verdict::UnknownKey };
            if set.iter().any(&mut signed) {
                return Verdict::Signed;
            }
            if key_id.is_some() && !set.iter().any(|key| key.id == *key_id) {
                return Verdict::UnknownKey;
            }
        }
        Verdict::Refused(TokenError::bad(if served {
            "its signature does not match"
        } else {
            "no configured key has its algorithm"
        }))
    }

    fn unknown_key(&self) -> TokenError {
        let has_set = self.jwks.as_ref().is_some_and(|jwks| jwks.keys().is_some());
        if has_set { TokenError::bad("its \"kid\" is not in the key set") } else { TokenError::Unavailable }
    }

    /// The identity of a token whose signature is verified.
    fn identity(&self, token: &Token<'_>) -> Result<Identity, TokenError> {
        let claims = Claims::parse(token.claims(), &self.user_claim)
            .ok_or_else(|| TokenError::claims("its claims are not a JSON object, or one is duplicated"))?;
        let expires = moment("exp", claims.exp)?.ok_or_else(|| wrong("exp"))?;
        if self.time_left(expires).is_zero() {
            return Err(TokenError::Expired);
        }
        if Duration::from_secs(moment("nbf", claims.nbf)?.unwrap_or_default()) > now() + self.leeway {
            return Err(TokenError::claims("its \"nbf\" is in the future"));
        }
        let issuer = claims.iss.map(|iss| claims::text(iss).ok_or_else(|| wrong("iss"))).transpose()?;
        if let Some(expected) = &self.issuer
            && issuer.ok_or_else(|| wrong("iss"))? != *expected
        {
            return Err(TokenError::claims("its \"iss\" is not the one expected"));
        }
        let audience = claims.aud.map(|aud| claims::texts(aud).ok_or_else(|| wrong("aud"))).transpose()?;
        if let Some(expected) = &self.audience
            && !audience.ok_or_else(|| wrong("aud"))?.contains(expected)
        {
            return Err(TokenError::claims("its \"aud\" is not the one expected"));
        }
        let credential = claims.jti.map(token_id).transpose()?;
        Ok(Identity { user: self.user(&claims)?, expires: Some(expires), credential })
    }

    fn user(&self, claims: &Claims<'_>) -> Result<UserId, TokenError> {
        let user = claims.user.ok_or_else(|| TokenError::Claims(format!("it has no \"{}\"", self.user_claim)))?;
        let user = claims::text_or_integer(user).ok_or_else(|| {
            TokenError::Claims(format!("its \"{}\" is neither a string nor an integer", self.user_claim))
        })?;
        Ok(UserId::new(&user)?)
    }

    /// The user of a token that was refused with this error, for the log. `None` unless its signature is good.
    pub fn refused_user(&self, token: &str, error: &TokenError) -> Option<UserId> {
        let token = Token::parse(token).ok().filter(|_| error.is_signed())?;
        self.user(&Claims::parse(token.claims(), &self.user_claim)?).ok()
    }
}

fn wrong(claim: &str) -> TokenError {
    TokenError::Claims(format!("its \"{claim}\" is missing or of the wrong type"))
}

/// A claim in seconds since 1970. Milliseconds, the unit of JavaScript, would make a token that lasts for ages.
fn moment(claim: &str, raw: Option<&RawValue>) -> Result<Option<u64>, TokenError> {
    const CENTURY: Duration = Duration::from_secs(36_525 * 86_400);
    let Some(raw) = raw else { return Ok(None) };
    let seconds = claims::seconds(raw).ok_or_else(|| wrong(claim))?;
    if Duration::from_secs(seconds) > now() + CENTURY {
        let why = "is more than a century ahead: expected seconds since 1970, not milliseconds";
        return Err(TokenError::Claims(format!("its \"{claim}\" {why}")));
    }
    Ok(Some(seconds))
}

/// A token whose `jti` is too long to be revoked is refused.
fn token_id(jti: &RawValue) -> Result<CredentialId, TokenError> {
    match claims::text(jti) {
        Some(jti) if jti.len() <= MAX_JTI_BYTES => Ok(CredentialId::of_token(&jti)),
        Some(_) => Err(TokenError::Claims(format!("its \"jti\" is longer than {MAX_JTI_BYTES} bytes"))),
        None => Err(TokenError::claims("its \"jti\" is not a string")),
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The header fields that count. `jwk`, `jku`, `x5c` and `x5u`, with which a token would supply its own key, are
/// ignored.
#[derive(Debug, Deserialize)]
struct Header {
    #[serde(rename = "alg")]
    algorithm: Algorithm,
    #[serde(rename = "kid")]
    key_id: Option<String>,
    /// Whether the header demands an extension; none is supported (RFC 7515, section 4.1.11).
    #[serde(rename = "crit", default, deserialize_with = "is_present")]
    critical: bool,
}

fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// A parsed token, not verified.
struct Token<'a> {
    header: Header,
    /// The signed part.
    message: &'a str,
    /// In base64url.
    signature: &'a str,
    /// The decoded header, followed by the claims.
    decoded: Vec<u8>,
    claims_at: usize,
}

impl<'a> Token<'a> {
    fn parse(token: &'a str) -> Result<Self, TokenError> {
        let token = Self::decode(token).ok_or_else(|| TokenError::bad("it is not a JSON Web Token"))?;
        if token.header.critical {
            return Err(TokenError::bad("its header demands an extension (\"crit\"), and none is supported"));
        }
        Ok(token)
    }

    fn decode(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let mut decoded = Vec::with_capacity(message.len());
        // Strict: no padding, no other alphabet, no stray bits, and no dot, so a token has exactly three parts.
        BASE64_URL_SAFE_NO_PAD.decode_vec(header, &mut decoded).ok()?;
        let claims_at = decoded.len();
        let header = serde_json::from_slice(&decoded).ok()?;
        BASE64_URL_SAFE_NO_PAD.decode_vec(claims, &mut decoded).ok()?;
        Some(Self { header, message, signature, decoded, claims_at })
    }

    fn claims(&self) -> &[u8] {
        self.decoded.get(self.claims_at..).unwrap_or_default()
    }
}

/// Signs a token for this user with HS256. Fails only for an empty secret, which the configuration refuses.
pub fn mint(
    auth: &Auth,
    secret: &SecretString,
    user: &UserId,
    ttl: Duration,
) -> Result<String, jsonwebtoken::errors::Error> {
    let mut claims = Map::new();
    for (claim, value) in [("iss", &auth.issuer), ("aud", &auth.audience)] {
        if let Some(value) = value {
            claims.insert(claim.into(), value.clone().into());
        }
    }
    claims.insert("iat".into(), now().as_secs().into());
    claims.insert("exp".into(), (now() + ttl).as_secs().into());
    claims.insert("jti".into(), format!("{:032x}", fastrand::u128(..)).into());
    claims.insert(auth.user_claim.clone(), user.as_str().into());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &EncodingKey::from_secret(secret_bytes(secret))?)
}

#[cfg(test)]
mod tests;
