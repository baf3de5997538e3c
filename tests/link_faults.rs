//! Every failure of Redis, or of the link to it, is detected, counted and logged by its kind, and recovered from.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;

use crate::redis_link::{delivered_within, gap, reason};
use crate::support::{
    Authority, Client, Gateway, Options, Proxy, RedisServer, Way, Whose, eventually, eventually_within, free_port,
    http, lone_node,
};

const FOUND: Duration = Duration::from_secs(15);
const BACK: Duration = Duration::from_secs(10);
const EXACT: Duration = Duration::from_secs(5);
const ANSWERED: Duration = Duration::from_secs(5);
const NOTIFY: &str = "/v1/users/42/notifications";

fn options(url: &str) -> Options {
    Options::redis_at(url).set("presence.offline_delay", "300ms").set("server.heartbeat", "2m")
}

/// An instance that reaches its Redis through a proxy.
async fn behind_a_proxy() -> (RedisServer, Proxy, Gateway) {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let gateway = options(&proxy.url()).start().await;
    (redis, proxy, gateway)
}

async fn errors(gateway: &Gateway, kind: &str) -> f64 {
    gateway.metric(&format!("tidings_backplane_errors_total{{kind=\"{kind}\"}}")).await
}

/// Waits until a failure of this kind has been counted and logged.
async fn told(gateway: &Gateway, kind: &str) {
    eventually(&format!("{kind} is counted"), async || errors(gateway, kind).await > 0.0).await;
    let field = format!("kind=\"{kind}\"");
    eventually(&format!("{kind} is logged"), async || {
        gateway.log().lines().any(|line| line.contains("WARN") && line.contains(&field))
    })
    .await;
}

async fn becomes_unready_within(limit: Duration, gateway: &Gateway) {
    eventually_within(limit, "it is not ready", async || gateway.get(gateway.public, "/readyz").await.0 == 503).await;
}

async fn online_within(limit: Duration, redis: &RedisServer, users: &[&str]) {
    eventually_within(limit, &format!("online are {users:?}"), async || redis.online().await == users).await;
}

/// Publishes over HTTP, which must be answered in time; whether it was accepted.
async fn publishes(gateway: &Gateway) -> bool {
    let asked = Instant::now();
    let (status, body) = gateway.post(gateway.admin, NOTIFY, r#"{"data":1}"#).await;
    assert!(asked.elapsed() < ANSWERED, "{status} after {:?}", asked.elapsed());
    if status == 202 {
        return true;
    }
    let error: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("JSON that says why: {body}"));
    assert_eq!((status, &error["error"]["code"]), (503, &"backplane_down".into()), "{body}");
    assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    false
}

async fn publishing_is_back(gateway: &Gateway) {
    eventually_within(BACK, "publishing is back", async || publishes(gateway).await).await;
}

#[tokio::test]
async fn a_subscription_that_alone_went_silent_is_found_within_15_s_while_commands_go_on() {
    join_all([Way::Both, Way::FromRedis].map(async |way| {
        let (redis, proxy, gateway) = behind_a_proxy().await;
        let mut client = Client::connect(&gateway, "42").await;
        proxy.blackhole(Whose::Subscribers, way);
        becomes_unready_within(FOUND, &gateway).await;
        assert!(publishes(&gateway).await);
        let (status, presence) = gateway.get(gateway.admin, "/v1/users/42/presence").await;
        assert!(status == 200 && presence.contains("\"online\":true"), "{status} {presence}");
        told(&gateway, "silent").await;
        told(&gateway, "timeout").await;
        proxy.heal();
        delivered_within(BACK, &redis, &mut client).await;
        gateway.ready().await;
        assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 1.0);
    }))
    .await;
}

#[tokio::test]
async fn a_link_that_altogether_went_silent_is_found_within_15_s_and_all_is_right_after_it_heals() {
    join_all([Way::Both, Way::ToRedis, Way::FromRedis].map(async |way| {
        let (redis, proxy, gateway) = behind_a_proxy().await;
        let mut client = Client::connect(&gateway, "42").await;
        let leaver = Client::connect(&gateway, "43").await;
        online_within(EXACT, &redis, &["42", "43"]).await;
        proxy.blackhole(Whose::All, way);
        leaver.close().await;
        let _newcomer = Client::connect(&gateway, "44").await;
        assert!(!publishes(&gateway).await);
        becomes_unready_within(FOUND, &gateway).await;
        told(&gateway, "silent").await;
        told(&gateway, "timeout").await;
        assert!(!publishes(&gateway).await);
        proxy.heal();
        delivered_within(BACK, &redis, &mut client).await;
        gateway.ready().await;
        online_within(EXACT, &redis, &["42", "44"]).await;
        publishing_is_back(&gateway).await;
    }))
    .await;
}

