//! Tokens, valid and invalid.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use serde_json::{Value, json};

use super::secrets;

/// The secret of every instance of the suite.
pub const SECRET: &str = "the suite's own secret, 32 bytes and more";

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A good token for a user, for an hour.
pub fn token(user: &str) -> String {
    token_for(user, 3_600)
}

/// A token for a user that ends this many seconds from now (or ended, below zero).
pub fn token_for(user: &str, seconds: i64) -> String {
    sign(&json!({"sub": user, "exp": now().saturating_add_signed(seconds)}))
}

/// Any claims, signed with the suite's secret.
pub fn sign(claims: &Value) -> String {
    sign_with(Algorithm::HS256, SECRET, claims)
}

/// Any claims, signed with any secret and algorithm.
pub fn sign_with(algorithm: Algorithm, secret: &str, claims: &impl Serialize) -> String {
    let token = encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes()).unwrap()).unwrap();
    secrets::keep_token(&token);
    token
}
