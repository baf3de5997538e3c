//! Requests for `/events`: tokens, pages of other origins, and refusals, which a browser must survive if they pass.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use crate::support::{
    Answer, Authority, Express, Gateway, Issuer, Options, RedisServer, SseClient, client_config, eventually,
    handshake_tls, sign_with, text, token, token_for, within,
};

const ORIGIN: &str = "https://app.example";

/// A request without an `Accept`, as `fetch` and curl send it.
async fn plain(gateway: &Gateway, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    gateway.ask_public(method, path, headers, "").await
}

async fn refusals(gateway: &Gateway, code: &str) -> f64 {
    gateway.metric(&format!("tidings_refusals_total{{code=\"{code}\"}}")).await
}

/// The only block of a temporary refusal.
async fn refused_for_now(mut client: SseClient) -> (u64, Value) {
    assert_eq!(
        (client.status, client.header("content-type")),
        (200, Some("text/event-stream")),
        "{:?}",
        client.headers
    );
    assert_eq!(client.header("retry-after"), None);
    let block = client.block().await.expect("a block");
    assert_eq!(client.block().await, None, "and the end of the body");
    let frame = block.json();
    assert_eq!((&frame["type"], block.id), (&json!("error"), None), "{frame}");
    assert!(!text(&frame["message"]).is_empty());
    (block.retry.expect("a retry"), frame["code"].clone())
}

#[tokio::test]
async fn a_token_is_taken_from_a_bearer_a_cookie_or_the_url_where_that_is_allowed() {
    let options = Options::dev().set("auth.token_cookie", "token").set("server.allowed_origins", ORIGIN);
    let gateway = options.start().await;
    let (token, other) = (token("42"), token("43"));
    let (bearer, cookie) = (format!("Bearer {token}"), format!("theme=dark; token={token}"));
    let in_url = format!("/events?token={token}");
    for (path, headers) in [
        ("/events", vec![("Authorization", bearer.as_str())]),
        ("/events", vec![("Cookie", &cookie), ("Origin", ORIGIN)]),
        (&in_url, vec![]),
    ] {
        let mut client = SseClient::request(gateway.public, path, &headers).await;
        assert_eq!(client.frame().await["user"], "42", "{headers:?}");
    }
    // The first one present decides.
    let path = format!("/events?token={other}");
    let mut client = SseClient::request(gateway.public, &path, &[("Authorization", &bearer)]).await;
    assert_eq!(client.frame().await["user"], "42");
    let cookie = [("Cookie", cookie.as_str())];
    assert_eq!(plain(&gateway, "GET", "/events", &cookie).await.error(), (403, "origin_forbidden".into()));
}

#[tokio::test]
async fn a_session_cookie_opens_a_stream_and_a_logout_ends_it_with_4010() {
    const SECRET: &str = "keyboard cat of thirty-two bytes";
    let redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("server.allowed_origins", ORIGIN);
    let gateway = options.env("TIDINGS_AUTH__SESSION_SECRET", SECRET).start().await;
    let express = Express::start(&redis, SECRET, &[]).await;
    let session = express.begin("/login/42").await;
    let headers = [("Cookie", session.cookie.as_str()), ("Origin", ORIGIN)];
    let mut client = SseClient::request(gateway.public, "/events", &headers).await;
    let welcome = client.frame().await;
    assert_eq!((&welcome["user"], &welcome["expires_in_ms"]), (&json!("42"), &Value::Null), "{welcome}");
    express.go_on(&session, "POST", "/logout").await;
    assert_eq!(client.last_code().await, 4010);
    let again = SseClient::request(gateway.public, "/events", &headers).await;
    assert_eq!((again.status, again.header("www-authenticate")), (401, Some("bearer")));
}

#[tokio::test]
async fn a_stream_without_a_good_token_gets_401_whatever_it_accepts() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let foreign = sign_with(
        jsonwebtoken::Algorithm::HS256,
        "another secret of 32 bytes and more",
        &json!({"sub": "42", "exp": 4_000_000_000_u64}),
    );
    let long_id = token(&"x".repeat(257));
    for (path, bearer, code) in [
        ("/events", None, "no_token"),
        ("/events?auth=hello", None, "no_token"),
        ("/events?token=x", None, "query_token_not_allowed"),
        ("/events", Some("x".to_owned()), "bad_token"),
        ("/events", Some(foreign), "bad_token"),
        ("/events", Some(token_for("42", -3_600)), "token_expired"),
        ("/events", Some(long_id), "bad_user"),
    ] {
        let bearer = bearer.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        let before = refusals(&gateway, code).await;
        let answer = plain(&gateway, "GET", path, &headers).await;
        assert_eq!(answer.error(), (401, code.into()), "{path}");
        assert_eq!((answer.header("www-authenticate"), answer.header("cache-control")), ("Bearer", "no-store"));
        let mut browser = SseClient::request(gateway.public, path, &headers).await;
        assert_eq!((browser.status, browser.header("www-authenticate")), (401, Some("bearer")), "{code}");
        assert!(browser.rest().await.contains(code));
        assert_eq!(refusals(&gateway, code).await, before + 2.0, "{code}");
    }
}