#[tokio::test]
async fn changes_whose_answers_were_lost_are_sent_again_and_written_once() {
    let (redis, proxy, gateway) = behind_a_proxy().await;
    let leaver = Client::connect(&gateway, "42").await;
    online_within(EXACT, &redis, &["42"]).await;
    let mut events = redis.subscribe("presence").await;
    proxy.blackhole(Whose::All, Way::FromRedis);
    let _first = Client::connect(&gateway, "43").await;
    online_within(EXACT, &redis, &["42", "43"]).await;
    leaver.close().await;
    let _second = Client::connect(&gateway, "44").await;
    told(&gateway, "timeout").await;
    proxy.heal();
    online_within(EXACT, &redis, &["43", "44"]).await;
    let mut changes = Vec::new();
    for _ in 0..3 {
        let event = events.next().await;
        changes.push(format!("{} {}", event["user"].as_str().unwrap(), event["status"].as_str().unwrap()));
    }
    changes.sort();
    assert_eq!(changes, ["42 offline", "43 online", "44 online"]);
    assert_eq!(gateway.metric("tidings_presence_incarnations_total").await, 1.0, "nothing had to start over");
}

#[tokio::test]
async fn connections_that_the_network_forgot_are_replaced_though_nobody_closes_them() {
    let (redis, proxy, gateway) = behind_a_proxy().await;
    let mut client = Client::connect(&gateway, "42").await;
    proxy.blackhole(Whose::Existing, Way::Both);
    let _newcomer = Client::connect(&gateway, "43").await;
    eventually_within(FOUND, "the gap is counted", async || gateway.metric("tidings_backplane_gaps_total").await > 0.0)
        .await;
    told(&gateway, "silent").await;
    delivered_within(BACK, &redis, &mut client).await;
    gateway.ready().await;
    online_within(EXACT, &redis, &["42", "43"]).await;
}

#[tokio::test]
async fn a_link_whose_new_connections_hear_nothing_works_on_until_it_is_cut() {
    let (redis, proxy, gateway) = behind_a_proxy().await;
    let mut client = Client::connect(&gateway, "42").await;
    proxy.blackhole(Whose::New, Way::FromRedis);
    assert!(publishes(&gateway).await);
    assert_eq!(client.event().await, 1);
    proxy.cut();
    becomes_unready_within(FOUND, &gateway).await;
    told(&gateway, "connection").await;
    told(&gateway, "timeout").await;
    assert!(!publishes(&gateway).await);
    proxy.heal();
    delivered_within(BACK, &redis, &mut client).await;
    gateway.ready().await;
}

#[tokio::test]
async fn a_refused_connection_is_told_as_such_and_tried_again_for_ever() {
    let (redis, proxy, gateway) = behind_a_proxy().await;
    let mut client = Client::connect(&gateway, "42").await;
    online_within(EXACT, &redis, &["42"]).await;
    for gaps in 1..=2 {
        proxy.refuse();
        becomes_unready_within(FOUND, &gateway).await;
        told(&gateway, "connection").await;
        assert!(!publishes(&gateway).await);
        proxy.heal();
        delivered_within(BACK, &redis, &mut client).await;
        gateway.ready().await;
        assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, f64::from(gaps));
        // What was published to see that it arrives.
        client = Client::connect(&gateway, "42").await;
        publishing_is_back(&gateway).await;
        assert_eq!(client.event().await, 1);
    }
}

#[tokio::test]
async fn a_subscription_that_redis_dropped_for_its_backlog_is_made_anew_and_counted_as_a_gap() {
    let redis = RedisServer::start().await;
    redis.config_set("client-output-buffer-limit", "pubsub 1mb 0 0").await;
    let gateway = options(&redis.url()).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    gateway.signal("STOP");
    // Small enough that Redis begins to write before it reaches the limit.
    let payload = format!("\"{}\"", "x".repeat(100_000));
    redis.publish_all("absent", std::iter::repeat_n(payload, 400)).await;
    eventually("redis has dropped it", async || redis.links_of(&gateway.instance, "subscriber").await.is_empty()).await;
    gateway.signal("CONT");
    gap(&mut client).await;
    delivered_within(Duration::from_secs(5), &redis, &mut client).await;
    told(&gateway, "connection").await;
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("not subscribed to redis")).expect("told");
    assert!(line.contains("fell behind (client-output-buffer-limit pubsub)") && line.contains("lag_ms="), "{line}");
    gateway.ready().await;
    let (_, ready) = gateway.get(gateway.public, "/readyz").await;
    assert_eq!(serde_json::from_str::<Value>(&ready).unwrap()["gaps"], 1, "{ready}");
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 1.0);
}

