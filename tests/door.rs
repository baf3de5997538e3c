//! What the door judges before a connection exists: Origins, `Host`, headers with foreign bytes, and idle sockets.

use std::net::SocketAddr;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{
    Answer, Client, Gateway, Options, RedisServer, command, handshake, now, output, refused, secrets, sign, token,
    within,
};

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The rest of [`UPGRADE`] behind its `Connection` and `Upgrade`.
const VERSION_AND_KEY: &str = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const SESSION_SECRET: &str = "the secret of an application";

const ORIGIN: &str = "https://app.example";

/// The answer to a request that HTTP libraries do not send.
async fn answer(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_ref()).await.unwrap();
    read_answer(&mut socket).await
}

/// One answer, which need not be the last on its connection.
async fn read_answer(socket: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(end) = head.parse(&bytes).unwrap() {
            let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).unwrap();
            let pair =
                |header: &httparse::Header<'_>| (name(header.name), HeaderValue::from_bytes(header.value).unwrap());
            let all: HeaderMap = head.headers.iter().map(pair).collect();
            let length = all.get("content-length").map_or(0, |length| length.to_str().unwrap().parse().unwrap());
            if bytes.len() >= end + length {
                let body = String::from_utf8(bytes[end..end + length].to_vec()).unwrap();
                return Answer { status: head.code.unwrap(), headers: all, body };
            }
        }
        assert!(within("an answer", socket.read_buf(&mut bytes)).await.unwrap() > 0, "{bytes:?}");
    }
}

/// The answer to a handshake with these lines more, which may hold any bytes.
async fn upgrade(gateway: &Gateway, lines: &[&[u8]]) -> Answer {
    let lines: Vec<u8> = lines.iter().flat_map(|line| [line, &b"\r\n"[..]].concat()).collect();
    let head = format!("GET /ws HTTP/1.1\r\nHost: x\r\n{UPGRADE}");
    answer(gateway.public, [head.as_bytes(), &lines, b"\r\n"].concat()).await
}

// Origins.

#[tokio::test]
async fn an_origin_counts_as_an_origin_and_not_as_text() {
    let allowed = "https://app.example, https://*.wild.example, http://*.port.example:8443, http://localhost:*, \
                   capacitor://localhost, file://, null, https://[2001:db8::1]:8443";
    let redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("auth.token_cookie", "token");
    let gateway = options.set("server.allowed_origins", allowed).start().await;
    let (bearer, cookie) = (format!("Authorization: Bearer {}", token("42")), format!("Cookie: token={}", token("42")));
    for (origin, with_token, with_cookie) in [
        ("https://app.example", true, true),
        ("HTTPS://App.Example", true, true),
        ("https://app.example:443", true, true),
        ("https://a.wild.example", true, true),
        ("https://a.b.c.wild.example", true, true),
        ("http://a.port.example:8443", true, true),
        ("https://[2001:db8:0::1]:8443", true, true),
        ("http://localhost", true, true),
        ("http://localhost:5173", true, true),
        ("http://127.0.0.1:5173", true, true),
        ("capacitor://localhost", true, true),
        ("file://", true, false),
        ("null", true, false),
        ("https://wild.example", false, false),
        ("https://.wild.example", false, false),
        ("https://a..wild.example", false, false),
        ("https://evilwild.example", false, false),
        ("https://evil.example/.wild.example", false, false),
        ("https://evil.example?.wild.example", false, false),
        ("https://evil.example#.wild.example", false, false),
        ("https://evil.example\\.wild.example", false, false),
        ("https://evil.example@a.wild.example", false, false),
        ("https://evil.example:x@a.wild.example", false, false),
        ("https://evil.example:443.wild.example", false, false),
        ("https://evil.example a.wild.example", false, false),
        ("https://evil.example https://app.example", false, false),
        ("https://a.wild.example/", false, false),
        ("https://a.wild.example:", false, false),
        ("https://a.wild.example:99999", false, false),
        ("https://a.wild.example\u{e9}", false, false),
        ("https://\u{e9}.wild.example", false, false),
        ("http://a.port.example:443", false, false),
        ("https://app.example/", false, false),
        ("https:app.example", false, false),
        ("app.example", false, false),
        ("", false, false),
        ("ionic://localhost", false, false),
        ("capacitor://localhost.evil.example", false, false),
        ("file://app.example", false, false),
        ("http://localhost.evil.example:5173", false, false),
        ("http://localhost:5173@evil.example", false, false),
        ("http://localhost:5173.evil.example", false, false),
        ("http://evil.example/.localhost", false, false),
    ] {
        for (credential, allowed) in [(&bearer, with_token), (&cookie, with_cookie)] {
            let line = format!("Origin: {origin}");
            let answer = upgrade(&gateway, &[line.as_bytes(), credential.as_bytes()]).await;
            assert_eq!(answer.status, if allowed { 101 } else { 403 }, "{origin:?}, {}", &credential[..7]);
        }
    }
    let two = upgrade(&gateway, &[b"Origin: https://app.example", b"Origin: https://app.example"]).await;
    assert_eq!(two.error(), (403, "origin_forbidden".into()), "a browser sends one Origin");
}

