//! Every instance executes the commands of backends on `tidings:control`; a revoked token is refused.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Gateway, Options, RedisServer, eventually, handshake, now, refused, sign, token, within};

const CHANNEL: &str = "tidings:control";

async fn command(redis: &RedisServer, command: &Value) -> u64 {
    redis.command(&["PUBLISH", CHANNEL, &command.to_string()]).await
}

async fn revoke(redis: &RedisServer, jti: &str, until: u64) {
    let heard = command(redis, &json!({"revoke": {"jti": jti, "until": until}})).await;
    assert!(heard > 0, "some instance receives it");
}

/// A good token for an hour, with this `jti`.
fn named(user: &str, jti: &str) -> String {
    sign(&json!({"sub": user, "exp": now() + 3_600, "jti": jti}))
}

async fn connect(gateway: &Gateway, token: &str) -> Client {
    Client::connect_with_token(gateway, token).await.0
}

/// At the handshake and in a hello.
async fn is_kept_out(gateway: &Gateway, token: &str) {
    let bearer = format!("Bearer {token}");
    let refused = refused(gateway.public, "/ws", &[("Authorization", &bearer)]).await;
    assert_eq!((refused.status, refused.code.as_str()), (401, "token_revoked"));
    assert_eq!(refused.headers["www-authenticate"], "Bearer");
    let mut client = Client::anonymous(gateway).await;
    client.send(&json!({"type": "hello", "token": token}).to_string()).await;
    assert_eq!(client.close_frame().await, 4009);
}

async fn gets_in(gateway: &Gateway, token: &str) -> bool {
    let bearer = format!("Bearer {token}");
    handshake(gateway.public, "/ws", &[("Authorization", &bearer)]).await.is_ok()
}

async fn control_messages(gateway: &Gateway, kind: &str) -> f64 {
    gateway.metric(&format!("tidings_control_messages_total{{command=\"{kind}\"}}")).await
}

#[tokio::test]
async fn a_user_is_disconnected_on_every_instance_and_nobody_else() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let mut users =
        [Client::connect(&one, "42").await, Client::connect(&one, "42").await, Client::connect(&two, "42").await];
    let (mut other, mut prefixed) = (Client::connect(&one, "43").await, Client::connect(&two, "tenant:42").await);
    assert_eq!(command(&redis, &json!({"disconnect": {"user": "42"}})).await, 2, "every instance receives it");
    for client in &mut users {
        assert_eq!(client.close_code().await, 4011);
    }
    redis.publish("43", "1").await;
    redis.publish("tenant:42", "1").await;
    assert_eq!((other.event().await, prefixed.event().await), (1.into(), 1.into()));
    // The door is not closed.
    Client::connect(&one, "42").await;
}

/// The lines of disconnect commands at `info`.
fn disconnects(gateway: &Gateway) -> Vec<String> {
    let log = gateway.log();
    let lines = log.lines().filter(|line| line.contains("INFO") && line.contains("disconnected by a command"));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_command_that_disconnects_a_user_has_one_line_at_info_where_the_user_was() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let mut clients = [Client::connect(&one, "42").await, Client::connect(&one, "42").await];
    let answer = two.ask_admin("DELETE", "/v1/users/42/connections", &[], "").await;
    assert_eq!(answer.status, 202);
    for client in &mut clients {
        assert_eq!(client.close_code().await, 4011);
    }
    eventually("the line is written", async || !disconnects(&one).is_empty()).await;
    eventually("the other instance executes it", async || control_messages(&two, "disconnect").await == 1.0).await;
    let [line] = &disconnects(&one)[..] else { panic!("one line: {}", one.log()) };
    assert!(line.contains("user=\"42\" closed=2 code=4011 held_back=0"), "{line}");
    assert!(disconnects(&two).is_empty(), "{}", two.log());
}