#[tokio::test]
async fn a_malformed_request_gets_400_and_another_method_405() {
    let gateway = Gateway::dev().await;
    let bearer = format!("Bearer {}", token("42"));
    let headers = [("Authorization", bearer.as_str()), ("Accept", "text/event-stream")];
    for path in ["/events?format=xml", "/events?auth=x", "/events?device=", "/events?token=a&token=b"] {
        assert_eq!(plain(&gateway, "GET", path, &headers).await.error(), (400, "bad_request".into()), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "HEAD"] {
        let answer = plain(&gateway, method, "/events", &headers).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "GET, OPTIONS"), "{method}");
        if method != "HEAD" {
            assert_eq!(answer.error(), (405, "method_not_allowed".into()));
        }
    }
    assert_eq!(refusals(&gateway, "method_not_allowed").await, 5.0);
    let socket = TcpStream::connect(gateway.public).await.unwrap();
    let no_host = SseClient::send(Either::Left(socket), "GET /events HTTP/1.1\r\n\r\n").await;
    assert_eq!(no_host.status, 400);
}

#[tokio::test]
async fn a_client_of_http_1_0_is_served() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let socket = TcpStream::connect(gateway.public).await.unwrap();
    let request = format!("GET /events HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", token("42"));
    let mut client = SseClient::send(Either::Left(socket), &request).await;
    assert_eq!((client.status, client.frame().await["type"].clone()), (200, json!("welcome")));
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
}

#[tokio::test]
async fn stray_bytes_after_the_request_are_ignored_up_to_a_bound() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = SseClient::connect(&gateway, "42").await.0;
    client.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    let mut written = 0;
    while client.write(&[b'x'; 512]).await.is_ok() {
        written += 512;
        assert!(written < 1_000_000, "read on and on");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ended = "tidings_connections_closed_total{code=\"1002\"}";
    assert_eq!(gateway.metric(ended).await, 1.0);
    assert_eq!(gateway.metric("tidings_connections").await, 0.0);
}

#[tokio::test]
async fn without_server_sse_there_is_no_such_path() {
    let gateway = Options::dev().set("server.sse", "false").start().await;
    let bearer = format!("Bearer {}", token("42"));
    assert_eq!(plain(&gateway, "GET", "/events", &[("Authorization", &bearer)]).await.status, 404);
}