#[tokio::test]
async fn an_origin_with_user_info_or_a_path_is_no_page_of_this_machine() {
    let gateway = Gateway::dev().await;
    for origin in ["http://localhost:x@evil.example", "http://127.0.0.1@evil.example", "http://evil.example/.localhost"]
    {
        let line = format!("Origin: {origin}");
        assert_eq!(upgrade(&gateway, &[line.as_bytes()]).await.status, 403, "{origin}");
        let headers = [("Origin", origin)];
        let sign_in = gateway.ask_public("POST", "/demo/token", &headers, r#"{"user":"42"}"#).await;
        assert_eq!(sign_in.error().0, 403, "{origin}");
        assert_eq!(gateway.ask_admin("GET", "/v1/presence/count", &headers, "").await.error().0, 403, "{origin}");
    }
}

#[tokio::test]
async fn a_pattern_that_no_origin_can_match_is_refused_at_the_start_by_name() {
    for wrong in [
        "https://a.example/x",
        "https://user@a.example",
        "https://a.example:99999",
        "https://a.example:",
        "https://*.",
        "https://*",
        "https://a.*.example",
        "https://*a.example",
        "https://*.a.example:*",
        "https://a.example:*",
        "https://a b",
        "https://caf\u{e9}.example",
        "file://a.example",
        "1a://b",
        "*",
        "localhost:3000",
    ] {
        let setting = format!("server.allowed_origins={wrong}");
        let checked = output(command(&["check-config", "--dev", "--set", &setting])).await;
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(2), "{wrong}: {said}");
        assert!(said.contains("server.allowed_origins") && said.contains("http://localhost:*"), "{wrong}: {said}");
    }
}

// `Host` (RFC 9112, section 3.2).

#[tokio::test]
async fn a_request_without_exactly_one_valid_host_is_400_on_both_listeners() {
    let gateway = Gateway::dev().await;
    let wrong: [&[u8]; 10] = [
        b"",
        b"Host: x\r\nHost: x\r\n",
        b"Host: a b\r\n",
        b"Host: a/b\r\n",
        b"Host: user@a\r\n",
        b"Host: a:port\r\n",
        b"Host: a:99999\r\n",
        b"Host: [::1\r\n",
        b"Host: \xe9\r\n",
        b"Host:\r\n",
    ];
    for (address, path, more) in [
        (gateway.public, "/ws", UPGRADE),
        (gateway.public, "/ws", ""),
        (gateway.public, "/healthz", ""),
        (gateway.public, "/nowhere", ""),
        (gateway.admin, "/healthz", ""),
        (gateway.admin, "/v1/presence/count", ""),
    ] {
        for host in wrong {
            let request = [format!("GET {path} HTTP/1.1\r\n").as_bytes(), host, more.as_bytes(), b"\r\n"].concat();
            let answer = answer(address, &request).await;
            assert_eq!(answer.error(), (400, "bad_request".into()), "{}", String::from_utf8_lossy(&request));
            assert!(answer.body.contains("Host"), "{answer:?}");
        }
    }
    for listener in [gateway.public, gateway.admin] {
        for host in ["x", "x:80", "127.0.0.1", "[::1]:9090", "tidings_1.default.svc:8080", "xn--caf-dma.example."] {
            let request = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(answer(listener, request).await.status, 200, "{host}");
        }
        assert_eq!(answer(listener, "GET /healthz HTTP/1.0\r\n\r\n").await.status, 200, "HTTP/1.0 has no Host");
        assert_eq!(answer(listener, "GET /healthz HTTP/1.0\r\nHost: a b\r\n\r\n").await.status, 400);
    }
}