#[tokio::test]
async fn many_disconnect_commands_have_one_line_a_second_at_info_and_each_one_at_debug() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("log.level", "debug").start().await;
    let mut clients = Vec::new();
    for number in 0..20 {
        clients.push(Client::connect(&gateway, &format!("user-{number}")).await);
    }
    let started = Instant::now();
    for number in 0..20 {
        command(&redis, &json!({"disconnect": {"user": format!("user-{number}")}})).await;
    }
    for client in &mut clients {
        assert_eq!(client.close_code().await, 4011);
    }
    let all = async || gateway.log().matches("disconnected by a command").count() == 20;
    eventually("each command has a line", all).await;
    let (lines, most) = (disconnects(&gateway).len() as u64, started.elapsed().as_secs() + 1);
    assert!((1..=most).contains(&lines), "{lines} lines, {most} at most: {}", gateway.log());
}

#[tokio::test]
async fn one_connection_of_a_user_is_disconnected_and_the_others_stay() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let (mut target, welcome) = Client::connect_with_welcome(&one, "42").await;
    let (mut here, mut there) = (Client::connect(&one, "42").await, Client::connect(&two, "42").await);
    let connection = welcome["connection"].as_str().unwrap();
    // Whose it is must be right, too.
    command(&redis, &json!({"disconnect": {"user": "43", "connection": connection}})).await;
    redis.publish("42", "1").await;
    assert_eq!(target.event().await, 1);
    command(&redis, &json!({"disconnect": {"user": "42", "connection": connection}})).await;
    assert_eq!(target.close_code().await, 4011);
    redis.publish("42", "2").await;
    for client in [&mut here, &mut there] {
        assert_eq!((client.event().await, client.event().await), (1.into(), 2.into()));
    }
}

#[tokio::test]
async fn a_revoked_token_is_closed_everywhere_and_let_in_nowhere() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let (stolen, good) = (named("42", "a-stolen-token"), named("42", "a-good-token"));
    let mut closed = [connect(&one, &stolen).await, connect(&two, &stolen).await];
    let (mut other, mut nameless) = (connect(&one, &good).await, connect(&two, &token("42")).await);
    revoke(&redis, "a-stolen-token", now() + 600).await;
    for client in &mut closed {
        assert_eq!(client.close_code().await, 4009);
    }
    is_kept_out(&one, &stolen).await;
    is_kept_out(&two, &stolen).await;
    other.send(&json!({"type": "auth", "token": stolen}).to_string()).await;
    let answer = other.frame().await;
    assert_eq!((&answer["type"], &answer["code"]), (&"error".into(), &4009.into()), "{answer}");
    redis.publish("42", "1").await;
    assert_eq!((other.event().await, nameless.event().await), (1.into(), 1.into()));

    // An instance that did not receive the command refuses it too.
    let key = async || redis.command::<Option<f64>>(&["ZSCORE", "tidings:revoked", "a-stolen-token"]).await;
    eventually("it is kept", async || key().await.is_some()).await;
    let late = Gateway::redis(&redis).await;
    is_kept_out(&late, &stolen).await;
    assert!(gets_in(&late, &good).await);
    assert_eq!(late.metric("tidings_revocations").await, 1.0);
    let ttl: i64 = redis.command(&["TTL", "tidings:revoked"]).await;
    assert!(ttl > 600, "the list itself ends: {ttl}");
    for gateway in [&one, &two, &late] {
        assert!(!gateway.log().contains("stolen"), "{}", gateway.log());
    }

    // Those who know go on refusing when Redis has forgotten.
    let () = redis.command(&["FLUSHALL"]).await;
    is_kept_out(&one, &stolen).await;
}

