//! The master that sentinels name: an instance moves to another one as soon as they name it, and to no other.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::join;
use tokio::time::Instant;

use crate::moving_address::follow;
use crate::redis_link::{delivered_within, reason};
use crate::support::{
    Client, Gateway, Options, RedisServer, Sentinel, Subscription, command, eventually, eventually_within, free_port,
    lone_sentinel, output,
};

const MOVED: Duration = Duration::from_secs(2);
pub const RESTORED: Duration = Duration::from_secs(5);
const NOTIFY: &str = "/v1/users/42/notifications";
const DURABLE: &str = r#"{"data":7,"durable":true}"#;

/// Without a probe, which would find out by itself that a subscription is dead.
fn quiet(url: &str) -> Options {
    Options::redis_at(url).set("redis.probe_interval", "1h")
}

/// An instance with a client, at the master of this fleet.
async fn connected(fleet: &Sentinel) -> (Gateway, Client) {
    let gateway = quiet(&fleet.url()).start().await;
    let client = Client::connect(&gateway, "42").await;
    let (status, answer) = gateway.post(gateway.admin, "/v1/users/43/notifications", DURABLE).await;
    assert_eq!(status, 202, "{answer}");
    // Otherwise, the failover may begin a new epoch, and the client is closed with 4205.
    for server in fleet.servers() {
        eventually("every server has it", async || {
            server.command::<u64>(&["EXISTS", "tidings:history:{43}"]).await == 1
        })
        .await;
    }
    (gateway, client)
}

/// The number of the instance's connections to this server.
async fn connections(server: &RedisServer, gateway: &Gateway) -> usize {
    let list: String = server.command(&["CLIENT", "LIST"]).await;
    list.matches(&format!(" name=tidings-{}-", gateway.instance)).count()
}

/// The master that the next announcement names.
async fn announced<'a>(fleet: &'a Sentinel, announcements: &mut Subscription) -> &'a RedisServer {
    let text = String::from_utf8(announcements.next_bytes().await).unwrap();
    let port: u16 = text.split(' ').next_back().unwrap().parse().unwrap();
    fleet.servers().iter().find(|server| server.port() == port).unwrap()
}

#[tokio::test]
async fn an_orderly_failover_moves_every_connection_within_2_s_while_the_old_master_still_confirms() {
    let fleet = Sentinel::start().await;
    let old = fleet.master().await;
    let (gateway, mut client) = connected(&fleet).await;
    let mut announcements = fleet.sentinels()[0].subscribe("+switch-master").await;
    let moving = async {
        let new = announced(&fleet, &mut announcements).await;
        let named = Instant::now();
        delivered_within(MOVED, new, &mut client).await;
        eventually_within(MOVED.saturating_sub(named.elapsed()), "every connection has moved", async || {
            connections(&fleet.servers()[old], &gateway).await == 0
        })
        .await;
        new
    };
    let (_, new) = join!(fleet.failover(), moving);
    let role: String = fleet.servers()[old].command(&["INFO", "replication"]).await;
    assert!(role.contains("role:master"), "it is not demoted yet");
    let mut published = new.subscribe("user:42").await;
    let (status, answer) = gateway.post(gateway.admin, NOTIFY, DURABLE).await;
    assert_eq!(status, 202, "{answer}");
    published.next_bytes().await;
    while client.event().await != 7 {}
    gateway.ready().await;
    eventually("online there", async || new.online().await == ["42"]).await;
    assert_eq!(gateway.log().matches("replacing all connections").count(), 1, "{}", gateway.log());
}

#[tokio::test]
async fn delivery_is_restored_within_5_s_of_the_promotion_after_the_master_was_killed() {
    let mut fleet = Sentinel::start().await;
    let old = fleet.master().await;
    let (gateway, mut client) = connected(&fleet).await;
    let mut announcements = fleet.sentinels()[0].subscribe("+switch-master").await;
    fleet.kill(old).await;
    gateway.not_ready().await;
    let new = announced(&fleet, &mut announcements).await;
    delivered_within(RESTORED, new, &mut client).await;
    gateway.ready().await;
    let (status, answer) = gateway.post(gateway.admin, NOTIFY, DURABLE).await;
    assert_eq!(status, 202, "{answer}");
}

