//! Only tokens signed with a configured key, by an algorithm of that key's kind, are accepted.

use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tidings::internals::{Identity, TokenError, UserId, Verifier};
use tidings::{Config, ConfigError, Layers};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};

use crate::support::{
    ASYMMETRIC, Issuer, KeyServer, Options, Publishes, SECRET, command, handshake, key_set, now, output, refused,
    sign_with,
};

fn pem_file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn verifier(settings: &[(&str, &str)]) -> Result<Verifier, ConfigError> {
    let flags = settings.iter().map(|(key, value)| ("--set".into(), (*key).into(), (*value).into())).collect();
    Verifier::new(&Config::load(Layers { flags, ..Layers::default() })?.auth)
}

/// With the keys of a PEM file.
fn with_pem(pem: &str) -> Verifier {
    let file = pem_file(pem);
    verifier(&[("auth.public_key_file", file.path().to_str().unwrap())]).unwrap()
}

fn user(verifier: &Verifier, token: &str) -> Result<String, TokenError> {
    let verified = verifier.verify_now(token).expect("no key set to wait for");
    verified.map(|identity| identity.user.to_string())
}

fn claims() -> Value {
    json!({"sub": "42", "exp": now() + 3_600})
}

#[track_caller]
fn assert_bad(verifier: &Verifier, token: &str) {
    assert!(
        matches!(user(verifier, token), Err(TokenError::Bad(_) | TokenError::Claims(_))),
        "{:?}",
        user(verifier, token)
    );
}

#[test]
fn a_token_of_each_algorithm_is_accepted_with_the_pem_of_its_key_and_with_that_key_alone() {
    let issuers: Vec<Issuer> = ASYMMETRIC.into_iter().map(Issuer::new).collect();
    let rsa = |issuer: &Issuer| issuer.algorithm.starts_with(['R', 'P']);
    for issuer in &issuers {
        let verifier = with_pem(&issuer.pem());
        assert_eq!(user(&verifier, &issuer.token("42")).as_deref(), Ok("42"), "{}", issuer.algorithm);
        for other in issuers.iter().filter(|other| other.algorithm != issuer.algorithm) {
            let shared = rsa(issuer) && rsa(other);
            assert_eq!(user(&verifier, &other.token("42")).is_ok(), shared, "{}", other.algorithm);
        }
        // Another key of the same kind.
        if !rsa(issuer) {
            assert_bad(&verifier, &Issuer::new(issuer.algorithm).token("42"));
        }
    }
}

#[test]
fn a_key_file_may_be_pkcs1_a_certificate_or_several_keys() {
    let (rsa, ec, ed) = (Issuer::new("RS256"), Issuer::new("ES384"), Issuer::new("EdDSA"));
    assert!(user(&with_pem(&rsa.pkcs1_pem()), &rsa.token("42")).is_ok());
    for issuer in [&rsa, &ec, &ed] {
        assert!(user(&with_pem(&issuer.certificate()), &issuer.token("42")).is_ok(), "{}", issuer.algorithm);
    }
    let all = ["of a friend: \u{fc}\n", &rsa.pkcs1_pem(), &ec.pem(), "\n", &ed.pem()].concat();
    for all in [all.replace('\n', "\r\n"), all] {
        let all = with_pem(&all);
        for issuer in [&rsa, &ec, &ed] {
            assert!(user(&all, &issuer.token("42")).is_ok(), "{}", issuer.algorithm);
        }
    }
}

#[test]
fn a_secret_and_a_public_key_serve_side_by_side() {
    let issuer = Issuer::new("RS256");
    let file = pem_file(&issuer.pem());
    let path = file.path().to_str().unwrap();
    let both = verifier(&[("auth.public_key_file", path), ("auth.hmac_secret", SECRET)]).unwrap();
    assert!(user(&both, &issuer.token("42")).is_ok());
    assert!(user(&both, &sign_with(Algorithm::HS512, SECRET, &claims())).is_ok());
    // A kid means nothing to keys that have none.
    assert!(user(&both, &issuer.named("any").token("42")).is_ok());
}