#[tokio::test]
async fn what_redis_lost_is_written_back_for_instances_that_start_later() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let stolen = named("42", "a-lost-token");
    revoke(&redis, "a-lost-token", now() + 600).await;
    let kept = async || redis.command::<Option<f64>>(&["ZSCORE", "tidings:revoked", "a-lost-token"]).await;
    eventually("it is kept", async || kept().await.is_some()).await;
    let () = redis.command(&["FLUSHALL"]).await;
    // It finds an empty list.
    let late = Gateway::redis(&redis).await;
    eventually("it is kept again", async || kept().await.is_some()).await;
    eventually("it is refused", async || !gets_in(&late, &stolen).await).await;
    is_kept_out(&late, &stolen).await;
    is_kept_out(&Gateway::redis(&redis).await, &stolen).await;
    assert_eq!(gateway.metric("tidings_revocations_restored_total").await, 1.0);
    assert_eq!(late.metric("tidings_revocations_restored_total").await, 0.0);
    let log = gateway.log();
    assert!(log.contains("redis had lost revocations") && !log.contains("a-lost-token"), "{log}");
}

#[tokio::test]
async fn what_is_on_the_list_and_can_be_no_token_is_not_read_again_and_again() {
    let redis = RedisServer::start().await;
    let () = redis.command(&["ZADD", "tidings:revoked", &(now() + 600).to_string(), &"x".repeat(300)]).await;
    let gateway = Gateway::redis(&redis).await;
    let calls = async |command: &str| {
        let stats: String = redis.command(&["INFO", "commandstats"]).await;
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse::<u64>().unwrap())
    };
    // Twice at its start: after it has read, and at the first tick.
    eventually("it has read and asked", async || calls("zcount").await >= 2).await;
    let (asked, read) = (calls("zcount").await, calls("zrevrange").await);
    for more in 1..=2 {
        eventually("it has asked again", async || calls("zcount").await >= asked + more).await;
    }
    assert_eq!(calls("zrevrange").await, read);
    assert_eq!(gateway.metric("tidings_revocations").await, 0.0);
}

#[tokio::test]
async fn a_connection_is_held_by_the_token_that_refreshed_it_last() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = connect(&gateway, &named("42", "first")).await;
    client.send(&json!({"type": "auth", "token": named("42", "second")}).to_string()).await;
    assert_eq!(client.frame().await["type"], "authenticated");
    revoke(&redis, "first", now() + 600).await;
    eventually("it is in force", async || control_messages(&gateway, "revoke").await == 1.0).await;
    is_kept_out(&gateway, &named("42", "first")).await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    revoke(&redis, "second", now() + 600).await;
    assert_eq!(client.close_code().await, 4009);
}

#[tokio::test]
async fn a_revocation_ends_when_it_was_said_to() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (token, until) = (named("42", "for-a-while"), now() + 3);
    revoke(&redis, "for-a-while", until).await;
    // Not over yet for an instance with a leeway of a day, or with a slow clock; and a token that has expired for all.
    revoke(&redis, "over-here", now() - 3_600).await;
    revoke(&redis, "long-over", now() - 90_000).await;
    eventually("all are in force", async || control_messages(&gateway, "revoke").await == 3.0).await;
    assert!(!gets_in(&gateway, &token).await || now() >= until);
    eventually("it is good again", async || gets_in(&gateway, &token).await).await;
    assert!(now() >= until);
    let kept: Vec<String> = redis.command(&["ZRANGE", "tidings:revoked", "0", "-1"]).await;
    assert_eq!(kept, ["over-here", "for-a-while"], "a revocation that is long over is not kept");

    // The token itself ended with it: then also in the leeway that it would have.
    let ended = sign(&json!({"sub": "42", "exp": now() - 1, "jti": "ended"}));
    assert!(gets_in(&gateway, &ended).await, "there is a leeway");
    revoke(&redis, "ended", now() - 1).await;
    eventually("it is refused", async || !gets_in(&gateway, &ended).await).await;
}

#[tokio::test]
async fn what_was_revoked_while_an_instance_did_not_hear_is_learnt_when_it_does() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let token = named("42", "missed");
    let (mut client, mut other) = (connect(&gateway, &token).await, Client::connect(&gateway, "43").await);
    // As an instance that received it has stored it.
    let until = (now() + 600).to_string();
    let () = redis.command(&["ZADD", "tidings:revoked", &until, "missed"]).await;
    let () = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(client.close_code().await, 4009);
    gateway.ready().await;
    is_kept_out(&gateway, &token).await;
    redis.publish("43", "1").await;
    assert_eq!(other.event().await, 1);
}

