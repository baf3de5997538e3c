//! How many may connect, and how often: `docs/limits.md`.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tidings::internals::{Backplane, Claim, InstanceId, Metrics, RedisLimits, UserId};
use tidings::{Config, Layers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Client, Gateway, Options, PATIENCE, Proxy, RedisServer, Refused, Way, Whose, eventually, eventually_within,
    handshake, masked, token, within,
};

const LEASE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
const HOLDERS: &str = "{tidings:slots}:leases";

async fn connect_from(gateway: &Gateway, user: &str, headers: &[(&str, &str)]) -> Result<Client, Refused> {
    let bearer = format!("Bearer {}", token(user));
    let headers = [headers, &[("Authorization", bearer.as_str())]].concat();
    handshake(gateway.public, "/ws", &headers).await
}

async fn connect(gateway: &Gateway, user: &str) -> Result<Client, Refused> {
    connect_from(gateway, user, &[]).await
}

/// As a trusted proxy forwards it.
async fn connect_as(gateway: &Gateway, address: &str) -> Result<Client, Refused> {
    connect_from(gateway, "42", &[("X-Forwarded-For", address)]).await
}

fn assert_refused(answer: Result<Client, Refused>, status: u16, code: &str) {
    let refused = answer.err().expect("refused");
    assert_eq!((refused.status, refused.code.as_str()), (status, code));
    let after: u32 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(after >= 1, "{refused:?}");
}

/// Connects once there is room, which must be within the time given.
async fn connect_within(limit: Duration, gateway: &Gateway, user: &str) -> Client {
    let mut client = None;
    eventually_within(limit, "there is room again", async || {
        client = connect(gateway, user).await.ok();
        client.is_some()
    })
    .await;
    client.unwrap()
}

async fn limited(gateway: &Gateway, limit: &str) -> f64 {
    gateway.metric(&format!("tidings_limited_total{{limit=\"{limit}\"}}")).await
}

fn per_user(options: Options, most: u32) -> Options {
    options.set("limits.max_connections_per_user", &most.to_string()).set("presence.lease", "2s")
}

async fn two(redis: &RedisServer, most: u32) -> [Gateway; 2] {
    let start = || per_user(Options::redis(redis), most).start();
    tokio::join!(start(), start()).into()
}

// How many.

#[tokio::test]
async fn over_capacity_is_503_until_somebody_leaves() {
    let gateway = Options::dev().set("limits.max_connections", "2").start().await;
    let (first, _second) = (Client::connect(&gateway, "1").await, Client::anonymous(&gateway).await);
    assert_refused(connect(&gateway, "3").await, 503, "max_connections");
    assert_eq!(limited(&gateway, "max_connections").await, 1.0);
    assert_eq!(gateway.metric("tidings_refusals_total{code=\"max_connections\"}").await, 1.0);
    first.close().await;
    connect_within(3 * SECOND, &gateway, "3").await;
}