#[tokio::test]
async fn a_file_without_a_usable_public_key_is_refused_at_start_by_name_and_not_shown() {
    let (rsa, ec) = (Issuer::new("RS256"), Issuer::new("ES256"));
    let cut: String = rsa.pem().lines().take(3).collect::<Vec<_>>().join("\n");
    let damaged = rsa.pem().replacen("MII", "MIJ", 1);
    let garbage = "no key at all: hunter2";
    let refused = [
        (rsa.private_pem(), "private key"),
        (ec.private_pem(), "private key"),
        ([ec.pem(), ec.private_pem()].concat(), "private key"),
        (ec.private_pem().replace("PRIVATE KEY", "EC PRIVATE KEY"), "private key"),
        (ec.private_pem().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "private key"),
        ([ec.certificate(), ec.certificate()].concat(), "certificate"),
        (WEAK_RSA.to_owned(), "2048"),
        (cut, "PEM"),
        (damaged, "no key"),
        (garbage.to_owned(), "PEM"),
        (String::new(), "PEM"),
        (ec.pem().repeat(33), "32"),
        (ec.pem().replace("PUBLIC KEY", "X509 CRL"), "no key"),
        ([ec.pem(), ec.pem().replace("PUBLIC KEY", "DSA PUBLIC KEY")].concat(), "no key"),
        ([ec.pem(), ec.pem().replace("END", "AND")].concat(), "PEM"),
        (ec.pem().replace("END PUBLIC", "END RSA"), "PEM"),
        (["-----BEGIN PUBLIC KEY-----\n", &ec.pem()].concat(), "PEM"),
    ];
    for (pem, why) in refused {
        let file = pem_file(&pem);
        let path = file.path().to_str().unwrap();
        let error = verifier(&[("auth.public_key_file", path)]).unwrap_err().to_string();
        assert!(error.contains("auth.public_key_file") && error.contains(path), "{error}");
        assert!(error.contains(why) && error.contains("expected"), "{error}");
        let secret = pem.lines().nth(1).unwrap_or("hunter2");
        assert!(!error.contains(secret) && !error.contains("hunter2"), "{error}");
    }
    let file = pem_file(&ec.private_pem());
    let path = file.path().to_str().unwrap();
    for arguments in [&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"][..], &["check-config"]] {
        let mut command = command(arguments);
        command.args(["--set", &format!("auth.public_key_file={path}")]);
        let output = output(command).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("auth.public_key_file") && error.contains("private key"), "{error}");
        assert!(!error.contains(ec.private_pem().lines().nth(1).unwrap()), "{error}");
    }
}

/// 1024 bits; the library makes none.
const WEAK_RSA: &str = "-----BEGIN PUBLIC KEY-----\n\
    MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCpz0l1zXw3eRV4871kLCy9Vhd9\n\
    avodZndofgNLIJd/+33CoG+LS/q5qq8j1aUZopnyMsrOaHeLuTRiuyIlFWOx8zni\n\
    MmFwF2u4878/rKAg0qefqiOs1REPDZFdx7SvVr3TzsZhvTb1/9Uzho+wcqH7P7Dr\n\
    Nfg4JLGULYgR94mTiQIDAQAB\n\
    -----END PUBLIC KEY-----\n";

#[tokio::test]
async fn without_any_way_to_verify_serve_names_those_that_would_do() {
    for arguments in [&["serve"][..], &["check-config"]] {
        let output = output(command(arguments)).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        for key in ["auth.hmac_secret", "auth.hmac_secret_file", "auth.public_key_file", "auth.jwks_url"] {
            assert!(error.contains(key), "{error}");
        }
    }
    // A secret that only verifies old tokens is no way to go on.
    let mut previous = command(&["check-config"]);
    previous.env("TIDINGS_AUTH__PREVIOUS_HMAC_SECRET", SECRET);
    assert_eq!(output(previous).await.status.code(), Some(2));
    let mut token = command(&["token", "42"]);
    token.env("TIDINGS_AUTH__JWKS_URL", "https://issuer.example/keys");
    let refused = output(token).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("auth.hmac_secret"));
}

#[tokio::test]
async fn an_empty_secret_is_refused_at_start_by_name() {
    for name in ["auth.hmac_secret", "auth.previous_hmac_secret"] {
        for arguments in [&["serve"][..], &["check-config"], &["token", "42"]] {
            let mut command = command(arguments);
            command.env("TIDINGS_AUTH__HMAC_SECRET", SECRET);
            command.env(format!("TIDINGS_{}", name.replace('.', "__").to_uppercase()), "");
            let output = output(command).await;
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert!(error.contains(&format!("{name} = ***")) && error.contains("non-empty"), "{error}");
        }
    }
}

#[test]
fn a_verifier_takes_no_empty_secret_from_whoever_embeds_the_gateway() {
    let layers = Layers { env: vec![("TIDINGS_AUTH__HMAC_SECRET".into(), SECRET.into())], ..Layers::default() };
    let good = Config::load(layers).unwrap().auth;
    assert!(Verifier::new(&good).is_ok());
    let mut current = good.clone();
    current.hmac_secret = Some(String::new().into());
    let mut previous = good;
    previous.previous_hmac_secret = Some(String::new().into());
    for (auth, name) in [(current, "auth.hmac_secret"), (previous, "auth.previous_hmac_secret")] {
        let error = Verifier::new(&auth).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("empty"), "{error}");
    }
}

