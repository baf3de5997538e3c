//! What an operator sees of refused handshakes and hellos: a line in the log and a counter by code.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    Client, Gateway, Options, Polling, eventually, handshake, now, refused, sign, token, token_for, within,
};

async fn refusals(gateway: &Gateway, code: &str) -> f64 {
    gateway.metric(&format!("tidings_refusals_total{{code=\"{code}\"}}")).await
}

/// The fields of each line with this message.
fn lines(gateway: &Gateway, message: &str) -> Vec<Value> {
    let log = gateway.log();
    let all = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = all.filter(|line| line["fields"]["message"] == message);
    own.map(|line| {
        assert_eq!(line["level"], "INFO", "{line}");
        line["fields"].clone()
    })
    .collect()
}

#[tokio::test]
async fn each_refused_handshake_is_a_line_with_its_reason_and_counts_by_its_code() {
    let options = Options::dev().set("log.format", "json").set("server.allowed_origins", "https://app.example");
    let gateway =
        options.set("limits.trusted_proxies", "127.0.0.1").set("limits.max_connections_per_user", "1").start().await;
    let _only = Client::connect(&gateway, "42").await.answering();
    let expired = format!("Bearer {}", token_for("41", -60));
    let good = format!("Bearer {}", token("42"));
    for (status, code, headers, origin, address, user) in [
        (403, "origin_forbidden", &[("Origin", "https://evil.example")][..], "https://evil.example", "127.0.0.1", ""),
        (
            401,
            "token_expired",
            &[("Origin", "https://app.example"), ("Authorization", &*expired), ("X-Forwarded-For", "192.0.2.7")],
            "https://app.example",
            "192.0.2.7",
            "41",
        ),
        (429, "max_connections_per_user", &[("Authorization", &*good)], "", "127.0.0.1", "42"),
    ] {
        let refused = refused(gateway.public, "/ws", headers).await;
        assert_eq!((refused.status, refused.code.as_str()), (status, code));
        assert_eq!(refusals(&gateway, code).await, 1.0, "{code}");
        let line = lines(&gateway, "handshake refused").into_iter().find(|line| line["code"] == code);
        let line = line.unwrap_or_else(|| panic!("no line for {code}: {}", gateway.log()));
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["address"], address, "{line}");
        for (name, value) in [("origin", origin), ("user", user)] {
            assert_eq!(line.get(name).and_then(Value::as_str).unwrap_or_default(), value, "{line}");
        }
        assert_eq!(line["held_back"], 0, "{line}");
        assert_eq!(line["why"].as_str(), Some(&*refused.message), "{line}");
    }
}

#[tokio::test]
async fn the_line_of_a_refused_token_says_what_to_correct_and_names_the_user_of_a_signed_one() {
    let (exp, later) = (now() + 60, now() + 3_600);
    for (claims, why, user) in [
        (json!({"sub": "42", "exp": exp * 1_000}), "seconds since 1970", "42"),
        (json!({"sub": "42", "exp": exp, "iss": "other", "aud": "door"}), "\"iss\"", "42"),
        (json!({"sub": "42", "exp": exp, "iss": "issuer", "aud": "other"}), "\"aud\"", "42"),
        (json!({"sub": "42", "exp": exp, "iss": "issuer", "aud": "door", "nbf": later}), "\"nbf\"", "42"),
        (json!({"sub": "42", "iss": "issuer", "aud": "door"}), "\"exp\"", "42"),
        (json!({"exp": exp, "iss": "issuer", "aud": "door"}), "\"sub\"", ""),
        (Value::Null, "not a JSON Web Token", ""),
    ] {
        let options = Options::dev().set("log.format", "json").set("auth.issuer", "issuer");
        let gateway = options.set("auth.audience", "door").start().await;
        let token = if claims.is_null() { "no.token".to_owned() } else { sign(&claims) };
        let bearer = format!("Bearer {token}");
        assert_eq!(refused(gateway.public, "/ws", &[("Authorization", &bearer)]).await.status, 401);
        let mut client = handshake(gateway.public, "/ws", &[]).await.unwrap();
        client.send(&json!({"type": "hello", "token": token}).to_string()).await;
        assert_eq!(client.close_code().await, 4009);
        for message in ["handshake refused", "hello refused"] {
            let line = lines(&gateway, message).pop().unwrap_or_else(|| panic!("no {message}: {}", gateway.log()));
            assert!(line["why"].as_str().is_some_and(|text| text.contains(why)), "{why}: {line}");
            assert_eq!(line.get("user").and_then(Value::as_str).unwrap_or_default(), user, "{line}");
        }
        assert!(!gateway.log().contains(&token), "{}", gateway.log());
    }
}

