//! A Redis that withholds commands: what is only convenient is done without, and a missing necessity is reported.

use futures::future::join_all;
use serde_json::Value;
use tokio::time::{Duration, Instant, sleep};

use crate::support::{Client, Gateway, Options, RedisServer, eventually};

/// An instance looks at each feature more than once in this time.
const LOOKS: Duration = Duration::from_millis(1_500);

/// What `/readyz` answers: its status and its body.
async fn readiness(gateway: &Gateway) -> (u16, Value) {
    let (status, body) = gateway.get(gateway.public, "/readyz").await;
    (status, serde_json::from_str(&body).unwrap())
}

/// Redis with a user `app` under these rules, and that user's URL.
pub async fn with_user(rules: &[&str]) -> (RedisServer, String) {
    let redis = RedisServer::start().await;
    set_user(&redis, &[&["on", ">hunter2"], rules].concat()).await;
    let url = format!("redis://app:hunter2@127.0.0.1:{}", redis.port());
    (redis, url)
}

async fn set_user(redis: &RedisServer, rules: &[&str]) {
    let () = redis.command(&[&["ACL", "SETUSER", "app"], rules].concat()).await;
}

/// Redis with these commands renamed to nothing, and its URL.
async fn without(commands: &[&str]) -> (RedisServer, String) {
    let renamed: Vec<&str> = commands.iter().flat_map(|command| ["--rename-command", command, ""]).collect();
    let redis = RedisServer::start_with(&renamed).await;
    let url = redis.url();
    (redis, url)
}

/// Presence, stored and plain notifications, to one and to many, the outbox, and a resume.
async fn everything_works(redis: &RedisServer, gateway: &Gateway) {
    let mut client = Client::connect(gateway, "42").await;
    eventually("42 is online", async || redis.online().await == ["42"]).await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    let one = gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":2,"durable":true}"#).await;
    assert_eq!(one.0, 202, "{one:?}");
    assert_eq!(client.event().await, 2);
    let body = r#"{"users":["41","42","43"],"data":3,"durable":true}"#;
    let many = gateway.post(gateway.admin, "/v1/notifications", body).await;
    assert!(many.0 == 202 && many.1.contains("\"accepted\":3"), "{many:?}");
    assert_eq!(client.event().await, 3);
    let _: String = redis.command(&["XADD", "tidings:outbox", "*", "user", "42", "data", "4"]).await;
    assert_eq!(client.event().await, 4);
    let (status, page) = gateway.get(gateway.admin, "/v1/users/42/notifications").await;
    assert!(status == 200 && page.matches("\"data\":").count() == 3, "{status} {page}");
    client.close().await;
    eventually("42 is offline", async || redis.online().await.is_empty()).await;
    let (status, body) = readiness(gateway).await;
    assert_eq!((status, &body["refused"]), (200, &serde_json::json!({})), "{body}");
}