#[tokio::test]
async fn a_refused_handshake_takes_no_place() {
    let gateway = Options::dev().set("limits.max_connections", "1").start().await;
    for _ in 0..5 {
        let refused = handshake(gateway.public, "/ws", &[("Authorization", "Bearer bad")]).await.err().unwrap();
        assert_eq!(refused.status, 401);
    }
    let _only = Client::connect(&gateway, "42").await;
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_another_its_own() {
    let gateway = Options::dev()
        .set("limits.max_connections_per_ip", "2")
        .set("limits.trusted_proxies", "127.0.0.1")
        .start()
        .await;
    let first = connect_as(&gateway, "192.0.2.1").await.unwrap();
    // The same address in another notation.
    let _second = connect_as(&gateway, "::ffff:192.0.2.1").await.unwrap();
    assert_refused(connect_as(&gateway, "192.0.2.1").await, 429, "max_connections_per_ip");
    assert_refused(connect_as(&gateway, "6.6.6.6, 192.0.2.1").await, 429, "max_connections_per_ip");
    let _other = connect_as(&gateway, "192.0.2.2").await.unwrap();
    first.close().await;
    eventually_within(3 * SECOND, "room", async || connect_as(&gateway, "192.0.2.1").await.is_ok()).await;
}

#[tokio::test]
async fn who_has_a_whole_64_of_ipv6_has_one_limit() {
    let gateway = Options::dev()
        .set("limits.max_connections_per_ip", "1")
        .set("limits.trusted_proxies", "127.0.0.0/8")
        .start()
        .await;
    let _first = connect_as(&gateway, "2001:db8:1:2::1").await.unwrap();
    assert_refused(connect_as(&gateway, "2001:db8:1:2:ffff::2").await, 429, "max_connections_per_ip");
    let _neighbour = connect_as(&gateway, "2001:db8:1:3::1").await.unwrap();
}

#[tokio::test]
async fn a_client_s_own_word_on_its_address_is_nothing() {
    // No proxy is trusted: a client can forge every header.
    let gateway = Options::dev().set("limits.max_connections_per_ip", "1").start().await;
    let _first = connect_as(&gateway, "192.0.2.1").await.unwrap();
    for header in [("X-Forwarded-For", "192.0.2.2"), ("Forwarded", "for=192.0.2.3"), ("X-Real-IP", "192.0.2.4")] {
        assert_refused(connect_from(&gateway, "42", &[header]).await, 429, "max_connections_per_ip");
    }
}

#[tokio::test]
async fn a_user_has_so_many_connections_on_all_instances_together() {
    let redis = RedisServer::start().await;
    let [one, other] = &two(&redis, 3).await;
    let first = Client::connect(one, "42").await.answering();
    let _more = [Client::connect(one, "42").await.answering(), Client::connect(other, "42").await.answering()];
    for gateway in [one, other] {
        assert_refused(connect(gateway, "42").await, 429, "max_connections_per_user");
        assert_eq!(limited(gateway, "max_connections_per_user").await, 1.0);
    }
    let _another = Client::connect(one, "43").await;
    drop(first);
    let _fourth = connect_within(3 * SECOND, other, "42").await.answering();
    assert_refused(connect(one, "42").await, 429, "max_connections_per_user");
}

#[tokio::test]
async fn one_too_many_with_a_hello_is_closed_with_4004() {
    let redis = RedisServer::start().await;
    let [one, other] = &two(&redis, 1).await;
    let _first = Client::connect(one, "42").await.answering();
    for gateway in [one, other] {
        let mut late = Client::anonymous(gateway).await;
        late.send(&format!(r#"{{"type":"hello","token":"{}"}}"#, token("42"))).await;
        assert_eq!(late.close_frame().await, 4004);
    }
    let mut another = Client::anonymous(other).await;
    another.send(&format!(r#"{{"type":"hello","token":"{}"}}"#, token("43"))).await;
    assert_eq!(another.frame().await["type"], "welcome");
}

#[tokio::test]
async fn who_takes_the_place_of_a_connection_need_not_wait_for_its_goodbye() {
    let gateway = per_user(Options::dev(), 1).start().await;
    let mut old = Client::connect(&gateway, "42").await;
    old.write(&masked(0x82, b"x")).await;
    // The client never answers the close frame.
    assert_eq!(old.bytes::<1>().await, [0x88]);
    let _next = connect(&gateway, "42").await.expect("the permit is free");
}

#[tokio::test]
async fn a_race_on_two_instances_has_no_more_winners_than_slots() {
    let redis = RedisServer::start().await;
    let fleet = two(&redis, 5).await;
    for round in 0..5 {
        let user = format!("user {round}");
        let race = async |n: usize| connect(&fleet[n % 2], &user).await.map(Client::answering);
        let racers = join_all((0..20).map(race)).await;
        let winners = racers.iter().filter(|racer| racer.is_ok()).count();
        assert_eq!(winners, 5, "round {round}");
    }
}

#[tokio::test]
async fn a_killed_instance_s_slots_are_free_when_its_lease_has_ended() {
    let redis = RedisServer::start().await;
    let [mut doomed, other] = two(&redis, 2).await;
    let _gone = [Client::connect(&doomed, "42").await.answering(), Client::connect(&doomed, "42").await.answering()];
    assert_refused(connect(&other, "42").await, 429, "max_connections_per_user");
    doomed.kill().await;
    let _first = connect_within(LEASE + 2 * SECOND, &other, "42").await.answering();
    let _second = connect_within(SECOND, &other, "42").await.answering();
    assert_refused(connect(&other, "42").await, 429, "max_connections_per_user");
}

#[tokio::test]
async fn a_user_whose_other_connection_may_be_to_a_dead_instance_is_asked_to_retry() {
    let redis = RedisServer::start().await;
    let start = || per_user(Options::redis(&redis), 1).set("presence.lease", "1h").start();
    let [mut doomed, other]: [Gateway; 2] = tokio::join!(start(), start()).into();
    let hello = async || {
        let mut client = handshake(other.public, "/ws", &[]).await.unwrap();
        client.send(&json!({"type": "hello", "token": token("42")}).to_string()).await;
        client.close_code().await
    };
    let _gone = Client::connect(&doomed, "42").await.answering();
    assert_eq!(hello().await, 4004);
    doomed.kill().await;
    assert_eq!(hello().await, 4101);
    assert_refused(connect(&other, "42").await, 429, "max_connections_per_user");
}

#[tokio::test]
async fn a_killed_instance_s_slots_are_free_in_time_though_redis_s_clock_steps_back() {
    let redis = RedisServer::with_stepped_clock().await;
    let [mut doomed, other] = two(&redis, 1).await;
    let _gone = Client::connect(&doomed, "42").await;
    doomed.kill().await;
    redis.step_clock(-120_000);
    let _next = connect_within(LEASE + 2 * SECOND, &other, "42").await;
}

#[tokio::test]
async fn a_failure_to_release_the_slots_of_a_dead_instance_leaves_the_limit_in_force() {
    let redis = RedisServer::start().await;
    let start = || per_user(Options::redis(&redis), 1).start();
    let [mut doomed, one, other]: [Gateway; 3] = tokio::join!(start(), start(), start()).into();
    let () = redis.command(&["ACL", "SETUSER", "default", "-unlink"]).await;
    doomed.kill().await;
    eventually("its permits are released", async || redis.command::<u32>(&["ZCARD", HOLDERS]).await == 2).await;
    let failed = |gateway: &Gateway| gateway.log().contains("NOPERM") || gateway.log().contains("unlink");
    eventually("one of the two could not remove all", async || failed(&one) || failed(&other)).await;
    let _first = Client::connect(&one, "1").await.answering();
    let _second = Client::connect(&other, "2").await.answering();
    assert_refused(connect(&other, "1").await, 429, "max_connections_per_user");
    assert_refused(connect(&one, "2").await, 429, "max_connections_per_user");
}

#[tokio::test]
async fn a_step_of_redis_s_clock_frees_nobody_s_slot() {
    let redis = RedisServer::with_stepped_clock().await;
    let [one, other] = two(&redis, 1).await;
    let _client = Client::connect(&one, "42").await.answering();
    for step in [120_000, -240_000, 86_400_000] {
        redis.step_clock(step);
        assert_refused(connect(&other, "42").await, 429, "max_connections_per_user");
    }
}

#[tokio::test]
async fn a_redis_that_stood_still_for_longer_than_the_lease_frees_nobody_s_slot() {
    let redis = RedisServer::start().await;
    let [one, other] = two(&redis, 1).await;
    let _client = Client::connect(&one, "42").await.answering();
    let names: Vec<String> = redis.command(&["ZRANGE", HOLDERS, "0", "-1"]).await;
    // Both stand still, and the instance comes back last.
    one.signal("STOP");
    let all = async || redis.command::<Vec<(String, f64)>>(&["ZRANGE", HOLDERS, "0", "-1", "WITHSCORES"]).await;
    // One of these holders renews its lease again and again.
    let renewed = async |is_meant: &dyn Fn(&String) -> bool| {
        let mut before = all().await;
        for _ in 0..3 {
            eventually("a lease is renewed", async || {
                let now = all().await;
                now.iter().any(|one| is_meant(&one.0) && !before.contains(one))
            })
            .await;
            before = all().await;
        }
    };
    // The other has seen it for the last time.
    renewed(&|name| names.contains(name)).await;
    redis.freeze();
    sleep(LEASE + SECOND).await;
    redis.thaw();
    // The other has looked again, under a new lease.
    renewed(&|name| !names.contains(name)).await;
    assert!(all().await.iter().any(|(name, _)| names.contains(name)), "the instance that stands still is kept");
    one.signal("CONT");
    one.ready().await;
    assert_refused(connect(&other, "42").await, 429, "max_connections_per_user");
}

#[tokio::test]
async fn a_stopped_instance_s_slots_are_free_at_its_exit() {
    let redis = RedisServer::start().await;
    let start = || per_user(Options::redis(&redis), 1).set("presence.lease", "1h").start();
    let [mut leaving, other]: [Gateway; 2] = tokio::join!(start(), start()).into();
    let _client = Client::connect(&leaving, "42").await;
    leaving.signal("TERM");
    assert!(leaving.exit().await.success());
    let _moved = connect(&other, "42").await.expect("the permit is free");
}

#[tokio::test]
async fn a_paused_instance_takes_nobody_s_slot_when_it_wakes_and_loses_no_client() {
    let redis = RedisServer::start().await;
    let [paused, other] = two(&redis, 1).await;
    let mut sleeper = Client::connect(&paused, "42").await.answering();
    paused.signal("STOP");
    let mut successor = connect_within(LEASE + 2 * SECOND, &other, "42").await;
    assert_eq!(successor.frame().await["type"], "welcome");
    let mut successor = successor.answering();
    paused.signal("CONT");
    paused.ready().await;
    // Both stay open: one more than the limit, because no connection is closed for it.
    eventually("both are counted", async || holders(&redis, "42").await == 2).await;
    redis.publish("42", "1").await;
    assert_eq!(sleeper.event().await, 1);
    assert_eq!(successor.event().await, 1);
    drop(sleeper);
    eventually("one is", async || holders(&redis, "42").await == 1).await;
    assert_refused(connect(&paused, "42").await, 429, "max_connections_per_user");
}

/// How many live instances hold a permit of this user.
async fn holders(redis: &RedisServer, user: &str) -> usize {
    let live: Vec<String> = redis.command(&["ZRANGE", HOLDERS, "0", "-1"]).await;
    let held = live.iter().map(async |holder| {
        let key = format!("{{tidings:slots}}:held:{holder}");
        redis.command::<Option<u32>>(&["HGET", &key, user]).await
    });
    join_all(held).await.into_iter().flatten().count()
}

#[tokio::test]
async fn slots_are_counted_again_after_redis_lost_everything() {
    let redis = RedisServer::start().await;
    let [one, other] = &two(&redis, 2).await;
    let _both = [Client::connect(one, "42").await.answering(), Client::connect(other, "42").await.answering()];
    let _: () = redis.command(&["FLUSHALL"]).await;
    eventually_within(5 * SECOND, "both are back", async || holders(&redis, "42").await == 2).await;
    for gateway in [one, other] {
        assert_refused(connect(gateway, "42").await, 429, "max_connections_per_user");
    }
    // And after an operator deleted one instance's part of it.
    let keys: Vec<String> = redis.command(&["KEYS", "{tidings:slots}:held:*"]).await;
    let _: u32 = redis.command(&["DEL", &keys[0]]).await;
    eventually_within(5 * SECOND, "it is back", async || holders(&redis, "42").await == 2).await;
}

#[tokio::test]
async fn without_redis_each_instance_counts_alone_and_refuses_nobody_else() {
    let mut redis = RedisServer::start().await;
    let [one, other] = &two(&redis, 2).await;
    let _first = Client::connect(one, "42").await.answering();
    redis.kill().await;
    one.not_ready().await;
    let begun = Instant::now();
    let _second = Client::connect(one, "42").await.answering();
    let third = Client::connect(other, "42").await.answering();
    assert!(begun.elapsed() < 5 * SECOND, "no client waits long for a Redis that does not answer");
    assert_refused(connect(one, "42").await, 429, "max_connections_per_user");
    let unshared = "tidings_limits_unshared_total{limit=\"max_connections_per_user\"}";
    assert!(one.metric(unshared).await >= 1.0);
    redis.restart().await;
    // Now all three are known to all, and there is room only once two have left.
    eventually("both are back", async || holders(&redis, "42").await == 2).await;
    drop(third);
    eventually("one has left", async || holders(&redis, "42").await == 1).await;
    assert_refused(connect(other, "42").await, 429, "max_connections_per_user");
}

#[tokio::test]
async fn a_lost_answer_costs_nobody_a_slot() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let start = |url: &str| per_user(Options::redis_at(url), 1).set("presence.lease", "1h").start();
    let (one, other) = tokio::join!(start(&proxy.url()), start(&redis.url()));
    // Once, so that Redis knows the script.
    Client::connect(&one, "41").await.close().await;
    proxy.blackhole(Whose::All, Way::FromRedis);
    let client = Client::connect(&one, "42").await;
    proxy.cut();
    proxy.heal();
    client.close().await;
    // A permit whose grant was not received is not held until the lease expires.
    let _next = connect_within(PATIENCE, &other, "42").await;
}

// Room for a user at the limit.

const RELEASED: &str = "tidings_connections_released_total";

#[tokio::test]
async fn a_connection_that_does_not_answer_makes_room_for_the_next_within_seconds() {
    let redis = RedisServer::start().await;
    let [one, other] = &two(&redis, 1).await;
    // Nothing reads its socket, as after a change of networks.
    let mut dead = Client::connect(one, "42").await;
    let begun = Instant::now();
    let mut next = connect(other, "42").await.expect("room was made");
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(next.frame().await["type"], "welcome");
    assert_eq!(dead.close_code().await, 4201);
    assert_eq!(one.metric(&format!("{RELEASED}{{reason=\"unanswered\"}}")).await, 1.0);
    redis.publish("42", "1").await;
    assert_eq!(next.event().await, 1);
    // On the same instance, and after a hello.
    let mut last = Client::anonymous(other).await;
    last.send(&format!(r#"{{"type":"hello","token":"{}"}}"#, token("42"))).await;
    assert_eq!(last.frame().await["type"], "welcome");
}

#[tokio::test]
async fn without_redis_an_instance_makes_room_among_its_own_connections() {
    let mut redis = RedisServer::start().await;
    let gateway = per_user(Options::redis(&redis), 1).start().await;
    let _dead = Client::connect(&gateway, "42").await;
    redis.kill().await;
    gateway.not_ready().await;
    connect_within(10 * SECOND, &gateway, "42").await;
}

#[tokio::test]
async fn a_redis_that_stands_still_does_not_keep_a_user_out_whose_connection_is_dead() {
    let redis = RedisServer::start().await;
    let gateway = per_user(Options::redis(&redis), 1).start().await;
    let _dead = Client::connect(&gateway, "42").await;
    redis.freeze();
    let first_attempt = connect(&gateway, "42").await;
    redis.thaw();
    first_attempt.expect("admitted");
}

#[tokio::test]
async fn a_connection_that_waits_for_room_does_not_delay_a_drain() {
    let mut gateway = per_user(Options::dev(), 1).set("limits.over_user", "replace_oldest").start().await;
    let mut kept = Client::connect(&gateway, "42").await.answering();
    let mut late = Client::anonymous(&gateway).await;
    late.send(&format!(r#"{{"type":"hello","token":"{}"}}"#, token("42"))).await;
    let waits = connect(&gateway, "42");
    let drained = async {
        while !kept.message().await.is_some_and(|message| message == Message::text(r#"{"type":"ping"}"#)) {}
        gateway.signal("TERM");
    };
    let (refused, ()) = tokio::join!(waits, drained);
    assert_refused(refused, 503, "draining");
    assert_eq!(late.close_frame().await, 4200);
    assert!(gateway.exit().await.success());
}

#[tokio::test]
async fn a_connection_whose_socket_is_full_makes_room_too() {
    let options = per_user(Options::dev(), 1).set("send_queue.write_timeout", "1h").set("server.pong_timeout", "1h");
    let gateway = options.set("send_queue.max_messages", "100000").start().await;
    let _stalled = Client::connect_narrow(&gateway, "42").await;
    let event = format!("{{\"data\":\"{}\"}}", "x".repeat(60_000));
    eventually("its socket is full", async || {
        gateway.post(gateway.admin, "/v1/users/42/notifications", &event).await;
        gateway.metric("tidings_backlog_bytes").await > 0.0
    })
    .await;
    connect(&gateway, "42").await.expect("room was made");
}

#[tokio::test]
async fn connections_that_answer_are_kept_and_pinged_no_more_than_needed() {
    let redis = RedisServer::start().await;
    let [one, other] = &two(&redis, 2).await;
    let mut kept = [Client::connect(one, "42").await.answering(), Client::raw(other, "42").await.answering()];
    let attempts = (0..30).map(|n| connect([one, other][n % 2], "42"));
    for attempt in join_all(attempts).await {
        assert_refused(attempt, 429, "max_connections_per_user");
    }
    redis.publish("42", "1").await;
    assert_eq!(kept[0].event().await, 1);
    for client in &mut kept {
        // One or two for each instance that made an attempt, though each made 15 of them.
        let pings = client.pings();
        assert!(pings <= 4, "{pings} pings");
    }
    assert_eq!(one.metric("tidings_connections").await + other.metric("tidings_connections").await, 2.0);
}

#[tokio::test]
async fn the_oldest_connection_of_the_fleet_is_replaced_where_that_is_configured() {
    let redis = RedisServer::start().await;
    let start = || per_user(Options::redis(&redis), 2).set("limits.over_user", "replace_oldest").start();
    let (one, other) = tokio::join!(start(), start());
    let mut first = Client::connect(&one, "42").await.answering();
    let mut second = Client::connect(&other, "42").await.answering();
    let _another = Client::connect(&other, "43").await.answering();
    // The oldest is elsewhere, then here.
    let mut third = connect(&other, "42").await.expect("it takes the place of the first").answering();
    assert_eq!(first.close_frame().await, 4004);
    let mut fourth = connect(&other, "42").await.expect("it takes the place of the second").answering();
    assert_eq!(second.close_frame().await, 4004);
    redis.publish("42", "1").await;
    assert_eq!((third.event().await, fourth.event().await), (1.into(), 1.into()));
    assert_eq!(one.metric(&format!("{RELEASED}{{reason=\"replaced\"}}")).await, 1.0);
    assert_eq!(other.metric(&format!("{RELEASED}{{reason=\"replaced\"}}")).await, 1.0);
    assert_eq!(limited(&other, "max_connections_per_user").await, 0.0);
}

#[tokio::test]
async fn a_connection_that_does_not_answer_is_released_before_any_is_replaced() {
    let gateway = per_user(Options::dev(), 2).set("limits.over_user", "replace_oldest").start().await;
    let mut oldest = Client::connect(&gateway, "42").await.answering();
    let mut dead = Client::connect(&gateway, "42").await;
    connect(&gateway, "42").await.expect("room was made");
    assert_eq!(dead.close_code().await, 4201);
    gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":1}"#).await;
    assert_eq!(oldest.event().await, 1);
}

/// The store of the fleet's limits, as an instance uses it.
fn fleet(redis: &RedisServer) -> RedisLimits {
    let flags = vec![("--set".into(), "redis.url".into(), redis.url())];
    let config = Config::load(Layers { flags, ..Layers::default() }).unwrap();
    let backplane = Backplane::new(&config, &InstanceId::random(), &Arc::new(Metrics::new())).unwrap();
    RedisLimits::new(Arc::clone(backplane.redis().unwrap()), &config.redis.prefix)
}

#[tokio::test]
async fn a_holder_is_heard_while_its_lease_runs_and_not_once_another_took_its_place() {
    let redis = RedisServer::start().await;
    let fleet = &fleet(&redis);
    let claim_of = Claim { user: UserId::new("42").unwrap(), has: 0, wants: 3 };
    let claim = async |holder: &str, size| {
        let granted = fleet.claim(holder, size, 2, std::slice::from_ref(&claim_of)).await.unwrap();
        granted.map(|granted| (granted.size, granted.permits))
    };
    let lease = async || redis.command::<f64>(&["ZSCORE", HOLDERS, "first"]).await;
    assert_eq!(claim("unknown", 0).await, None);
    fleet.hold("first", None).await.unwrap();
    let begun = lease().await;
    eventually("the lease is renewed", async || {
        fleet.claim("first", 0, 2, &[]).await.unwrap().expect("not fenced");
        lease().await > begun
    })
    .await;
    assert_eq!(claim("first", 0).await, Some((1, vec![2])), "as many permits as are free");
    let left: i64 = redis.command(&["PTTL", "{tidings:slots}:held:first"]).await;
    assert_eq!(left, -1, "no clock of Redis removes it");

    fleet.hold("second", Some("first")).await.unwrap();
    // A request under the earlier name that arrives late.
    assert_eq!(claim("first", 1).await, None);
    assert_eq!(claim("first", 0).await, None);
    assert_eq!(claim("second", 0).await, Some((1, vec![2])));
}

/// The calls of these commands, those of scripts too.
async fn calls(redis: &RedisServer, commands: &[&str]) -> Vec<u64> {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let of = |command: &&str| {
        let calls = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        calls.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    commands.iter().map(of).collect()
}

#[tokio::test]
async fn a_batch_of_claims_asks_each_other_holder_once_and_one_that_requests_nothing_asks_none() {
    let redis = RedisServer::start().await;
    let fleet = &fleet(&redis);
    let claims = |has, wants| -> Vec<Claim> {
        (0..500).map(|user: u32| Claim { user: UserId::new(&user.to_string()).unwrap(), has, wants }).collect()
    };
    for other in ["a", "b", "c"] {
        fleet.hold(other, None).await.unwrap();
        assert_eq!(fleet.claim(other, 0, 5, &claims(0, 1)).await.unwrap().expect("not fenced").permits, [1; 500]);
    }
    fleet.hold("last", None).await.unwrap();
    let reads = ["hget", "hmget"];
    let before = calls(&redis, &reads).await;
    let granted = fleet.claim("last", 0, 5, &claims(0, 3)).await.unwrap().expect("not fenced");
    assert_eq!((granted.size, granted.permits), (500, vec![2; 500]), "of five, three are held elsewhere");
    let after = calls(&redis, &reads).await;
    // One HGET is of the number of the last renewal.
    assert_eq!([after[0] - before[0], after[1] - before[1]], [1, 3]);
    let renewed = fleet.claim("last", 500, 5, &claims(2, 0)).await.unwrap().expect("not fenced");
    assert_eq!((renewed.size, renewed.permits), (500, vec![0; 500]));
    assert_eq!(calls(&redis, &reads).await[1], after[1], "what is written without a request asks no holder");
}

#[tokio::test]
async fn a_silent_redis_delays_a_handshake_by_little() {
    let redis = RedisServer::start().await;
    let gateway = per_user(Options::redis(&redis), 2).set("limits.connects_per_second_per_user", "1000").start().await;
    redis.freeze();
    // All of them wait for the same answer, which never arrives; then the limit applies to this instance.
    let race = async |_| connect(&gateway, "42").await.map(Client::answering);
    let racers = join_all((0..10).map(race)).await;
    assert_eq!(racers.iter().filter(|racer| racer.is_ok()).count(), 2);
    // Clients do not wait again and again for a Redis that has not answered before.
    within("many come", async {
        for user in 0..40 {
            Client::connect(&gateway, &user.to_string()).await;
        }
    })
    .await;
    redis.thaw();
}

// How often.

/// Waits for the beginning of a second, by Redis's clock.
async fn begin_window(redis: &RedisServer) -> u64 {
    let mut window = 0;
    eventually("a second begins", async || {
        let (second, micros) = redis.command::<(u64, u64)>(&["TIME"]).await;
        window = second;
        micros < 100_000
    })
    .await;
    window
}

#[tokio::test]
async fn an_address_connects_so_often_in_a_second_and_is_told_what_is_left() {
    let gateway = Options::dev()
        .set("limits.connects_per_second_per_ip", "3")
        .set("limits.trusted_proxies", "127.0.0.1")
        .start()
        .await;
    let first = connect_as(&gateway, "192.0.2.1").await.unwrap();
    assert_eq!(first.response.headers()["x-ratelimit-remaining"], "2");
    let flood = join_all((0..20).map(|_| connect_as(&gateway, "192.0.2.1"))).await;
    let (admitted, refused): (Vec<_>, Vec<_>) = flood.into_iter().partition(Result::is_ok);
    assert!(admitted.len() <= 3 * 3, "{} in a moment", admitted.len());
    for answer in refused {
        let refused = answer.err().unwrap();
        assert_eq!(refused.headers["x-ratelimit-remaining"], "0");
        assert_refused(Err(refused), 429, "connects_per_second_per_ip");
    }
    let _other = connect_as(&gateway, "192.0.2.2").await.expect("another has its own");
    assert!(limited(&gateway, "connects_per_second_per_ip").await >= 11.0);
    eventually_within(2 * SECOND, "the next second", async || connect_as(&gateway, "192.0.2.1").await.is_ok()).await;
}

#[tokio::test]
async fn guessing_tokens_counts_as_connecting() {
    let gateway = Options::dev().set("limits.connects_per_second_per_ip", "3").start().await;
    let guesses = (0..20).map(|_| handshake(gateway.public, "/ws", &[("Authorization", "Bearer guess")]));
    let answers: Vec<u16> = join_all(guesses).await.into_iter().map(|answer| answer.err().unwrap().status).collect();
    assert!(answers.contains(&401) && answers.contains(&429), "{answers:?}");
    assert!(answers.iter().filter(|status| **status == 401).count() <= 9, "{answers:?}");
}

#[tokio::test]
async fn a_rate_holds_for_all_instances_together() {
    let redis = RedisServer::start().await;
    let start = || {
        Options::redis(&redis)
            .set("limits.connects_per_second_per_user", "4")
            .set("limits.connects_per_second_per_ip", "1000")
            .start()
    };
    let fleet: [Gateway; 2] = tokio::join!(start(), start()).into();
    // Until it fits into one window, which it does at once unless the machine is busy.
    for round in 0.. {
        let user = format!("{{user}}:{round}:é");
        let window = begin_window(&redis).await;
        let answers = join_all((0..12).map(|n| connect(&fleet[n % 2], &user))).await;
        let admitted = answers.iter().filter(|answer| answer.is_ok()).count();
        if redis.command::<(u64, u64)>(&["TIME"]).await.0 == window {
            assert_eq!(admitted, 4);
            for refused in answers.into_iter().filter(Result::is_err) {
                assert_refused(refused, 429, "connects_per_second_per_user");
            }
            break;
        }
        assert!(admitted >= 4);
    }
    // The counters expire.
    eventually_within(4 * SECOND, "no counter is left", async || {
        redis.command::<Vec<String>>(&["KEYS", "tidings:rate:*"]).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_flood_from_one_address_costs_redis_next_to_nothing() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("limits.connects_per_second_per_ip", "1").start().await;
    for _ in 0..20 {
        join_all((0..20).map(|_| connect(&gateway, "42"))).await;
    }
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let (_, after) = stats.split_once("cmdstat_incr:calls=").unwrap();
    let asked: u32 = after.split(',').next().unwrap().parse().unwrap();
    assert!((1..100).contains(&asked), "{asked} times for 400 handshakes");
}

#[tokio::test]
async fn counters_have_an_end_from_the_beginning() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("limits.connects_per_second_per_ip", "100").start().await;
    let mut seen = false;
    eventually("a counter is seen", async || {
        let _client = Client::connect(&gateway, "42").await;
        for key in redis.command::<Vec<String>>(&["KEYS", "tidings:rate:*"]).await {
            let left: i64 = redis.command(&["TTL", &key]).await;
            assert!((-2..=2).contains(&left) && left != -1, "{key}: {left}");
            assert!(key.starts_with("tidings:rate:{ip:127.0.0.1}:"), "{key}");
            seen = true;
        }
        seen
    })
    .await;
}

#[tokio::test]
async fn a_user_who_connects_too_often_with_hellos_is_closed_with_4101() {
    let gateway = Options::dev().set("limits.connects_per_second_per_user", "1").start().await;
    let hello = format!(r#"{{"type":"hello","token":"{}"}}"#, token("42"));
    let mut clients = join_all((0..5).map(|_| Client::anonymous(&gateway))).await;
    let closes = clients.iter_mut().map(async |client| {
        client.send(&hello).await;
        match client.message().await {
            Some(tokio_tungstenite::tungstenite::Message::Close(Some(frame))) => Some(u16::from(frame.code)),
            _ => None,
        }
    });
    let closes: Vec<u16> = join_all(closes).await.into_iter().flatten().collect();
    assert!(!closes.is_empty() && closes.iter().all(|code| *code == 4101), "{closes:?}");
}

#[tokio::test]
async fn without_redis_a_rate_is_counted_by_each_instance() {
    let mut redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("limits.connects_per_second_per_user", "2").start().await;
    redis.kill().await;
    gateway.not_ready().await;
    let answers = join_all((0..12).map(|_| connect(&gateway, "42"))).await;
    let admitted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((2..12).contains(&admitted), "{admitted}");
    assert!(gateway.metric("tidings_limits_unshared_total{limit=\"connects_per_second_per_user\"}").await >= 2.0);
}

#[tokio::test]
async fn without_limits_a_handshake_asks_redis_nothing() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let _: () = redis.command(&["CONFIG", "RESETSTAT"]).await;
    for _ in 0..50 {
        let client = Client::connect(&gateway, "42").await;
        assert!(!client.response.headers().contains_key("x-ratelimit-remaining"));
    }
    let keys: Vec<String> = redis.command(&["KEYS", "*"]).await;
    assert!(keys.iter().all(|key| !key.contains("rate") && !key.contains("slots")), "{keys:?}");
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    assert!(!stats.contains("cmdstat_incr:"), "{stats}");
}

// How much.

/// Writes until the connection is closed, and returns the code.
async fn flood(gateway: &Gateway, what: &str, bytes: &[u8]) -> u16 {
    let mut client = Client::connect(gateway, "42").await;
    // What is written after the close may meet a reset.
    within(what, client.tcp().write_all(bytes)).await.ok();
    client.close_frame().await
}

#[tokio::test]
async fn a_flood_of_frames_is_closed_with_4101() {
    let gateway = Options::dev().set("limits.inbound_frames_per_second", "10").start().await;
    let floods: [(&str, Vec<u8>); 5] = [
        ("pings", masked(0x89, b"?")),
        ("pongs", masked(0x8a, b"!")),
        ("unknown frames", masked(0x81, br#"{"type":"x"}"#)),
        ("auth with a bad token", masked(0x81, br#"{"type":"auth","token":"x"}"#)),
        ("empty texts", masked(0x81, b"")),
    ];
    for (what, frame) in &floods {
        assert_eq!(flood(&gateway, what, &frame.repeat(1_200)).await, 4101, "{what}");
    }
    assert_eq!(limited(&gateway, "inbound_frames_per_second").await, 5.0);
}

#[tokio::test]
async fn a_message_in_fragments_without_end_is_closed_with_1009() {
    let gateway = Options::dev().set("limits.inbound_frames_per_second", "100000").start().await;
    let bytes = [masked(0x01, b"{"), masked(0x00, b"").repeat(1_100)].concat();
    assert_eq!(flood(&gateway, "empty fragments", &bytes).await, 1009);
    assert_eq!(limited(&gateway, "inbound_fragments").await, 1.0);
}

#[tokio::test]
async fn by_default_a_hundred_frames_a_second_are_fine_and_many_more_at_once_are_not() {
    let gateway = Gateway::dev().await;
    let ping = masked(0x89, b"");
    let mut client = Client::connect(&gateway, "42").await;
    client.write(&ping.repeat(9_000)).await;
    client.send(r#"{"type":"ask"}"#).await;
    assert_eq!(client.frame().await["type"], "error", "its frames are still read");
    assert_eq!(flood(&gateway, "pings", &ping.repeat(12_000)).await, 4101);
}

#[tokio::test]
async fn what_comes_on_the_heels_of_the_handshake_is_metered_too() {
    let gateway = Gateway::dev().await;
    // A text of 5,000 zeroes, its header sent with the handshake: read from its middle, it would be as many fragments.
    let (header, text) = ([0x81, 0xfe, 0x13, 0x88, 0, 0, 0, 0], [0; 5_000]);
    let (answer, mut socket) = behind_with(&gateway, b"", &header).await;
    assert!(answer.contains("101"), "{answer}");
    socket.write_all(&text).await.unwrap();
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains("\"error\"") {
        let mut some = [0; 1_000];
        let count = within("an error frame", socket.read(&mut some)).await.unwrap();
        assert!(count > 0, "closed: {}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&some[..count]);
    }
}

#[tokio::test]
async fn a_flood_of_bytes_is_closed_with_4101() {
    let gateway = Options::dev().set("limits.inbound_bytes_per_second", "1000").start().await;
    let bytes = masked(0x81, &[b' '; 125]).repeat(300);
    assert_eq!(flood(&gateway, "texts", &bytes).await, 4101);
    assert_eq!(limited(&gateway, "inbound_bytes_per_second").await, 1.0);
}

#[tokio::test]
async fn a_burst_and_then_what_the_rate_allows_is_fine() {
    let gateway = Options::dev().set("limits.inbound_frames_per_second", "50").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let pong = masked(0x8a, b"");
    client.write(&pong.repeat(4_950)).await;
    for _ in 0..20 {
        client.write(&pong.repeat(5)).await;
        tokio::time::sleep(SECOND / 10).await;
    }
    client.send(r#"{"type":"ask"}"#).await;
    assert_eq!(client.frame().await["type"], "error", "its frames are still read");
}

#[tokio::test]
async fn a_flood_before_the_hello_is_closed_too() {
    let gateway = Options::dev().set("limits.inbound_frames_per_second", "10").start().await;
    let mut client = Client::anonymous(&gateway).await;
    client.write(&masked(0x89, b"").repeat(1_200)).await;
    assert_eq!(client.close_frame().await, 4101);
}

#[tokio::test]
async fn many_slow_clients_share_one_bound() {
    const CLIENTS: u32 = 40;
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis)
        .set("send_queue.max_total_bytes", "2000000")
        .set("send_queue.write_timeout", "1h")
        .set("send_queue.max_messages", "100000")
        .set("send_queue.max_bytes", "1000000000")
        .start()
        .await;
    let users: Vec<String> = (0..CLIENTS).map(|number| number.to_string()).collect();
    let _slow = join_all(users.iter().map(|user| Client::connect_narrow(&gateway, user))).await;
    let mut reader = Client::connect(&gateway, "reader").await;
    let payload = format!("\"{}\"", ".".repeat(50_000));
    for round in 0..200 {
        for user in &users {
            redis.publish(user, &payload).await;
        }
        redis.publish("reader", &round.to_string()).await;
        assert_eq!(reader.event().await, round);
        let waiting = gateway.metric("tidings_backlog_bytes").await;
        assert!(waiting < 2_000_000.0 + f64::from(CLIENTS) * 70_000.0, "{waiting} bytes wait");
        if gateway.metric("tidings_connections_closed_total{code=\"4203\"}").await > 0.0 {
            return;
        }
    }
    panic!("no client was given up");
}

// The client's address.

/// A PROXY protocol header of version 2 for a client at this IPv4 address.
fn proxy_header(address: [u8; 4]) -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &address, &[127, 0, 0, 1, 0x12, 0x34, 0, 80]].concat()
}

/// Opens a connection, writes this and then a handshake; gives the first line of the answer, empty where it is closed.
async fn behind(gateway: &Gateway, header: &[u8]) -> (String, TcpStream) {
    behind_with(gateway, header, b"").await
}

/// As [`behind`], with more bytes directly after the handshake.
async fn behind_with(gateway: &Gateway, header: &[u8], more: &[u8]) -> (String, TcpStream) {
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {}\r\n\r\n",
        token("42")
    );
    socket.write_all(&[header, request.as_bytes(), more].concat()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n") {
        let mut byte = [0];
        match within("an answer or the end", socket.read(&mut byte)).await {
            Ok(1) => got.push(byte[0]),
            _ => break,
        }
    }
    (String::from_utf8(got).unwrap(), socket)
}

#[tokio::test]
async fn behind_a_tcp_proxy_the_client_is_whom_the_header_names() {
    let gateway = Options::dev()
        .set("server.proxy_protocol", "true")
        .set("limits.max_connections_per_ip", "1")
        .start_unready()
        .await;
    let (first, _open) = behind(&gateway, &proxy_header([192, 0, 2, 1])).await;
    assert!(first.contains("101"), "{first}");
    let (again, _) = behind(&gateway, &proxy_header([192, 0, 2, 1])).await;
    assert!(again.contains("429"), "{again}");
    let (other, _open) = behind(&gateway, &proxy_header([192, 0, 2, 2])).await;
    assert!(other.contains("101"), "{other}");
}

#[tokio::test]
async fn a_silent_socket_behind_a_tcp_proxy_counts_for_the_client_of_its_header() {
    let gateway = Options::dev()
        .set("server.proxy_protocol", "true")
        .set("limits.max_connections_per_ip", "1")
        .start_unready()
        .await;
    let status = async |address| behind(&gateway, &proxy_header(address)).await.0;
    let silent = within("its header is read", async {
        loop {
            let mut silent = TcpStream::connect(gateway.public).await.unwrap();
            silent.write_all(&proxy_header([192, 0, 2, 1])).await.unwrap();
            // The gateway may read the later header first: then the silent socket is the one over the limit.
            if status([192, 0, 2, 1]).await.contains("429") && status([192, 0, 2, 1]).await.contains("429") {
                break silent;
            }
        }
    })
    .await;
    assert!(status([192, 0, 2, 2]).await.contains("101"), "another client of the same proxy");
    drop(silent);
    eventually("its end is read", async || status([192, 0, 2, 1]).await.contains("101")).await;
}

#[tokio::test]
async fn behind_a_tcp_proxy_nothing_but_its_header_will_do() {
    let gateway = Options::dev().set("server.proxy_protocol", "true").start_unready().await;
    let cut_short = &proxy_header([192, 0, 2, 1])[..15];
    let attacks: [(&str, &[u8]); 4] = [
        ("none", b""),
        ("version 1", b"PROXY TCP4 192.0.2.1 127.0.0.1 4660 80\r\n"),
        ("another version", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c\xc0\0\x02\x01\x7f\0\0\x01\x12\x34\0\x50"),
        ("an address family of its own", b"\r\n\r\n\0\r\nQUIT\n\x21\x41\0\0"),
    ];
    for (what, header) in attacks {
        assert_eq!(behind(&gateway, header).await.0, "", "{what}");
    }
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    socket.write_all(cut_short).await.unwrap();
    socket.shutdown().await.unwrap();
    assert_eq!(within("the end", socket.read(&mut [0])).await.unwrap_or(0), 0);
    eventually("all are counted", async || gateway.metric("tidings_proxy_headers_refused_total").await == 5.0).await;
    assert!(gateway.log().contains("server.proxy_protocol"));
    let (answer, _open) = behind(&gateway, &proxy_header([192, 0, 2, 1])).await;
    assert!(answer.contains("101"), "{answer}");
}

#[tokio::test]
async fn a_header_that_does_not_come_is_waited_for_no_longer_than_a_handshake() {
    let gateway = Options::dev()
        .set("server.proxy_protocol", "true")
        .set("server.handshake_timeout", "300ms")
        .start_unready()
        .await;
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    socket.write_all(&proxy_header([192, 0, 2, 1])[..20]).await.unwrap();
    assert_eq!(within("the end", socket.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn without_the_flag_a_proxy_header_is_no_request() {
    let gateway = Gateway::dev().await;
    let (answer, _) = behind(&gateway, &proxy_header([192, 0, 2, 1])).await;
    assert!(answer.is_empty() || answer.contains("400"), "{answer}");
}

// The handshake itself.

#[tokio::test]
async fn a_handshake_ends_at_its_deadline_whatever_it_waits_for() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let gateway = Options::redis_at(&proxy.url())
        .set("server.handshake_timeout", "400ms")
        .set("limits.connects_per_second_per_user", "100")
        .start()
        .await;
    proxy.blackhole(Whose::All, Way::Both);
    let refused = connect(&gateway, "42").await.err().expect("the lookup takes longer than the deadline");
    assert_eq!((refused.status, refused.code.as_str()), (503, "timeout"));
}

#[tokio::test]
async fn a_head_that_drips_is_cut_at_the_deadline() {
    let gateway = Options::dev().set("server.handshake_timeout", "500ms").start().await;
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    let begun = Instant::now();
    let drip = async {
        socket.write_all(b"GET /ws HTTP/1.1\r\n").await?;
        loop {
            socket.write_all(b"X-Slow: y\r\n").await?;
            let mut byte = [0];
            if let Ok(read) = tokio::time::timeout(Duration::from_millis(50), socket.read(&mut byte)).await {
                return read.map(|_| ());
            }
        }
    };
    within("the end", drip).await.ok();
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[tokio::test]
async fn headers_of_more_than_16_kib_are_431() {
    let gateway = Gateway::dev().await;
    let large = "x".repeat(17 * 1024);
    let answer = gateway.ask_public("GET", "/ws", &[("X-Large", &large)], "").await;
    assert_eq!(answer.status, 431);
    let fair = "x".repeat(12 * 1024);
    assert_eq!(gateway.ask_public("GET", "/ws", &[("X-Large", &fair)], "").await.status, 426);
}

// File descriptors.

#[tokio::test]
async fn when_file_descriptors_run_out_those_who_are_there_stay_and_others_come_later() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).ulimit("-n 80").start().await;
    assert!(gateway.log().contains("limit=80"), "{}", gateway.log());
    let mut clients = Vec::new();
    // Open TCP connections until one is refused.
    let turned_away = async |gateway: &Gateway| limited(gateway, "file_descriptors").await;
    while turned_away(&gateway).await == 0.0 {
        match try_connect(&gateway, "42").await {
            Some(client) => clients.push(client),
            None => break,
        }
        assert!(clients.len() < 80);
    }
    assert!(clients.len() > 20, "only {} came in", clients.len());
    eventually("it is counted", async || turned_away(&gateway).await > 0.0).await;
    let sockets: Vec<_> = join_all((0..100).map(|_| TcpStream::connect(gateway.public))).await;
    // The reserve is left: for operators, and for a new connection to Redis.
    let _: u32 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    eventually("it was lost", async || gateway.metric("tidings_backplane_gaps_total").await > 0.0).await;
    eventually("it is subscribed again", async || gateway.metric("tidings_backplane_up").await == 1.0).await;
    redis.publish("42", "1").await;
    for client in &mut clients {
        assert_eq!(client.event().await, 1);
    }
    assert_eq!(gateway.metric("tidings_accept_errors_total").await, 0.0);
    drop(sockets);
    for client in clients.drain(..10) {
        client.close().await;
    }
    eventually("others get in", async || try_connect(&gateway, "43").await.is_some()).await;
}

#[tokio::test]
async fn the_soft_limit_of_file_descriptors_is_raised_to_the_hard_one() {
    let gateway = Options::dev().ulimit("-S -n 80").start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [soft, hard] = [3, 4].map(|word| line.split_whitespace().nth(word).unwrap());
    assert_ne!(hard, "80", "this machine allows no more");
    assert_eq!(soft, hard);
    assert!(gateway.log().contains("before=80"), "{}", gateway.log());
}

/// `None` where the handshake is answered with 503 or not at all.
async fn try_connect(gateway: &Gateway, user: &str) -> Option<Client> {
    let mut socket = TcpStream::connect(gateway.public).await.ok()?;
    let probe = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    socket.write_all(probe).await.ok()?;
    let mut answer = String::new();
    within("an answer", socket.read_to_string(&mut answer)).await.ok()?;
    if !answer.starts_with("HTTP/1.1 200") {
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503"), "{answer}");
        return None;
    }
    drop(socket);
    let mut client = connect(gateway, user).await.ok()?;
    assert_eq!(client.frame().await["type"], "welcome");
    Some(client)
}