// Foreign bytes in headers.

fn session_cookie(id: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SESSION_SECRET.as_bytes());
    let signature = BASE64_STANDARD_NO_PAD.encode(hmac::sign(&key, id.as_bytes()));
    let cookie = format!("connect.sid=s%3A{id}.{}", signature.replace('+', "%2B").replace('/', "%2F"));
    secrets::keep_token(&cookie);
    cookie
}

#[tokio::test]
async fn a_foreign_byte_elsewhere_in_the_cookies_does_not_hide_the_session() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis)
        .set("server.allowed_origins", ORIGIN)
        .env("TIDINGS_AUTH__SESSION_SECRET", SESSION_SECRET)
        .start()
        .await;
    let () = redis.command(&["SET", "sess:one", r#"{"userId":"42"}"#]).await;
    let good = session_cookie("one");
    let origin = format!("Origin: {ORIGIN}");
    let status = async |lines: &[&[u8]]| {
        let answer = upgrade(&gateway, &[&[origin.as_bytes()], lines].concat()).await;
        if answer.status == 101 { "admitted".to_owned() } else { answer.error().1 }
    };
    let foreign = [b"Cookie: name=Jos\xe9; \xff; ", good.as_bytes(), b"; \xe9=1"].concat();
    // A connection that waits for a hello is admitted too: the user's presence tells the two apart.
    assert_eq!(status(&[&foreign]).await, "admitted");
    let session = format!("Cookie: {good}");
    assert_eq!(status(&[b"Cookie: name=Jos\xe9", session.as_bytes()]).await, "admitted");
    let lookups = gateway.metric("tidings_session_lookups_total{from=\"redis\"}").await
        + gateway.metric("tidings_session_lookups_total{from=\"cache\"}").await;
    assert_eq!(lookups, 2.0, "both found the session");

    // The first cookie of the name decides, also an empty one, and in whichever line it comes.
    let emptied = format!("Cookie: connect.sid=; {good}");
    assert_eq!(status(&[emptied.as_bytes()]).await, "bad_session");
    assert_eq!(status(&[b"Cookie: connect.sid=", session.as_bytes()]).await, "bad_session");
    assert_eq!(status(&[b"Cookie: connect.sid=\xe9", session.as_bytes()]).await, "bad_session");
    assert_eq!(status(&[b"Cookie: connect.sid="]).await, "bad_session");
}

#[tokio::test]
async fn a_foreign_byte_in_another_part_of_a_header_hides_nothing() {
    let gateway = Options::dev()
        .set("limits.max_connections_per_ip", "1")
        .set("limits.trusted_proxies", "127.0.0.1")
        .start()
        .await;
    let mut clients = Vec::new();
    let mut attempt = async |user: &str, lines: &[&[u8]]| {
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        let lines: Vec<u8> = lines.iter().flat_map(|line| [line, &b"\r\n"[..]].concat()).collect();
        let head = format!("GET /ws HTTP/1.1\r\nHost: x\r\n{VERSION_AND_KEY}");
        socket.write_all(&[head.as_bytes(), &lines, b"\r\n"].concat()).await.unwrap();
        let mut heard = Vec::new();
        // The welcome names the user.
        let user = format!("\"user\":\"{user}\"");
        while !String::from_utf8_lossy(&heard).contains(&user) && !heard.ends_with(b"}}") {
            assert!(within("an answer", socket.read_buf(&mut heard)).await.unwrap() > 0, "{heard:?}");
        }
        clients.push(socket);
        String::from_utf8_lossy(&heard).split(' ').nth(1).unwrap().to_owned()
    };
    let token = token("42");
    let upgrade: [&[u8]; 2] = [b"Connection: Upgrade, \xe9", b"Upgrade: \xe9, websocket"];
    let offered = [b"Sec-WebSocket-Protocol: caf\xe9, tidings.v1, bearer.", token.as_bytes()].concat();
    let [connection, websocket] = upgrade;
    assert_eq!(attempt("42", &[connection, websocket, &offered, b"X-Forwarded-For: 192.0.2.1"]).await, "101");
    let basic: &[u8] = b"Authorization: Basic \xe9";
    let bearer = format!("Authorization: Bearer {token}");
    let from = |line: &'static [u8]| [connection, websocket, basic, bearer.as_bytes(), line];
    assert_eq!(attempt("42", &from(b"X-Forwarded-For: \xe9, 192.0.2.2")).await, "101");
    assert_eq!(attempt("42", &from(b"X-Forwarded-For: \xe9, 192.0.2.2")).await, "429", "the same address");
    assert_eq!(attempt("42", &from(b"Forwarded: for=\xe9, for=192.0.2.3;by=\"\xe9\"")).await, "101");
    assert_eq!(attempt("42", &from(b"X-Forwarded-For: 192.0.2.3")).await, "429", "the same address");
    // What decides is foreign itself.
    let broken = [b"Sec-WebSocket-Protocol: bearer.\xe9", token.as_bytes()].concat();
    assert_eq!(attempt("42", &[connection, websocket, &broken, b"X-Forwarded-For: 192.0.2.4"]).await, "401");
}

// Caches.

#[tokio::test]
async fn no_cache_keeps_an_answer_of_either_listener() {
    let gateway = Options::dev().set("admin.api_key", "the-admin-key").start().await;
    let key = [("Authorization", "Bearer the-admin-key")];
    let [public, admin] = [gateway.public, gateway.admin];
    for (listener, method, path, headers, status) in [
        (public, "GET", "/healthz", &[][..], 200),
        (public, "GET", "/readyz", &[], 200),
        (public, "POST", "/readyz", &[], 405),
        (public, "GET", "/nowhere", &[], 404),
        (public, "GET", "/ws", &[], 426),
        (public, "POST", "/demo/token", &[], 400),
        (admin, "GET", "/healthz", &[], 200),
        (admin, "GET", "/readyz", &[], 200),
        (admin, "GET", "/metrics", &[], 200),
        (admin, "GET", "/v1/info", &[], 401),
        (admin, "GET", "/v1/info", &key, 200),
        (admin, "GET", "/v1/openapi.json", &key, 200),
        (admin, "POST", "/v1/users/42/notifications", &key, 400),
        (admin, "DELETE", "/v1/users/42/connections", &key, 202),
        (admin, "PUT", "/healthz", &[], 405),
        (admin, "GET", "/nowhere", &[], 404),
    ] {
        let answer = if listener == public {
            gateway.ask_public(method, path, headers, "").await
        } else {
            gateway.ask_admin(method, path, headers, "").await
        };
        assert_eq!((answer.status, answer.header("cache-control")), (status, "no-store"), "{method} {path}");
    }
    let bad = refused(public, "/ws", &[("Authorization", "Bearer bad")]).await;
    assert_eq!(bad.headers["cache-control"], "no-store");
    let page = gateway.ask_public("GET", "/demo/app.js", &[], "").await;
    assert_eq!(page.header("cache-control"), "no-cache", "a file of the page is checked again, not forgotten");
}

// Idle connections.

#[tokio::test]
async fn an_idle_connection_to_the_admin_listener_outlives_the_handshake_timeout() {
    let gateway = Options::dev().set("server.handshake_timeout", "2s").start().await;
    let request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut kept = TcpStream::connect(gateway.admin).await.unwrap();
    kept.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut kept).await.status, 200);
    // Opened later, so that its end shows that the timeout is over for both; and begun, which saves neither.
    for begun in ["", "GET /healthz HT"] {
        let mut first = TcpStream::connect(gateway.admin).await.unwrap();
        first.write_all(begun.as_bytes()).await.unwrap();
        let ended = within("the end of a connection without a first request", first.read(&mut [0; 64])).await;
        assert_eq!(ended.unwrap_or(0), 0);
    }
    kept.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut kept).await.status, 200);
}