#[tokio::test]
async fn each_refused_hello_is_a_line_with_its_close_code_and_counts_by_it() {
    let options = Options::dev().set("log.format", "json").set("server.hello_timeout", "3s");
    let gateway = options.set("limits.max_connections_per_user", "1").start().await;
    let _only = Client::connect(&gateway, "42").await.answering();
    for (first, close, code, user) in [
        (json!({"type": "hello", "token": "bad"}), 4009, "bad_token", ""),
        (json!({"type": "hello", "token": token_for("41", -60)}), 4010, "token_expired", "41"),
        (json!({"type": "hello", "token": token("42")}), 4004, "max_connections_per_user", "42"),
        (json!({"type": "pong"}), 4012, "hello_expected", ""),
        (Value::Null, 4012, "hello_timeout", ""),
    ] {
        let before = refusals(&gateway, &close.to_string()).await;
        let mut client = handshake(gateway.public, "/ws", &[("Origin", "http://localhost:3000")]).await.unwrap();
        if !first.is_null() {
            client.send(&first.to_string()).await;
        }
        assert_eq!(client.close_code().await, close, "{first}");
        assert_eq!(refusals(&gateway, &close.to_string()).await, before + 1.0, "{first}");
        let line = lines(&gateway, "hello refused").into_iter().find(|line| line["code"] == code);
        let line = line.unwrap_or_else(|| panic!("no line for {code}: {}", gateway.log()));
        assert_eq!(line["close"], close, "{line}");
        assert_eq!(line["origin"], "http://localhost:3000", "{line}");
        assert_eq!(line["address"], "127.0.0.1", "{line}");
        assert_eq!(line.get("user").and_then(Value::as_str).unwrap_or_default(), user, "{line}");
    }
    // A client that leaves before its hello was refused nothing.
    let leaving = handshake(gateway.public, "/ws", &[]).await.unwrap();
    leaving.close().await;
    eventually("it is gone", async || gateway.metric("tidings_connections_closed_total{code=\"1000\"}").await >= 1.0)
        .await;
    assert_eq!(lines(&gateway, "hello refused").len(), 5, "{}", gateway.log());
}

#[tokio::test]
async fn a_flood_of_refusals_is_a_few_lines_that_say_how_many_were_held_back() {
    let gateway = Options::dev().set("log.format", "json").start().await;
    let mut count = 0_u64;
    let attempt = async || {
        refused(gateway.public, "/ws", &[("Authorization", "Bearer bad")]).await;
    };
    eventually("a line that says so", async || {
        attempt().await;
        count += 1;
        lines(&gateway, "handshake refused").iter().any(|line| line["held_back"].as_u64() > Some(0))
    })
    .await;
    let lines = lines(&gateway, "handshake refused");
    assert_eq!(refusals(&gateway, "bad_token").await, count as f64);
    let told: u64 = lines.iter().map(|line| 1 + line["held_back"].as_u64().unwrap()).sum();
    assert_eq!(told, count, "each is a line or is counted in the next: {lines:?}");
}

