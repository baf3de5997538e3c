//! The load generator: what it says of a run can be trusted.

use serde_json::Value;

use crate::support::{Gateway, RedisServer, SECRET, command, output};

async fn load(gateway: &Gateway, redis: &RedisServer, flags: &[&str]) -> (i32, Vec<Value>, String) {
    let (target, url) = (gateway.public.to_string(), redis.url());
    let mut load = command(&["load", "--target", &target, "--redis-url", &url, "--json"]);
    load.args(flags).env("TIDINGS_AUTH__HMAC_SECRET", SECRET);
    let done = output(load).await;
    let lines = String::from_utf8(done.stdout).unwrap();
    let reports = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (done.status.code().expect("not killed"), reports, String::from_utf8(done.stderr).unwrap())
}

const SHORT: [&str; 8] = ["--settle", "0s", "--warm-up", "0s", "--duration", "300ms", "--connections", "20"];

#[tokio::test]
async fn each_phase_is_reported_of_and_every_delivery_is_found() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let misses = "--mode miss --flat-out --window 5000 --warm-up 0s --duration 300ms";
    let flags = [&SHORT[..], &["--users", "15", "--rate", "500", "--then", misses]].concat();
    let (code, reports, errors) = load(&gateway, &redis, &flags).await;
    assert_eq!(code, 0, "{errors}");
    let [unicast, miss] = &reports[..] else { panic!("{reports:?}") };
    for report in &reports {
        assert!(report["deliveries"].as_u64() > Some(0), "{report}");
        assert_eq!((&report["lost"], &report["twice"], &report["out_of_order"]), (&0.into(), &0.into(), &0.into()));
    }
    assert_eq!(unicast["mode"], "unicast");
    assert!(miss["published"].as_u64() > Some(1_000), "{miss}");
    assert!(gateway.metric("tidings_messages_missed_total").await > 900.0);
}

#[tokio::test]
async fn fan_out_counts_every_copy() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let flags = [&SHORT[..], &["--mode", "fanout", "--rate", "50", "--payload", "65536"]].concat();
    let (code, reports, errors) = load(&gateway, &redis, &flags).await;
    assert_eq!(code, 0, "{errors}");
    assert!(reports[0]["last_copy_us"]["p50"].as_f64() > Some(0.0), "{}", reports[0]);
}

#[tokio::test]
async fn flat_out_every_user_must_have_a_connection() {
    for flags in [
        &["--flat-out", "--connections", "2", "--users", "3"][..],
        &["--connections", "2", "--users", "3", "--then", "--flat-out"],
        &["--flat-out", "--connections", "0"],
    ] {
        let mut load = command(&["load"]);
        load.args(flags).env("TIDINGS_AUTH__HMAC_SECRET", SECRET);
        let done = output(load).await;
        let errors = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{flags:?}: {errors}");
        assert!(errors.contains("--users") && errors.contains("--connections"), "{flags:?}: {errors}");
    }
}

#[tokio::test]
async fn flat_out_goes_on_however_small_the_window_and_however_many_copies() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let misses = "--mode miss --flat-out --window 10 --warm-up 0s --duration 300ms";
    let flags = [&SHORT[..], &["--users", "15", "--flat-out", "--window", "1", "--then", misses]].concat();
    let (code, reports, errors) = load(&gateway, &redis, &flags).await;
    assert_eq!(code, 0, "{errors}");
    for report in &reports {
        assert!(report["published"].as_u64() > Some(20), "{report}");
    }
}

#[tokio::test]
async fn a_phase_that_cannot_be_is_refused_by_name() {
    for (flags, named) in [(["--then", "--rate many"], "--rate"), (["--then", "--mode fanout"], "fanout")] {
        let mut load = command(&["load"]);
        load.args(flags).env("TIDINGS_AUTH__HMAC_SECRET", SECRET);
        let done = output(load).await;
        let errors = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{flags:?}: {errors}");
        assert!(errors.contains("--then") && errors.contains(named), "{flags:?}: {errors}");
    }
}
