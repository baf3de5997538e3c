//! The load generator: its reports are correct.

use serde_json::Value;

use crate::cli::closed_port;
use crate::support::{Gateway, RedisServer, SECRET, command, eventually, output};

async fn load(gateway: &Gateway, redis: &RedisServer, flags: &[&str]) -> (i32, Vec<Value>, String) {
    let (target, admin, url) = (gateway.public.to_string(), gateway.admin.to_string(), redis.url());
    let mut load = command(&["load", "--target", &target, "--admin-listen", &admin, "--redis-url", &url, "--json"]);
    load.args(flags).env("TIDINGS_AUTH__HMAC_SECRET", SECRET);
    let done = output(load).await;
    let lines = String::from_utf8(done.stdout).unwrap();
    let reports = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (done.status.code().expect("not killed"), reports, String::from_utf8(done.stderr).unwrap())
}

const SHORT: [&str; 8] = ["--settle", "0s", "--warm-up", "0s", "--duration", "300ms", "--connections", "20"];

#[tokio::test]
async fn each_phase_has_a_report_that_counts_every_delivery() {
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
    let published = miss["published"].as_f64().unwrap();
    assert!(published > 100.0, "{miss}");
    eventually("each is counted", async || gateway.metric("tidings_messages_missed_total").await >= published).await;
}

#[tokio::test]
async fn every_interface_delivers_and_stored_messages_run_scripts() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let phases = ["pubsub", "outbox", "http"].map(|publish| {
        let flags = "--warm-up 0s --duration 300ms --mode turn --burst 10 --flat-out --window 50";
        format!("{flags} --publish {publish}")
    });
    let then = phases.iter().flat_map(|phase| ["--then", phase]);
    let flags: Vec<_> = SHORT.into_iter().chain(["--users", "15"]).chain(then).collect();
    let (code, reports, errors) = load(&gateway, &redis, &flags).await;
    assert_eq!(code, 0, "{errors}");
    let [_, pubsub, outbox, http] = &reports[..] else { panic!("{reports:?}") };
    let stored: u64 = redis.command(&["HGET", "tidings:history", "count"]).await;
    let published: u64 = [outbox, http].map(|report| report["published"].as_u64().unwrap()).iter().sum();
    assert!(stored >= published && published > 20, "{stored}: {outbox} {http}");
    let mut each = Vec::new();
    for user in 0..15 {
        each.push(redis.command::<u64>(&["XLEN", &format!("tidings:history:{{{user}}}")]).await);
    }
    // Either of the two phases may end before each user has an equal number.
    assert!(each.iter().max().unwrap() - each.iter().min().unwrap() <= 2, "{each:?}");
    // The published messages and the usage of Redis are not read at the same moment.
    let scripts = |report: &Value| report["redis"]["scripts"].as_u64().unwrap();
    let half = |report: &Value| report["published"].as_u64().unwrap() / 2;
    // One call stores many.
    assert!(scripts(outbox) > half(outbox) / 100 && scripts(http) > half(http) / 100, "{outbox} {http}");
    assert!(scripts(pubsub) < half(pubsub), "{pubsub}");
    assert!(pubsub["redis"]["commands"].as_u64() > Some(half(pubsub)), "{pubsub}");
}

#[tokio::test]
async fn recovery_is_measured_until_the_clients_have_all_notifications() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let phases = [
        "--mode reconnect",
        "--mode resume --stored 150",
        "--mode refill --stored 10",
        "--mode resume",
        "--mode refill",
    ];
    let then = phases.iter().flat_map(|phase| ["--then", phase]);
    let flags: Vec<_> = SHORT.into_iter().chain(["--users", "15"]).chain(then).collect();
    let (code, reports, errors) = load(&gateway, &redis, &flags).await;
    assert_eq!(code, 0, "{errors}");
    // Five users have two connections each.
    let deliveries: Vec<_> = reports[1..].iter().map(|report| report["deliveries"].as_u64().unwrap()).collect();
    assert_eq!(deliveries, [0, 200, 15, 0, 0]);
    assert_eq!(gateway.metric("tidings_resumes_total{result=\"recovered\"}").await, 40.0);
    // The second one may be noticed after the run.
    assert!(gateway.metric("tidings_backplane_gaps_total").await >= 1.0);
    // Clients begin together.
    for (report, commands) in reports[1..3].iter().zip([1, 20]) {
        assert!(report["redis"]["scripts"].as_u64() >= Some(1), "{report}");
        assert!(report["redis"]["commands"].as_u64() >= Some(commands), "{report}");
        assert!(report["redis"]["cpu_us"].as_f64() > Some(0.0), "{report}");
    }
}

#[tokio::test]
async fn fan_out_and_broadcasts_count_every_copy() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for mode in ["fanout", "broadcast"] {
        let flags = [&SHORT[..], &["--mode", mode, "--rate", "50", "--payload", "65536"]].concat();
        let (code, reports, errors) = load(&gateway, &redis, &flags).await;
        assert_eq!(code, 0, "{mode}: {errors}");
        assert!(reports[0]["last_copy_us"]["p50"].as_f64() > Some(0.0), "{}", reports[0]);
    }
    assert!(gateway.metric("tidings_broadcasts_total").await > 0.0);
}