#[tokio::test]
async fn a_subscription_that_is_lost_again_and_again_is_made_anew_at_growing_intervals() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis.url()).start().await;
    for _ in 0..10 {
        eventually("it is subscribed", async || redis.command::<u64>(&["PUBLISH", "user:0", "1"]).await == 1).await;
        let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    }
    eventually("each is told", async || gateway.log().matches("retry_ms=").count() >= 10).await;
    let log = gateway.log();
    let pauses = log.split("retry_ms=").skip(1).map(|rest| rest.split_whitespace().next().unwrap());
    let pauses: Vec<u64> = pauses.map(|pause| pause.parse().unwrap()).collect();
    // Each is drawn between zero and a ceiling that begins at 100 ms and doubles.
    assert!(pauses.iter().any(|pause| *pause > 200), "{pauses:?}");
    assert!(log.contains("CLIENT KILL") && !log.contains("fell behind"), "nothing had fallen behind: {log}");
}

#[tokio::test]
async fn the_lag_is_that_of_the_probes_and_grows_while_redis_stands_still() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis.url()).set("redis.probe_interval", "200ms").start().await;
    let lag = async || {
        let (_, metrics) = gateway.get(gateway.admin, "/metrics").await;
        let value = metrics.lines().find_map(|line| line.strip_prefix("tidings_backplane_lag_seconds "));
        value.expect("a value").parse::<f64>().unwrap()
    };
    eventually("a probe has returned", async || (0.000_001..0.2).contains(&lag().await)).await;
    redis.freeze();
    eventually("the age of a probe counts", async || lag().await > 1.2).await;
    eventually("it grows", async || lag().await > 2.5).await;
    redis.thaw();
    eventually("it is small again", async || (0.000_001..0.2).contains(&lag().await)).await;
}

/// An instance that Redis does not let subscribe: it says so, at a bounded rate and without the password, until the
/// cure is applied.
async fn kept_out(redis: &RedisServer, credentials: &str, kind: &str, cure: &[&str]) {
    let url = format!("redis://{credentials}@127.0.0.1:{}", redis.port()).replace("//@", "//");
    let started = Instant::now();
    let gateway = options(&url).set("log.level", "trace").start_unready().await;
    let mut client = Client::connect(&gateway, "42").await;
    told(&gateway, kind).await;
    eventually("readyz says so", async || reason(&gateway).await.contains(kind)).await;
    if kind != "NOPERM" {
        assert!(!publishes(&gateway).await);
    }
    eventually("it keeps trying", async || errors(&gateway, kind).await >= 8.0).await;
    for other in ["connection", "refused", "timeout", "silent", "malformed"] {
        assert_eq!(errors(&gateway, other).await, 0.0, "{kind} was counted as {other}: {}", gateway.log());
    }
    bounded(&gateway, started);
    let () = redis.command(cure).await;
    gateway.ready().await;
    publishing_is_back(&gateway).await;
    assert_eq!(client.event().await, 1);
    eventually_within(EXACT, "42 is online", async || {
        gateway.get(gateway.admin, "/v1/users/42/presence").await.1.contains("\"online\":true")
    })
    .await;
    assert!(!gateway.log().contains("hunter2"), "{}", gateway.log());
}

/// Each kind of line about Redis comes about once a second at most.
fn bounded(gateway: &Gateway, since: Instant) {
    let (log, seconds) = (gateway.log(), usize::try_from(since.elapsed().as_secs()).unwrap() + 1);
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    let [commands, subscriptions] = ["redis command failed", "not subscribed to redis"].map(lines);
    assert!(commands + subscriptions > 0, "no line about Redis: {log}");
    assert!(commands <= seconds, "in {seconds} s: {log}");
    // The first tries come quickly.
    assert!(subscriptions <= 2 * seconds + 6, "in {seconds} s: {log}");
}

/// Redis with a password, and a user with only the given rights.
async fn guarded(rules: &[&str]) -> RedisServer {
    let redis = RedisServer::start_with(&["--requirepass", "right"]).await;
    let user = ["ACL", "SETUSER", "app", "on", ">hunter2"];
    let () = redis.command(&[&user[..], rules].concat()).await;
    redis
}