#[tokio::test]
async fn silent_sockets_of_one_address_cost_no_other_address_its_place() {
    let options = Options::dev().ulimit("-n 256").set("limits.max_connections_per_ip", "20");
    let gateway = options.start().await;
    let mut silent = Vec::new();
    for _ in 0..260 {
        silent.push(TcpStream::connect(gateway.public).await.unwrap());
    }
    // Those beyond the limit and the few whose request is waited for are closed at once.
    let mut last = silent.pop().unwrap();
    assert_eq!(within("the end of a socket too many", last.read(&mut [0; 1])).await.unwrap_or(0), 0);
    let elsewhere = TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let request = format!("GET /ws HTTP/1.1\r\nHost: x\r\n{UPGRADE}Authorization: Bearer {}\r\n\r\n", token("42"));
    let mut neighbour = within("a connection", elsewhere.connect(gateway.public)).await.unwrap();
    neighbour.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut neighbour).await.status, 101);
    assert_eq!(gateway.metric("tidings_limited_total{limit=\"file_descriptors\"}").await, 0.0);
    assert!(gateway.metric("tidings_limited_total{limit=\"max_connections_per_ip\"}").await > 0.0);

    // A socket that ends gives its place back, and one place serves the socket and its connection.
    drop(silent);
    let mut clients = Vec::new();
    crate::support::eventually("the places are free", async || {
        while clients.len() < 20 {
            match handshake(gateway.public, "/ws", &[]).await {
                Ok(client) => clients.push(client),
                Err(refused) => {
                    assert_eq!(refused.code, "max_connections_per_ip");
                    return false;
                }
            }
        }
        true
    })
    .await;
    let over = refused(gateway.public, "/ws", &[]).await;
    assert_eq!((over.status, over.code.as_str()), (429, "max_connections_per_ip"));
    assert_eq!(gateway.get(gateway.public, "/readyz").await.0, 200, "a probe is no connection");
}

