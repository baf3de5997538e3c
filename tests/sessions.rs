//! The session cookie of an unchanged Express application authenticates its user, and a logout closes the connection.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use futures::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    Client, Express, Gateway, Options, RedisServer, Refused, Session, command, eventually, handshake, output, refused,
    token,
};

const SECRET: &str = "keyboard cat of thirty-two bytes";
const ORIGIN: &str = "https://app.example";

/// From a logout to the close.
const LOGOUT: Duration = Duration::from_secs(10);

fn options(redis: &RedisServer) -> Options {
    Options::redis(redis)
        .set("server.allowed_origins", ORIGIN)
        .env("TIDINGS_AUTH__SESSION_SECRET", SECRET)
        .set("log.level", "debug")
}

fn browser(cookie: &str) -> [(&'static str, &str); 3] {
    [("Cookie", cookie), ("Origin", ORIGIN), ("Sec-WebSocket-Protocol", "tidings.v1")]
}

async fn connect(gateway: &Gateway, session: &Session, user: &str) -> Client {
    let cookies = format!("theme=dark; {}; lang=en", session.cookie);
    let mut client = handshake(gateway.public, "/ws", &browser(&cookies)).await.expect("admitted");
    let welcome = client.frame().await;
    assert_eq!((&welcome["type"], &welcome["user"]), (&"welcome".into(), &user.into()), "{welcome}");
    client
}

async fn kept_out(gateway: &Gateway, cookie: &str) -> Refused {
    refused(gateway.public, "/ws", &browser(cookie)).await
}

/// How often a session was read, by all instances.
async fn sessions_read(redis: &RedisServer) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_getrange:calls="));
    calls.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

async fn logged_out(client: &mut Client) {
    assert_eq!(timeout(LOGOUT, client.close_code()).await.expect("closed in time"), 4011);
}

#[tokio::test]
async fn a_session_lets_its_user_in_and_a_logout_closes_its_connections_alone() {
    let redis = RedisServer::start().await;
    // A short one, so that a session is soon read only for its connections.
    let options = options(&redis).set("server.handshake_timeout", "1s");
    let (express, gateway) = tokio::join!(Express::start(&redis, SECRET, &[]), options.start());
    let (session, elsewhere) = (express.begin("/login/42").await, express.begin("/login/42").await);
    let mut tabs = [connect(&gateway, &session, "42").await, connect(&gateway, &session, "42").await];
    let mut other_browser = connect(&gateway, &elsewhere, "42").await;
    let mut with_token = Client::connect(&gateway, "42").await;
    assert_eq!(gateway.metric(r#"tidings_session_lookups_total{from="redis"}"#).await, 2.0);
    redis.publish("42", "1").await;
    for client in tabs.iter_mut().chain([&mut other_browser, &mut with_token]) {
        assert_eq!(client.event().await, 1);
    }

    let before = sessions_read(&redis).await;
    eventually("both are read again and again", async || sessions_read(&redis).await >= before + 6).await;
    express.go_on(&session, "POST", "/logout").await;
    join_all(tabs.iter_mut().map(logged_out)).await;
    assert_eq!(kept_out(&gateway, &session.cookie).await.code, "session_ended");
    assert_eq!(gateway.metric("tidings_sessions_ended_total").await, 2.0);
    redis.publish("42", "2").await;
    assert_eq!((other_browser.event().await, with_token.event().await), (2.into(), 2.into()));

    let log = gateway.log();
    for secret in [&session.id, &elsewhere.id, &session.cookie, SECRET] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[tokio::test]
async fn another_user_in_the_same_session_closes_the_connections_of_the_first() {
    let redis = RedisServer::start().await;
    let (express, gateway) = tokio::join!(Express::start(&redis, SECRET, &[]), options(&redis).start());
    let session = express.begin("/login/42").await;
    let mut first = connect(&gateway, &session, "42").await;
    express.go_on(&session, "POST", "/login/43").await;
    // Not before the cached answer has expired.
    eventually("the second user gets in", async || {
        let mut client = handshake(gateway.public, "/ws", &browser(&session.cookie)).await.expect("admitted");
        client.frame().await["user"] == "43"
    })
    .await;
    logged_out(&mut first).await;
}

#[tokio::test]
async fn a_cookie_that_the_application_did_not_sign_is_401_and_redis_is_not_asked() {
    let redis = RedisServer::start().await;
    let (express, gateway) = tokio::join!(Express::start(&redis, SECRET, &[]), options(&redis).start());
    let session = express.begin("/login/42").await;
    let stranger = Express::start(&redis, "another secret", &[]).await;
    let (_, value) = session.cookie.split_once('=').unwrap();
    let (signed, signature) = value.split_once('.').unwrap();
    let forged = [
        stranger.begin("/login/42").await.cookie,
        format!("connect.sid={signed}.{}", "A".repeat(signature.len())),
        format!("connect.sid={signed}."),
        format!("connect.sid={signed}"),
        format!("connect.sid=s%3Aother.{signature}"),
        format!("connect.sid={}", session.id),
        format!("connect.sid=j%3A%7B%7D; {}", session.cookie),
        "connect.sid=s%3A".into(),
        format!("connect.sid={value}x"),
    ];
    for cookie in forged {
        let refused = kept_out(&gateway, &cookie).await;
        assert_eq!((refused.status, refused.code.as_str()), (401, "bad_session"), "{cookie}");
        assert!(!refused.message.contains(signature), "{refused:?}");
    }
    assert_eq!(sessions_read(&redis).await, 0);
    connect(&gateway, &session, "42").await;
    assert_ne!(sessions_read(&redis).await, 0);
}

#[tokio::test]
async fn a_cookie_needs_an_origin_that_is_named_and_a_token_does_not() {
    let redis = RedisServer::start().await;
    let express = Express::start(&redis, SECRET, &[]).await;
    let session = express.begin("/login/42").await;
    let unnamed = Options::redis(&redis).env("TIDINGS_AUTH__SESSION_SECRET", SECRET);
    let (gateway, unnamed) = tokio::join!(options(&redis).start(), unnamed.start());
    let cookie = ("Cookie", session.cookie.as_str());
    let origin = |name| [cookie, ("Origin", name)];
    for (gateway, headers) in [
        (&gateway, &[cookie][..]),
        (&gateway, &origin("https://evil.example")),
        (&gateway, &origin("null")),
        (&gateway, &origin("https://app.example.evil.example")),
        (&gateway, &origin("http://app.example")),
        (&unnamed, &[cookie]),
        (&unnamed, &origin(ORIGIN)),
    ] {
        let refused = refused(gateway.public, "/ws", headers).await;
        assert_eq!((refused.status, refused.code.as_str()), (403, "origin_forbidden"), "{headers:?}");
    }
    // The token takes precedence: with a token, the cookie is ignored.
    let bearer = format!("Bearer {}", token("43"));
    let headers = [cookie, ("Authorization", bearer.as_str())];
    let mut client = handshake(gateway.public, "/ws", &headers).await.expect("admitted");
    assert_eq!(client.frame().await["user"], "43");
}

#[tokio::test]
async fn a_session_that_nobody_is_logged_in_to_is_401() {
    let redis = RedisServer::start().await;
    let (express, gateway) = tokio::join!(Express::start(&redis, SECRET, &[]), options(&redis).start());
    let visitor = express.begin("/basket").await;
    let refused = kept_out(&gateway, &visitor.cookie).await;
    assert_eq!((refused.status, refused.code.as_str()), (401, "not_logged_in"));
    assert_eq!(refused.headers["www-authenticate"], "Bearer");

    // A value that is not a session affects no other user.
    let (odd, list, large) =
        (express.begin("/login/42").await, express.begin("/login/42").await, express.begin("/login/42").await);
    let () = redis.command(&["SET", &odd.key(), "not JSON"]).await;
    let () = redis.command(&["DEL", &list.key()]).await;
    let () = redis.command(&["RPUSH", &list.key(), "1"]).await;
    let () = redis.command(&["SET", &large.key(), &json!({"userId": "42", "x": "x".repeat(70_000)}).to_string()]).await;
    for (session, code) in [(odd, "bad_session"), (list, "session_ended"), (large, "bad_session")] {
        let refused = kept_out(&gateway, &session.cookie).await;
        assert_eq!((refused.status, refused.code.as_str()), (401, code));
    }
}

#[tokio::test]
async fn path_cookie_and_secrets_are_those_of_the_application() {
    let redis = RedisServer::start().await;
    let renamed = [("COOKIE", "app.sid")];
    let (before, after) = tokio::join!(
        Express::start(&redis, "the old secret", &renamed),
        Express::start(&redis, "the new secret,the old secret", &renamed)
    );
    let gateway = options(&redis)
        .env("TIDINGS_AUTH__SESSION_SECRET", "the new secret, the old secret")
        .set("auth.session_user", "passport.user")
        .set("auth.session_cookie", "app.sid")
        .start()
        .await;
    let (old, new) = (before.begin("/passport/42").await, after.begin("/passport/43").await);
    assert_ne!(old.cookie, new.cookie);
    connect(&gateway, &old, "42").await;
    let mut client = connect(&gateway, &new, "43").await;
    after.go_on(&new, "POST", "/logout").await;
    logged_out(&mut client).await;
    assert_eq!(kept_out(&gateway, &before.begin("/login/42").await.cookie).await.code, "not_logged_in");
}

#[tokio::test]
async fn an_ended_session_is_401_and_one_that_is_used_goes_on() {
    let redis = RedisServer::start().await;
    let rolling = [("MAX_AGE", "3000")];
    let (express, gateway) = tokio::join!(Express::start(&redis, SECRET, &rolling), options(&redis).start());
    let session = express.begin("/login/42").await;
    let stored: String = redis.command(&["GET", &session.key()]).await;
    // Each use extends the key's ttl and leaves the text unchanged: an expiry in the text that is past has no effect.
    let end = serde_json::from_str::<serde_json::Value>(&stored).unwrap()["cookie"]["expires"].clone();
    eventually("the end in the text is past", async || {
        express.go_on(&session, "GET", "/").await;
        let now: (u64, u64) = redis.command(&["TIME"]).await;
        seconds_of(end.as_str().unwrap()) + 1 < now.0
    })
    .await;
    assert_eq!(redis.command::<String>(&["GET", &session.key()]).await, stored);
    let mut client = connect(&gateway, &session, "42").await;
    // The session is no longer used.
    logged_out(&mut client).await;

    // If the key has no ttl, the expiry in the text applies.
    let lasting = express.begin("/login/42").await;
    let () = redis.command(&["SET", &lasting.key(), &stored]).await;
    assert_eq!(kept_out(&gateway, &lasting.cookie).await.code, "session_ended");
}

#[tokio::test]
async fn while_redis_does_not_answer_nobody_is_logged_out_and_a_new_session_is_503() {
    let redis = RedisServer::start().await;
    let (express, gateway) = tokio::join!(Express::start(&redis, SECRET, &[]), options(&redis).start());
    let (session, later) = (express.begin("/login/42").await, express.begin("/login/43").await);
    let mut client = connect(&gateway, &session, "42").await;
    redis.freeze();
    let refused = kept_out(&gateway, &later.cookie).await;
    assert_eq!((refused.status, refused.code.as_str()), (503, "backplane_down"));
    assert!(refused.headers.contains_key("retry-after"));
    // For more than one round of rechecks.
    let failed = async || gateway.metric("tidings_session_rechecks_failed_total").await;
    eventually("it has been tried again", async || failed().await >= 2.0).await;
    redis.thaw();
    gateway.ready().await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    eventually("the new session gets in", async || {
        handshake(gateway.public, "/ws", &browser(&later.cookie)).await.is_ok()
    })
    .await;
    // And it is checked again.
    express.go_on(&session, "POST", "/logout").await;
    logged_out(&mut client).await;
}

#[tokio::test]
async fn a_session_that_cannot_be_read_keeps_no_other_from_being_read() {
    let redis = RedisServer::start_with(&["--requirepass", "right"]).await;
    let allow = async |rules: &[&str]| {
        let () = redis.command(&[&["ACL", "SETUSER", "app"], rules].concat()).await;
    };
    allow(&["on", ">hunter2", "~*", "&*", "+@all"]).await;
    let gateway = Options::redis_at(&format!("redis://app:hunter2@127.0.0.1:{}", redis.port()))
        .set("server.allowed_origins", ORIGIN)
        .env("TIDINGS_AUTH__SESSION_SECRET", SECRET)
        .start()
        .await;
    let mut clients = Vec::new();
    for id in (0..1_000).map(|n| format!("good{n}")).chain(["bad".into()]) {
        let () = redis.command(&["SET", &format!("sess:{id}"), r#"{"userId":"42"}"#]).await;
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let signature = STANDARD_NO_PAD.encode(hmac::sign(&key, id.as_bytes()));
        let signature = signature.replace('+', "%2B").replace('/', "%2F");
        let cookie = format!("connect.sid=s%3A{id}.{signature}");
        clients.push(handshake(gateway.public, "/ws", &browser(&cookie)).await.expect("admitted"));
    }
    allow(&["resetkeys", "~sess:good*", "~online_users", "~{online_users}:*", "~tidings:*", "~{tidings:*"]).await;
    let _: u64 =
        redis.command(&["EVAL", "return redis.call('DEL', unpack(redis.call('KEYS', 'sess:good*')))", "0"]).await;
    // 200 are read at once, and the bad one is among some of them.
    eventually("the others are closed", async || gateway.metric("tidings_sessions_ended_total").await >= 801.0).await;
    assert!(gateway.metric("tidings_session_rechecks_failed_total").await >= 1.0);
}

#[tokio::test]
async fn a_cookie_may_hold_a_token() {
    let gateway = Options::dev().set("auth.token_cookie", "token").set("server.allowed_origins", ORIGIN).start().await;
    let cookie = format!("token={}", token("42"));
    let mut client = handshake(gateway.public, "/ws", &browser(&cookie)).await.expect("admitted");
    assert_eq!(client.frame().await["user"], "42");
    assert_eq!(kept_out(&gateway, "token=bad").await.code, "bad_token");
    assert_eq!(refused(gateway.public, "/ws", &[("Cookie", cookie.as_str())]).await.status, 403);
    // An empty token counts as missing, and the instance waits for a hello.
    assert!(handshake(gateway.public, "/ws", &browser("token=")).await.is_ok());
}

#[tokio::test]
async fn sessions_without_a_redis_to_find_them_in_are_refused_at_the_start() {
    let config = ["check-config", "--dev", "--set", "auth.session_secret=s3cret-of-the-test"];
    let refused = output(command(&config)).await;
    let errors = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    assert!(errors.contains("auth.session_secret") && errors.contains("redis.url"), "{errors}");
    assert!(!errors.contains("s3cret"), "{errors}");

    // With one, sessions alone are sufficient.
    let config = ["check-config", "--set", "auth.session_secret=s3cret,another"];
    let accepted = output(command(&config)).await;
    let shown = String::from_utf8(accepted.stdout).unwrap();
    assert!(accepted.status.success() && shown.contains(r#"session_secret = ["***", "***"]"#), "{shown}");
}

/// Whole seconds since 1970 of a moment as JavaScript writes it.
fn seconds_of(moment: &str) -> u64 {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    OffsetDateTime::parse(moment, &Rfc3339).unwrap().unix_timestamp().try_into().unwrap()
}