#[tokio::test]
async fn on_a_terminal_each_activity_shows_its_progress_and_connecting_ends_at_100_per_cent() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let flags = format!(
        "--target {} --redis-url {} --connections 20 --settle 300ms --warm-up 300ms --duration 300ms --linger 300ms \
         --then '--mode resume --stored 30'",
        gateway.public,
        redis.url()
    );
    // `script` gives it a terminal.
    let mut shell = crate::support::clean("script");
    shell.args(["-qefc", &format!("'{}' load {flags}", env!("CARGO_BIN_EXE_tidings")), "/dev/null"]);
    shell.env("TIDINGS_AUTH__HMAC_SECRET", SECRET).stdin(std::process::Stdio::null());
    let done = output(shell).await;
    let shown = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{shown}");
    for activity in ["settling [", "warming up [", "publishing [", "lingering [", "storing ["] {
        assert!(shown.contains(activity), "{activity}: {shown}");
    }
    assert!(shown.contains("connecting [####################] 100 %, 20, "), "{shown}");
}

#[tokio::test]
async fn flat_out_requires_a_connection_for_every_user() {
    for flags in [
        &["--flat-out", "--connections", "2", "--users", "3"][..],
        &["--connections", "2", "--users", "3", "--then", "--flat-out"],
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
async fn a_number_with_which_nothing_would_be_measured_is_refused_with_those_that_are_accepted() {
    let cases = ["connections", "users", "connect-rate", "sources", "rate", "window", "burst", "server-pid"];
    let cases = cases.map(|flag| (format!("--{flag} 0"), "0 is not in 1.."));
    let durations = [("--duration 0s".to_owned(), "expected at least 1ms")];
    for (flag, accepted) in cases.into_iter().chain(durations) {
        let (name, number) = flag.split_once(' ').unwrap();
        let mut given = vec![vec![name, number]];
        // As a flag of a further phase, too, which has not those of the whole run.
        if ["--rate", "--window", "--burst", "--duration"].contains(&name) {
            given.push(vec!["--then", &flag]);
        }
        for flags in given {
            let mut load = command(&["load"]);
            load.args(&flags).env("TIDINGS_AUTH__HMAC_SECRET", SECRET);
            let done = output(load).await;
            let errors = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(2), "{flags:?}: {errors}");
            assert!(errors.contains(name) && errors.contains(accepted), "{flags:?}: {errors}");
        }
    }
}

#[tokio::test]
async fn flat_out_does_not_stall_with_a_small_window_or_many_copies() {
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
async fn the_error_for_an_invalid_phase_names_the_flag() {
    for (flags, named) in [
        (["--then", "--rate many"], "--rate"),
        (["--then", "--mode fanout"], "fanout"),
        (["--then", "--mode reconnect --stored 1"], "--stored"),
    ] {
        let mut load = command(&["load"]);
        load.args(flags).env("TIDINGS_AUTH__HMAC_SECRET", SECRET);
        let done = output(load).await;
        let errors = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{flags:?}: {errors}");
        assert!(errors.contains(named), "{flags:?}: {errors}");
    }
}

#[tokio::test]
async fn clients_of_every_protocol_receive_all_messages_and_resume() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for client in ["websocket", "sse", "socket-io", "polling"] {
        let flags =
            [&SHORT[..], &["--client", client, "--rate", "500", "--then", "--mode resume --stored 40"]].concat();
        let (code, reports, errors) = load(&gateway, &redis, &flags).await;
        assert_eq!(code, 0, "{client}: {errors}");
        assert!(reports[0]["deliveries"].as_u64() > Some(0), "{client}: {}", reports[0]);
        assert_eq!(reports[1]["deliveries"], 40, "{client}");
    }
    assert_eq!(gateway.metric("tidings_resumes_total{result=\"recovered\"}").await, 80.0);
}

#[tokio::test]
async fn without_a_target_the_clients_connect_to_the_configured_listener() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let load = async |listen: String| {
        let mut load = command(&["load", "--redis-url", &redis.url()]);
        load.args(SHORT).env("TIDINGS_AUTH__HMAC_SECRET", SECRET).env("TIDINGS_SERVER__LISTEN", listen);
        let done = output(load).await;
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    for address in [gateway.public.to_string(), format!("0.0.0.0:{}", gateway.public.port())] {
        assert_eq!(load(address.clone()).await, (Some(0), String::new()), "{address}");
    }
    let (_socket, closed) = closed_port();
    let (code, errors) = load(closed.clone()).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains(&format!("to {closed}: Connection refused")), "{errors}");
    let (code, errors) = load("127.0.0.1:0".to_owned()).await;
    assert!(code == Some(2) && errors.contains("server.listen") && errors.contains("--target IP:PORT"), "{errors}");
}
