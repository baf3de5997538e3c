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
        encode(&Header::new(Algorithm::HS256), &large, &EncodingKey::from_secret(SECRET.as_bytes()).unwrap()).unwrap();
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
    let ends = [spare(1), spare(2), format!("{last}="), format!("{last}=="), format!("{last}\n"), format!("{last}.")];
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
        assert!(matches!(check(claims.clone()), Err(TokenError::Claims(_))), "{claims}");
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
fn a_token_of_almost_a_century_does_not_overflow_a_clock_and_a_longer_one_is_refused() {
    const DAY: u64 = 86_400;
    for too_long in [json!(1e18), json!(u64::MAX), json!(now() + 36_526 * DAY), json!((now() + 60) * 1_000)] {
        let Err(TokenError::Claims(why)) = verify(&json!({"sub": "42", "exp": too_long})) else { panic!("{too_long}") };
        assert!(why.contains("seconds"), "{why}");
    }
    let identity = verify(&json!({"sub": "42", "exp": now() + 36_524 * DAY})).unwrap();
    assert_eq!(Verifier::new(&auth(&[])).unwrap().ends_at(&identity), None);
}