#[tokio::test]
async fn a_master_that_was_paused_is_left_and_nothing_that_it_says_afterwards_is_believed() {
    let fleet = Sentinel::start().await;
    let old = fleet.master().await;
    let (gateway, mut client) = connected(&fleet).await;
    let mut announcements = fleet.sentinels()[0].subscribe("+switch-master").await;
    fleet.freeze(old);
    let new = announced(&fleet, &mut announcements).await;
    delivered_within(RESTORED, new, &mut client).await;
    fleet.thaw(old);
    fleet.servers()[old].publish("42", "8").await;
    new.publish("42", "9").await;
    let mut event = client.event().await;
    while event == 1 {
        event = client.event().await;
    }
    assert_eq!(event, 9);
    let (status, answer) = gateway.post(gateway.admin, NOTIFY, DURABLE).await;
    assert_eq!(status, 202, "{answer}");
    let stored: u64 = new.command(&["EXISTS", "tidings:history:{42}"]).await;
    assert_eq!(stored, 1);
    eventually("no connection to the old one", async || connections(&fleet.servers()[old], &gateway).await == 0).await;
}

#[tokio::test]
async fn an_instance_stays_ready_while_the_master_is_alive_and_no_sentinel_answers() {
    let mut fleet = Sentinel::start().await;
    let master = fleet.master().await;
    let (gateway, mut client) = connected(&fleet).await;
    for sentinel in 0..3 {
        fleet.kill_sentinel(sentinel).await;
    }
    let failing = |gateway: &Gateway| gateway.log().matches("a sentinel does not name the master").count();
    eventually("it is said", async || failing(&gateway) == 3).await;
    let kind = "tidings_backplane_errors_total{kind=\"connection\"}";
    eventually("it is counted", async || gateway.metric(kind).await > 8.0).await;
    assert_eq!(gateway.get(gateway.public, "/readyz").await.0, 200);
    fleet.servers()[master].publish("42", "5").await;
    assert_eq!(client.event().await, 5);
    assert_eq!((failing(&gateway), gateway.metric("tidings_backplane_gaps_total").await), (3, 0.0));
    fleet.restart_sentinel(1).await;
    eventually("it is said", async || gateway.log().contains("the sentinel names a master again")).await;
}

#[tokio::test]
async fn an_instance_that_was_given_one_sentinel_follows_the_others_once_that_one_is_dead() {
    let mut fleet = Sentinel::start().await;
    let [first, others @ ..] = fleet.sentinels() else { unreachable!() };
    let port = |sentinel: &RedisServer| sentinel.port().to_string();
    let others: Vec<_> = others.iter().map(port).collect();
    // Under another name than the one that the sentinels announce.
    let gateway = quiet(&format!("redis+sentinel://localhost:{}/mymaster", first.port())).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let known = |gateway: &Gateway, port: &str| {
        let line = |line: &str| line.contains("known through another one") && line.contains(port);
        gateway.log().lines().any(line)
    };
    eventually("the others are known", async || others.iter().all(|other| known(&gateway, other))).await;
    fleet.kill_sentinel(0).await;
    let mut announcements = fleet.sentinels()[1].subscribe("+switch-master").await;
    let moving = async {
        let new = announced(&fleet, &mut announcements).await;
        delivered_within(MOVED, new, &mut client).await;
    };
    join!(fleet.failover(), moving);
    gateway.ready().await;
    assert_eq!(gateway.log().matches("known through another one").count(), 2, "{}", gateway.log());
}

/// Stores numbers for user 42.
async fn store(gateway: &Gateway, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        let body = format!(r#"{{"data":{number},"durable":true}}"#);
        let (status, answer) = gateway.post(gateway.admin, NOTIFY, &body).await;
        assert_eq!(status, 202, "{answer}");
    }
}

