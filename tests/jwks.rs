//! The key set of an issuer: fetched only from the configured URL, kept while it is unavailable, fetched again for new
//! keys.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    Authority, Client, Gateway, Issuer, KeyServer, Options, Publishes, Refused, eventually, handshake, key_set, now,
    refused, within,
};

/// An instance on this key server, and on no other key unless it gets one.
fn on(server: &KeyServer) -> Options {
    Options::bare().without_secret().arg("--dev").set("auth.jwks_url", &server.url())
}

/// The status and the code of a handshake under this token; 101 where it is let in.
async fn status(gateway: &Gateway, token: &str) -> (u16, String) {
    match handshake(gateway.public, "/ws", &[("Authorization", &format!("Bearer {token}"))]).await {
        Ok(_) => (101, String::new()),
        Err(Refused { status, code, .. }) => (status, code),
    }
}

async fn let_in(gateway: &Gateway, token: &str) -> bool {
    let (status, _) = status(gateway, token).await;
    assert!(status == 101 || status == 401, "{status}");
    status == 101
}

async fn refreshes(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("tidings_jwks_refreshes_total{{result=\"{result}\"}}")).await
}

#[tokio::test]
async fn the_keys_of_a_set_let_in_their_own_tokens_and_no_others() {
    let (rsa, ec, ed) = (Issuer::new("RS256").named("a"), Issuer::new("ES512").named("b"), Issuer::new("EdDSA"));
    let mislabelled = Issuer::new("ES384").named("c");
    let encrypts = Issuer::new("EdDSA").named("d");
    let wraps = Issuer::new("ES256").named("e");
    let broken = Issuer::new("ES256").named("f");
    let mut keys: Vec<Value> = [&rsa, &ec, &ed, &mislabelled, &encrypts, &wraps, &broken].map(Issuer::jwk).into();
    keys[0]["alg"] = "PS256".into();
    keys[1]["alg"] = "ES512".into();
    keys[1]["use"] = "sig".into();
    keys[1]["key_ops"] = json!(["verify"]);
    keys[2]["alg"] = "Ed25519".into();
    keys[3]["alg"] = "ES256".into();
    keys[4]["use"] = "enc".into();
    keys[5]["key_ops"] = json!(["wrapKey"]);
    // The same point, cut in another place.
    let coordinates =
        [&keys[6]["x"], &keys[6]["y"]].map(|text| BASE64.decode(text.as_str().unwrap()).unwrap()).concat();
    keys[6]["x"] = BASE64.encode(&coordinates[..31]).into();
    keys[6]["y"] = BASE64.encode(&coordinates[31..]).into();
    // A leading zero, as some issuers write it.
    let modulus = BASE64.decode(keys[0]["n"].as_str().unwrap()).unwrap();
    keys[0]["n"] = BASE64.encode([&[0], &modulus[..]].concat()).into();
    keys.push(json!({"kty": "oct", "kid": "g", "k": "c2VjcmV0"}));
    keys.push(json!("no key"));
    keys.push(json!({"kty": "RSA", "kid": "h", "n": "AQAB", "e": "AQAB"}));
    let server = KeyServer::start(Publishes::Keys(json!({"keys": keys, "more": 1}).to_string())).await;
    let gateway = on(&server).start().await;

    let pss = Issuer::new("PS256").named("a");
    for issuer in [&pss, &ec, &ed] {
        assert!(let_in(&gateway, &issuer.token("42")).await, "{}", issuer.algorithm);
    }
    // Without a kid, each key of the algorithm is tried.
    let nameless = ec.clone().nameless();
    assert!(let_in(&gateway, &nameless.token("42")).await);
    let refused = [
        // Its own `alg` narrows a key, and no key serves an algorithm of another kind.
        rsa.token("42"),
        mislabelled.token("42"),
        encrypts.token("42"),
        wraps.token("42"),
        broken.token("42"),
        // Signed with a good key under another's kid.
        ec.clone().named("a").token("42"),
        pss.clone().named("b").token("42"),
        Issuer::new("ES512").named("b").token("42"),
        // A shared secret in a key set is known to any client.
        jsonwebtoken::encode(
            &jsonwebtoken::Header { kid: Some("g".into()), ..jsonwebtoken::Header::default() },
            &json!({"sub": "42", "exp": now() + 60}),
            &jsonwebtoken::EncodingKey::from_secret(b"secret").unwrap(),
        )
        .unwrap(),
    ];
    for (index, token) in refused.iter().enumerate() {
        assert!(!let_in(&gateway, token).await, "{index}");
    }
}

