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
    /// Not a token, not signed with a configured key, or with invalid claims.
    #[error("bad token: {0}")]
    Bad(String),
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
            jwks: auth.jwks_url.as_ref().map(Jwks::new).transpose()?,
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
            jwks.fetched().await;
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
            .ok_or_else(|| TokenError::bad("its claims are not a JSON object, or one is duplicated"))?;
        let wrong = |claim: &str| TokenError::Bad(format!("its \"{claim}\" is missing or of the wrong type"));
        let expires = claims.exp.and_then(claims::seconds).ok_or_else(|| wrong("exp"))?;
        if self.time_left(expires).is_zero() {
            return Err(TokenError::Expired);
        }
        let not_before = claims.nbf.map(|nbf| claims::seconds(nbf).ok_or_else(|| wrong("nbf"))).transpose()?;
        if Duration::from_secs(not_before.unwrap_or_default()) > now() + self.leeway {
            return Err(TokenError::bad("its \"nbf\" is in the future"));
        }
        let issuer = claims.iss.map(|iss| claims::text(iss).ok_or_else(|| wrong("iss"))).transpose()?;
        if let Some(expected) = &self.issuer
            && issuer.ok_or_else(|| wrong("iss"))? != *expected
        {
            return Err(TokenError::bad("its \"iss\" is not the one expected"));
        }
        let audience = claims.aud.map(|aud| claims::texts(aud).ok_or_else(|| wrong("aud"))).transpose()?;
        if let Some(expected) = &self.audience
            && !audience.ok_or_else(|| wrong("aud"))?.contains(expected)
        {
            return Err(TokenError::bad("its \"aud\" is not the one expected"));
        }
        let user = claims.user.ok_or_else(|| TokenError::Bad(format!("it has no \"{}\"", self.user_claim)))?;
        let user = claims::text_or_integer(user).ok_or_else(|| {
            TokenError::Bad(format!("its \"{}\" is neither a string nor an integer", self.user_claim))
        })?;
        let credential = claims.jti.map(token_id).transpose()?;
        Ok(Identity { user: UserId::new(&user)?, expires: Some(expires), credential })
    }
}