#[tokio::test]
async fn a_wrong_password_is_told_and_tried_until_it_is_right() {
    let redis = guarded(&[]).await;
    let cure = ["ACL", "SETUSER", "default", ">wrong-hunter2"];
    kept_out(&redis, ":wrong-hunter2", "WRONGPASS", &cure).await;
}

#[tokio::test]
async fn a_missing_password_is_told_until_none_is_asked_for() {
    let redis = guarded(&[]).await;
    kept_out(&redis, "", "NOAUTH", &["ACL", "SETUSER", "default", "nopass"]).await;
}

#[tokio::test]
async fn missing_rights_to_the_channels_are_told_until_they_are_given() {
    let redis = guarded(&["~*", "+@all", "resetchannels", "&user:*"]).await;
    kept_out(&redis, "app:hunter2", "NOPERM", &["ACL", "SETUSER", "app", "&*"]).await;
}

/// Something that keeps presence from being written, but nothing from being delivered.
async fn presence_waits(redis: &RedisServer, url: &str, kind: &str, cause: &[&[&str]], cure: &[&[&str]]) {
    let started = Instant::now();
    let gateway = options(url).set("presence.lease", "2s").start().await;
    let mut before = Client::connect(&gateway, "42").await;
    let leaver = Client::connect(&gateway, "43").await;
    online_within(EXACT, redis, &["42", "43"]).await;
    run(redis, cause).await;
    leaver.close().await;
    let mut meanwhile = Client::connect(&gateway, "44").await;
    told(&gateway, kind).await;
    // For longer than the lease, so that it is lost.
    let failures = errors(&gateway, kind).await;
    eventually("it keeps trying", async || errors(&gateway, kind).await >= failures + 5.0).await;
    redis.publish("42", "1").await;
    redis.publish("44", "1").await;
    assert_eq!((before.event().await, meanwhile.event().await), (1.into(), 1.into()));
    assert!(publishes(&gateway).await);
    assert_eq!(before.event().await, 1);
    // A missing right lasts until someone acts, other refusals pass.
    let ready = if kind == "NOPERM" { 503 } else { 200 };
    assert_eq!(gateway.get(gateway.public, "/readyz").await.0, ready);
    let online: bool = redis.command(&["SISMEMBER", "online_users", "44"]).await;
    assert!(!online, "it was written in spite of {kind}");
    assert_eq!(errors(&gateway, "refused").await, 0.0, "{}", gateway.log());
    bounded(&gateway, started);

    run(redis, cure).await;
    online_within(EXACT, redis, &["42", "44"]).await;
    gateway.ready().await;
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0);
}

async fn run(redis: &RedisServer, commands: &[&[&str]]) {
    for command in commands {
        let _: redis::Value = redis.command(command).await;
    }
}

#[tokio::test]
async fn missing_rights_to_the_commands_keep_presence_until_they_are_given() {
    let redis = guarded(&["~*", "&*", "+@all"]).await;
    let url = format!("redis://app:hunter2@127.0.0.1:{}", redis.port());
    let set = |rule| ["ACL", "SETUSER", "app", rule];
    presence_waits(&redis, &url, "NOPERM", &[&set("-@scripting")], &[&set("+@scripting")]).await;
    presence_waits(&redis, &url, "NOPERM", &[&set("resetkeys")], &[&set("~*")]).await;
    // For a command that a script may not run, Redis 7.0 replies without the code.
    presence_waits(&redis, &url, "NOPERM", &[&set("-hset")], &[&set("+hset")]).await;
}

#[tokio::test]
async fn no_change_of_presence_is_written_that_could_not_be_told() {
    let redis = guarded(&["~*", "+@all", "resetchannels", "&user:*", "&tidings:*"]).await;
    let gateway = options(&format!("redis://app:hunter2@127.0.0.1:{}", redis.port())).start().await;
    let mut events = redis.subscribe("presence").await;
    let clients = join_all(["42", "43", "44"].map(|user| Client::connect(&gateway, user))).await;
    told(&gateway, "NOPERM").await;
    eventually("it keeps trying", async || errors(&gateway, "NOPERM").await >= 5.0).await;
    assert!(redis.online().await.is_empty());
    assert_eq!(errors(&gateway, "refused").await, 0.0, "{}", gateway.log());
    let () = redis.command(&["ACL", "SETUSER", "app", "&presence"]).await;
    let mut come = Vec::new();
    for _ in &clients {
        let event = events.next().await;
        assert_eq!(event["status"], "online", "{event}");
        come.push(event["user"].as_str().unwrap().to_owned());
    }
    come.sort();
    assert_eq!(come, ["42", "43", "44"]);
    assert_eq!(redis.online().await, come);
}

