//! Who is online, over HTTP, for backends without a Redis client: `docs/operations.md`, "The admin listener".

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{join_all, select};
use serde_json::{Value, json};

use crate::support::{Client, Gateway, Options, RedisServer, eventually, eventually_within};

const LEASE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

/// Every call: method, path, body.
const CALLS: [(&str, &str, &str); 5] = [
    ("GET", "/v1/users/42/presence", ""),
    ("POST", "/v1/presence", r#"{"users":["42"]}"#),
    ("GET", "/v1/presence", ""),
    ("GET", "/v1/presence/count", ""),
    ("GET", "/v1/info", ""),
];

fn quick(options: Options) -> Options {
    options.set("presence.lease", "2s").set("presence.offline_delay", "300ms")
}

async fn two(redis: &RedisServer) -> [Gateway; 2] {
    let start = || quick(Options::redis(redis)).start();
    tokio::join!(start(), start()).into()
}

async fn get(gateway: &Gateway, path: &str) -> Value {
    let (status, body) = gateway.get(gateway.admin, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

async fn presence(gateway: &Gateway, user: &str) -> Value {
    get(gateway, &format!("/v1/users/{user}/presence")).await
}

async fn ask_many(gateway: &Gateway, users: &[&str]) -> Vec<Value> {
    let answer = gateway.ask_admin("POST", "/v1/presence", &[], &json!({"users": users}).to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["users"].as_array().expect("a list").clone()
}

async fn eventually_connections(gateway: &Gateway, user: &str, count: u64) {
    let what = format!("{user} has {count} connections");
    eventually_within(2 * SECOND, &what, async || presence(gateway, user).await["connections"] == count).await;
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Whether it lies between these two moments, which a second or so of lag may widen.
fn assert_seen_between(presence: &Value, from: u64, to: u64) {
    let seen = presence["last_seen"].as_u64().unwrap_or_else(|| panic!("a time in {presence}"));
    assert!((from - 100..=to + 1_000).contains(&seen), "seen {} ms after the earliest: {presence}", seen - from);
}

#[tokio::test]
async fn one_user_is_online_offline_or_was_never_seen() {
    let redis = RedisServer::start().await;
    for options in [Options::dev(), Options::redis(&redis)] {
        let gateway = quick(options).start().await;
        let absent = json!({"user": "42", "online": false, "connections": 0, "last_seen": null});
        assert_eq!(presence(&gateway, "42").await, absent);
        let came = now_ms();
        let phone = Client::connect(&gateway, "42").await;
        eventually_connections(&gateway, "42", 1).await;
        let laptop = Client::connect(&gateway, "42").await;
        eventually_connections(&gateway, "42", 2).await;
        let both = presence(&gateway, "42").await;
        assert_eq!((&both["user"], &both["online"]), (&json!("42"), &json!(true)));
        assert_seen_between(&both, came, now_ms());
        phone.close().await;
        eventually_connections(&gateway, "42", 1).await;
        assert_eq!(presence(&gateway, "42").await["online"], true);

        let left = now_ms();
        laptop.close().await;
        let closed = now_ms();
        eventually("42 is offline", async || presence(&gateway, "42").await["online"] == false).await;
        let gone = presence(&gateway, "42").await;
        assert_eq!(gone["connections"], 0);
        assert_seen_between(&gone, left, closed);
        assert_eq!(presence(&gateway, "43").await["last_seen"], Value::Null);
    }
}

#[tokio::test]
async fn connections_are_counted_across_the_fleet_by_whomever_is_asked() {
    let redis = RedisServer::start().await;
    let [one, other] = &two(&redis).await;
    let clients = join_all([one, one, other].map(|gateway| Client::connect(gateway, "tenant:42/é"))).await;
    for gateway in [one, other] {
        eventually_connections(gateway, "tenant:42%2F%C3%A9", 3).await;
        let [info, other_info] = [get(one, "/v1/info").await, get(other, "/v1/info").await];
        assert_eq!((&info["connections"], &other_info["connections"]), (&json!(2), &json!(1)), "each reports its own");
    }
    for (left, client) in [2, 1].into_iter().zip(clients) {
        client.close().await;
        eventually_connections(other, "tenant:42%2F%C3%A9", left).await;
    }
}

#[tokio::test]
async fn a_killed_instance_s_users_were_last_seen_about_its_last_heartbeat() {
    let redis = RedisServer::start().await;
    let [mut doomed, other] = two(&redis).await;
    let _single = Client::connect(&doomed, "single").await;
    let _both = [Client::connect(&doomed, "both").await, Client::connect(&other, "both").await];
    eventually_connections(&other, "single", 1).await;
    eventually_connections(&other, "both", 2).await;
    let heartbeats = async || doomed.metric("tidings_presence_batches_total").await;
    let until = heartbeats().await + 4.0;
    eventually("its lease was renewed some times", async || heartbeats().await >= until).await;
    let killed = now_ms();
    doomed.kill().await;
    eventually_within(LEASE + 2 * SECOND, "single is offline", async || {
        presence(&other, "single").await["online"] == false
    })
    .await;
    assert_seen_between(&presence(&other, "single").await, killed - 1_500, killed);
    let both = presence(&other, "both").await;
    assert_eq!((&both["online"], &both["connections"]), (&json!(true), &json!(1)), "{both}");
    assert_seen_between(&both, killed, now_ms());
}

#[tokio::test]
async fn many_users_are_answered_in_the_order_asked() {
    let redis = RedisServer::start().await;
    for options in [Options::dev(), Options::redis(&redis)] {
        let gateway = quick(options).start().await;
        let _clients = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "é ☂").await];
        let _second = Client::connect(&gateway, "42").await;
        eventually_connections(&gateway, "42", 2).await;
        eventually_connections(&gateway, "%C3%A9%20%E2%98%82", 1).await;
        let asked = ["absent", "42", "é ☂", "absent", "42"];
        let answered = ask_many(&gateway, &asked).await;
        let brief: Vec<_> = answered.iter().map(|one| (&one["user"], &one["online"], &one["connections"])).collect();
        let expected = [false, true, true, false, true].map(Value::from);
        let counts = [0, 2, 1, 0, 2].map(Value::from);
        for (index, user) in asked.into_iter().enumerate() {
            assert_eq!(brief[index], (&user.into(), &expected[index], &counts[index]), "{answered:?}");
        }
        assert_eq!(answered[0]["last_seen"], Value::Null);
        assert!(ask_many(&gateway, &[]).await.is_empty());
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_a_reason() {
    let redis = RedisServer::start().await;
    let users = |users: &str| format!(r#"{{"users":[{users}]}}"#);
    for gateway in [Gateway::dev().await, Gateway::redis(&redis).await] {
        let long = format!("\"{}\"", "x".repeat(257));
        for bad in ["\"\"", r#""a\u0000b""#, r#""a\u0085b""#, &long] {
            let body = users(&format!("\"42\",{bad}"));
            let answer = gateway.ask_admin("POST", "/v1/presence", &[], &body).await;
            assert_eq!(answer.error(), (400, "bad_user".to_owned()), "{body}");
        }
        let strange = [&users("42"), &users("null"), "", "[]", "{}", "no json", r#"{"users":"42"}"#, r#"["42"]"#];
        for body in strange {
            assert_eq!(gateway.ask_admin("POST", "/v1/presence", &[], body).await.error().0, 400, "{body}");
        }
        let path = format!("/v1/users/{}/presence", "x".repeat(257));
        for path in [path.as_str(), "/v1/users//presence", "/v1/users/%FF/presence", "/v1/users/a%0Ab/presence"] {
            assert_eq!(gateway.ask_admin("GET", path, &[], "").await.error().0, 400, "{path}");
        }
        for query in [
            "limit=0",
            "limit=-1",
            "limit=1001",
            "limit=x",
            "limit=",
            "limit=1e2",
            "cursor=x",
            "cursor=1.zz",
            "cursor=-1",
            "cursor=1.0",
            "cursor=99999999999999999999",
        ] {
            let answer = gateway.ask_admin("GET", &format!("/v1/presence?{query}"), &[], "").await;
            assert_eq!(answer.error().0, 400, "{query}");
        }
    }
}

#[tokio::test]
async fn as_many_are_answered_as_64_kib_can_ask_for() {
    let redis = RedisServer::start().await;
    for gateway in [Gateway::dev().await, Gateway::redis(&redis).await] {
        let most = (64 * 1024 - r#"{"users":[]}"#.len()) / r#""u",""#.len();
        let asked = vec!["u"; most];
        assert_eq!(ask_many(&gateway, &asked).await.len(), most);
        let body = json!({"users": asked}).to_string();
        let over = format!("{body}{}", " ".repeat(64 * 1024 + 1 - body.len()));
        assert_eq!(gateway.ask_admin("POST", "/v1/presence", &[], &over).await.error().0, 413);
        let exact = &over[..64 * 1024];
        assert_eq!(gateway.ask_admin("POST", "/v1/presence", &[], exact).await.status, 200);
    }
}

/// All pages, with these limits in turn. None is longer than its limit, but for what one bucket of Redis's table holds.
async fn pages(gateway: &Gateway, limits: &[usize]) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    for limit in limits.iter().cycle() {
        let page = get(gateway, &format!("/v1/presence?limit={limit}&cursor={cursor}")).await;
        let users: Vec<String> = serde_json::from_value(page["users"].clone()).unwrap();
        let spare = if *limit < 50 { 16 } else { 0 };
        assert!(users.len() <= limit + spare, "{} users for a limit of {limit}", users.len());
        all.extend(users);
        match &page["next"] {
            Value::Null => break,
            next => next.as_str().expect("text").clone_into(&mut cursor),
        }
    }
    all
}

/// Connects each of these users who is not connected yet, some at a time.
async fn grow(gateway: &Gateway, clients: &mut Vec<Client>, names: &[String]) {
    for some in names[clients.len()..].chunks(50) {
        clients.extend(join_all(some.iter().map(|name| Client::connect(gateway, name))).await);
    }
    let count = names.len();
    eventually("all users are counted", async || get(gateway, "/v1/presence/count").await == json!({"online": count}))
        .await;
}

/// With any page limits, the pages together are the set, without duplicates.
async fn pages_are_the_set(gateway: &Gateway, names: &[String]) {
    let expected: BTreeSet<&String> = names.iter().collect();
    // A limit of one is many requests.
    let smallest = if names.len() > 100 { 7 } else { 1 };
    for limits in [&[smallest][..], &[100], &[1_000], &[1_000, smallest], &[smallest, 100, 13]] {
        let all = pages(gateway, limits).await;
        assert_eq!(all.iter().collect::<BTreeSet<_>>(), expected, "{} users, limits {limits:?}", names.len());
        assert_eq!(all.len(), names.len(), "a user appears twice with limits {limits:?}");
    }
}

#[tokio::test]
async fn the_union_of_all_pages_is_the_set_however_redis_keeps_it() {
    let redis = RedisServer::start().await;
    let run = async |options: Options, prefix: &str, sizes: &[usize]| {
        // These clients answer no ping.
        let gateway = options.set("server.heartbeat", "1h").start().await;
        assert_eq!(get(&gateway, "/v1/presence?limit=1").await, json!({"users": [], "next": null}));
        let mut clients = Vec::new();
        for size in sizes {
            let names: Vec<String> = (0..*size).map(|number| format!("{prefix}{number}")).collect();
            grow(&gateway, &mut clients, &names).await;
            pages_are_the_set(&gateway, &names).await;
        }
    };
    let on_redis = |set| Options::redis(&redis).set("presence.set", set);
    tokio::join!(
        run(Options::dev(), "", &[10, 600]),
        // Up to 512 integers are a piece of their own kind.
        run(on_redis("numbers"), "", &[10, 500, 600]),
        run(on_redis("texts"), "user-é-", &[10, 600, 1_500]),
    );
}

#[tokio::test]
async fn nobody_who_stays_is_lost_between_pages_while_others_come_and_go() {
    let redis = RedisServer::start().await;
    // Those who come and go make a set of integers one that is scanned in steps, or a table of it that grows.
    for (options, prefix, count) in
        [(Options::dev(), "", 200), (Options::redis(&redis), "", 505), (Options::redis(&redis), "user-", 505)]
    {
        let set = format!("{prefix}set");
        let options = options.set("presence.offline_delay", "10ms").set("server.heartbeat", "1h");
        let gateway = options.set("presence.set", &set).start().await;
        let names: Vec<String> = (0..count).map(|number| format!("{prefix}{number}")).collect();
        let mut clients = Vec::new();
        grow(&gateway, &mut clients, &names).await;
        let churn = join_all((0..8).map(async |visitor| {
            for visit in 0.. {
                let user = format!("{prefix}{}", 10_000 + visit * 8 + visitor);
                Client::connect(&gateway, &user).await.close().await;
            }
        }));
        let paging = async {
            let until = Instant::now() + 3 * SECOND;
            while Instant::now() < until {
                let all: BTreeSet<String> = pages(&gateway, &[97, 20, 60]).await.into_iter().collect();
                let lost: Vec<_> = names.iter().filter(|name| !all.contains(*name)).collect();
                assert!(lost.is_empty(), "lost {lost:?}");
            }
        };
        select(std::pin::pin!(paging), std::pin::pin!(churn)).await;
    }
}

#[tokio::test]
async fn info_lists_every_other_instance_that_lives() {
    let redis = RedisServer::start().await;
    let [one, mut doomed] = two(&redis).await;
    let mut stopping = quick(Options::redis(&redis)).start().await;
    let _clients = [Client::connect(&doomed, "42").await, Client::connect(&doomed, "43").await];
    let others = async || {
        let info = get(&one, "/v1/info").await;
        assert_eq!(info["instance"], one.instance.as_str());
        let list = info["instances"].as_array().expect("a list").clone();
        let names: BTreeSet<String> = list.iter().map(|one| one["instance"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names.len(), list.len(), "each once: {info}");
        (names, list)
    };
    let both = BTreeSet::from([doomed.instance.clone(), stopping.instance.clone()]);
    eventually("both are listed", async || others().await.0 == both).await;
    eventually("so are their users", async || {
        others().await.1.iter().any(|other| other["instance"] == doomed.instance.as_str() && other["users"] == 2)
    })
    .await;
    stopping.signal("TERM");
    stopping.exit().await;
    assert_eq!(
        others().await.0,
        BTreeSet::from([doomed.instance.clone()]),
        "an instance that stopped is removed at once"
    );
    doomed.kill().await;
    eventually_within(LEASE + 2 * SECOND, "a dead one is gone after its lease", async || others().await.0.is_empty())
        .await;
    assert_eq!(get(&Gateway::dev().await, "/v1/info").await["instances"], json!([]));
}

#[tokio::test]
async fn every_call_asks_for_the_key() {
    let redis = RedisServer::start().await;
    for options in [Options::dev(), Options::redis(&redis)] {
        let gateway = options.set("admin.api_key", "the-admin-key").start().await;
        for (method, path, body) in CALLS {
            for headers in [&[][..], &[("Authorization", "Bearer wrong")], &[("Authorization", "the-admin-key")]] {
                let answer = gateway.ask_admin(method, path, headers, body).await;
                assert_eq!(answer.error().0, 401, "{method} {path} {headers:?}");
                assert_eq!(answer.header("www-authenticate"), "Bearer", "{answer:?}");
            }
            // With a key it is that which counts, wherever it comes from.
            let headers = [("Authorization", "Bearer the-admin-key"), ("Host", "tidings.internal")];
            let answer = gateway.ask_admin(method, path, &headers, body).await;
            assert_eq!(answer.status, 200, "{method} {path} {answer:?}");
        }
    }
}

#[tokio::test]
async fn without_a_key_foreign_pages_and_names_are_refused() {
    let gateway = Gateway::dev().await;
    for (method, path, body) in CALLS {
        for foreign in [
            ("Origin", "https://evil.example"),
            ("Origin", "null"),
            ("Origin", "http://localhost.evil.example"),
            ("Host", "evil.example"),
            ("Host", "127.0.0.1.evil.example:9090"),
        ] {
            let answer = gateway.ask_admin(method, path, &[foreign], body).await;
            assert_eq!(answer.error(), (403, "origin_forbidden".to_owned()), "{method} {path} {foreign:?}");
        }
        for own in [("Origin", "http://localhost:3000"), ("Host", "localhost"), ("Host", "[::1]:9090")] {
            assert_eq!(gateway.ask_admin(method, path, &[own], body).await.status, 200, "{method} {path} {own:?}");
        }
    }
}

#[tokio::test]
async fn while_redis_is_away_every_question_is_answered_503_in_time() {
    let mut redis = RedisServer::start().await;
    let gateway = quick(Options::redis(&redis)).start().await;
    let _client = Client::connect(&gateway, "42").await;
    redis.kill().await;
    gateway.not_ready().await;
    for (method, path, body) in CALLS {
        let asked = Instant::now();
        let answer = gateway.ask_admin(method, path, &[], body).await;
        assert!(asked.elapsed() < 5 * SECOND, "{path} took {:?}", asked.elapsed());
        if path == "/v1/info" {
            let info = answer.json();
            assert_eq!((answer.status, &info["instances"]), (200, &Value::Null), "{info}");
            assert_eq!(info["connections"], 1, "it reports its own count without Redis");
        } else {
            assert_eq!(answer.error(), (503, "backplane_down".to_owned()), "{method} {path}");
        }
    }
    redis.restart().await;
    gateway.ready().await;
    eventually_within(5 * SECOND, "42 is online", async || {
        let answer = gateway.ask_admin("GET", "/v1/users/42/presence", &[], "").await;
        answer.status == 200 && answer.json()["online"] == true
    })
    .await;
}
