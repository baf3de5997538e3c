//! The admin listener: the API of backends, and the health and metrics for operators.

use serde_json::json;

use crate::support::{Client, Gateway, Options, RedisServer, eventually, http, refused, within};

const NOTIFY: &str = "/v1/users/42/notifications";

#[tokio::test]
async fn a_notification_is_accepted_and_arrives_byte_for_byte() {
    let redis = RedisServer::start().await;
    for gateway in [Gateway::dev().await, Gateway::redis(&redis).await] {
        let mut client = Client::connect(&gateway, "42").await;
        for data in [
            r#"{ "n" : 123456789012345678901234567890,	"x":0.10000000000000000555, "é":"\u00e9\/" }"#,
            r#"{"b":1,"a":2,"b":3}"#,
            "[ ]",
            "null",
            "\"text\"",
            "1e400",
        ] {
            let answer = gateway.ask_admin("POST", NOTIFY, &[], &format!("{{ \"data\" :  {data}  }}")).await;
            assert_eq!((answer.status, answer.json()), (202, json!({"id": null})), "{data}");
            let frame = client.text().await;
            assert_eq!(frame, format!(r#"{{"type":"event","event":"notification","data":{data}}}"#));
        }
    }
}

#[tokio::test]
async fn a_user_is_named_by_a_percent_encoded_path() {
    let gateway = Gateway::dev().await;
    let long = "é".repeat(128);
    for (path, user) in [
        ("tenant:42", "tenant:42"),
        ("a%2Fb%3Fc", "a/b?c"),
        ("Zo%C3%AB%20%E2%98%82", "Zoë ☂"),
        ("a+b", "a+b"),
        ("100%25", "100%"),
        (&"%C3%A9".repeat(128), &long),
    ] {
        let mut client = Client::connect(&gateway, user).await;
        let path = format!("/v1/users/{path}/notifications");
        assert_eq!(gateway.ask_admin("POST", &path, &[], r#"{"data":1}"#).await.status, 202, "{user}");
        assert_eq!(client.event().await, 1, "{user}");
    }
}

#[tokio::test]
async fn a_request_that_is_none_is_400_and_reaches_nobody() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    let good = r#"{"data":"wrong"}"#;
    for (path, body) in [
        (NOTIFY, ""),
        (NOTIFY, "no json"),
        (NOTIFY, r#"{"data":}"#),
        (NOTIFY, r#"{"data":"wrong"} {}"#),
        (NOTIFY, "{}"),
        (NOTIFY, r#"{"event":"notification"}"#),
        (NOTIFY, r#"{"data":"wrong","unknown":1}"#),
        (NOTIFY, r#"{"data":"wrong","durable":"no"}"#),
        (NOTIFY, r#"{"data":"wrong","event":5}"#),
        (NOTIFY, r#"{"data":"wrong","data":"twice"}"#),
        (NOTIFY, "\"wrong\""),
        ("/v1/users//notifications", good),
        ("/v1/users/a%0Ab/notifications", good),
        ("/v1/users/%C2%85/notifications", good),
        ("/v1/users/%7F/notifications", good),
        (&format!("/v1/users/{}/notifications", "x".repeat(257)), good),
    ] {
        let answer = gateway.ask_admin("POST", path, &[], body).await;
        assert_eq!(answer.error().0, 400, "{path} {body}");
    }
    gateway.post(gateway.admin, NOTIFY, r#"{"data":"right"}"#).await;
    assert_eq!(client.event().await, "right");
}

#[tokio::test]
async fn the_error_for_an_unknown_or_missing_field_names_exactly_what_the_path_accepts() {
    let gateway = Gateway::dev().await;
    let message = async |path: &str, body: &str| {
        let answer = gateway.ask_admin("POST", path, &[], body).await;
        assert_eq!(answer.error(), (400, "bad_request".to_owned()), "{path} {body}");
        answer.json()["error"]["message"].as_str().unwrap().to_owned()
    };
    for (path, body, accepted) in [
        (
            NOTIFY,
            r#"{"data":1,"users":["42"]}"#,
            "unknown field `users`, expected one of `data`, `event`, `durable`, `ttl_s`, `collapse`, `escalate_s`",
        ),
        (
            NOTIFY,
            r#"{"data":1,"evnt":"x"}"#,
            "unknown field `evnt`, expected one of `data`, `event`, `durable`, `ttl_s`, `collapse`, `escalate_s`",
        ),
        (NOTIFY, "{}", "missing field `data`"),
        (
            "/v1/notifications",
            r#"{"data":1,"user":"42"}"#,
            "unknown field `user`, expected one of `users`, `data`, `event`, `durable`, `ttl_s`, `collapse`, `escalate_s`",
        ),
        ("/v1/notifications", r#"{"data":1}"#, "missing field `users`"),
        ("/v1/notifications", r#"{"users":["42"]}"#, "missing field `data`"),
    ] {
        let message = message(path, body).await;
        assert!(message.starts_with(&format!("{accepted} at line 1")), "{path} {body}: {message}");
    }
}

#[tokio::test]
async fn an_array_is_no_notification() {
    let gateway = Gateway::dev().await;
    let answer = gateway.ask_admin("POST", NOTIFY, &[], r#"["data",null,false,null]"#).await;
    assert_eq!(answer.error().0, 400);
}

#[tokio::test]
async fn a_path_that_is_no_utf8_is_refused_as_json_too() {
    let gateway = Gateway::dev().await;
    let answer = gateway.ask_admin("POST", "/v1/users/%FF/notifications", &[], r#"{"data":1}"#).await;
    assert_eq!(answer.error().0, 400);
}

#[tokio::test]
async fn a_body_may_have_64_kib_and_no_more() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    let body = |len: usize| format!(r#"{{"data":"{}"}}"#, "x".repeat(len - r#"{"data":""}"#.len()));
    assert_eq!(gateway.ask_admin("POST", NOTIFY, &[], &body(64 * 1024)).await.status, 202);
    assert_eq!(client.event().await.as_str().unwrap().len(), 64 * 1024 - 11);
    for len in [64 * 1024 + 1, 200_000] {
        assert_eq!(gateway.ask_admin("POST", NOTIFY, &[], &body(len)).await.error().0, 413, "{len}");
    }
    gateway.post(gateway.admin, NOTIFY, r#"{"data":"next"}"#).await;
    assert_eq!(client.event().await, "next");
}

#[tokio::test]
async fn data_over_the_payload_limit_is_413_before_it_is_published() {
    let gateway = Options::dev().set("limits.max_payload_bytes", "10").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    assert_eq!(gateway.ask_admin("POST", NOTIFY, &[], r#"{"data":"123456789"}"#).await.error().0, 413);
    assert_eq!(gateway.ask_admin("POST", NOTIFY, &[], r#"{"data":"12345678"}"#).await.status, 202);
    assert_eq!(client.event().await, "12345678");
}

#[tokio::test]
async fn a_configured_key_is_asked_for_on_every_call_and_on_no_probe() {
    let one = Options::dev().set("admin.api_key", "only-key").start().await;
    let named = Options::dev()
        .env("TIDINGS_ADMIN__API_KEYS__BILLING", "billing-key")
        .env("TIDINGS_ADMIN__API_KEYS__SHOP", "shops-key")
        .start()
        .await;
    let body = r#"{"data":1}"#;
    for (gateway, good) in [(&one, &["only-key"][..]), (&named, &["billing-key", "shops-key"][..])] {
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "Bearer only-ke",
            "Bearer only-keyy",
            "Basic b25seS1rZXk=",
            "only-key",
        ] {
            let headers: &[_] = if wrong.is_empty() { &[] } else { &[("Authorization", wrong)] };
            for (method, path) in [("POST", NOTIFY), ("GET", "/v1/info")] {
                let answer = gateway.ask_admin(method, path, headers, body).await;
                assert_eq!(answer.error().0, 401, "{wrong:?} {path}");
                assert!(answer.header("www-authenticate").starts_with("Bearer"), "{answer:?}");
            }
        }
        for key in good {
            let key = format!("Bearer {key}");
            let headers = [("Authorization", key.as_str())];
            assert_eq!(gateway.ask_admin("POST", NOTIFY, &headers, body).await.status, 202, "{key}");
            assert_eq!(gateway.ask_admin("GET", "/v1/info", &headers, "").await.status, 200, "{key}");
        }
        for open in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(gateway.ask_admin("GET", open, &[], "").await.status, 200, "{open}");
        }
    }
}

#[tokio::test]
async fn metrics_are_prometheus_text_and_each_says_what_it_counts() {
    let gateway = Gateway::dev().await;
    let before = gateway.metric("tidings_deliveries_total").await;
    let mut client = Client::connect(&gateway, "42").await;
    refused(gateway.public, "/ws?token=bad", &[]).await;
    gateway.post(gateway.admin, NOTIFY, r#"{"data":1}"#).await;
    client.event().await;

    let answer = gateway.ask_admin("GET", "/metrics", &[], "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
    let has = |line: String| answer.body.lines().any(|other| other.starts_with(&line));
    for line in answer.body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let name = name.split('{').next().unwrap();
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let name = histogram.filter(|name| has(format!("# TYPE {name} histogram"))).unwrap_or(name);
        assert!(name.starts_with("tidings_") || name.starts_with("process_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(has(format!("# HELP {name} ")) && has(format!("# TYPE {name} ")), "{line}");
        assert!(!line.contains("\"42\""), "no user is named: {line}");
    }
    for (name, value) in [
        ("tidings_connections", 1.0),
        ("tidings_users", 1.0),
        ("tidings_connections_opened_total", 1.0),
        ("tidings_refusals_total{code=\"bad_token\"}", 1.0),
        ("tidings_published_total", 1.0),
        ("tidings_deliveries_total", before + 1.0),
    ] {
        assert!((gateway.metric(name).await - value).abs() < 0.5, "{name} is not {value}");
    }
    client.close().await;
    eventually("the close is counted", async || {
        gateway.metric("tidings_connections_closed_total{code=\"1000\"}").await > 0.5
            && gateway.metric("tidings_connections").await < 0.5
    })
    .await;
}

#[tokio::test]
async fn info_tells_what_this_instance_is_and_holds() {
    let redis = RedisServer::start().await;
    for (gateway, backplane) in [(Gateway::dev().await, "memory"), (Gateway::redis(&redis).await, "redis")] {
        let _phone = Client::connect(&gateway, "42").await;
        let _laptop = Client::connect(&gateway, "42").await;
        let _other = Client::connect(&gateway, "43").await;
        let info = gateway.ask_admin("GET", "/v1/info", &[], "").await.json();
        assert_eq!(info["instance"], gateway.instance.as_str());
        assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!((&info["connections"], &info["users"]), (&json!(3), &json!(2)), "{info}");
        assert_eq!(info["backplane"], backplane);
        assert!(info["uptime_s"].is_u64(), "{info}");
    }
}

#[tokio::test]
async fn the_probes_tell_alive_from_ready_on_both_listeners() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let listeners = [gateway.public, gateway.admin];
    for listener in listeners {
        assert_eq!(gateway.get(listener, "/healthz").await.0, 200);
        assert_eq!(gateway.get(listener, "/readyz").await.0, 200);
    }
    redis.kill().await;
    gateway.not_ready().await;
    for listener in listeners {
        assert_eq!(gateway.get(listener, "/healthz").await.0, 200);
        let (status, why) = gateway.get(listener, "/readyz").await;
        let why: serde_json::Value = serde_json::from_str(&why).expect("JSON that says why");
        assert_eq!(status, 503);
        assert!(why.to_string().contains("redis"), "{why}");
    }
    let (status, _) = gateway.post(gateway.admin, NOTIFY, r#"{"data":1}"#).await;
    assert_eq!(status, 503, "a notification that was not published is not accepted");
}

#[tokio::test]
async fn what_is_not_there_is_an_error_in_json_too() {
    let gateway = Gateway::redis(&RedisServer::start().await).await;
    let nowhere = [("GET", "/"), ("GET", "/v1"), ("GET", "/ws"), ("PUT", "/x")];
    for (method, path) in nowhere {
        assert_eq!(gateway.ask_admin(method, path, &[], "").await.error().0, 404, "{method} {path}");
    }
    for (method, path) in [("PUT", NOTIFY), ("DELETE", NOTIFY), ("POST", "/v1/info"), ("DELETE", "/metrics")] {
        let answer = gateway.ask_admin(method, path, &[], "").await;
        assert_eq!(answer.error().0, 405, "{method} {path}");
        assert!(!answer.header("allow").is_empty(), "RFC 9110 asks for Allow: {answer:?}");
    }
    assert_eq!(gateway.ask_public("POST", "/healthz", &[], "").await.error().0, 405);
    assert_eq!(gateway.ask_public("GET", "/nowhere", &[], "").await.error().0, 404);
}

#[tokio::test]
async fn the_admin_page_needs_no_key_and_allows_no_foreign_code() {
    let gateway = Options::dev().set("admin.api_key", "the-admin-key").start().await;
    let get =
        async |path: &str| within(path, http().get(format!("http://{}{path}", gateway.admin)).send()).await.unwrap();
    for (path, kind) in
        [("/ui/", "text/html"), ("/ui", "text/html"), ("/ui/app.js", "text/javascript"), ("/ui/style.css", "text/css")]
    {
        let answer = get(path).await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        assert!(header("content-type").starts_with(kind), "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        let policy = header("content-security-policy");
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"] {
            assert!(policy.contains(part) && !policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
        }
    }
    assert_eq!(get("/ui/..%2F..%2FCargo.toml").await.status(), 404);
    assert_eq!(get("/ui/nothing.js").await.status(), 404);
}