#[tokio::test]
async fn what_was_revoked_and_not_heard_is_learnt_by_asking() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let token = named("42", "unheard");
    let mut client = connect(&gateway, &token).await;
    // As an instance keeps it a moment after this one has read the list.
    let until = (now() + 600).to_string();
    let () = redis.command(&["ZADD", "tidings:revoked", &until, "unheard"]).await;
    assert_eq!(client.close_code().await, 4009);
    is_kept_out(&gateway, &token).await;
    assert_eq!(gateway.get(gateway.public, "/readyz").await.0, 200);
}

#[tokio::test]
async fn an_instance_that_cannot_read_what_is_revoked_is_not_ready() {
    let redis = RedisServer::start_with(&["--requirepass", "right"]).await;
    let set = async |rules: &[&str]| {
        let () = redis.command(&[&["ACL", "SETUSER", "app"], rules].concat()).await;
    };
    set(&["on", ">hunter2", "&*", "+@all", "~online_users", "~{online_users}:*"]).await;
    let url = format!("redis://app:hunter2@127.0.0.1:{}", redis.port());
    let gateway = Options::redis_at(&url).start_unready().await;
    eventually("it says so", async || gateway.get(gateway.public, "/readyz").await.1.contains("revoked tokens")).await;
    set(&["~tidings:*"]).await;
    gateway.ready().await;
}

#[tokio::test]
async fn a_revocation_that_redis_does_not_take_is_in_force_and_kept_as_soon_as_it_does() {
    let redis = RedisServer::start_with(&["--requirepass", "right"]).await;
    let set = async |rules: &[&str]| {
        let () = redis.command(&[&["ACL", "SETUSER", "app"], rules].concat()).await;
    };
    set(&["on", ">hunter2", "~*", "&*", "+@all"]).await;
    let gateway = Options::redis_at(&format!("redis://app:hunter2@127.0.0.1:{}", redis.port())).start().await;
    set(&["-@scripting"]).await;
    let stolen = named("42", "in-need");
    let mut client = connect(&gateway, &stolen).await;
    revoke(&redis, "in-need", now() + 600).await;
    assert_eq!(client.close_code().await, 4009);
    is_kept_out(&gateway, &stolen).await;
    let kept = async || redis.command::<Option<f64>>(&["ZSCORE", "tidings:revoked", "in-need"]).await.is_some();
    assert!(!kept().await);
    set(&["+@scripting"]).await;
    eventually("it is kept", kept).await;
}

