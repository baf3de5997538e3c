//! The HTTP of polling: connections that clients keep, requests however they are cut, refusals, and pages of other origins.

use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::version::TLS13;

use crate::support::{
    Authority, Gateway, Kept, Nginx, Options, POLLING, Polling, RedisServer, client_config, eventually, token, within,
};

fn connect() -> String {
    format!("40{}", json!({"token": token("42")}))
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request_and_serves_pipelined_ones() {
    let gateway = Gateway::dev().await;
    let mut client = Polling::open(&gateway).await;
    // On one connection: a POST, and a GET sent along with it.
    let (path, body) = (client.path.clone(), connect());
    let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let post = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.get.send(format!("{post}{get}")).await;
    let answer = client.get.answer().await;
    assert_eq!((answer.body.as_str(), answer.header("connection")), ("ok", ""), "{answer:?}");
    assert!(client.get.answer().await.body.starts_with("40"));
    // A request sent while another one is held is read after it.
    client.get.send(&get).await;
    client.get.silent().await;
    client.get.send("POST ").await;
    client.get.silent().await;
    assert_eq!(gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":1}"#).await.0, 202);
    assert!(client.get.answer().await.body.starts_with("42"));
    client.get.send(format!("{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n3")).await;
    assert_eq!(client.get.answer().await.body, "ok");
}

#[tokio::test]
async fn a_connection_is_closed_after_the_response_where_the_client_or_http_1_0_wants_it() {
    let gateway = Gateway::dev().await;
    let mut client = Polling::open(&gateway).await;
    client.say(&connect()).await;
    let path = client.path.clone();
    let mut once = Kept::open(gateway.public).await;
    let answer = once.ask("GET", &path, &[("Connection", "close")], "").await;
    assert!(answer.body.starts_with("40") && answer.header("connection") == "close", "{answer:?}");
    once.ended().await;
    let mut old = Kept::open(gateway.public).await;
    old.send(format!("POST {path} HTTP/1.0\r\nContent-Length: 1\r\n\r\n3")).await;
    let answer = old.answer().await;
    assert_eq!((answer.body.as_str(), answer.header("connection")), ("ok", "close"), "{answer:?}");
    old.ended().await;
}

#[tokio::test]
async fn a_request_is_read_however_it_is_cut() {
    let gateway = Gateway::dev().await;
    let mut client = Polling::open(&gateway).await;
    let (path, body) = (client.path.clone(), connect());
    let (half, rest) = body.split_at(body.len() / 2);
    let chunked = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{half}\r\n{:x};x=y\r\n{rest}\r\n0\r\n\r\n",
        half.len(),
        rest.len(),
    );
    for byte in chunked.as_bytes() {
        client.post.send([*byte]).await;
    }
    assert_eq!(client.post.answer().await.body, "ok");
    assert!(client.packet().await.starts_with("40"));
    let expecting = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n");
    client.post.send(expecting).await;
    assert_eq!(client.post.answer().await.status, 100);
    client.post.send("3").await;
    assert_eq!(client.post.answer().await.body, "ok");
}

#[tokio::test]
async fn a_request_that_is_torn_or_ambiguous_is_not_handled() {
    let gateway = Gateway::dev().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    let path = client.path.clone();
    for headers in [
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: x",
    ] {
        let mut kept = Kept::open(gateway.public).await;
        kept.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n1")).await;
        assert_eq!(kept.answer().await.status, 400, "{headers}");
        kept.ended().await;
    }
    // A body that a GET should not have, and that must not be read as a request.
    let mut kept = Kept::open(gateway.public).await;
    let post = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1");
    kept.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{post}", post.len())).await;
    assert_eq!(kept.answer().await.status, 400);
    kept.ended().await;
    // The client's end, before its body is complete.
    let mut torn = Kept::open(gateway.public).await;
    torn.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1")).await;
    torn.finish().await;
    torn.ended().await;
    client.say("3").await;
}

#[tokio::test]
async fn a_client_that_closes_its_half_of_a_connection_has_left() {
    let gateway = Gateway::dev().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    client.poll().await;
    client.get.silent().await;
    client.get.finish().await;
    client.get.ended().await;
    client.is_over().await;
}

#[tokio::test]
async fn a_kept_connection_without_a_request_is_closed() {
    let gateway = Options::dev()
        .set("server.heartbeat", "200ms")
        .set("server.pong_timeout", "200ms")
        .set("server.handshake_timeout", "1s")
        .start()
        .await;
    let mut idle = Polling::open(&gateway).await;
    idle.get.ended().await;
    let mut begun = Polling::open(&gateway).await;
    begun.get.send("GET /socket.io/?EIO").await;
    begun.get.ended().await;
}

#[tokio::test]
async fn a_session_keeps_only_a_few_connections() {
    let gateway = Gateway::dev().await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    let mut more = Vec::new();
    for _ in 0..4 {
        let mut kept = Kept::open(gateway.public).await;
        let answer = kept.ask("POST", &client.path, &[], "3").await;
        more.push((answer.header("connection").to_owned(), kept));
    }
    let closed = more.iter().filter(|(connection, _)| connection == "close").count();
    assert_eq!(closed, 2, "its own two, and two of these, are kept");
    drop(more);
    eventually("their places are free", async || {
        Kept::open(gateway.public).await.ask("POST", &client.path, &[], "3").await.header("connection").is_empty()
    })
    .await;
    client.say("3").await;
}

#[tokio::test]
async fn a_request_for_another_path_is_not_answered_on_a_kept_connection() {
    let gateway = Gateway::dev().await;
    let mut client = Polling::open(&gateway).await;
    client.get.request("GET", "/healthz", &[], "").await;
    client.get.ended().await;
}

/// A request, and the status and the code of its refusal.
type Case<'a> = (&'a str, String, &'a [(&'a str, &'a str)], (u16, u64));

#[tokio::test]
async fn every_http_refusal_is_that_of_engine_io() {
    let gateway = Options::dev().set("server.allowed_origins", "https://app.example").start().await;
    let client = Polling::open(&gateway).await;
    let unknown = format!("&sid={}", "0".repeat(32));
    let websocket = POLLING.replace("polling", "websocket");
    let upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")];
    let evil = [("Origin", "https://evil.example")];
    let cases: [Case<'_>; 14] = [
        ("GET", POLLING.replace("polling", "carrier-pigeon"), &[], (400, 0)),
        ("GET", POLLING.replace("&transport=polling", ""), &[], (400, 0)),
        ("GET", format!("{POLLING}{unknown}"), &[], (400, 1)),
        ("POST", format!("{POLLING}{unknown}"), &[], (400, 1)),
        ("GET", format!("{POLLING}&sid=x"), &[], (400, 1)),
        ("GET", format!("{websocket}{unknown}"), &upgrade, (400, 1)),
        ("POST", POLLING.to_owned(), &[], (400, 2)),
        ("PUT", POLLING.to_owned(), &[], (400, 2)),
        ("PUT", client.path.clone(), &[], (400, 3)),
        ("GET", format!("{POLLING}&transport=polling"), &[], (400, 3)),
        ("GET", client.path.replace("polling", "websocket"), &upgrade, (400, 3)),
        ("GET", POLLING.to_owned(), &evil, (403, 4)),
        ("GET", POLLING.replace("EIO=4", "EIO=3"), &[], (400, 5)),
        ("GET", POLLING.replace("EIO=4&", ""), &[], (400, 5)),
    ];
    for (method, path, headers, expected) in cases {
        let answer = Kept::open(gateway.public).await.ask(method, &path, headers, "").await;
        let body = answer.json();
        assert_eq!((answer.status, body["code"].as_u64().unwrap()), expected, "{method} {path}: {answer:?}");
        assert!(body["message"].is_string() && answer.header("content-type") == "application/json", "{answer:?}");
        assert_eq!(answer.header("connection"), "close", "{method} {path}");
    }
    let other = Kept::open(gateway.public).await.ask("GET", &POLLING.replace("/?", "?"), &[], "").await;
    assert_eq!(other.status, 404, "only with the slash");
}

#[tokio::test]
async fn a_bad_token_never_gets_an_http_status() {
    let gateway = Options::dev().set("server.hello_timeout", "300ms").start().await;
    let mut client = Polling::open_with(gateway.public, "&token=rubbish", &[]).await;
    client.say("40").await;
    let refused = client.packet().await;
    assert!(refused.starts_with("44{") && refused.contains(r#""data":{"code":4009}"#), "{refused}");
    let mut last = Vec::new();
    while last.last().is_none_or(|packet| packet != "1") {
        last.push(client.packet().await);
    }
    assert_eq!(last, ["41", "1"], "old clients would come back after a close alone");
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_read_every_response_and_another_none() {
    let page = ("Origin", "https://app.example");
    let gateway = Options::dev().set("server.allowed_origins", page.1).start().await;
    let mut client = Polling::open_with(gateway.public, "", &[page]).await;
    let path = client.path.clone();
    let allowed = |answer: &crate::support::Answer| {
        let header = |name: &str| answer.header(name).to_owned();
        [header("access-control-allow-origin"), header("access-control-allow-credentials"), header("vary")]
    };
    let listed = [page.1.to_owned(), "true".to_owned(), "Origin".to_owned()];
    let posted = client.post.ask("POST", &path, &[page], &connect()).await;
    assert_eq!((posted.body.as_str(), allowed(&posted)), ("ok", listed.clone()));
    let got = client.get.ask("GET", &path, &[page], "").await;
    assert_eq!((got.status, allowed(&got)), (200, listed.clone()));
    let unknown = Kept::open(gateway.public).await.ask("GET", &format!("{POLLING}&sid=x"), &[page], "").await;
    assert_eq!((unknown.status, allowed(&unknown)), (400, listed.clone()), "on errors, too");
    let preflight = Kept::open(gateway.public).await.ask("OPTIONS", &path, &[page], "").await;
    assert_eq!((preflight.status, allowed(&preflight)), (204, listed));
    assert_eq!(preflight.header("access-control-allow-methods"), "GET, POST");
    assert_eq!(preflight.header("access-control-allow-headers"), "Content-Type");
    for method in ["GET", "POST", "OPTIONS"] {
        let other = [("Origin", "https://evil.example")];
        let answer = Kept::open(gateway.public).await.ask(method, &path, &other, "").await;
        assert_eq!((answer.status, allowed(&answer)), (403, Default::default()), "{method}");
    }
    // Without a list, any page may, but not with cookies.
    let redis = RedisServer::start().await;
    let open = Gateway::redis(&redis).await;
    let any = Kept::open(open.public).await.ask("GET", POLLING, &[page], "").await;
    assert_eq!(allowed(&any), [page.1, "", "Origin"]);
}

#[tokio::test]
async fn polling_works_over_tls() {
    let (redis, authority) = (RedisServer::start().await, Authority::new());
    let files = authority.certificate(&["localhost", "127.0.0.1"]);
    let gateway = Options::redis(&redis).tls(&authority, &files).start().await;
    let connector = TlsConnector::from(client_config(&authority, &TLS13));
    let mut connections = Vec::new();
    for _ in 0..2 {
        let tcp = TcpStream::connect(gateway.public).await.unwrap();
        let tls = within("TLS", connector.connect("localhost".try_into().unwrap(), tcp)).await.unwrap();
        connections.push(Kept::over(tls));
    }
    let (post, get) = (connections.pop().unwrap(), connections.pop().unwrap());
    let mut client = Polling::open_over(gateway.public, get, post, "", &[]).await;
    client.join(&json!({"token": token("42")})).await;
    for _ in 0..3 {
        client.say(r#"42["hey"]"#).await;
        client.poll().await;
        client.get.silent().await;
        redis.publish("42", &format!("\"{}\"", "x".repeat(300_000))).await;
        assert_eq!(client.event().await[1].as_str().unwrap().len(), 300_000);
    }
}

#[tokio::test]
async fn behind_nginx_each_session_stays_on_its_instance() {
    let redis = RedisServer::start().await;
    let (one, other) = (Gateway::redis(&redis).await, Gateway::redis(&redis).await);
    let nginx = Nginx::start(&[&one, &other]).await;
    let mut clients = Vec::new();
    for user in 0..8 {
        let mut client = Polling::open_with(nginx.address, "", &[]).await;
        client.join(&json!({"token": token(&user.to_string())})).await;
        clients.push(client);
    }
    for (user, client) in clients.iter_mut().enumerate() {
        for number in 0..3 {
            redis.publish(&user.to_string(), &number.to_string()).await;
            assert_eq!(client.event().await, [json!("notification"), json!(number)]);
            client.say("3").await;
        }
    }
}