#[tokio::test]
async fn a_new_key_is_picked_up_with_its_first_token_and_an_old_one_is_forgotten() {
    let (old, new) = (Issuer::new("ES256").named("old"), Issuer::new("ES256").named("new"));
    let server = KeyServer::start(Publishes::Keys(key_set(&[&old]))).await;
    let gateway = on(&server).start().await;
    assert!(let_in(&gateway, &old.token("42")).await);
    server.publish(Publishes::Keys(key_set(&[&new])));
    assert!(let_in(&gateway, &old.token("42")).await, "no token required a newer key set");
    assert!(let_in(&gateway, &new.token("42")).await);
    assert!(!let_in(&gateway, &old.token("42")).await);
    assert_eq!(server.requests(), 2);
    assert_eq!(refreshes(&gateway, "ok").await, 2.0);
}

#[tokio::test]
async fn a_storm_of_made_up_kids_causes_one_fetch() {
    let issuer = Issuer::new("ES256").named("ours");
    let server = KeyServer::start(Publishes::Keys(key_set(&[&issuer]))).await;
    let gateway = on(&server).start().await;
    assert!(let_in(&gateway, &issuer.token("42")).await);
    for _ in 0..3 {
        let storm = (0..40).map(|number| {
            let (gateway, issuer) = (&gateway, &issuer);
            let token =
                issuer.sign(&json!({"kid": format!("made up {number}")}), &json!({"sub": "42", "exp": now() + 60}));
            async move { status(gateway, &token).await }
        });
        assert!(join_all(storm).await.iter().all(|(status, _)| *status == 401));
    }
    assert_eq!(server.requests(), 2, "one at the start, one for the storm");
    assert!(let_in(&gateway, &issuer.token("42")).await);
}

#[tokio::test]
async fn the_old_keys_are_kept_while_the_url_is_down_and_new_ones_come_when_it_is_back() {
    let (old, new) = (Issuer::new("EdDSA").named("old"), Issuer::new("EdDSA").named("new"));
    let server = KeyServer::start(Publishes::Keys(key_set(&[&old]))).await;
    let gateway = on(&server).start().await;
    assert!(let_in(&gateway, &old.token("42")).await);
    server.publish(Publishes::Hangup);
    assert!(!let_in(&gateway, &new.token("42")).await);
    assert!(refreshes(&gateway, "unreachable").await >= 1.0);
    assert!(let_in(&gateway, &old.token("42")).await);
    assert!(gateway.log().contains("auth.jwks_url"), "{}", gateway.log());
    // It tries again by itself, without a token that triggers it.
    server.publish(Publishes::Keys(key_set(&[&old, &new])));
    eventually("the new set", async || refreshes(&gateway, "ok").await >= 2.0).await;
    assert!(let_in(&gateway, &new.token("42")).await && let_in(&gateway, &old.token("42")).await);
}

/// Plays rounds until one was quick enough: a fetch has two seconds, which a busy machine may take for anything.
async fn in_time(round: impl AsyncFn() -> bool) {
    for _ in 0..10 {
        if round().await {
            return;
        }
    }
    panic!("no round was in time");
}

#[tokio::test]
async fn who_comes_before_the_first_set_waits_for_the_one_fetch() {
    in_time(before_the_first_set).await;
}

async fn before_the_first_set() -> bool {
    let issuer = Issuer::new("RS256").named("ours");
    let server = KeyServer::start(Publishes::Nothing).await;
    // Ready nevertheless: another server's outage must not affect its other users.
    let gateway = on(&server).start().await;
    let tokens: Vec<String> = (0..10).map(|number| issuer.token(&number.to_string())).collect();
    let early = join_all(tokens.iter().map(|token| status(&gateway, token)));
    let publishing = async {
        eventually("the fetch", async || server.requests() == 1).await;
        server.publish(Publishes::Keys(key_set(&[&issuer])));
    };
    let (statuses, ()) = tokio::join!(early, publishing);
    let in_time = server.requests() == 1;
    assert!(!in_time || statuses.iter().all(|(status, _)| *status == 101), "{statuses:?}");
    in_time
}