#[tokio::test]
async fn sockets_behind_a_trusted_proxy_are_not_counted_as_the_proxys() {
    let gateway = Options::dev()
        .set("limits.max_connections_per_ip", "1")
        .set("limits.trusted_proxies", "127.0.0.1")
        .start()
        .await;
    let mut waiting = Vec::new();
    for _ in 0..80 {
        waiting.push(TcpStream::connect(gateway.public).await.unwrap());
    }
    for n in 1..4 {
        let address = format!("192.0.2.{n}");
        waiting.push(TcpStream::connect(gateway.public).await.unwrap());
        let headers = [("X-Forwarded-For", address.as_str())];
        assert!(handshake(gateway.public, "/ws", &headers).await.is_ok(), "{address}");
    }
}

// Times in milliseconds.

#[tokio::test]
async fn a_time_in_milliseconds_is_refused_and_the_unit_is_named() {
    let gateway = Gateway::dev().await;
    let century = 36_525 * 86_400;
    for (claims, status) in [
        (json!({"sub": "42", "exp": (now() + 60) * 1_000}), 401),
        (json!({"sub": "42", "exp": now() + century + 60}), 401),
        (json!({"sub": "42", "exp": 1e18}), 401),
        (json!({"sub": "42", "exp": now() + 60, "nbf": now() * 1_000}), 401),
        (json!({"sub": "42", "exp": now() + century - 60}), 101),
    ] {
        let token = sign(&claims);
        let headers = [("Authorization", &*format!("Bearer {token}"))];
        match handshake(gateway.public, "/ws", &headers).await {
            Ok(_) => assert_eq!(status, 101, "{claims}"),
            Err(refused) => {
                assert_eq!((refused.status, refused.code.as_str()), (status, "bad_token"), "{claims}");
                assert!(refused.message.contains("seconds since 1970"), "{refused:?}");
                let mut client = Client::anonymous(&gateway).await;
                client.send(&json!({"type": "hello", "token": token}).to_string()).await;
                assert_eq!(client.close_code().await, 4009, "{claims}");
            }
        }
    }
}