/// A token whose `jti` is too long to be revoked is refused.
fn token_id(jti: &RawValue) -> Result<CredentialId, TokenError> {
    match claims::text(jti) {
        Some(jti) if jti.len() <= MAX_JTI_BYTES => Ok(CredentialId::of_token(&jti)),
        Some(_) => Err(TokenError::Bad(format!("its \"jti\" is longer than {MAX_JTI_BYTES} bytes"))),
        None => Err(TokenError::bad("its \"jti\" is not a string")),
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
mod tests {
    use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use base64::Engine as _;

    use super::{BASE64_URL_SAFE_NO_PAD, Duration, Identity, TokenError, Verifier, mint};
    use crate::config::{Auth, Config, Layers};
    use crate::protocol::UserId;

    /// `{"alg":"HS256","typ":"JWT"}`.
    const HS256_HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

    const SECRET: &str = "a secret of the tests, long enough";

    fn auth(extra: &[(&str, &str)]) -> Auth {
        let mut env = vec![("TIDINGS_AUTH__HMAC_SECRET".to_owned(), SECRET.to_owned())];
        env.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Config::load(Layers { env, ..Layers::default() }).unwrap().auth
    }

    fn sign(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes()).unwrap()).unwrap()
    }

    fn verify(claims: &Value) -> Result<Identity, TokenError> {
        check(&auth(&[]), &sign(Algorithm::HS256, SECRET, claims))
    }

    fn check(auth: &Auth, token: &str) -> Result<Identity, TokenError> {
        Verifier::new(auth).unwrap().verify_now(token).expect("a secret needs no fetch")
    }

    fn now() -> u64 {
        super::now().as_secs()
    }

    #[test]
    fn each_hmac_algorithm_is_accepted_and_the_user_may_be_an_integer_of_any_size() {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let token = sign(algorithm, SECRET, &json!({"sub": "42", "exp": now() + 60}));
            assert_eq!(check(&auth(&[]), &token).unwrap().user.as_str(), "42");
        }
        assert_eq!(verify(&json!({"sub": 42, "exp": now() + 60})).unwrap().user.as_str(), "42");
        let large = format!(r#"{{"sub":123456789012345678901234567890,"exp":{}}}"#, now() + 60);
        let large: Box<serde_json::value::RawValue> = serde_json::from_str(&large).unwrap();
        let token =
            encode(&Header::new(Algorithm::HS256), &large, &EncodingKey::from_secret(SECRET.as_bytes()).unwrap())
                .unwrap();
        assert_eq!(check(&auth(&[]), &token).unwrap().user.as_str(), "123456789012345678901234567890");
    }

    #[test]
    fn claims_that_are_missing_or_of_the_wrong_type_are_refused() {
        let soon = now() + 60;
        for claims in [
            json!({"sub": "42"}),
            json!({"sub": "42", "exp": soon.to_string()}),
            json!({"sub": "42", "exp": null}),
            json!({"sub": "42", "exp": -1}),
            json!({"sub": "42", "exp": 1e30}),
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
            json!({"sub": "42", "exp": soon, "iss": 1}),
            json!({"sub": "42", "exp": soon, "aud": {"me": true}}),
        ] {
            let error = verify(&claims).unwrap_err();
            assert_ne!(error, TokenError::Expired, "{claims}");
        }
    }

    #[test]
    fn an_expired_token_is_distinguished_from_a_bad_one_after_the_leeway() {
        assert_eq!(verify(&json!({"sub": "42", "exp": now() - 60})), Err(TokenError::Expired));
        assert!(verify(&json!({"sub": "42", "exp": now() - 10})).is_ok());
    }

    #[test]
    fn a_foreign_signature_alg_none_and_garbage_are_bad() {
        let claims = json!({"sub": "42", "exp": now() + 60});
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiI0MiIsImV4cCI6OTk5OTk5OTk5OX0.";
        for token in [sign(Algorithm::HS256, "another", &claims), none.into(), "a.b.c".into(), String::new()] {
            assert!(matches!(check(&auth(&[]), &token), Err(TokenError::Bad(_))), "{token}");
        }
    }

    #[test]
    fn a_good_token_has_one_spelling() {
        let token = sign(Algorithm::HS256, SECRET, &json!({"sub": "42", "exp": now() + 60}));
        assert!(check(&auth(&[]), &token).is_ok());
        // The last character of 32 bytes has two bits to spare.
        let (most, last) = token.split_at(token.len() - 1);
        let spare = |bits: u8| char::from(last.as_bytes()[0] + bits).to_string();
        let ends =
            [spare(1), spare(2), format!("{last}="), format!("{last}=="), format!("{last}\n"), format!("{last}.")];
        for end in ends {
            assert!(check(&auth(&[]), &format!("{most}{end}")).is_err(), "{end:?}");
        }
        assert!(check(&auth(&[]), &format!(" {token}")).is_err());
    }

    #[test]
    fn issuer_and_audience_are_required_only_where_configured() {
        let with = auth(&[("TIDINGS_AUTH__ISSUER", "me"), ("TIDINGS_AUTH__AUDIENCE", "you")]);
        let check = |claims: Value| check(&with, &sign(Algorithm::HS256, SECRET, &claims));
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
        assert_eq!(check(&auth(&rotated), &token).unwrap().user, user);
        assert!(check(&auth(&rotated[..1]), &token).is_err());
    }

    #[test]
    fn a_duplicate_claim_is_refused_even_if_its_name_is_escaped() {
        let soon = now() + 60;
        let check = |claims: String| check(&auth(&[]), &sign_text(&claims));
        assert!(check(format!(r#"{{"sub":"42","e\u0078p":{soon},"other":1,"other":2}}"#)).is_ok());
        for claims in [
            format!(r#"{{"sub":"42","sub":"43","exp":{soon}}}"#),
            format!(r#"{{"sub":"42","s\u0075b":"42","exp":{soon}}}"#),
            format!(r#"{{"sub":"42","exp":1,"exp":{soon}}}"#),
            format!(r#"{{"sub":"42","exp":{soon}}} "more""#),
            format!(r#"["sub","42","exp",{soon}]"#),
        ] {
            assert!(matches!(check(claims.clone()), Err(TokenError::Bad(_))), "{claims}");
        }
    }

    /// Any text as the claims, signed with HS256.
    fn sign_text(claims: &str) -> String {
        let message = format!("{}.{}", HS256_HEADER, BASE64_URL_SAFE_NO_PAD.encode(claims));
        let key = EncodingKey::from_secret(SECRET.as_bytes()).unwrap();
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    }

    #[test]
    fn a_minted_token_passes_the_validation_of_the_library() {
        let auth = auth(&[]);
        let user = UserId::new("42").unwrap();
        let token = mint(&auth, auth.hmac_secret.as_ref().unwrap(), &user, Duration::from_secs(60)).unwrap();
        let key = DecodingKey::from_secret(SECRET.as_bytes()).unwrap();
        let decoded = decode::<Value>(&token, &key, &Validation::new(Algorithm::HS256)).unwrap();
        assert_eq!(decoded.claims["sub"], "42");
        assert_eq!(decoded.header.typ.as_deref(), Some("JWT"));
    }

    fn claim() -> impl Strategy<Value = String> {
        let soon = now() + 3_600;
        prop_oneof![
            Just("\"42\"".to_owned()),
            Just("\"me\"".to_owned()),
            Just("[\"me\",\"x\"]".to_owned()),
            Just("null".to_owned()),
            Just("1e999".to_owned()),
            Just("{\"a\":[1]}".to_owned()),
            Just(format!("\"{soon}\"")),
            Just(soon.to_string()),
            Just(format!("{soon}.5")),
            Just(format!("{soon}e0")),
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>().prop_map(|number| number.to_string()),
            any::<String>().prop_map(|text| Value::from(text).to_string()),
            ".{0,8}",
        ]
    }

    proptest! {
        #[test]
        fn garbage_is_refused(text in ".{0,80}", parts in "[A-Za-z0-9_.=-]{0,80}") {
            for token in [text, parts.clone(), format!("{}.{parts}", HS256_HEADER)] {
                prop_assert!(check(&auth(&[]), &token).is_err());
            }
        }

        #[test]
        fn a_truncated_or_altered_token_is_refused(at in 0_usize..1_000, byte in 0_u8..128, cut: bool) {
            let token = sign(Algorithm::HS256, SECRET, &json!({"sub": "42", "exp": now() + 60}));
            let mut changed = token.clone().into_bytes();
            let at = at % changed.len();
            if cut { changed.truncate(at) } else { changed[at] = byte }
            let changed = String::from_utf8(changed).unwrap();
            prop_assume!(changed != token);
            prop_assert!(check(&auth(&[]), &changed).is_err());
        }

        #[test]
        fn claims_that_the_library_refuses_are_refused(
            (sub, exp) in (claim(), claim()),
            others in proptest::collection::vec((prop_oneof!["sub", "exp", "nbf", "iss", "aud", ".{0,3}"], claim()), 0..3)
        ) {
            let others = others.iter().map(|(name, value)| format!(",{}:{value}", Value::from(name.as_str())));
            let token = sign_text(&format!("{{\"sub\":{sub},\"exp\":{exp}{}}}", others.collect::<String>()));
            let configured = auth(&[("TIDINGS_AUTH__ISSUER", "me"), ("TIDINGS_AUTH__AUDIENCE", "me")]);
            let mut required = Validation::new(Algorithm::HS256);
            required.set_issuer(&["me"]);
            required.set_audience(&["me"]);
            for (ours, mut theirs) in [(configured, required), (auth(&[]), Validation::new(Algorithm::HS256))] {
                theirs.leeway = 30;
                theirs.validate_nbf = true;
                theirs.validate_aud = ours.audience.is_some();
                let key = DecodingKey::from_secret(SECRET.as_bytes()).unwrap();
                if check(&ours, &token).is_ok() {
                    prop_assert!(decode::<serde::de::IgnoredAny>(&token, &key, &theirs).is_ok());
                }
            }
        }
    }

    #[test]
    fn a_token_that_never_ends_does_not_overflow_a_clock() {
        let identity = verify(&json!({"sub": "42", "exp": 1e18})).unwrap();
        assert_eq!(Verifier::new(&auth(&[])).unwrap().ends_at(&identity), None);
    }
}