#[tokio::test]
async fn a_stream_over_tls_receives_and_ends_with_its_reason() {
    let authority = Authority::new();
    let files = authority.certificate(&["127.0.0.1"]);
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).tls(&authority, &files).start().await;
    let config = client_config(&authority, &tokio_rustls::rustls::version::TLS13);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    let tls = handshake_tls(socket, gateway.public, &config).await.unwrap();
    let bearer = format!("Bearer {}", token("42"));
    let mut client = SseClient::over(Either::Right(Box::new(tls)), "/events", &[("Authorization", &bearer)]).await;
    assert_eq!(client.frame().await["type"], "welcome");
    let long = json!(".".repeat(100_000));
    redis.publish("42", &long.to_string()).await;
    assert_eq!(client.event().await, long);
    redis.command::<u64>(&["PUBLISH", "tidings:control", r#"{"disconnect":{"user":"42"}}"#]).await;
    assert_eq!(client.last_code().await, 4011);
}

// Refusals that pass.

/// As curl sends it, without an `Accept` for streams; again where a rate admitted it.
async fn refused_with_status(gateway: &Gateway, bearer: &str) -> SseClient {
    loop {
        let socket = TcpStream::connect(gateway.public).await.unwrap();
        let request = format!("GET /events HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nAuthorization: {bearer}\r\n\r\n");
        let client = SseClient::send(Either::Left(socket), &request).await;
        if client.status != 200 {
            return client;
        }
    }
}

async fn is_refused_under(limit: &str, code: u64, status: u16) {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set(&format!("limits.{limit}"), "1").start().await;
    let bearer = format!("Bearer {}", token("42"));
    let headers = [("Authorization", bearer.as_str())];
    let mut first = SseClient::connect(&gateway, "42").await.0;
    let attempts = join_all((0..6).map(|_| SseClient::request(gateway.public, "/events", &headers))).await;
    let mut retries = HashSet::new();
    for client in attempts.into_iter().filter(|client| client.header("content-length").is_some()) {
        let (retry, refused) = refused_for_now(client).await;
        assert_eq!(refused, code, "{limit}");
        assert!((1_000..=3_000).contains(&retry), "{retry}");
        retries.insert(retry);
    }
    assert!(retries.len() > 1, "{limit}: spread: {retries:?}");
    assert!(refusals(&gateway, &code.to_string()).await >= retries.len() as f64, "{limit}: under its real code");
    let mut other = refused_with_status(&gateway, &bearer).await;
    assert_eq!(other.status, status, "{limit}");
    assert!(other.header("retry-after").is_some_and(|after| after.parse::<u32>().unwrap() >= 1), "{:?}", other.headers);
    assert!(other.rest().await.contains(limit));
    redis.publish("42", "1").await;
    assert_eq!(first.event().await, 1, "and the first stream goes on");
}

#[tokio::test]
async fn a_refusal_that_passes_is_a_stream_with_a_retry_for_a_client_that_accepts_one() {
    is_refused_under("max_connections", 4100, 503).await;
    is_refused_under("max_connections_per_ip", 4100, 429).await;
    is_refused_under("max_connections_per_user", 4004, 429).await;
    is_refused_under("connects_per_second_per_ip", 4101, 429).await;
    is_refused_under("connects_per_second_per_user", 4101, 429).await;
}

#[tokio::test]
async fn a_raw_stream_that_is_refused_for_now_has_no_frame() {
    let gateway = Options::dev().set("limits.max_connections_per_user", "1").start().await;
    let bearer = format!("Bearer {}", token("42"));
    let _first = SseClient::connect(&gateway, "42").await;
    let mut raw = SseClient::request(gateway.public, "/events?format=raw", &[("Authorization", &bearer)]).await;
    assert_eq!((raw.status, raw.rest().await.as_str()), (200, ":\n\n"));
    assert_eq!(refusals(&gateway, "4004").await, 1.0);
}

#[tokio::test]
async fn a_draining_instance_refuses_a_stream_with_4200() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("drain.window", "1h").start().await;
    let _open = [SseClient::connect(&gateway, "42").await, SseClient::connect(&gateway, "42").await];
    gateway.signal("TERM");
    gateway.not_ready().await;
    let bearer = format!("Bearer {}", token("42"));
    let headers = [("Authorization", bearer.as_str())];
    let (_, code) = refused_for_now(SseClient::request(gateway.public, "/events", &headers).await).await;
    assert_eq!(code, 4200);
    let answer = plain(&gateway, "GET", "/events", &headers).await;
    assert_eq!((answer.error(), answer.header("retry-after")), ((503, "draining".into()), "1"));
}

#[tokio::test]
async fn keys_or_sessions_that_cannot_be_read_refuse_a_stream_for_now() {
    let mut redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("server.allowed_origins", ORIGIN);
    let gateway = options.env("TIDINGS_AUTH__SESSION_SECRET", "keyboard cat of thirty-two bytes").start().await;
    let express = Express::start(&redis, "keyboard cat of thirty-two bytes", &[]).await;
    let session = express.begin("/login/42").await;
    redis.kill().await;
    let headers = [("Cookie", session.cookie.as_str()), ("Origin", ORIGIN)];
    let (_, code) = refused_for_now(SseClient::request(gateway.public, "/events", &headers).await).await;
    assert_eq!(code, 4102);
    let no_keys =
        Options::dev().set("auth.jwks_url", "https://127.0.0.1:1/keys").without_secret().start_unready().await;
    let token = Issuer::new("RS256").token("42");
    let bearer = format!("Bearer {token}");
    let refused = SseClient::request(no_keys.public, "/events", &[("Authorization", &bearer)]).await;
    assert_eq!(refused_for_now(refused).await.1, 4100);
}

// Pages of other origins.

