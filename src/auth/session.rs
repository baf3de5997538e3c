//! Sessions of an Express application with express-session and connect-redis: the signed cookie, and its data in Redis.

use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::{self, secret_bytes};
use crate::protocol::UserId;

pub const MAX_SESSION_BYTES: usize = 65_536;

/// Why a session is refused. The message quotes neither its id nor its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the session cookie is not signed with the session secret")]
    Signature,
    /// Logged out, or expired.
    #[error("the session has ended")]
    Ended,
    #[error("the session is not a JSON object of at most {MAX_SESSION_BYTES} bytes")]
    Malformed,
    /// A visitor who has not logged in.
    #[error("the session has no user at auth.session_user")]
    NoUser,
}

pub struct SessionReader {
    keys: Vec<hmac::Key>,
    user: Vec<String>,
}

impl std::fmt::Debug for SessionReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionReader").field("user", &self.user).finish_non_exhaustive()
    }
}

impl SessionReader {
    /// A cookie may be signed with any of the configured secrets.
    pub fn new(config: &config::Sessions) -> Self {
        let key = |secret| hmac::Key::new(hmac::HMAC_SHA256, secret_bytes(secret));
        let user = config.user.split('.').map(str::to_owned).collect();
        Self { keys: config.secrets.iter().map(key).collect(), user }
    }

    /// The session's id, from a cookie's value: `s:<id>.<HMAC-SHA256 of the id, as base64 without padding>`. The
    /// signature is compared in constant time.
    pub fn id<'a>(&self, cookie: &'a str) -> Result<&'a str, SessionError> {
        let signed = cookie.strip_prefix("s:").and_then(|rest| rest.rsplit_once('.'));
        let (id, signature) = signed.filter(|(id, _)| !id.is_empty()).ok_or(SessionError::Signature)?;
        let signature = STANDARD_NO_PAD.decode(signature).map_err(|_| SessionError::Signature)?;
        let good = |key: &hmac::Key| hmac::verify(key, id.as_bytes(), &signature).is_ok();
        if self.keys.iter().any(good) { Ok(id) } else { Err(SessionError::Signature) }
    }

    /// The user who is logged in. `ends_by_itself`: the Redis key has an expiry. Then the expiry in the JSON is
    /// ignored, because connect-redis extends only the key's while the session is used.
    pub fn user(&self, json: &[u8], ends_by_itself: bool) -> Result<UserId, SessionError> {
        if json.len() > MAX_SESSION_BYTES {
            return Err(SessionError::Malformed);
        }
        let session: Value = serde_json::from_slice(json).map_err(|_| SessionError::Malformed)?;
        if !session.is_object() {
            return Err(SessionError::Malformed);
        }
        if !ends_by_itself && remaining(&session).is_some_and(|remaining| remaining.is_zero()) {
            return Err(SessionError::Ended);
        }
        let user = self.user.iter().try_fold(&session, |value, name| value.as_object()?.get(name));
        let user = match user {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) if !number.is_f64() => number.to_string(),
            _ => return Err(SessionError::NoUser),
        };
        UserId::new(&user).map_err(|_| SessionError::NoUser)
    }

    /// How long until the expiry in the JSON; `None` if it has none.
    pub fn remaining(json: &[u8]) -> Option<Duration> {
        remaining(&serde_json::from_slice(json).ok()?)
    }
}