#[test]
fn a_key_set_is_fetched_over_https_or_on_this_machine_alone() {
    let url = |url: &str| verifier(&[("auth.jwks_url", url)]);
    for good in ["https://issuer.example/keys", "http://127.0.0.1:1/", "http://localhost/k", "http://[::1]:8/k"] {
        assert!(url(good).is_ok(), "{good}");
    }
    for bad in [
        "http://issuer.example/keys",
        "http://localhost.evil.example/",
        "http://127.0.0.1.evil.example/",
        "https://user:hunter2@issuer.example/",
        "https://hunter2@issuer.example/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "issuer.example",
        "",
    ] {
        let error = url(bad).unwrap_err().to_string();
        assert!(error.contains("auth.jwks_url") && error.contains("https://"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = url("http://issuer.example/keys").unwrap_err().to_string();
    assert!(error.contains("auth.jwks_allow_http"), "{error}");
    let allowed = |url: &str| verifier(&[("auth.jwks_url", url), ("auth.jwks_allow_http", "true")]);
    assert!(allowed("http://issuer.example/keys").is_ok());
    assert!(allowed("http://user:hunter2@issuer.example/").is_err() && allowed("ftp://127.0.0.1/").is_err());
}

// From here on, attacks.

#[test]
fn alg_none_is_refused_however_it_is_written_and_whatever_is_configured() {
    let issuer = Issuer::new("RS256");
    let file = pem_file(&issuer.pem());
    let path = file.path().to_str().unwrap();
    let all = verifier(&[("auth.public_key_file", path), ("auth.hmac_secret", SECRET)]).unwrap();
    for alg in [json!("none"), json!("None"), json!("NONE"), json!(""), json!(null), json!(["RS256"]), json!(0)] {
        let token = issuer.sign(&json!({"alg": alg}), &claims());
        assert_bad(&all, &token);
        let unsigned = &token[..=token.rfind('.').unwrap()];
        assert_bad(&all, unsigned);
        assert_bad(&all, unsigned.trim_end_matches('.'));
    }
}

#[test]
fn a_pem_file_may_be_indented_or_begin_with_a_byte_order_mark() {
    let (first, second) = (Issuer::new("ES256"), Issuer::new("EdDSA"));
    let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    for text in [format!("\u{feff}{}", first.pem()), indented(&first.pem()), second.pem() + &indented(&first.pem())] {
        assert_eq!(user(&with_pem(&text), &first.token("42")).unwrap(), "42", "{text}");
    }
}

#[test]
fn a_token_signed_with_hmac_and_the_public_key_as_its_secret_is_refused() {
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let issuer = Issuer::new(algorithm);
        let verifier = with_pem(&issuer.pem());
        assert!(user(&verifier, &issuer.token("42")).is_ok());
        let der = SubjectPublicKeyInfoDer::from_pem_slice(issuer.pem().as_bytes()).unwrap();
        let pem = issuer.pem();
        for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), &der] {
            for hmac in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
                assert_bad(&verifier, &sign_with_bytes(hmac, secret));
            }
        }
    }
}

fn sign_with_bytes(algorithm: Algorithm, secret: &[u8]) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret).unwrap();
    jsonwebtoken::encode(&jsonwebtoken::Header::new(algorithm), &claims(), &key).unwrap()
}

#[test]
fn what_a_header_says_of_its_algorithm_does_not_choose_the_kind_of_key() {
    let (rsa, ec, ed) = (Issuer::new("RS256"), Issuer::new("ES256"), Issuer::new("EdDSA"));
    let all = with_pem(&[rsa.pem(), ec.pem(), ed.pem()].concat());
    for issuer in [&rsa, &ec, &ed] {
        for alg in ["RS256", "PS256", "ES256", "ES384", "EdDSA", "HS256"].iter().filter(|alg| **alg != issuer.algorithm)
        {
            assert_bad(&all, &issuer.sign(&json!({"alg": alg}), &claims()));
        }
    }
}

#[tokio::test]
async fn a_key_that_a_token_brings_or_points_to_is_neither_used_nor_fetched() {
    let (ours, attacker) = (Issuer::new("ES256"), Issuer::new("ES256"));
    let server = KeyServer::start(Publishes::Keys(key_set(&[&attacker]))).await;
    let file = pem_file(&ours.pem());
    let gateway = Options::dev().set("auth.public_key_file", file.path().to_str().unwrap()).start().await;
    let der = CertificateDer::from_pem_slice(attacker.certificate().as_bytes()).unwrap();
    let x5c = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
    let url = server.url();
    let headers = [
        json!({"jwk": attacker.jwk()}),
        json!({"jku": url}),
        json!({"x5u": url}),
        json!({"x5c": [x5c]}),
        json!({"jwk": attacker.jwk(), "jku": url, "x5u": url, "x5c": [x5c], "kid": url}),
    ];
    for more in &headers {
        let bearer = format!("Bearer {}", attacker.sign(more, &claims()));
        assert_eq!(refused(gateway.public, "/ws", &[("Authorization", &bearer)]).await.status, 401, "{more}");
    }
    // They are ignored, not forbidden.
    let bearer = format!("Bearer {}", ours.sign(&headers[4], &claims()));
    assert!(handshake(gateway.public, "/ws", &[("Authorization", &bearer)]).await.is_ok());
    assert_eq!(server.requests(), 0);
}

