//! Which handshakes are accepted, which are refused, and the response to each refusal.

use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    Answer, Client, Gateway, Options, RedisServer, SECRET, handshake, now, refused, sign, sign_with, token, token_for,
    within,
};

/// The headers of a good handshake without a token.
const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A good handshake but for these headers, of which an empty one is left out.
async fn upgrade(gateway: &Gateway, method: &str, path: &str, changes: &[(&str, &str)]) -> Answer {
    let kept = UPGRADE.iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    let headers: Vec<_> = kept.chain(changes).copied().filter(|(_, value)| !value.is_empty()).collect();
    gateway.ask_public(method, path, &headers, "").await
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn what_is_no_upgrade_is_426_before_anything_else_is_looked_at() {
    let gateway = Options::dev().set("server.allowed_origins", "https://app.example").start().await;
    let nothing: &[(&str, &str)] = &[];
    for (method, path, headers) in [
        ("GET", "/ws", nothing),
        ("POST", "/ws", nothing),
        ("DELETE", "/ws", nothing),
        ("GET", "/ws?format=unknown", nothing),
        ("GET", "/ws?token=bad", &[("Authorization", "Bearer bad")]),
        ("GET", "/ws", &[("Origin", "https://evil.example")]),
        ("GET", "/ws", &[("Upgrade", "h2c"), ("Connection", "Upgrade")]),
        ("GET", "/ws", &UPGRADE[2..]),
    ] {
        let answer = gateway.ask_public(method, path, headers, "").await;
        assert_eq!(answer.error().0, 426, "{method} {path} {headers:?}");
        assert_eq!(answer.header("upgrade"), "websocket", "RFC 9110 asks for it");
    }
}

#[tokio::test]
async fn a_malformed_upgrade_is_400_and_says_what_is_wrong() {
    let gateway = Gateway::dev().await;
    assert_eq!(upgrade(&gateway, "GET", "/ws", &[]).await.status, 101, "the headers are good before they are broken");
    for (method, path, changes) in [
        ("GET", "/ws", &[("Sec-WebSocket-Key", "")][..]),
        ("GET", "/ws", &[("Sec-WebSocket-Key", "short")]),
        ("GET", "/ws", &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ")]),
        ("GET", "/ws", &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZ!==")]),
        ("GET", "/ws", &[("Sec-WebSocket-Version", "")]),
        ("GET", "/ws", &[("Connection", "")]),
        ("GET", "/ws", &[("Connection", "keep-alive")]),
        ("POST", "/ws", &[]),
        ("GET", "/ws?format=unknown", &[]),
        ("GET", "/ws?format=", &[]),
        ("GET", "/ws?format=RAW", &[]),
    ] {
        let answer = upgrade(&gateway, method, path, changes).await;
        assert_eq!(answer.error().0, 400, "{method} {path} {changes:?}");
    }
    let answer = upgrade(&gateway, "GET", "/ws", &[("Sec-WebSocket-Version", "8")]).await;
    assert!([400, 426].contains(&answer.error().0), "{answer:?}");
    assert_eq!(answer.header("sec-websocket-version"), "13", "RFC 6455 asks for it");
}

fn bad_tokens() -> Vec<String> {
    let exp = now() + 60;
    let user = |user: &str| json!({"sub": user, "exp": exp});
    let claims = [
        json!({"sub": "42"}),
        json!({"sub": "42", "exp": exp.to_string()}),
        json!({"sub": "42", "exp": null}),
        json!({"sub": "42", "exp": true}),
        json!({"sub": "42", "exp": now() - 60}),
        json!({"sub": "42", "exp": exp, "nbf": now() + 50}),
        json!({"sub": "42", "exp": exp, "nbf": "0"}),
        json!({"exp": exp}),
        json!({"sub": null, "exp": exp}),
        json!({"sub": 4.5, "exp": exp}),
        json!({"sub": true, "exp": exp}),
        json!({"sub": ["42"], "exp": exp}),
        json!({"sub": {"id": "42"}, "exp": exp}),
        json!(["42", exp]),
        json!("42"),
        user(""),
        user(&"x".repeat(257)),
        user(&"é".repeat(129)),
        user("a\nb"),
        user("\0"),
        user("\u{1f}"),
        user("\u{7f}"),
        user("\u{80}"),
        user("a\u{9f}"),
    ];
    // {"alg":"none"} and {"sub":"42","exp":9999999999}, without and with a signature.
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiI0MiIsImV4cCI6OTk5OTk5OTk5OX0.";
    let good = token("42");
    let (signed, _) = good.rsplit_once('.').unwrap();
    let other = [
        sign_with(Algorithm::HS256, "another secret", &user("42")),
        none.to_owned(),
        format!("{none}{}", good.rsplit('.').next().unwrap()),
        format!("{signed}."),
        signed.to_owned(),
        format!("{good}x"),
        "no jwt".to_owned(),
        String::new(),
    ];
    claims.iter().map(sign).chain(other).collect()
}

#[tokio::test]
async fn a_bad_token_is_401_with_www_authenticate() {
    let gateway = Gateway::dev().await;
    for token in bad_tokens() {
        let answer = refused(gateway.public, "/ws", &[("Authorization", &bearer(&token))]).await;
        assert_eq!(answer.status, 401, "{token}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(!answer.code.is_empty(), "{answer:?}");
        assert!(token.is_empty() || !answer.message.contains(&token), "a refusal shows no token: {answer:?}");
    }
    let expired = refused(gateway.public, "/ws", &[("Authorization", &bearer(&token_for("42", -60)))]).await;
    let bad = refused(gateway.public, "/ws", &[("Authorization", "Bearer bad")]).await;
    assert_ne!(expired.code, bad.code, "the client is informed that a fresh token would be accepted");
}

#[tokio::test]
async fn each_hmac_algorithm_is_taken_and_a_user_may_be_an_integer() {
    let gateway = Gateway::dev().await;
    let exp = now() + 60;
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let token = sign_with(algorithm, SECRET, &json!({"sub": "42", "exp": exp}));
        assert_eq!(Client::connect_with_token(&gateway, &token).await.1["user"], "42", "{algorithm:?}");
    }
    for user in ["42", "0", "-7", "9007199254740993", "18446744073709551616", "123456789012345678901234567890"] {
        let claims = RawValue::from_string(format!(r#"{{"sub":{user},"exp":{exp}}}"#)).unwrap();
        let token = sign_with(Algorithm::HS256, SECRET, &claims);
        assert_eq!(Client::connect_with_token(&gateway, &token).await.1["user"], user);
    }
}

#[tokio::test]
async fn issuer_audience_and_claim_of_the_user_are_as_configured() {
    let options = Options::dev().set("auth.issuer", "us").set("auth.audience", "gateway");
    let gateway = options.set("auth.user_claim", "uid").start().await;
    let exp = now() + 60;
    let attempt = async |claims: Value| {
        let headers = [("Authorization", &*bearer(&sign(&claims)))];
        handshake(gateway.public, "/ws", &headers).await.map_or_else(|refused| refused.status, |_| 101)
    };
    for (claims, status) in [
        (json!({"uid": "42", "exp": exp, "iss": "us", "aud": "gateway"}), 101),
        (json!({"uid": "42", "exp": exp, "iss": "us", "aud": ["other", "gateway"]}), 101),
        (json!({"uid": "42", "exp": exp, "iss": "us", "aud": "other"}), 401),
        (json!({"uid": "42", "exp": exp, "iss": "us", "aud": []}), 401),
        (json!({"uid": "42", "exp": exp, "iss": "us"}), 401),
        (json!({"uid": "42", "exp": exp, "iss": "them", "aud": "gateway"}), 401),
        (json!({"uid": "42", "exp": exp, "iss": 5, "aud": "gateway"}), 401),
        (json!({"uid": "42", "exp": exp, "aud": "gateway"}), 401),
        (json!({"sub": "42", "exp": exp, "iss": "us", "aud": "gateway"}), 401),
    ] {
        assert_eq!(attempt(claims.clone()).await, status, "{claims}");
    }
}

#[tokio::test]
async fn the_previous_secret_is_still_good_during_a_rotation() {
    let old = "the secret of last week, as long as the other";
    let rotated = Options::dev().set("auth.previous_hmac_secret", old).start().await;
    let before = sign_with(Algorithm::HS256, old, &json!({"sub": "42", "exp": now() + 60}));
    for token in [&before, &token("42")] {
        assert_eq!(Client::connect_with_token(&rotated, token).await.1["user"], "42");
    }
    let ended = sign_with(Algorithm::HS256, old, &json!({"sub": "42", "exp": now() - 60}));
    let unknown = refused(rotated.public, "/ws", &[("Authorization", "Bearer bad")]).await;
    let expired = refused(rotated.public, "/ws", &[("Authorization", &bearer(&ended))]).await;
    assert_eq!(expired.status, 401);
    assert_ne!(expired.code, unknown.code, "expired, also under the previous secret");
    let done = Gateway::dev().await;
    assert_eq!(refused(done.public, "/ws", &[("Authorization", &bearer(&before))]).await.status, 401);
}

#[tokio::test]
async fn the_first_place_that_holds_a_token_decides() {
    let gateway = Gateway::dev().await;
    let place = |wrong: &str, user: &str| if wrong == "bad" { "bad".to_owned() } else { token(user) };
    // What Authorization, the subprotocol and the query hold, and who that makes the client.
    for (authorization, subprotocol, query, user) in [
        ("good", "good", "good", Some("header")),
        ("good", "bad", "bad", Some("header")),
        ("bad", "good", "good", None),
        ("empty", "good", "good", None),
        ("other scheme", "good", "good", Some("subprotocol")),
        ("", "good", "good", Some("subprotocol")),
        ("", "bad", "good", None),
        ("", "empty", "good", None),
        ("", "", "good", Some("query")),
        ("", "", "bad", None),
        ("", "", "empty", None),
    ] {
        let authorization = match authorization {
            "empty" => "Bearer".to_owned(),
            "other scheme" => "Basic dXNlcjpwYXNz".to_owned(),
            "" => String::new(),
            kind => bearer(&place(kind, "header")),
        };
        let protocols = match subprotocol {
            "" => "tidings.v1".to_owned(),
            "empty" => "tidings.v1, bearer.".to_owned(),
            kind => format!("other.v2, bearer.{}, tidings.v1", place(kind, "subprotocol")),
        };
        let path = match query {
            "empty" => "/ws?token=".to_owned(),
            kind => format!("/ws?x=1&token={}", place(kind, "query")),
        };
        let mut headers = vec![("Sec-WebSocket-Protocol", protocols.as_str())];
        headers.extend((!authorization.is_empty()).then_some(("Authorization", authorization.as_str())));
        let case = format!("{authorization} | {protocols} | {path}");
        match (user, handshake(gateway.public, &path, &headers).await) {
            (Some(user), Ok(mut client)) => assert_eq!(client.frame().await["user"], user, "{case}"),
            (None, Err(refused)) => assert_eq!(refused.status, 401, "{case}"),
            (_, other) => panic!("{case}: {:?}", other.map(|_| "admitted")),
        }
    }
}

#[tokio::test]
async fn a_token_in_the_query_is_a_401_that_says_so_where_it_is_not_configured() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for path in [format!("/ws?token={}", token("42")), "/ws?token=".into(), "/ws?token=bad".into()] {
        let answer = refused(gateway.public, &path, &[]).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(answer.message.contains("auth.query_token"), "{answer:?}");
    }
    let headers = [("Authorization", &*bearer(&token("42")))];
    let path = format!("/ws?token={}", token("43"));
    let mut client = handshake(gateway.public, &path, &headers).await.expect("an earlier place decides");
    assert_eq!(client.frame().await["user"], "42");

    let configured = Options::redis(&redis).set("auth.query_token", "true").start().await;
    let mut client = handshake(configured.public, &path, &[]).await.expect("admitted");
    assert_eq!(client.frame().await["user"], "43");
}

#[tokio::test]
async fn the_answer_selects_tidings_v1_where_it_was_offered_and_never_shows_the_token() {
    let gateway = Gateway::dev().await;
    let (good, hidden) = (token("42"), format!("bearer.{}", token("42")));
    for (offered, selected) in [
        (format!("tidings.v1, {hidden}"), "tidings.v1"),
        (format!("{hidden},tidings.v1"), "tidings.v1"),
        (format!("graphql-ws, tidings.v1, {hidden}"), "tidings.v1"),
        (hidden.clone(), ""),
        (format!("tidings.v2, {hidden}"), ""),
        (String::new(), ""),
    ] {
        let answer = upgrade(&gateway, "GET", "/ws", &[("Sec-WebSocket-Protocol", &offered)]).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(answer.header("sec-websocket-protocol"), selected, "{offered}");
        assert_eq!(answer.header("sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(answer.headers.values().all(|value| !value.to_str().unwrap().contains(&good)), "{answer:?}");
    }
}

#[tokio::test]
async fn only_pages_of_an_allowed_origin_may_connect() {
    let redis = RedisServer::start().await;
    let origins = "https://app.example, https://*.wild.example, http://*.port.example:8443";
    let gateway = Options::redis(&redis).set("server.allowed_origins", origins).start().await;
    for (origin, allowed) in [
        ("https://app.example", true),
        ("https://APP.Example", true),
        ("http://app.example", false),
        ("https://app.example:444", false),
        ("https://app.example.evil.example", false),
        ("https://sub.app.example", false),
        ("https://a.wild.example", true),
        ("https://a.b.c.wild.example", true),
        ("https://wild.example", false),
        ("https://.wild.example", false),
        ("https://evilwild.example", false),
        ("http://a.wild.example", false),
        ("https://a.wild.example:8443", false),
        ("https://a.wild.example.evil.example", false),
        ("http://a.port.example:8443", true),
        ("http://a.port.example", false),
        ("http://localhost", false),
        ("null", false),
    ] {
        // The page's token is good, or still to come in a hello: neither makes up for its origin.
        for token in [bearer(&token("42")), String::new()] {
            let answer = upgrade(&gateway, "GET", "/ws", &[("Origin", origin), ("Authorization", &token)]).await;
            if allowed {
                assert_eq!(answer.status, 101, "{origin}");
            } else {
                assert_eq!(answer.error().0, 403, "{origin}");
            }
        }
    }
    assert_eq!(upgrade(&gateway, "GET", "/ws", &[]).await.status, 101, "no Origin, no browser");
    let open = Gateway::redis(&redis).await;
    assert_eq!(upgrade(&open, "GET", "/ws", &[("Origin", "https://any.example")]).await.status, 101);
}

#[tokio::test]
async fn a_development_instance_takes_pages_of_this_machine_alone() {
    let gateway = Gateway::dev().await;
    for (origin, status) in [
        ("http://localhost:3000", 101),
        ("http://127.0.0.1:8080", 101),
        ("http://[::1]:8080", 101),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("null", 403),
    ] {
        assert_eq!(upgrade(&gateway, "GET", "/ws", &[("Origin", origin)]).await.status, status, "{origin}");
        let body = r#"{"user":"42"}"#;
        let expected = if status == 101 { 200 } else { 403 };
        let sign_in = gateway.ask_public("POST", "/demo/token", &[("Origin", origin)], body).await;
        assert_eq!(sign_in.status, expected, "{origin}");
    }
}

#[tokio::test]
async fn a_demo_in_the_open_serves_its_own_page_and_those_on_the_list() {
    let redis = RedisServer::start().await;
    let demo = || Options::redis(&redis).set("server.demo", "true");
    let (open, listing) =
        tokio::join!(demo().start(), demo().set("server.allowed_origins", "https://app.example").start());
    for (gateway, is_listed) in [(&open, false), (&listing, true)] {
        let own = format!("http://{}", gateway.public);
        let elsewhere = format!("http://{}", gateway.admin);
        for (origin, allowed) in [
            (&*own, true),
            ("https://app.example", is_listed),
            ("https://evil.example", false),
            (&*elsewhere, false),
            ("null", false),
        ] {
            for (path, body) in [("/demo/token", r#"{"user":"42"}"#), ("/demo/publish", r#"{"user":"42","data":1}"#)] {
                let answer = gateway.ask_public("POST", path, &[("Origin", origin)], body).await;
                assert_eq!(answer.status != 403, allowed, "{path} from {origin}: {answer:?}");
            }
        }
        assert_eq!(gateway.ask_public("POST", "/demo/token", &[], r#"{"user":"42"}"#).await.status, 200);
    }
}

#[tokio::test]
async fn an_instance_that_drains_refuses_with_503_and_retry_after() {
    let gateway = Options::dev().set("drain.window", "60s").start().await;
    let _first = Client::connect(&gateway, "42").await;
    let _second = Client::connect(&gateway, "42").await;
    gateway.signal("TERM");
    gateway.not_ready().await;
    let headers = [("Authorization", &*bearer(&token("42")))];
    for headers in [&headers[..], &[]] {
        let answer = refused(gateway.public, "/ws", headers).await;
        assert_eq!(answer.status, 503);
        let after = answer.headers["retry-after"].to_str().unwrap();
        assert!(after.parse::<u32>().is_ok(), "seconds: {after}");
    }
    assert_eq!(gateway.ask_public("GET", "/ws", &[], "").await.error().0, 426, "no upgrade without the headers");
    assert_eq!(gateway.get(gateway.public, "/healthz").await.0, 200);
}

#[tokio::test]
async fn any_text_without_control_characters_is_a_user_and_gets_what_is_theirs_alone() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (long, wide) = ("x".repeat(256), "é".repeat(128));
    let users = [
        "7",
        "user:7",
        "user:user:7",
        "user:",
        "tenant:42",
        "tenant:4",
        "*",
        "4*",
        "?",
        "[0-9]",
        "\\*",
        "a b",
        " a b",
        "a b ",
        "Zoë ☂ 𝄞",
        "Zoe\u{308} ☂ 𝄞",
        "a/b?c=d#e",
        "\"quoted\"",
        "..",
        "%34%32",
        "{tag}",
        "\u{a0}",
        &long,
        &wide,
    ];
    let mut clients = Vec::new();
    for user in users {
        let (client, welcome) = Client::connect_with_welcome(&gateway, user).await;
        assert_eq!(welcome["user"], user);
        clients.push(client);
    }
    // The second round shows that the first brought each client one event and no more.
    for round in 0..2 {
        for user in users {
            redis.publish(user, &json!({"round": round, "for": user}).to_string()).await;
        }
        for (user, client) in users.iter().zip(&mut clients) {
            assert_eq!(client.event().await, json!({"round": round, "for": user}));
        }
    }
}

#[tokio::test]
async fn the_public_listener_has_neither_admin_paths_nor_unasked_a_demo() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/v1/info"),
        ("POST", "/v1/users/42/notifications"),
        ("GET", "/"),
        ("GET", "/index.html"),
        ("POST", "/demo/token"),
        ("GET", "/demo/tidings.js"),
    ] {
        let answer = gateway.ask_public(method, path, &[], r#"{"data":1}"#).await;
        assert_eq!(answer.error().0, 404, "{method} {path}");
    }
}

#[tokio::test]
async fn a_slow_handshake_is_cut_at_its_timeout() {
    let gateway = Options::dev().set("server.handshake_timeout", "2s").start().await;
    let mut dripping = TcpStream::connect(gateway.public).await.unwrap();
    let (mut reader, mut writer) = dripping.split();
    writer.write_all(b"GET /ws HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let drip = async {
        // Until it is cut: a write to a connection that is gone fails in the end.
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut answer = Vec::new();
    within("the end of a dripping handshake", async {
        tokio::select! {
            () = drip => {}
            _ = reader.read_to_end(&mut answer) => {}
        }
    })
    .await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));

    let mut silent = TcpStream::connect(gateway.public).await.unwrap();
    let ended = within("the end of a silent handshake", silent.read(&mut [0; 1])).await;
    assert_eq!(ended.unwrap_or(0), 0);
    Client::connect(&gateway, "42").await;
}

#[tokio::test]
async fn huge_headers_are_refused_and_harm_nobody() {
    let gateway = Gateway::dev().await;
    let mut bystander = Client::connect(&gateway, "42").await;
    let one = format!("GET /ws HTTP/1.1\r\nHost: x\r\nX-Huge: {}\r\n\r\n", "x".repeat(40_000));
    let many = format!("GET /ws HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Many: x\r\n".repeat(1_000));
    let path = format!("GET /ws?{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(40_000));
    for request in [one, many, path] {
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        // It may hang up before it has read everything.
        socket.write_all(request.as_bytes()).await.ok();
        let mut answer = Vec::new();
        within("an answer", socket.read_to_end(&mut answer)).await.ok();
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).map(str::to_owned).unwrap_or_default();
        assert!(["400", "414", "431"].contains(&status.as_str()), "{}", String::from_utf8_lossy(&answer));
    }
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":1}"#).await;
    assert_eq!(bystander.event().await, 1);
}

/// What comes back for these bytes, until the server says no more for a moment or a frame has come.
async fn answer_to(gateway: &Gateway, pieces: impl Iterator<Item = &[u8]>) -> String {
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    socket.set_nodelay(true).unwrap();
    for piece in pieces {
        socket.write_all(piece).await.unwrap();
    }
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("heartbeat_ms")
        && within("an answer", socket.read_buf(&mut answer)).await.unwrap() > 0
    {}
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(first_line: &str) -> String {
    format!(
        "{first_line}\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {}\r\n\r\n",
        token("42")
    )
}

#[tokio::test]
async fn a_handshake_may_come_byte_by_byte_and_with_frames_on_its_heels() {
    let gateway = Gateway::dev().await;
    let slow = answer_to(&gateway, head("GET /ws HTTP/1.1").as_bytes().chunks(1)).await;
    assert!(slow.starts_with("HTTP/1.1 101 ") && slow.contains("welcome"), "{slow}");
    let mut early = head("GET /ws HTTP/1.1").into_bytes();
    // A masked ping, empty: its pong is there before the end.
    early.extend_from_slice(&[0x89, 0x80, 0, 0, 0, 0]);
    let quick = answer_to(&gateway, [early.as_slice()].into_iter()).await;
    assert!(quick.starts_with("HTTP/1.1 101 ") && quick.contains("welcome"), "{quick}");
}

#[tokio::test]
async fn http_1_0_is_not_upgraded() {
    let gateway = Gateway::dev().await;
    let answer = answer_to(&gateway, [head("GET /ws HTTP/1.0").as_bytes()].into_iter()).await;
    assert!(answer.starts_with("HTTP/1.0 400 ") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_connection_to_the_public_listener_is_for_one_request() {
    let gateway = Gateway::dev().await;
    let two = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
    let answer = answer_to(&gateway, [two.as_bytes()].into_iter()).await;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 1, "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
}