fn cors(answer: &Answer) -> [&str; 3] {
    ["access-control-allow-origin", "access-control-allow-credentials", "vary"].map(|name| answer.header(name))
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_reads_the_stream_and_every_refusal() {
    let options = Options::dev().set("server.allowed_origins", &format!("{ORIGIN}, null"));
    let gateway = options.set("limits.max_connections", "1").start().await;
    let bearer = format!("Bearer {}", token("42"));
    let (origin, auth) = (("Origin", ORIGIN), ("Authorization", bearer.as_str()));
    let client = SseClient::ungreeted(&gateway, "42", "", &[origin]).await;
    assert_eq!(client.header("access-control-allow-origin"), Some(ORIGIN));
    assert_eq!(client.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(client.header("vary"), Some("origin"));
    let browser = SseClient::request(gateway.public, "/events", &[origin, auth]).await;
    assert_eq!(browser.header("access-control-allow-origin"), Some(ORIGIN), "a temporary refusal");
    drop((client, browser));
    eventually("there is room", async || gateway.metric("tidings_connections").await == 0.0).await;
    for (method, path, headers, status) in [
        ("GET", "/events", vec![origin], 401),
        ("GET", "/events?format=x", vec![origin, auth], 400),
        ("POST", "/events", vec![origin, auth], 405),
    ] {
        let answer = plain(&gateway, method, path, &headers).await;
        assert_eq!((answer.status, cors(&answer)), (status, [ORIGIN, "true", "Origin"]), "{method} {path}");
    }
    let file = plain(&gateway, "GET", "/events", &[("Origin", "null")]).await;
    assert_eq!(cors(&file), ["null", "", "Origin"], "no cookies of a page that has no origin");
    let none = plain(&gateway, "GET", "/events", &[]).await;
    assert_eq!(cors(&none), ["", "", ""]);
}

#[tokio::test]
async fn a_page_of_a_foreign_origin_gets_403_and_no_header_that_lets_it_read() {
    let gateway = Options::dev().set("server.allowed_origins", ORIGIN).start().await;
    let bearer = format!("Bearer {}", token("42"));
    let foreign = ("Origin", "https://evil.example");
    for (method, headers) in [
        ("GET", vec![foreign, ("Authorization", bearer.as_str()), ("Accept", "text/event-stream")]),
        ("GET", vec![foreign]),
        ("OPTIONS", vec![foreign, ("Access-Control-Request-Method", "GET")]),
        ("POST", vec![foreign]),
        ("GET", vec![("Origin", ORIGIN), foreign]),
    ] {
        let answer = plain(&gateway, method, "/events", &headers).await;
        assert_eq!(answer.error(), (403, "origin_forbidden".into()), "{method} {headers:?}");
        assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{answer:?}");
    }
}

#[tokio::test]
async fn the_preflight_allows_get_with_the_headers_of_a_stream() {
    let gateway = Options::dev().set("server.allowed_origins", ORIGIN).start().await;
    let asked = [
        ("Origin", ORIGIN),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    let answer = plain(&gateway, "OPTIONS", "/events", &asked).await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    assert_eq!(cors(&answer), [ORIGIN, "true", "Origin"]);
    assert_eq!(answer.header("access-control-allow-methods"), "GET");
    assert_eq!(answer.header("access-control-allow-headers"), "Authorization, Last-Event-ID, Cache-Control");
    assert!(answer.header("access-control-max-age").parse::<u32>().is_ok());
}

#[tokio::test]
async fn with_an_empty_list_any_page_reads_with_a_token_and_none_with_cookies() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("auth.token_cookie", "token").start().await;
    let bearer = format!("Bearer {}", token("42"));
    for origin in ["https://any.example", "http://localhost:5173", "null"] {
        let headers = [("Origin", origin), ("Authorization", bearer.as_str())];
        let client = within("a stream", SseClient::request(gateway.public, "/events", &headers)).await;
        assert_eq!((client.status, client.header("access-control-allow-origin")), (200, Some(origin)));
        assert_eq!(client.header("access-control-allow-credentials"), None);
        let preflight = plain(&gateway, "OPTIONS", "/events", &[("Origin", origin)]).await;
        assert_eq!(cors(&preflight), [origin, "", "Origin"]);
    }
    for no_origin in ["*", "http://[bad"] {
        let headers = [("Origin", no_origin), ("Authorization", bearer.as_str())];
        let client = within("a stream", SseClient::request(gateway.public, "/events", &headers)).await;
        assert_eq!(client.header("access-control-allow-origin"), None, "{no_origin}");
    }
    let cookie = format!("token={}", token("42"));
    let answer = plain(&gateway, "GET", "/events", &[("Origin", "https://any.example"), ("Cookie", &cookie)]).await;
    assert_eq!(answer.error(), (403, "origin_forbidden".into()));
}
