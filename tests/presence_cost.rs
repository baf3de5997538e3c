//! The cost of presence in Redis grows with instances and batches, not with connections.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{Gateway, Light, Options, RedisServer, eventually_within};

const MANY: usize = 10_000;
const FEW: usize = 10;

/// Handshakes under way at a time.
const AT_ONCE: usize = 100;

const LONG: Duration = Duration::from_secs(120);

/// So many idle connections, each of another user.
async fn crowd(address: SocketAddr, users: Range<usize>) -> JoinSet<()> {
    let mut hands = JoinSet::new();
    for hand in 0..AT_ONCE {
        let own = users.clone().skip(hand).step_by(AT_ONCE);
        hands.spawn(async move {
            let mut lights = Vec::new();
            for user in own {
                lights.push(Light::connect(address, &user.to_string()).await.unwrap());
            }
            lights
        });
    }
    let mut crowd = JoinSet::new();
    for mut light in hands.join_all().await.into_iter().flatten() {
        crowd.spawn(async move { light.live().await });
    }
    crowd
}

/// Every command that Redis has run, those of scripts too, but for the question itself.
async fn commands(redis: &RedisServer) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let lines = stats.lines().filter(|line| line.starts_with("cmdstat_"));
    let ours = ["cmdstat_info:", "cmdstat_client", "cmdstat_hello", "cmdstat_scard"];
    let calls = lines.filter(|line| ours.iter().all(|own| !line.starts_with(own))).map(|line| {
        let calls = line.split_once("calls=").unwrap().1.split(',').next().unwrap();
        calls.parse::<u64>().unwrap()
    });
    calls.sum()
}

/// What an idle fleet costs in ten seconds: ten renewals of the lease, two heartbeats of each connection.
async fn commands_of_ten_seconds(redis: &RedisServer) -> u64 {
    let before = commands(redis).await;
    sleep(Duration::from_secs(10)).await;
    commands(redis).await - before
}

async fn memory(redis: &RedisServer) -> u64 {
    let info: String = redis.command(&["INFO", "memory"]).await;
    info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
}

async fn all_online(redis: &RedisServer, users: usize) {
    eventually_within(LONG, "all are online", async || {
        redis.command::<usize>(&["SCARD", "online_users"]).await == users
    })
    .await;
}

async fn batches(gateway: &Gateway) -> f64 {
    gateway.metric("tidings_presence_batches_total").await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_cost_what_ten_do_and_a_storm_of_them_some_batches() {
    let redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("presence.lease", "3s").set("presence.offline_delay", "60s");
    let gateway = options.set("server.heartbeat", "5s").set("server.pong_timeout", "60s").start().await;

    let mut few = crowd(gateway.public, 0..FEW).await;
    all_online(&redis, FEW).await;
    let of_few = commands_of_ten_seconds(&redis).await;
    few.shutdown().await;

    let memory_before = memory(&redis).await;
    let (started, batches_before) = (Instant::now(), batches(&gateway).await);
    let mut many = crowd(gateway.public, 0..MANY).await;
    let took = started.elapsed();
    all_online(&redis, MANY).await;
    let storm = batches(&gateway).await - batches_before;
    println!("{MANY} connections came in {took:?}: {storm} batches");
    assert!(storm <= MANY as f64 / 10.0, "{storm} batches for {MANY} connections");

    let bytes = memory(&redis).await.saturating_sub(memory_before) / MANY as u64;
    println!("{MANY} users online: {bytes} bytes of Redis each");
    assert!(bytes < 500, "{bytes} bytes for each user");

    let of_many = commands_of_ten_seconds(&redis).await;
    assert_eq!(gateway.metric("tidings_connections").await, MANY as f64, "all stayed");
    println!("10 s of {FEW} idle connections: {of_few} commands; of {MANY}: {of_many}");
    assert!(of_many <= of_few + of_few / 4, "{of_few} commands for {FEW} connections, {of_many} for {MANY}");

    many.shutdown().await;
    let (started, batches_before, commands_before) = (Instant::now(), batches(&gateway).await, commands(&redis).await);
    let again = crowd(gateway.public, 0..MANY).await;
    let took = started.elapsed();
    let held = format!("{{online_users}}:held:{}", incarnation(&redis).await);
    eventually_within(LONG, "all are back", async || {
        let connections: Vec<u64> = redis.command(&["HVALS", &held]).await;
        connections.len() == MANY && connections.iter().all(|connections| *connections == 1)
    })
    .await;
    let storm = batches(&gateway).await - batches_before;
    let evals = commands(&redis).await - commands_before;
    println!(
        "{MANY} connections reconnected in {took:?}: {storm} batches, {evals} commands, each HSET of a script too"
    );
    assert!(storm <= MANY as f64 / 10.0, "{storm} batches for {MANY} reconnections");
    drop(again);
}

async fn incarnation(redis: &RedisServer) -> String {
    redis.command::<Vec<String>>(&["ZRANGE", "{online_users}:instances", "0", "-1"]).await.remove(0)
}