/// How long until the expiry in the JSON; `None` if it has none. An unreadable date counts as past, so that the session is
/// refused.
fn remaining(session: &Value) -> Option<Duration> {
    let end = session.get("cookie")?.get("expires")?.as_str()?;
    let remaining = OffsetDateTime::parse(end, &Rfc3339).map(|end| end - OffsetDateTime::from(SystemTime::now()));
    Some(remaining.ok().and_then(|remaining| remaining.try_into().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reader(secrets: &[&str], user: &str) -> SessionReader {
        SessionReader::new(&config::Sessions {
            secrets: secrets.iter().map(|secret| (*secret).into()).collect(),
            cookie: "connect.sid".into(),
            prefix: "sess:".into(),
            user: user.into(),
        })
    }

    fn sign(id: &str, secret: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        format!("s:{id}.{}", STANDARD_NO_PAD.encode(hmac::sign(&key, id.as_bytes())))
    }

    /// Made by the npm package `cookie-signature` from the id `an.id` and the secret `keyboard cat`.
    const MADE_BY_EXPRESS: &str = "s:an.id.fxJjdZ0nPtLlJkdT2Ox+Fqm1qciHOcrQxFVPUkEuzhs";

    #[test]
    fn a_cookie_signed_by_express_with_any_secret_is_accepted() {
        assert_eq!(sign("an.id", "keyboard cat"), MADE_BY_EXPRESS);
        for secrets in [&["keyboard cat"][..], &["new", "keyboard cat"]] {
            assert_eq!(reader(secrets, "userId").id(MADE_BY_EXPRESS), Ok("an.id"));
        }
    }

    #[test]
    fn a_cookie_without_a_valid_signature_is_refused() {
        let reader = reader(&["keyboard cat"], "userId");
        let good = MADE_BY_EXPRESS;
        let wrong = [
            sign("an.id", "another"),
            sign("", "keyboard cat"),
            good.replacen("s:", "", 1),
            good.replacen("an", "om", 1),
            format!("{good}="),
            good.get(..good.len() - 1).unwrap().to_owned(),
            "s:an.id".into(),
            "s:an.id.".into(),
            "s:".into(),
            "an.id".into(),
            String::new(),
        ];
        for cookie in wrong {
            assert_eq!(reader.id(&cookie), Err(SessionError::Signature), "{cookie}");
        }
    }

    #[test]
    fn the_user_is_a_string_or_an_integer_at_the_configured_path() {
        let flat = reader(&["x"], "userId");
        assert_eq!(flat.user(br#"{"cookie":{"expires":null},"userId":"42"}"#, true).unwrap().as_str(), "42");
        assert_eq!(flat.user(br#"{"userId":42}"#, false).unwrap().as_str(), "42");
        let deep = reader(&["x"], "passport.user");
        assert_eq!(deep.user(br#"{"passport":{"user":"42"}}"#, true).unwrap().as_str(), "42");
        for none in
            [r#"{"userId":"42"}"#, r#"{"passport":{}}"#, r#"{"passport":{"user":{"id":1}}}"#, r#"{"passport":["42"]}"#]
        {
            assert_eq!(deep.user(none.as_bytes(), true), Err(SessionError::NoUser), "{none}");
        }
        for none in [r#"{"userId":""}"#, r#"{"userId":4.5}"#, r#"{"userId":null}"#, r#"{"userId":true}"#, "{}"] {
            assert_eq!(flat.user(none.as_bytes(), true), Err(SessionError::NoUser), "{none}");
        }
        for odd in ["", "42", "[]", "\"42\"", "{"] {
            assert_eq!(flat.user(odd.as_bytes(), true), Err(SessionError::Malformed), "{odd}");
        }
        let large = format!(r#"{{"userId":"42","x":"{}"}}"#, "x".repeat(MAX_SESSION_BYTES));
        assert_eq!(flat.user(large.as_bytes(), true), Err(SessionError::Malformed));
    }

    #[test]
    fn an_expired_session_is_refused_unless_redis_expires_it() {
        let reader = reader(&["x"], "userId");
        let session = |expires: &str| format!(r#"{{"cookie":{{"expires":"{expires}"}},"userId":"42"}}"#);
        let past = session("2001-02-03T04:05:06.789Z");
        assert_eq!(reader.user(past.as_bytes(), false), Err(SessionError::Ended));
        assert!(reader.user(past.as_bytes(), true).is_ok());
        assert!(reader.user(session("2901-02-03T04:05:06.789Z").as_bytes(), false).is_ok());
    }

    proptest! {
        #[test]
        fn an_id_is_accepted_only_with_its_own_signature(id in "\\PC{1,40}", other in "\\PC{0,60}") {
            let reader = reader(&["keyboard cat"], "userId");
            let cookie = sign(&id, "keyboard cat");
            prop_assert_eq!(reader.id(&cookie), Ok(id.as_str()));
            prop_assert!(reader.id(&sign(&id, "another")).is_err());
            prop_assert!(reader.id(&other).is_err());
        }
    }
}