#[tokio::test]
async fn a_history_that_diverged_at_a_failover_is_reported_within_5_s_of_readiness() {
    let mut fleet = Sentinel::start().await;
    let old = fleet.master().await;
    let away = quiet(&fleet.url()).start().await;
    let mut client = Client::connect(&away, "42").await;
    store(&away, 1..=2).await;
    let count = async |server: &RedisServer| server.command::<Option<u64>>(&["HGET", "tidings:history", "count"]).await;
    for server in fleet.servers() {
        eventually("it is replicated", async || count(server).await == Some(2)).await;
    }
    let replicas: Vec<_> = (0..3).filter(|server| *server != old).collect();
    replicas.iter().for_each(|replica| fleet.freeze(*replica));
    // Otherwise what follows would wait in the sockets of those that are frozen.
    let _: u64 = fleet.servers()[old].command(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    store(&away, 3..=4).await;
    let mut last = String::new();
    for number in 1..=4 {
        let (cursor, data) = client.stored_event().await;
        assert_eq!(data, number);
        last = cursor;
    }
    // It receives nothing of what follows.
    away.signal("STOP");
    fleet.kill(old).await;
    replicas.iter().for_each(|replica| fleet.thaw(*replica));
    let new = fleet.promoted(old).await;
    // It cannot know what was lost.
    let other = quiet(&fleet.url()).start().await;
    store(&other, 30..=39).await;
    assert_eq!(count(&fleet.servers()[new]).await, Some(12), "it lacks two, and has more");
    away.signal("CONT");
    // It may say that it is ready before it has noticed.
    eventually("it has moved", async || connections(&fleet.servers()[new], &away).await > 1).await;
    away.ready().await;
    let code = tokio::time::timeout(RESTORED, client.close_code()).await;
    assert_eq!(code.expect("the client is told in time"), 4205);
    let (mut client, welcome) = Client::resume(&away, "42", &last).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    let cursor = welcome["cursor"].as_str().unwrap();
    assert_ne!(cursor.split('-').next(), last.split('-').next(), "another epoch");
    store(&other, 7..=7).await;
    assert_eq!(client.event().await, 7);
}

#[tokio::test]
async fn a_sentinel_that_names_another_master_than_most_moves_nothing() {
    let (fleet, foreign) = join!(Sentinel::start(), RedisServer::start());
    let stale = lone_sentinel(&foreign).await;
    let url = fleet.url().replace("/mymaster", &format!(",127.0.0.1:{}/mymaster", stale.port()));
    let gateway = quiet(&url).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let mut announcements = fleet.sentinels()[0].subscribe("+switch-master").await;
    let (_, new) = join!(fleet.failover(), announced(&fleet, &mut announcements));
    delivered_within(RESTORED, new, &mut client).await;
    // Most of the configured sentinels are gone: what is left names the other one.
    let asked = async || -> u64 {
        let stats: String = stale.command(&["INFO", "all"]).await;
        stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:")).unwrap().trim().parse().unwrap()
    };
    let before = asked().await;
    eventually("it is asked again and again", async || asked().await > before + 10).await;
    assert_eq!(connections(&foreign, &gateway).await, 0);
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 1.0);
    assert_eq!(gateway.get(gateway.public, "/readyz").await.0, 200);
}

#[tokio::test]
async fn a_wrong_name_or_password_and_silent_sentinels_are_told() {
    let master = RedisServer::start().await;
    let sentinel = lone_sentinel(&master).await;
    let url = |name: &str| format!("redis+sentinel://127.0.0.1:{}/{name}", sentinel.port());
    let told = async |options: Options, parts: &[&str]| {
        let gateway = options.start_unready().await;
        let mut why = String::new();
        eventually("the reason is told", async || {
            why = reason(&gateway).await;
            parts.iter().all(|part| why.contains(part) && gateway.log().contains(part))
        })
        .await;
        assert!(!why.contains("hunter2"), "{why}");
    };
    told(quiet(&url("yourmaster")), &["yourmaster", "redis.url", "it knows mymaster"]).await;
    let closed = format!("redis+sentinel://127.0.0.1:{}/mymaster", free_port());
    told(quiet(&closed), &["does not answer", "refused"]).await;

    let () = sentinel.command(&["ACL", "SETUSER", "watcher", "on", ">right", "+@all", "&*"]).await;
    let login = |password: &str| {
        quiet(&url("mymaster")).set("redis.sentinel_username", "watcher").set("redis.sentinel_password", password)
    };
    told(login("hunter2"), &["does not answer", "redis.sentinel_password"]).await;
    let gateway = login("right").start().await;
    assert_eq!(gateway.get(gateway.public, "/readyz").await.0, 200);
    // A command without a running instance asks them itself.
    let published = output(command(&["publish", "42", "5", "--redis-url", &url("mymaster")])).await;
    assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    let refused = output(command(&["publish", "42", "5", "--redis-url", &url("yourmaster")])).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("it knows mymaster"));
}

#[tokio::test]
async fn a_named_master_is_used_only_once_it_is_one() {
    let (named, other) = join!(RedisServer::start(), RedisServer::start());
    let sentinel = lone_sentinel(&named).await;
    let () = named.command(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]).await;
    let gateway = quiet(&format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port())).start_unready().await;
    eventually("it is told", async || {
        let why = reason(&gateway).await;
        why.contains(&named.port().to_string()) && why.contains("replica")
    })
    .await;
    let () = named.command(&["REPLICAOF", "NO", "ONE"]).await;
    eventually_within(RESTORED, "ready", async || gateway.get(gateway.public, "/readyz").await.0 == 200).await;
}

/// A master with one replica that the instance waits for.
async fn replicated() -> (RedisServer, RedisServer, Gateway) {
    let (master, replica) = join!(RedisServer::start(), RedisServer::start());
    follow(&master, &replica).await;
    // It acknowledges writes only some time after it is in sync.
    eventually("the replica acknowledges", async || {
        let mut connection = master.connection().await;
        let mut both = redis::pipe();
        both.cmd("SET").arg("warm").arg("up").ignore().cmd("WAIT").arg(1).arg(100);
        let (replicas,): (u64,) = both.query_async(&mut connection).await.unwrap();
        replicas == 1
    })
    .await;
    let options = Options::redis(&master).set("redis.wait_replicas", "1").set("redis.wait_timeout", "500ms");
    let gateway = options.set("presence.lease", "2s").start().await;
    (master, replica, gateway)
}