#[tokio::test]
async fn what_is_no_command_is_counted_told_and_harms_nobody() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (token, long) = (named("42", "innocent"), "x".repeat(257));
    let mut client = connect(&gateway, &token).await;
    let bad = [
        json!(null),
        json!([]),
        json!({}),
        json!("disconnect"),
        json!({"disconnect": {"user": "42"}, "revoke": {"jti": "innocent", "until": now() + 600}}),
        json!({"disconnect": "42"}),
        json!({"disconnect": {"user": 42}}),
        json!({"disconnect": {"user": ""}}),
        json!({"disconnect": {"user": "42", "conection": "0"}}),
        json!({"disconnect": {"user": "42", "connection": 0}}),
        json!({"revoke": {"jti": "innocent"}}),
        json!({"revoke": {"jti": "innocent", "until": (now() + 600).to_string()}}),
        json!({"revoke": {"jti": ["innocent"], "until": now() + 600}}),
        json!({"revoke": {"jti": long, "until": now() + 600}}),
        json!({"revoke": {"jti": "innocent", "until": (now() + 600) * 1_000}}),
    ];
    for message in &bad {
        command(&redis, message).await;
    }
    let twice = br#"{"disconnect": {"user": "43"}, "disconnect": {"user": "42"}}"#;
    redis.publish_bytes(CHANNEL.as_bytes(), twice).await;
    redis.publish_bytes(CHANNEL.as_bytes(), b"\xff{").await;
    redis.publish_bytes(CHANNEL.as_bytes(), &vec![b'x'; 2 << 20]).await;
    command(&redis, &json!({"explode": {"user": "42"}})).await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    assert_eq!(control_messages(&gateway, "bad").await, bad.len() as f64 + 2.0);
    assert_eq!(control_messages(&gateway, "unknown").await, 1.0);
    assert_eq!(gateway.metric(r#"tidings_messages_dropped_total{reason="size"}"#).await, 1.0);
    assert_eq!(control_messages(&gateway, "disconnect").await + control_messages(&gateway, "revoke").await, 0.0);
    let log = gateway.log();
    assert!(log.contains("control message dropped") && !log.contains("innocent"), "{log}");
    // A second later the next line may be logged; it names the unknown command.
    eventually("the log names it", async || {
        command(&redis, &json!({"explode": {"user": "42"}})).await;
        gateway.log().contains(r#"unknown command "explode""#)
    })
    .await;
    assert!(gets_in(&gateway, &token).await);
}

#[tokio::test]
async fn the_channel_and_the_list_take_the_prefix() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.prefix", "blue:").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    command(&redis, &json!({"disconnect": {"user": "42"}})).await;
    let revoke = json!({"revoke": {"jti": "a", "until": now() + 600}}).to_string();
    let heard: u64 = redis.command(&["PUBLISH", "blue:control", &revoke]).await;
    assert_eq!(heard, 1);
    eventually("it is kept", async || redis.command::<bool>(&["EXISTS", "blue:revoked"]).await).await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
}

#[tokio::test]
async fn a_user_is_disconnected_over_http_on_either_backplane() {
    let redis = RedisServer::start().await;
    let (one, two, alone) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis), Gateway::dev());
    let mut clients = [Client::connect(&one, "a/b").await, Client::connect(&two, "a/b").await];
    let mut here = Client::connect(&alone, "a/b").await;
    for gateway in [&one, &alone] {
        let answer = gateway.ask_admin("DELETE", "/v1/users/a%2Fb/connections", &[], "").await;
        assert_eq!((answer.status, answer.json()), (202, json!({})));
        assert_eq!(gateway.ask_admin("DELETE", "/v1/users/%0A/connections", &[], "").await.error().0, 400);
        assert_eq!(gateway.ask_admin("POST", "/v1/users/42/connections", &[], "").await.error().0, 405);
        assert_eq!(gateway.ask_public("DELETE", "/v1/users/42/connections", &[], "").await.error().0, 404);
    }
    for client in clients.iter_mut().chain([&mut here]) {
        assert_eq!(client.close_code().await, 4011);
    }
}

#[tokio::test]
async fn disconnecting_needs_the_api_key_and_a_redis_that_answers() {
    let mut redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).env("TIDINGS_ADMIN__API_KEY", "the key").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let path = "/v1/users/42/connections";
    assert_eq!(gateway.ask_admin("DELETE", path, &[], "").await.error().0, 401);
    let key = [("Authorization", "Bearer the key")];
    redis.kill().await;
    let answer = gateway.ask_admin("DELETE", path, &key, "").await;
    assert_eq!(answer.error(), (503, "backplane_down".into()));
    redis.restart().await;
    gateway.ready().await;
    eventually("it is back", async || gateway.ask_admin("DELETE", path, &key, "").await.status == 202).await;
    assert_eq!(within("the close", client.close_code()).await, 4011);
}

#[tokio::test]
async fn a_thousand_connections_under_a_revoked_token_are_all_closed() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let shared = named("42", "shared");
    let mut clients = Vec::new();
    for _ in 0..1_100 {
        clients.push(connect(&gateway, &shared).await);
    }
    revoke(&redis, "shared", now() + 600).await;
    for client in &mut clients {
        assert_eq!(client.close_code().await, 4009);
    }
    tokio::time::timeout(Duration::from_secs(5), gateway.connections(0)).await.expect("they have left");
}