/// Makes it a replica of a server that refuses it.
async fn demote(redis: &RedisServer) {
    let refusing = Proxy::start(redis.port());
    refusing.refuse();
    let primary = refusing.url();
    let () = redis.command(&["REPLICAOF", "127.0.0.1", primary.rsplit_once(':').unwrap().1]).await;
}

/// Nothing that is requested through this instance is accepted.
async fn accepts_nothing(gateway: &Gateway) {
    let users = r#"{"users":["42","43"],"data":1}"#;
    let durable = r#"{"data":1,"durable":true}"#;
    for (path, body) in [(NOTIFY, r#"{"data":1}"#), (NOTIFY, durable), ("/v1/notifications", users)] {
        let (status, answer) = gateway.post(gateway.admin, path, body).await;
        assert_eq!(status, 503, "{path} {body}: {answer}");
    }
    let url = format!("http://{}/v1/users/42/connections", gateway.admin);
    assert_eq!(http().delete(&url).send().await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_replica_is_never_ready_and_accepts_nothing_until_it_is_a_master() {
    let redis = RedisServer::start().await;
    demote(&redis).await;
    let gateway = options(&redis.url()).start_unready().await;
    told(&gateway, "replica").await;
    eventually("/readyz says why", async || reason(&gateway).await.contains("replica")).await;
    accepts_nothing(&gateway).await;
    let mut client = Client::connect(&gateway, "42").await;
    let () = redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    gateway.ready().await;
    publishing_is_back(&gateway).await;
    assert_eq!(client.event().await, 1);
    online_within(EXACT, &redis, &["42"]).await;
    // What was found before is not held against the first subscription.
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0, "{}", gateway.log());
}

#[tokio::test]
async fn a_master_that_becomes_a_replica_is_found_and_left_for_the_one_that_the_address_leads_to() {
    let (redis, next) = (RedisServer::start().await, RedisServer::start().await);
    let proxy = Proxy::start(redis.port());
    let gateway = options(&proxy.url()).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    demote(&redis).await;
    // From the first request on, before it is detected.
    accepts_nothing(&gateway).await;
    becomes_unready_within(EXACT, &gateway).await;
    eventually("/readyz says why", async || reason(&gateway).await.contains("replica")).await;
    accepts_nothing(&gateway).await;
    proxy.lead_to(next.port());
    delivered_within(BACK, &next, &mut client).await;
    gateway.ready().await;
    online_within(EXACT, &next, &["42"]).await;
    publishing_is_back(&gateway).await;
}

#[tokio::test]
async fn a_redis_that_evicts_is_warned_of_once_for_each_connection_of_the_subscription() {
    let redis = RedisServer::start_with(&["--maxmemory-policy", "volatile-lru"]).await;
    let gateway = options(&redis.url()).start().await;
    let warnings = || gateway.log().lines().filter(|line| line.contains("volatile-lru")).count();
    assert_eq!((warnings(), gateway.metric("tidings_redis_evicts").await), (1, 1.0), "{}", gateway.log());
    redis.config_set("maxmemory-policy", "noeviction").await;
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    eventually("it is set right", async || gateway.metric("tidings_redis_evicts").await == 0.0).await;
    assert_eq!(warnings(), 1);
}

#[tokio::test]
async fn an_instance_without_the_right_to_info_works() {
    let redis = guarded(&["~*", "&*", "+@all", "-info"]).await;
    let gateway = options(&format!("redis://app:hunter2@127.0.0.1:{}", redis.port())).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    gateway.store("42", 1).await;
    assert_eq!(client.event().await, 1);
    online_within(EXACT, &redis, &["42"]).await;
}

#[tokio::test]
async fn a_node_of_a_cluster_that_the_address_comes_to_lead_to_is_not_ready_and_said_to_be_one() {
    let (_redis, proxy, gateway) = behind_a_proxy().await;
    let node = lone_node().await;
    proxy.lead_to(node.port());
    proxy.cut();
    told(&gateway, "cluster").await;
    eventually("/readyz says why", async || reason(&gateway).await.contains("cluster")).await;
}

#[tokio::test]
async fn a_full_memory_makes_nobody_go_offline_and_keeps_nobody_from_coming() {
    let redis = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]).await;
    let start = || options(&redis.url()).set("presence.lease", "1s").start();
    let gateway = start().await;
    let mut before = Client::connect(&gateway, "42").await;
    online_within(EXACT, &redis, &["42"]).await;
    redis.config_set("maxmemory", "1").await;
    let mut meanwhile = Client::connect(&gateway, "44").await;
    online_within(EXACT, &redis, &["42", "44"]).await;
    let other = start().await;
    let elsewhere = Client::connect(&other, "46").await;
    online_within(EXACT, &redis, &["42", "44", "46"]).await;
    let batches = gateway.metric("tidings_presence_batches_total").await;
    eventually("leases have been renewed for longer than they last", async || {
        gateway.metric("tidings_presence_batches_total").await >= batches + 6.0
    })
    .await;
    assert_eq!(gateway.metric("tidings_presence_incarnations_total").await, 1.0);
    redis.publish("42", "1").await;
    redis.publish("44", "1").await;
    assert_eq!((before.event().await, meanwhile.event().await), (1.into(), 1.into()));
    elsewhere.close().await;
    meanwhile.close().await;
    online_within(EXACT, &redis, &["42"]).await;
}