/// A broadcast, and the list of a user's connections.
async fn all_instances_are_reached(one: &Gateway, other: &Gateway) {
    let mut client = Client::connect(other, "42").await;
    let broadcast = one.post(one.admin, "/v1/broadcast", r#"{"data":"all"}"#).await;
    assert_eq!(broadcast.0, 202, "{broadcast:?}");
    assert_eq!(client.event().await, "all");
    eventually("the other instance answers", async || {
        let (status, list) = one.get(one.admin, "/v1/users/42/connections").await;
        assert!(status == 200 && list.ends_with("\"unanswered\":[]}"), "{status} {list}");
        list.contains(&other.instance)
    })
    .await;
    assert!(!other.log().contains("NOPERM"), "{}", other.log());
}

async fn serves(redis: &RedisServer, url: &str) -> Gateway {
    let gateway = Options::redis_at(url).set("presence.offline_delay", "100ms").start().await;
    everything_works(redis, &gateway).await;
    gateway
}

#[tokio::test]
async fn a_redis_that_refuses_to_name_a_connection_is_served_all_the_same() {
    let (renamed, withheld) = (without(&["CLIENT"]).await, with_user(&["~*", "&*", "+@all", "-client"]).await);
    join_all([renamed, withheld].map(async |(redis, url)| serves(&redis, &url).await)).await;
}

#[tokio::test]
async fn a_redis_without_scripts_by_hash_is_sent_their_source() {
    let places = [
        without(&["SCRIPT"]).await,
        without(&["EVALSHA"]).await,
        without(&["SCRIPT", "EVALSHA"]).await,
        with_user(&["~*", "&*", "+@all", "-script", "-evalsha"]).await,
    ];
    join_all(places.map(async |(redis, url)| {
        let gateway = serves(&redis, &url).await;
        assert!(!gateway.log().contains("redis command failed"), "{}", gateway.log());
    }))
    .await;
}

#[tokio::test]
async fn the_right_to_call_by_hash_may_go_while_an_instance_runs() {
    let (redis, url) = with_user(&["~*", "&*", "+@all"]).await;
    let gateway = serves(&redis, &url).await;
    set_user(&redis, &["-evalsha"]).await;
    let mut client = Client::connect(&gateway, "7").await;
    eventually("7 is online", async || redis.online().await == ["7"]).await;
    eventually("a durable notification is accepted", async || {
        gateway.post(gateway.admin, "/v1/users/7/notifications", r#"{"data":1,"durable":true}"#).await.0 == 202
    })
    .await;
    assert_eq!(client.event().await, 1);
    eventually("it is ready", async || readiness(&gateway).await.0 == 200).await;
}

#[tokio::test]
async fn an_instance_whose_redis_refuses_scripts_is_not_ready_and_names_what_does_not_work() {
    let places = [without(&["EVAL", "EVALSHA"]).await, with_user(&["~*", "&*", "+@all", "-@scripting"]).await];
    join_all(places.map(async |(_redis, url)| {
        let gateway = Options::redis_at(&url).start_unready().await;
        eventually("both are named", async || {
            let (status, body) = readiness(&gateway).await;
            assert_eq!(status, 503, "{body}");
            ["presence", "history"].iter().all(|feature| body["refused"][feature].is_string())
        })
        .await;
        let (_, body) = readiness(&gateway).await;
        assert!(body["reason"].as_str().unwrap().starts_with("presence does not work"), "{body}");
        eventually("it is logged", async || {
            ["presence", "history"].iter().all(|feature| {
                let field = format!("feature=\"{feature}\"");
                gateway.log().lines().any(|line| line.contains("WARN") && line.contains(&field))
            })
        })
        .await;
    }))
    .await;
}

#[tokio::test]
async fn an_instance_is_not_ready_while_a_right_that_a_connection_needs_is_withheld() {
    let (redis, url) = with_user(&["~*", "&*", "+@all"]).await;
    let sessions = ("TIDINGS_AUTH__SESSION_SECRET", "keyboard cat of the rights");
    set_user(&redis, &["-getrange"]).await;
    let gateway = Options::redis_at(&url).env(sessions.0, sessions.1).start_unready().await;
    for (right, feature) in [("getrange", "sessions"), ("xrange", "history"), ("zadd", "presence")] {
        set_user(&redis, &[&format!("-{right}")]).await;
        eventually(feature, async || {
            let (status, body) = readiness(&gateway).await;
            status == 503 && body["refused"][feature].as_str().is_some_and(|error| error.contains("redis"))
        })
        .await;
        let withheld = Instant::now();
        while withheld.elapsed() < LOOKS {
            assert_eq!(readiness(&gateway).await.0, 503, "{feature}: whatever else of it succeeds meanwhile");
            sleep(LOOKS / 20).await;
        }
        set_user(&redis, &[&format!("+{right}")]).await;
        eventually("it is ready again", async || readiness(&gateway).await.0 == 200).await;
    }
    // No client waits for the outbox: it is named only.
    set_user(&redis, &["-xread"]).await;
    eventually("the outbox is named", async || readiness(&gateway).await.1["refused"]["outbox"].is_string()).await;
    assert_eq!(readiness(&gateway).await.0, 200);
}

#[tokio::test]
async fn the_arguments_of_an_unknown_command_are_not_shown() {
    let (_redis, url) = without(&["AUTH"]).await;
    let gateway = Options::redis_at(&url.replace("//", "//:hunter2-of-rights@")).start_unready().await;
    eventually("it says why", async || {
        let reason = readiness(&gateway).await.1["reason"].to_string();
        assert!(!reason.contains("hunter2-of-rights"), "{reason}");
        reason.contains("nknown command")
    })
    .await;
    // The log is searched for the password when the instance ends.
}

/// The rules of the user in `docs/operations.md`.
pub fn documented_rules() -> Vec<String> {
    let text = include_str!("../docs/operations.md").replace("\\\n", " ");
    let line = text.lines().find(|line| line.starts_with("redis-cli ACL SETUSER tidings")).expect("the command");
    let rules = line.split_whitespace().skip(4).map(|word| word.trim_matches('\'').to_owned());
    rules.filter(|rule| !rule.starts_with('>')).collect()
}

#[tokio::test]
async fn the_documented_rights_suffice_for_everything_and_no_more_dangerous_command_is_among_them() {
    let rules = documented_rules();
    let (redis, url) = with_user(&rules.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let limits = ["limits.max_connections_per_user", "limits.connects_per_second_per_user"];
    let options = Options::redis_at(&url).set("presence.offline_delay", "100ms");
    let gateway = limits.iter().fold(options, |options, limit| options.set(limit, "100")).start().await;
    everything_works(&redis, &gateway).await;
    all_instances_are_reached(&gateway, &Options::redis_at(&url).start().await).await;
    let until = (crate::support::now() + 600).to_string();
    redis.publish_bytes(b"tidings:control", format!(r#"{{"revoke":{{"jti":"r","until":{until}}}}}"#).as_bytes()).await;
    eventually("the revocation is stored", async || redis.command::<u64>(&["ZCARD", "tidings:revoked"]).await == 1)
        .await;
    let escalating = r#"{"data":5,"durable":true,"escalate_s":1}"#;
    assert_eq!(gateway.post(gateway.admin, "/v1/users/42/notifications", escalating).await.0, 202);
    eventually("it is handed over", async || redis.command::<u64>(&["XLEN", "tidings:unread"]).await == 1).await;
    for path in ["/v1/presence", "/v1/presence/count", "/v1/users/42/presence", "/v1/info"] {
        assert_eq!(gateway.get(gateway.admin, path).await.0, 200, "{path}");
    }
    assert!(!gateway.log().contains("NOPERM"), "{}", gateway.log());
    let named = redis.links_of(&gateway.instance, "commands").await;
    assert_eq!(named.len(), 1, "the connection has its name");
    for dangerous in ["FLUSHALL", "KEYS *", "CONFIG SET a b", "SCRIPT FLUSH", "SHUTDOWN", "ACL SETUSER x"] {
        let words: Vec<&str> = ["ACL", "DRYRUN", "app"].into_iter().chain(dangerous.split(' ')).collect();
        let verdict: String = redis.command(&words).await;
        assert!(verdict.contains("no permissions"), "{dangerous}: {verdict}");
    }
}

#[tokio::test]
async fn a_replacement_that_a_right_is_missing_for_leaves_the_earlier_notification() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let path = "/v1/users/42/notifications";
    let publish = async |data: u32| {
        let body = format!(r#"{{"data":{data},"durable":true,"collapse":"k","ttl_s":60}}"#);
        gateway.post(gateway.admin, path, &body).await.0
    };
    assert_eq!(publish(1).await, 202);
    for command in ["hlen", "zrangebyscore", "zcard", "hset", "hget", "xrange", "xlen"] {
        let () = redis.command(&["ACL", "SETUSER", "default", &format!("-{command}")]).await;
        assert_eq!(publish(2).await, 503, "{command}");
        let () = redis.command(&["ACL", "SETUSER", "default", &format!("+{command}")]).await;
        let listed: Value = serde_json::from_str(&gateway.get(gateway.admin, path).await.1).unwrap();
        let data: Vec<_> = listed["notifications"].as_array().unwrap().iter().map(|one| &one["data"]).collect();
        assert_eq!(data, [1], "{command}");
    }
    assert_eq!(publish(2).await, 202);
}
