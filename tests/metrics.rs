//! `GET /metrics`: what a scraper and the rules of Prometheus expect.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{Client, Gateway, Options, RedisServer, eventually, free_port};

/// The samples of a counter or of a histogram's count.
async fn count(gateway: &Gateway, name: &str) -> f64 {
    gateway.metric(&format!("tidings_{name}_count")).await
}

#[tokio::test]
async fn the_output_passes_promtool() {
    let gateway = Gateway::dev().await;
    let (_, text) = gateway.get(gateway.admin, "/metrics").await;
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool, of Debian's package prometheus: scripts/setup installs it");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = promtool.wait_with_output().unwrap();
    assert!(checked.status.success() && checked.stderr.is_empty(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[tokio::test]
async fn a_scraper_that_asks_for_openmetrics_gets_it() {
    let gateway = Gateway::dev().await;
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    let answer = gateway.ask_admin("GET", "/metrics", &[("Accept", accept)], "").await;
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(answer.body.ends_with("\n# EOF\n"));
    let (mut families, mut family, mut kind) = (BTreeSet::new(), "", "");
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            (family, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(family), "{family} is there twice");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let suffixes: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(name.strip_prefix(family).is_some_and(|suffix| suffixes.contains(&suffix)), "{line}");
        }
    }
    assert!(families.contains("tidings_deliveries") && families.contains("tidings_delivery_seconds"));
}

#[tokio::test]
async fn latencies_are_measured_where_they_arise() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let before = count(&gateway, "redis_roundtrip_seconds").await;
    let mut client = Client::connect(&gateway, "42").await;
    assert_eq!(count(&gateway, "handshake_seconds").await, 1.0);
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    assert_eq!(count(&gateway, "delivery_seconds").await, 1.0);
    assert_eq!(count(&gateway, "store_seconds").await, 0.0);
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":2,"durable":true}"#).await;
    assert_eq!(count(&gateway, "store_seconds").await, 1.0);
    redis.command::<String>(&["XADD", "tidings:outbox", "*", "user", "42", "data", "3"]).await;
    eventually("the outbox is measured", async || count(&gateway, "store_seconds").await == 2.0).await;
    assert!(count(&gateway, "redis_roundtrip_seconds").await > before);
    for name in ["handshake", "delivery", "redis_roundtrip", "store"] {
        let sum = gateway.metric(&format!("tidings_{name}_seconds_sum")).await;
        assert!(sum > 0.0 && sum < 60.0, "{name}: {sum}");
    }
}

#[tokio::test]
async fn the_state_of_the_instance_the_process_and_the_build_are_metrics() {
    let ready = Gateway::dev().await;
    let unready = Options::redis_at(&format!("redis://127.0.0.1:{}", free_port())).start_unready().await;
    assert_eq!((ready.metric("tidings_ready").await, unready.metric("tidings_ready").await), (1.0, 0.0));
    assert_eq!(ready.metric("tidings_draining").await, 0.0);
    let build =
        format!("tidings_build_info{{commit=\"{}\",version=\"{}\"}}", tidings::COMMIT, env!("CARGO_PKG_VERSION"));
    assert_eq!(ready.metric(&build).await, 1.0);
    assert!(ready.metric("process_open_fds").await > 5.0);
    assert!(ready.metric("process_resident_memory_bytes").await > 1e6);
    assert!(ready.metric("process_start_time_seconds").await > 1.7e9);
    let (_, text) = ready.get(ready.admin, "/metrics").await;
    assert!(!text.contains("tidings_certificate_expiry_timestamp_seconds"), "without TLS");
}