#[tokio::test]
async fn a_redis_that_cannot_save_keeps_presence_until_it_can() {
    let redis = RedisServer::start_with(&["--save", "3600", "1", "--dbfilename", "dump"]).await;
    let dump = redis.dir().join("dump");
    let set = |key, value| ["CONFIG", "SET", key, value];
    // What is to be replaced by a file is no file: each save fails.
    std::fs::create_dir(&dump).unwrap();
    std::fs::write(dump.join("in-the-way"), "").unwrap();
    let failed = async || redis.command::<String>(&["INFO", "persistence"]).await.contains("bgsave_status:err");
    let _: String = redis.command(&["BGSAVE"]).await;
    eventually("the save has failed", failed).await;
    // Not yet, since writes may go on for all that.
    let (stop, go_on) = (set("stop-writes-on-bgsave-error", "yes"), set("stop-writes-on-bgsave-error", "no"));
    run(&redis, &[&go_on]).await;
    presence_waits(&redis, &redis.url(), "MISCONF", &[&stop], &[&go_on]).await;

    run(&redis, &[&stop]).await;
    // The users whom the killed instance left go a lease after that.
    let gateway = options(&redis.url()).set("presence.lease", "2s").start().await;
    let _client = Client::connect(&gateway, "45").await;
    told(&gateway, "MISCONF").await;
    std::fs::remove_dir_all(&dump).unwrap();
    let _: String = redis.command(&["BGSAVE"]).await;
    online_within(EXACT, &redis, &["45"]).await;
}