#[tokio::test]
async fn a_durable_notification_is_confirmed_only_once_the_replicas_have_it_and_its_key_notifies_once() {
    let (master, replica, gateway) = replicated().await;
    let mut client = Client::connect(&gateway, "42").await;
    let (status, answer) = gateway.post(gateway.admin, NOTIFY, r#"{"data":1,"durable":true}"#).await;
    assert_eq!(status, 202, "{answer}");
    let stored: u64 = replica.command(&["EXISTS", "tidings:history:{42}"]).await;
    assert_eq!(stored, 1, "the replica has it");
    assert_eq!(client.event().await, 1);

    replica.freeze();
    let send = async || gateway.ask_admin("POST", NOTIFY, &[("Idempotency-Key", "k")], DURABLE).await;
    let refused = send().await;
    assert_eq!(refused.error(), (503, "not_replicated".to_owned()));
    let many = r#"{"users":["42","43"],"data":9,"durable":true}"#;
    let refused_again = gateway.ask_admin("POST", "/v1/notifications", &[], many).await;
    assert_eq!(refused_again.error(), (503, "not_replicated".to_owned()));
    // Of a connection that wrote nothing, Redis itself would say that the replicas have everything.
    let _: u64 = master.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    eventually("the key is refused again", async || send().await.error().1 == "not_replicated").await;
    let other = Client::connect(&gateway, "44").await;
    eventually("presence does not wait", async || master.online().await == ["42", "44"]).await;
    drop(other);

    replica.thaw();
    let mut confirmed = send().await;
    eventually("the key is confirmed", async || {
        confirmed = send().await;
        confirmed.status == 202
    })
    .await;
    let (status, answer) = gateway.post(gateway.admin, NOTIFY, r#"{"data":10,"durable":true}"#).await;
    assert_eq!(status, 202, "{answer}");
    for data in [7, 9, 10] {
        assert_eq!(client.event().await, data, "each is delivered once");
    }
}

#[tokio::test]
async fn many_durable_notifications_share_each_wait() {
    let (_master, replica, gateway) = replicated().await;
    replica.freeze();
    let begun = Instant::now();
    let refused =
        join_all((0..20).map(async |_| gateway.ask_admin("POST", NOTIFY, &[], DURABLE).await.error().1)).await;
    assert_eq!(refused, ["not_replicated"; 20]);
    assert!(begun.elapsed() < Duration::from_secs(8), "not 20 waits of 500 ms: {:?}", begun.elapsed());
    replica.thaw();
}

#[tokio::test]
async fn with_all_replicas_an_orderly_failover_loses_no_confirmed_notification() {
    let fleet = Sentinel::start().await;
    let options = quiet(&fleet.url()).set("redis.wait_replicas", "2").set("redis.wait_timeout", "300ms");
    let options = options.set("history.max_len", "100000");
    let gateway = options.start().await;
    let confirmed = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let numbers = AtomicU32::new(0);
    let load = async || {
        while !stop.load(Ordering::Relaxed) {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let body = format!(r#"{{"data":{number},"durable":true}}"#);
            if gateway.post(gateway.admin, NOTIFY, &body).await.0 == 202 {
                confirmed.lock().unwrap().push(number);
            }
        }
    };
    let failing_over = async {
        eventually("some are confirmed", async || confirmed.lock().unwrap().len() > 5).await;
        let new = fleet.failover().await;
        let before = confirmed.lock().unwrap().len();
        eventually("they are confirmed again", async || confirmed.lock().unwrap().len() > before + 5).await;
        stop.store(true, Ordering::Relaxed);
        new
    };
    let (_, new) = join!(join_all((0..4).map(|_| load())), failing_over);
    let entries: String = fleet.servers()[new]
        .command(&["EVAL", "return cjson.encode(redis.call('XRANGE', KEYS[1], '-', '+'))", "1", "tidings:history:{42}"])
        .await;
    let entries: Vec<(String, Vec<String>)> = serde_json::from_str(&entries).unwrap();
    let stored: Vec<u32> = entries.iter().map(|(_, fields)| fields[3].parse().unwrap()).collect();
    let confirmed = confirmed.into_inner().unwrap();
    let lost: Vec<_> = confirmed.iter().filter(|number| !stored.contains(number)).collect();
    assert!(lost.is_empty(), "{lost:?} of {}", confirmed.len());
}