#[tokio::test]
async fn without_any_set_a_token_is_not_called_bad_but_sent_to_try_again() {
    let issuer = Issuer::new("RS256").named("ours");
    let server = KeyServer::start(Publishes::Hangup).await;
    let gateway = on(&server).env("TIDINGS_AUTH__HMAC_SECRET", crate::support::SECRET).start().await;
    let bearer = format!("Bearer {}", issuer.token("42"));
    let answer = refused(gateway.public, "/ws", &[("Authorization", &bearer)]).await;
    assert_eq!((answer.status, answer.code.as_str()), (503, "keys_unavailable"));
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    assert_eq!(gateway.metric("tidings_refusals_total{code=\"keys_unavailable\"}").await, 1.0);

    let mut client = Client::anonymous(&gateway).await;
    client.send(&json!({"type": "hello", "token": issuer.token("42")}).to_string()).await;
    assert_eq!(client.close_code().await, 4100);

    // Who needs no key of the set is not concerned.
    let mut client = Client::connect(&gateway, "42").await;
    client.send(&json!({"type": "auth", "token": issuer.token("42")}).to_string()).await;
    let error = client.frame().await;
    assert_eq!((&error["type"], &error["code"]), (&"error".into(), &4100.into()), "{error}");
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":"alive"}"#).await;
    assert_eq!(client.event().await, "alive");
    // A token that no key set could make valid is bad at once.
    for token in ["no.such.token".to_owned(), issuer.sign(&json!({"alg": "none"}), &json!({}))] {
        assert_eq!(status(&gateway, &token).await, (401, "bad_token".into()));
    }
}

#[tokio::test]
async fn a_connection_goes_on_while_its_fresh_token_waits_for_keys() {
    in_time(while_a_fresh_token_waits).await;
}

async fn while_a_fresh_token_waits() -> bool {
    let (old, new) = (Issuer::new("ES256").named("old"), Issuer::new("ES256").named("new"));
    let server = KeyServer::start(Publishes::Keys(key_set(&[&old]))).await;
    let gateway = on(&server).start().await;
    let (mut client, _) = Client::connect_with_token(&gateway, &old.token("42")).await;
    server.publish(Publishes::Nothing);
    let auth = json!({"type": "auth", "token": new.token("42")}).to_string();
    client.send(&auth).await;
    eventually("the fetch", async || server.requests() == 2).await;
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":"meanwhile"}"#).await;
    assert_eq!(client.event().await, "meanwhile");
    client.send(&auth).await;
    let error = client.frame().await;
    assert_eq!(error["type"], "error", "{error}");
    let in_time = refreshes(&gateway, "timeout").await == 0.0;
    assert!(!in_time || error["message"].as_str().unwrap().contains("still being verified"), "{error}");
    server.publish(Publishes::Keys(key_set(&[&new])));
    let answer = client.frame().await;
    let in_time = in_time && refreshes(&gateway, "timeout").await == 0.0;
    assert!(!in_time || answer["type"] == "authenticated", "{answer}");
    in_time
}

#[tokio::test]
async fn an_answer_that_is_no_key_set_is_refused_and_counted() {
    let issuer = Issuer::new("EdDSA");
    let set = key_set(&[&issuer]);
    let elsewhere = KeyServer::start(Publishes::Keys(set.clone())).await;
    let ok = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let padded = format!("{set}{}", " ".repeat(64 * 1024));
    let chunked =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{padded}\r\n0\r\n\r\n", padded.len());
    let redirect = format!("HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", elsewhere.url());
    let answers = [
        (Publishes::Bytes(redirect), "status"),
        (Publishes::Bytes(ok(&set).replacen("200 OK", "500 Oops", 1)), "status"),
        (Publishes::Bytes(ok(&padded)), "too_large"),
        (Publishes::Bytes(chunked), "too_large"),
        (Publishes::Bytes(ok("<html>")), "malformed"),
        (Publishes::Bytes(ok("{\"keys\":{}}")), "malformed"),
        (Publishes::Bytes(ok(&set).replacen("Content-Length: ", "Content-Length: 9", 1)), "unreachable"),
        (Publishes::Nothing, "timeout"),
    ];
    join_all(answers.map(async |(answer, result)| {
        let server = KeyServer::start(answer).await;
        let gateway = on(&server).start().await;
        eventually(result, async || refreshes(&gateway, result).await >= 1.0).await;
        let (status, code) = within("an answer", status(&gateway, &issuer.token("42"))).await;
        assert_eq!((status, code.as_str()), (503, "keys_unavailable"), "{result}");
        assert_eq!(refreshes(&gateway, "ok").await, 0.0, "{result}");
        // The answer that is expected lets them in, on the next try.
        server.publish(Publishes::Keys(set.clone()));
        eventually(result, async || refreshes(&gateway, "ok").await == 1.0).await;
        assert!(let_in(&gateway, &issuer.token("42")).await, "{result}");
    }))
    .await;
    assert_eq!(elsewhere.requests(), 0, "a redirect is not followed");
}