#[tokio::test]
async fn presence_is_exact_once_redis_has_loaded_its_data() {
    let mut redis = RedisServer::start_with(&["--dbfilename", "dump"]).await;
    let gateway = options(&redis.url()).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let leaver = Client::connect(&gateway, "43").await;
    online_within(EXACT, &redis, &["42", "43"]).await;
    let filler = "x".repeat(1_024);
    let mut keys = redis::Pipeline::new();
    (0..5_000).for_each(|key| {
        keys.set(key, &filler).ignore();
    });
    let () = keys.query_async(&mut redis.connection().await).await.unwrap();
    let () = redis.command(&["SAVE"]).await;
    // A millisecond for each key, and clients are looked after in between.
    let slowly =
        ["--dbfilename", "dump", "--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    redis.relaunch_with(&slowly).await;
    leaver.close().await;
    let _newcomer = Client::connect(&gateway, "44").await;
    told(&gateway, "LOADING").await;
    delivered_within(BACK, &redis, &mut client).await;
    gateway.ready().await;
    let loading: String = redis.command(&["INFO", "persistence"]).await;
    assert!(loading.contains("\nloading:1"), "all this while it loads: {loading}");
    redis.answering().await;
    online_within(EXACT, &redis, &["42", "44"]).await;
}

/// Redis with TLS and a certificate for these names; what it is reached by.
async fn with_tls(authority: &Authority, names: &[&str]) -> (RedisServer, u16) {
    with_tls_for(authority, names, "no").await
}

/// As [`with_tls`]; whether clients need a certificate of the same authority.
async fn with_tls_for(authority: &Authority, names: &[&str], clients: &str) -> (RedisServer, u16) {
    let port = free_port();
    let args = [vec!["--tls-port".to_owned(), port.to_string()], authority.redis_args(names, clients)].concat();
    let redis = RedisServer::start_with(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
    (redis, port)
}

#[tokio::test]
async fn a_certificate_of_the_configured_authority_is_trusted() {
    let authority = Authority::new();
    let (redis, port) = with_tls(&authority, &["localhost", "127.0.0.1"]).await;
    let ca = authority.ca_file();
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("rediss://{host}:{port}");
        let gateway = options(&url).set("redis.ca_file", ca.to_str().unwrap()).start().await;
        let mut client = Client::connect(&gateway, host).await;
        online_within(EXACT, &redis, &[host]).await;
        for size in [1, 10, 70_000, 900_000] {
            let text = "x".repeat(size);
            assert_eq!(redis.publish(host, &format!("\"{text}\"")).await, 1);
            assert!(client.event().await == text.as_str(), "{size} bytes");
        }
        client.close().await;
        online_within(EXACT, &redis, &[]).await;
    }
}

#[tokio::test]
async fn a_redis_that_requires_a_certificate_of_its_clients_gets_the_configured_one() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (redis, port) = with_tls_for(&authority, &["localhost"], "yes").await;
    let url = format!("rediss://localhost:{port}");
    let trusting = || options(&url).set("redis.ca_file", authority.ca_file().to_str().unwrap());
    let with = |[certificate, key]: &[std::path::PathBuf; 2]| {
        let path = |path: &std::path::PathBuf| path.to_str().unwrap().to_owned();
        trusting().set("redis.cert_file", &path(certificate)).set("redis.key_file", &path(key))
    };
    let gateway = with(&authority.certificate(&["tidings"])).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    online_within(EXACT, &redis, &["42"]).await;
    assert_eq!(redis.publish("42", "1").await, 1);
    assert_eq!(client.event().await, 1);

    for options in [trusting(), with(&stranger.certificate(&["tidings"]))] {
        let gateway = options.start_unready().await;
        eventually("the key is named", async || reason(&gateway).await.contains("redis.cert_file")).await;
    }
}

#[tokio::test]
async fn a_failure_of_tls_names_the_key_that_corrects_it() {
    let (authority, unknown) = (Authority::new(), Authority::new());
    let (_redis, port) = with_tls(&authority, &["redis.example.com"]).await;
    let url = format!("rediss://localhost:{port}");
    for (ca_file, advice) in [
        (unknown.ca_file(), "set redis.ca_file"),
        (authority.ca_file(), "redis.url must have a name in the server's certificate"),
    ] {
        let gateway = options(&url).set("redis.ca_file", ca_file.to_str().unwrap()).start_unready().await;
        eventually("the key is named", async || reason(&gateway).await.contains(advice)).await;
        eventually("it is logged", async || gateway.log().contains(advice)).await;
    }
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_or_for_another_name_is_refused_and_said() {
    let (authority, unknown) = (Authority::new(), Authority::new());
    let (_redis, port) = with_tls(&authority, &["redis.example.com"]).await;
    let url = format!("rediss://:hunter2@localhost:{port}");
    let (other_ca, ca) = (unknown.ca_file(), authority.ca_file());
    let cases = [(Some(other_ca), "UnknownIssuer"), (None, "UnknownIssuer"), (Some(ca), "not valid for name")];
    join_all(cases.map(async |(ca, why)| {
        let mut options = options(&url);
        if let Some(ca) = &ca {
            options = options.set("redis.ca_file", ca.to_str().unwrap());
        }
        let gateway = options.start_unready().await;
        told(&gateway, "connection").await;
        // The other connection may have failed first.
        eventually("/readyz says why", async || reason(&gateway).await.contains(why)).await;
        assert!(!publishes(&gateway).await);
        assert!(!gateway.log().contains("hunter2"), "{}", gateway.log());
    }))
    .await;
}

#[tokio::test]
async fn user_password_and_database_of_the_url_are_those_of_both_connections() {
    let redis = RedisServer::start().await;
    let (user, password) = ("zoë@app:1", "p:a/s%s?w#o@r d+é");
    let word = format!(">{password}");
    let () = redis.command(&["ACL", "SETUSER", user, "on", &word, "~*", "&*", "+@all"]).await;
    let () = redis.command(&["ACL", "SETUSER", "default", "-@write", "-psubscribe"]).await;
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let url = format!("redis://{}:{}@127.0.0.1:{}/3", encoded(user), encoded(password), redis.port());
    let gateway = options(&url).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    eventually("42 is online in that database", async || redis.online_in(3).await == ["42"]).await;
    for purpose in ["subscriber", "commands"] {
        let links = redis.links_of(&gateway.instance, purpose).await;
        assert_eq!(links.len(), 1, "one {purpose}: {links:?}");
        assert!(links[0].contains(" db=3 ") && links[0].contains(&format!(" user={user} ")), "{links:?}");
    }
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    let (encoded, log) = (encoded(password), gateway.log());
    assert!(!log.contains(password) && !log.contains(&encoded), "{log}");
}

#[tokio::test]
async fn everything_works_with_a_redis_that_takes_400_ms_to_answer() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    proxy.delay(Duration::from_millis(200));
    let gateway = options(&proxy.url()).start().await;
    let (mut client, leaver) = (Client::connect(&gateway, "42").await, Client::connect(&gateway, "43").await);
    online_within(EXACT, &redis, &["42", "43"]).await;
    for number in 0..20 {
        let (status, _) = gateway.post(gateway.admin, NOTIFY, &format!("{{\"data\":{number}}}")).await;
        assert_eq!((status, client.event().await), (202, number.into()));
    }
    leaver.close().await;
    online_within(EXACT, &redis, &["42"]).await;
    let (status, presence) = gateway.get(gateway.admin, "/v1/users/43/presence").await;
    assert!(status == 200 && presence.contains("\"online\":false"), "{status} {presence}");
    proxy.cut();
    delivered_within(BACK, &redis, &mut client).await;
    gateway.ready().await;
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 1.0);
    for kind in ["timeout", "silent"] {
        assert_eq!(errors(&gateway, kind).await, 0.0, "{kind}: {}", gateway.log());
    }
}