/// What a listener answers to these bytes, behind which the client sends nothing more.
async fn answer(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within("an answer", socket.read_to_end(&mut answer)).await.ok();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_request_head_that_is_too_large_or_malformed_is_a_line_and_counts_as_a_refused_handshake() {
    let gateway = Options::dev().set("log.format", "json").start().await;
    let large = format!("{:x<16996}\r\n\r\n", "GET /ws HTTP/1.1\r\nHost: x\r\nX-Large: ");
    let malformed = "GET /ws HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n";
    for (request, status, code) in [(&*large, 431, "too_large"), (malformed, 400, "bad_request")] {
        let answer = answer(gateway.public, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        eventually("it is counted", async || refusals(&gateway, code).await == 1.0).await;
        let of_code = || lines(&gateway, "handshake refused").into_iter().filter(|line| line["code"] == code);
        eventually("the line", async || of_code().count() == 1).await;
        let line = of_code().next().unwrap();
        assert_eq!((&line["status"], &line["address"]), (&json!(status), &json!("127.0.0.1")), "{line}");
        assert!(line["why"].as_str().is_some_and(|why| why.starts_with("the request head is ")), "{line}");
    }
    // A client that leaves was refused nothing, and the admin listener serves no handshakes.
    for part in ["", "GET /ws HT", "GET /ws HTTP/1.1\r\nno header"] {
        assert_eq!(answer(gateway.public, part).await, "");
    }
    assert!(answer(gateway.admin, malformed).await.starts_with("HTTP/1.1 400 "));
    // On a connection that polling keeps, too.
    let mut client = Polling::open(&gateway).await;
    client.get.send("malformed\r\n\r\n").await;
    assert_eq!(client.get.answer().await.status, 400);
    assert_eq!((refusals(&gateway, "too_large").await, refusals(&gateway, "bad_request").await), (1.0, 2.0));
}

/// Every `"code"` that a refusal in the text may have: the literals where one is made.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    let made = text.split("Refusal::new(").skip(1);
    made.filter_map(|rest| rest.split(')').next()?.split('"').nth(1)).filter(|code| !code.contains(' '))
}

#[tokio::test]
async fn every_code_that_can_be_counted_is_there_from_the_start() {
    let gateway = Gateway::dev().await;
    let (_, metrics) = gateway.get(gateway.admin, "/metrics").await;
    let counted: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("tidings_refusals_total{code=\"")?.strip_suffix("\"} 0"))
        .collect();
    let public = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/public");
    let mut found = 0;
    for file in crate::architecture::sources(&public) {
        let text = std::fs::read_to_string(file).unwrap();
        for code in codes(&text) {
            assert!(counted.contains(code), "{code} is not there at 0: {counted:?}");
            found += 1;
        }
    }
    assert!(found > 3, "only {found} codes found: the test no longer sees them");
    for code in [
        "bad_token",
        "token_expired",
        "token_revoked",
        "bad_user",
        "keys_unavailable",
        "bad_session",
        "session_ended",
        "not_logged_in",
        "max_connections",
        "max_connections_per_ip",
        "max_connections_per_user",
        "connects_per_second_per_ip",
        "connects_per_second_per_user",
        "draining",
        "timeout",
        "over_capacity",
        "backplane_down",
        "4003",
        "4004",
        "4009",
        "4010",
        "4012",
        "4100",
        "4101",
        "4102",
        "4200",
    ] {
        assert!(counted.contains(code), "{code} is not there at 0: {counted:?}");
    }
    // A refusal adds no value.
    refused(gateway.public, "/ws?token=bad", &[]).await;
    let mut client = Client::anonymous(&gateway).await;
    client.send(&json!({"type": "hello", "token": sign(&json!({}))}).to_string()).await;
    assert_eq!(client.close_code().await, 4009);
    let (_, after) = gateway.get(gateway.admin, "/metrics").await;
    let values = |text: &str| text.lines().filter(|line| line.starts_with("tidings_refusals_total{")).count();
    assert_eq!(values(&after), values(&metrics));
}
