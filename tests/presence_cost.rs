//! The cost of presence in Redis grows with instances and batches, not with connections, nor with the square of the
//! instances.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{Client, Gateway, Light, Options, RedisServer, eventually, eventually_within, within};

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

/// Adds up to so many incarnations, as if each were that of a live instance with five users, and holders of permits.
async fn add_instances(redis: &RedisServer, count: usize) {
    let script = "
        local now = tonumber(redis.call('TIME')[1])
        local key = function(name) return '{online_users}:' .. name end
        for i = 1, ARGV[1] do
          redis.call('ZADD', key('instances'), (now + 3600) * 1000, 'other-' .. i)
          redis.call('HSET', key('seq'), 'other-' .. i, 1)
          redis.call('ZADD', '{tidings:slots}:leases', (now + 3600) * 1000000, 'other-' .. i)
          for user = 5 * i, 5 * i + 4 do
            redis.call('INCRBY', key('total'), redis.call('HSET', key('held:other-') .. i, user, 1))
            redis.call('HSET', key('count'), user, 1)
            redis.call('SADD', 'online_users', user)
          end
        end";
    let _: Option<u64> = redis.command(&["EVAL", script, "0", &count.to_string()]).await;
}

/// The bytes that Redis sends in five seconds, to all its clients.
async fn sent_in_five_seconds(redis: &RedisServer) -> u64 {
    let sent = async || {
        let stats: String = redis.command(&["INFO", "stats"]).await;
        let bytes = stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
        bytes.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = sent().await;
    sleep(Duration::from_secs(5)).await;
    sent().await - before
}

#[tokio::test]
async fn to_watch_the_leases_of_hundreds_of_instances_costs_what_those_of_a_few_do() {
    let redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("presence.lease", "60s").set("limits.max_connections_per_user", "5");
    let gateway = options.start().await;
    let _client = Client::connect(&gateway, "1").await;
    all_online(&redis, 1).await;
    let of_one = sent_in_five_seconds(&redis).await;
    add_instances(&redis, 400).await;
    let of_many = sent_in_five_seconds(&redis).await;
    println!("5 s of one instance: {of_one} bytes; beside 400 others: {of_many}");
    assert!(of_many <= of_one + of_one / 4, "{of_one} bytes alone, {of_many} beside 400 others");
    assert_eq!(gateway.metric("tidings_presence_audits_total").await, 0.0, "all keys agreed");
}

/// How many users an audit looks up, in all held hashes together.
async fn lookups_of_an_audit(redis: &RedisServer) -> usize {
    let mut monitor = TcpStream::connect(("127.0.0.1", redis.port())).await.unwrap();
    monitor.write_all(b"MONITOR\r\n").await.unwrap();
    let mut lines = BufReader::new(monitor).lines();
    let mut lookups = 0;
    loop {
        let line = within("an audit", lines.next_line()).await.unwrap().unwrap();
        let held = line.contains(r#" lua] "HMGET" "{online_users}:held:"#);
        lookups += if held { line.matches(r#"" ""#).count() - 1 } else { 0 };
        if line.contains(r#" lua] "SMISMEMBER""#) {
            return lookups;
        }
    }
}

#[tokio::test]
async fn an_audit_of_hundreds_of_instances_looks_up_no_more_than_one_of_a_few() {
    let redis = RedisServer::start().await;
    let _gateway = Options::redis(&redis).start().await;
    for (more, most) in [(29, 30 * 300), (170, 10_000), (800, 10_000)] {
        add_instances(&redis, more).await;
        let lookups = lookups_of_an_audit(&redis).await;
        assert!((2_000..=most).contains(&lookups), "{lookups} beside {more} others");
        let _: u64 = redis.command(&["DEL", "{online_users}:audits"]).await;
    }
}

#[tokio::test]
async fn a_fleet_audits_once_each_five_seconds_whatever_its_size_and_whoever_dies() {
    let redis = RedisServer::start().await;
    let start = || Options::redis(&redis).set("presence.lease", "1s").start();
    let mut fleet: Vec<Gateway> = join_all((0..4).map(|_| start())).await;
    let audits = async || -> u64 {
        let stats: String = redis.command(&["INFO", "commandstats"]).await;
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_srandmember:calls="));
        calls.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    let _client = Client::connect(&fleet[0], "42").await.answering();
    eventually_within(Duration::from_secs(15), "the first audit", async || audits().await > 0).await;
    let (before, begun) = (audits().await, Instant::now());
    sleep(Duration::from_secs(16)).await;
    let most = begun.elapsed().as_secs() / 5 + 1;
    let made = audits().await - before;
    assert!((1..=most).contains(&made), "{made} audits in {:?}", begun.elapsed());
    // Whichever of them audits, those that are left go on.
    for _ in 0..3 {
        fleet.pop().unwrap().kill().await;
        let before = audits().await;
        eventually_within(Duration::from_secs(15), "another audit", async || audits().await > before).await;
    }
    let _: u64 = redis.command(&["DEL", "online_users"]).await;
    eventually_within(Duration::from_secs(30), "the set is exact", async || redis.online().await == ["42"]).await;
}

#[tokio::test]
async fn the_users_of_all_instances_but_one_that_are_killed_at_once_go_offline_in_time() {
    let redis = RedisServer::start().await;
    let start = || Options::redis(&redis).set("presence.lease", "2s").start();
    let mut fleet: Vec<Gateway> = join_all((0..4).map(|_| start())).await;
    let users = ["0", "1", "2", "3"];
    let _clients = join_all(fleet.iter().zip(users).map(|(gateway, user)| Client::connect(gateway, user))).await;
    eventually("all are online", async || redis.online().await == users).await;
    join_all(fleet[1..].iter_mut().map(Gateway::kill)).await;
    eventually_within(Duration::from_secs(4), "those of the last are left", async || redis.online().await == ["0"])
        .await;
}