#[tokio::test]
async fn many_callers_at_once_are_each_answered_503_within_5_s_while_redis_is_away() {
    let (_redis, proxy, gateway) = behind_a_proxy().await;
    assert!(publishes(&gateway).await);
    let crowd = async |rounds: usize| {
        let callers = (0..100).map(async |_| {
            for _ in 0..rounds {
                assert!(!publishes(&gateway).await);
            }
        });
        join_all(callers).await;
    };
    proxy.blackhole(Whose::All, Way::Both);
    crowd(4).await;
    proxy.refuse();
    crowd(10).await;
    proxy.heal();
    publishing_is_back(&gateway).await;
    gateway.ready().await;
}

#[tokio::test]
async fn an_instance_whose_link_is_silent_stops_all_the_same() {
    let (_redis, proxy, mut gateway) = behind_a_proxy().await;
    let mut client = Client::connect(&gateway, "42").await;
    proxy.blackhole(Whose::All, Way::Both);
    gateway.signal("TERM");
    let (status, code) = tokio::join!(gateway.exit(), client.close_code());
    assert_eq!((status.code(), code), (Some(0), 4200));
}

/// Connections that come and go, each of another user, and publishing over HTTP, for this long.
async fn load(gateway: &Gateway, name: &str, duration: Duration) {
    let end = Instant::now() + duration;
    let visitors = (0..10).map(async |visitor| {
        for visit in 0.. {
            if Instant::now() > end {
                return;
            }
            let user = format!("{name}-{visitor}-{visit}");
            Client::connect(gateway, &user).await.close().await;
        }
    });
    let publishers = (0..10).map(async |_| {
        while Instant::now() < end {
            publishes(gateway).await;
        }
    });
    tokio::join!(join_all(visitors), join_all(publishers));
}

#[tokio::test]
async fn memory_stays_flat_through_an_outage_under_load() {
    let seconds = std::env::var("LINK_OUTAGE_SECONDS").map_or(12, |seconds| seconds.parse().unwrap());
    let (redis, proxy, gateway) = behind_a_proxy().await;
    let mut client = Client::connect(&gateway, "42").await;
    load(&gateway, "before", Duration::from_secs(3)).await;
    online_within(BACK, &redis, &["42"]).await;
    let before = gateway.resident_bytes();
    for (name, outage) in [("refused", true), ("silent", false)] {
        if outage {
            proxy.refuse()
        } else {
            proxy.blackhole(Whose::All, Way::Both)
        }
        load(&gateway, name, Duration::from_secs(seconds) / 2).await;
        assert!(!publishes(&gateway).await);
        let grown = gateway.resident_bytes().saturating_sub(before);
        assert!(grown < 10_000_000, "{name}: by {grown} bytes");
        proxy.heal();
    }
    delivered_within(BACK, &redis, &mut client).await;
    gateway.ready().await;
    online_within(EXACT, &redis, &["42"]).await;
}