#[tokio::test]
async fn a_set_over_https_is_had_only_from_whom_the_system_trusts() {
    let (authority, stranger, issuer) = (Authority::new(), Authority::new(), Issuer::new("PS512"));
    let server = KeyServer::start_tls(Publishes::Keys(key_set(&[&issuer])), &authority).await;
    let trusting = |authority: &Authority| on(&server).env("SSL_CERT_FILE", authority.ca_file().to_str().unwrap());
    let gateway = trusting(&authority).start().await;
    assert!(let_in(&gateway, &issuer.token("42")).await);
    let gateway = trusting(&stranger).start().await;
    assert_eq!(status(&gateway, &issuer.token("42")).await.0, 503);
    assert!(refreshes(&gateway, "unreachable").await >= 1.0);
    assert!(gateway.log().contains("invalid peer certificate"), "{}", gateway.log());
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_set_over_https_is_had_from_the_configured_authority_too_and_a_distrusted_one_names_the_key() {
    let (authority, stranger, issuer) = (Authority::new(), Authority::new(), Issuer::new("ES256"));
    let server = KeyServer::start_tls(Publishes::Keys(key_set(&[&issuer])), &authority).await;
    let trusting = |authority: &Authority| on(&server).set("auth.jwks_ca_file", authority.ca_file().to_str().unwrap());
    let gateway = trusting(&authority).start().await;
    assert!(let_in(&gateway, &issuer.token("42")).await);
    // In addition to the system's.
    let both = trusting(&stranger).env("SSL_CERT_FILE", authority.ca_file().to_str().unwrap()).start().await;
    assert!(let_in(&both, &issuer.token("42")).await);
    for gateway in [trusting(&stranger).start().await, on(&server).start().await] {
        eventually("the failure is counted", async || refreshes(&gateway, "unreachable").await >= 1.0).await;
        assert!(gateway.log().contains("set auth.jwks_ca_file"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_key_server_without_encryption_is_warned_of_at_every_start_and_its_query_not_shown() {
    let url = "http://issuer.invalid/keys?key=hunter2-of-jwks";
    let options = || Options::bare().without_secret().arg("--dev").set("auth.jwks_url", url).set("log.level", "trace");
    for _ in 0..2 {
        let gateway = options().set("auth.jwks_allow_http", "true").start().await;
        eventually("the failure is counted", async || refreshes(&gateway, "unreachable").await >= 1.0).await;
        let log = gateway.log();
        assert!(log.lines().any(|line| line.contains("WARN") && line.contains("auth.jwks_allow_http")), "{log}");
        assert!(!log.contains("hunter2-of-jwks"), "{log}");
    }
}

#[tokio::test]
async fn a_set_has_at_most_32_keys_and_one_without_any_lets_nobody_in() {
    let mut issuers: Vec<Issuer> = (0..33).map(|_| Issuer::new("EdDSA")).collect();
    let last = issuers.pop().unwrap();
    let all: Vec<&Issuer> = issuers.iter().chain([&last]).collect();
    let server = KeyServer::start(Publishes::Keys(key_set(&all))).await;
    let gateway = on(&server).start().await;
    assert!(let_in(&gateway, &issuers[31].token("42")).await);
    assert!(!let_in(&gateway, &last.token("42")).await);
    server.publish(Publishes::Keys(r#"{"keys":[]}"#.into()));
    assert!(!let_in(&gateway, &last.named("new").token("42")).await);
    assert!(!let_in(&gateway, &issuers[0].token("42")).await);
    assert!(gateway.log().contains("no key that verifies"), "{}", gateway.log());
}

#[tokio::test]
async fn a_private_key_that_a_set_publishes_is_warned_of_by_its_name() {
    let (good, leaked) = (Issuer::new("EdDSA").named("good"), Issuer::new("EdDSA").named("leaked"));
    let mut keys = [&good, &leaked].map(Issuer::jwk);
    keys[1]["d"] = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A".into();
    let server = KeyServer::start(Publishes::Keys(json!({"keys": keys}).to_string())).await;
    let gateway = on(&server).start().await;
    assert!(let_in(&gateway, &leaked.token("42")).await, "the issuer decides which keys are good");
    let log = gateway.log();
    let warning = log.lines().find(|line| line.contains("private key")).unwrap_or_else(|| panic!("no warning: {log}"));
    assert!(warning.contains("WARN") && warning.contains("leaked") && !warning.contains("good"), "{warning}");
    assert!(!log.contains("nWGxne"), "the key itself is not shown: {log}");
}