#[test]
fn a_header_that_demands_an_extension_is_refused() {
    let issuer = Issuer::new("EdDSA");
    let verifier = with_pem(&issuer.pem());
    let headers = [
        json!({"crit": ["exp"], "exp": 0}),
        json!({"crit": ["b64"], "b64": false}),
        json!({"crit": []}),
        json!({"crit": null}),
    ];
    for more in headers {
        let refused = user(&verifier, &issuer.sign(&more, &claims()));
        assert!(matches!(&refused, Err(TokenError::Bad(why)) if why.contains("crit")), "{more}: {refused:?}");
    }
}

#[tokio::test]
async fn a_token_that_demands_an_extension_does_not_get_in() {
    let issuer = Issuer::new("ES256");
    let file = pem_file(&issuer.pem());
    let gateway = Options::dev().set("auth.public_key_file", file.path().to_str().unwrap()).start().await;
    let bearer = |header: &Value| format!("Bearer {}", issuer.sign(header, &claims()));
    let demanding = bearer(&json!({"crit": ["exp"], "exp": 0}));
    let refusal = refused(gateway.public, "/ws", &[("Authorization", &demanding)]).await;
    assert_eq!((refusal.status, &*refusal.code), (401, "bad_token"));
    assert!(handshake(gateway.public, "/ws", &[("Authorization", &bearer(&json!({})))]).await.is_ok());
}

#[test]
fn an_exp_that_is_no_number_is_bad_and_not_absent_nor_expired() {
    let issuer = Issuer::new("EdDSA");
    let verifier = with_pem(&issuer.pem());
    let soon = now() + 3_600;
    for exp in [json!(soon.to_string()), json!(null), json!(true), json!([soon]), json!({"at": soon}), json!(-1)] {
        let refused = user(&verifier, &issuer.sign(&json!({}), &json!({"sub": "42", "exp": exp})));
        assert!(matches!(&refused, Err(TokenError::Claims(why)) if why.contains("\"exp\"")), "{exp}: {refused:?}");
    }
    assert_bad(&verifier, &issuer.sign(&json!({}), &json!({"sub": "42"})));
    for exp in [json!(soon), json!(soon as f64 + 0.5), json!(4e9)] {
        assert!(user(&verifier, &issuer.sign(&json!({}), &json!({"sub": "42", "exp": exp}))).is_ok(), "{exp}");
    }
}

#[test]
fn the_leeway_is_given_on_both_ends_and_not_a_second_more() {
    let issuer = Issuer::new("EdDSA");
    let file = pem_file(&issuer.pem());
    let path = file.path().to_str().unwrap();
    let verifier = verifier(&[("auth.public_key_file", path), ("auth.leeway", "100s")]).unwrap();
    let check = |claims: Value| user(&verifier, &issuer.sign(&json!({}), &claims));
    // The edge itself moves with the clock: a little on this side of it, and just beyond.
    assert!(check(json!({"sub": "42", "exp": now() - 90})).is_ok());
    assert_eq!(check(json!({"sub": "42", "exp": now() - 100})), Err(TokenError::Expired));
    let exp = now() + 3_600;
    assert!(check(json!({"sub": "42", "exp": exp, "nbf": now() + 90})).is_ok());
    assert!(matches!(check(json!({"sub": "42", "exp": exp, "nbf": now() + 110})), Err(TokenError::Claims(_))));
    let identity = |exp: u64| Identity { user: UserId::new("42").unwrap(), expires: Some(exp), credential: None };
    let ends_at = verifier.ends_at(&identity(now())).unwrap();
    assert!(ends_at <= tokio::time::Instant::now() + Duration::from_secs(100));
}

#[test]
fn during_a_rotation_the_previous_secret_verifies_too_and_then_no_longer() {
    let (old, new) = (sign_with(Algorithm::HS384, "old", &claims()), sign_with(Algorithm::HS256, "new", &claims()));
    let rotating = verifier(&[("auth.hmac_secret", "new"), ("auth.previous_hmac_secret", "old")]).unwrap();
    assert!(user(&rotating, &old).is_ok() && user(&rotating, &new).is_ok());
    let rotated = verifier(&[("auth.hmac_secret", "new")]).unwrap();
    assert!(user(&rotated, &new).is_ok());
    assert_bad(&rotated, &old);
}
