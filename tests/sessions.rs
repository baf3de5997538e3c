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
    secrets, token,
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
    assert_eq!(welcome.get("expires_in_ms"), Some(&serde_json::Value::Null), "a session has no fixed end: {welcome}");
    client
}

async fn kept_out(gateway: &Gateway, cookie: &str) -> Refused {
    refused(gateway.public, "/ws", &browser(cookie)).await
}

/// How often Redis has run a command.
async fn calls(redis: &RedisServer, command: &str) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    calls.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// How often a session was read whole, by all instances.
async fn sessions_read(redis: &RedisServer) -> u64 {
    calls(redis, "getrange").await
}

/// Waits for so many rechecks, of at most as many sessions as one command compares.
async fn rounds(redis: &RedisServer, count: u64) {
    let before = calls(redis, "mget").await;
    eventually("they are compared again and again", async || calls(redis, "mget").await >= before + count).await;
}

/// The cookie that the application would set for a session.
fn signed(id: &str) -> String {
    signed_with(SECRET, id)
}

fn signed_with(secret: &str, id: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = STANDARD_NO_PAD.encode(hmac::sign(&key, id.as_bytes()));
    format!("connect.sid=s%3A{id}.{}", signature.replace('+', "%2B").replace('/', "%2F"))
}

/// A connection of a session `id`, which is stored under `sess:ID`.
async fn connect_with(gateway: &Gateway, id: &str) -> Client {
    handshake(gateway.public, "/ws", &browser(&signed(id))).await.expect("admitted")
}

async fn logged_out(client: &mut Client) {
    assert_eq!(timeout(LOGOUT, client.close_code()).await.expect("closed in time"), 4010);
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

    rounds(&redis, 3).await;
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
async fn a_hundred_idle_sessions_are_compared_by_one_command_and_only_a_changed_one_is_read_again() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis).start().await;
    let store = async |number: usize, value: &str| {
        let () = redis.command(&["SET", &format!("sess:s{number}"), value, "EX", "3600"]).await;
    };
    let mut clients = Vec::new();
    for number in 0..100 {
        store(number, r#"{"userId":"42"}"#).await;
        clients.push(connect_with(&gateway, &format!("s{number}")).await);
    }
    let read = sessions_read(&redis).await;
    assert!((100..110).contains(&read), "once by each handshake, and to see whether Redis lets them be read: {read}");
    rounds(&redis, 3).await;
    assert_eq!(sessions_read(&redis).await, read, "none has changed");

    // Another basket, and a user who logs out.
    store(0, r#"{"userId":"42","basket":[1]}"#).await;
    let _: u64 = redis.command(&["DEL", "sess:s1"]).await;
    logged_out(&mut clients[1]).await;
    rounds(&redis, 2).await;
    let again = sessions_read(&redis).await - read;
    assert!((2..=6).contains(&again), "both are read again, the gone one in each round of its grace: {again}");
    assert_eq!(gateway.metric("tidings_connections").await, 99.0, "the others stay");
    assert_eq!(gateway.metric("tidings_session_rechecks_failed_total").await, 0.0);
    // What was read again is compared from then on.
    store(0, r#"{"userId":"43","basket":[1]}"#).await;
    logged_out(&mut clients[0]).await;
}

#[tokio::test]
async fn an_unchanged_session_whose_key_does_not_expire_ends_at_the_expiry_in_it() {
    let redis = RedisServer::start().await;
    let gateway = options(&redis).start().await;
    let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(6);
    let (date, (hour, minute, second)) = (end.date(), end.to_hms());
    let end = format!("{date}T{hour:02}:{minute:02}:{second:02}Z");
    let ends = json!({"cookie": {"expires": end}, "userId": "42"}).to_string();
    let () = redis.command(&["SET", "sess:ends", &ends]).await;
    let () = redis.command(&["SET", "sess:lasts", &ends, "EX", "3600"]).await;
    let (mut ends, mut lasts) = (connect_with(&gateway, "ends").await, connect_with(&gateway, "lasts").await);
    logged_out(&mut ends).await;
    rounds(&redis, 1).await;
    redis.publish("42", "1").await;
    lasts.frame().await;
    assert_eq!(lasts.event().await, 1, "the key's expiry counts where it has one");
}

#[tokio::test]
async fn a_fastify_session_with_the_two_documented_options_lets_its_user_in_and_a_logout_ends_it() {
    let redis = RedisServer::start().await;
    let (fastify, gateway) = tokio::join!(Express::fastify(&redis, SECRET), options(&redis).start());
    let session = fastify.begin("/login/42").await;
    let mut client = connect(&gateway, &session, "42").await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    fastify.go_on(&session, "POST", "/logout").await;
    logged_out(&mut client).await;
    // The options of the application are those that the page states.
    let (page, application) = (include_str!("../docs/sessions.md"), include_str!("express/fastify.mjs"));
    for option in ["cookieName: 'connect.sid',", "cookiePrefix: 's:',"] {
        assert!(page.contains(option) && application.contains(option), "{option}");
    }
}

#[tokio::test]
async fn a_regenerated_session_is_closed_with_4010_and_the_current_cookie_is_accepted() {
    let redis = RedisServer::start().await;
    let (express, gateway) = tokio::join!(Express::start(&redis, SECRET, &[]), options(&redis).start());
    let session = express.begin("/login/42").await;
    let mut client = connect(&gateway, &session, "42").await;
    let regenerated = express.follow(&session, "/regenerate").await;
    assert_ne!(regenerated.id, session.id);
    logged_out(&mut client).await;
    // The client reconnects with the cookie that the browser has by now.
    let mut again = connect(&gateway, &regenerated, "42").await;
    redis.publish("42", "1").await;
    assert_eq!(again.event().await, 1);
    // After a logout no session is left, and a 401 ends the attempts.
    express.go_on(&regenerated, "POST", "/logout").await;
    logged_out(&mut again).await;
    assert_eq!(kept_out(&gateway, &regenerated.cookie).await.status, 401);
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
    let read = sessions_read(&redis).await;
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
    assert_eq!(sessions_read(&redis).await, read);
    connect(&gateway, &session, "42").await;
    assert_ne!(sessions_read(&redis).await, read);
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
        clients.push(connect_with(&gateway, &id).await);
    }
    allow(&["resetkeys", "~sess:good*", "~online_users", "~{online_users}:*", "~tidings:*", "~{tidings:*"]).await;
    let _: u64 =
        redis.command(&["EVAL", "return redis.call('DEL', unpack(redis.call('KEYS', 'sess:good*')))", "0"]).await;
    // 200 are read at once, and the bad one is among some of them.
    eventually("the others are closed", async || gateway.metric("tidings_sessions_ended_total").await >= 801.0).await;
    let failed = async || gateway.metric("tidings_session_rechecks_failed_total").await;
    eventually("the bad one is tried", async || failed().await >= 1.0).await;
}

#[tokio::test]
async fn a_cookie_may_hold_a_token() {
    let gateway = Options::dev().set("auth.token_cookie", "token").set("server.allowed_origins", ORIGIN).start().await;
    let cookie = format!("token={}", token("42"));
    let mut client = handshake(gateway.public, "/ws", &browser(&cookie)).await.expect("admitted");
    assert_eq!(client.frame().await["user"], "42");
    assert_eq!(kept_out(&gateway, "token=bad").await.code, "bad_token");
    assert_eq!(refused(gateway.public, "/ws", &[("Cookie", cookie.as_str())]).await.status, 403);
    assert_eq!(kept_out(&gateway, &format!("token=; {cookie}")).await.code, "bad_token", "the first one decides");
}

#[tokio::test]
async fn with_auth_hello_in_the_query_the_hello_decides_and_not_a_cookie() {
    let gateway = Options::dev().set("auth.token_cookie", "token").set("server.allowed_origins", ORIGIN).start().await;
    for cookie in [format!("token={}", token("admin")), "token=stale".into()] {
        let mut client = handshake(gateway.public, "/ws?auth=hello", &browser(&cookie)).await.expect("admitted");
        client.send(&json!({"type": "hello", "token": token("42")}).to_string()).await;
        assert_eq!(client.frame().await["user"], "42");
        let mut without = handshake(gateway.public, "/ws?auth=hello", &browser(&cookie)).await.expect("admitted");
        without.send(r#"{"type":"pong"}"#).await;
        assert_eq!(without.close_code().await, 4012, "no cookie authenticates");
    }
    let foreign = [("Origin", "https://evil.example"), ("Sec-WebSocket-Protocol", "tidings.v1")];
    assert_eq!(refused(gateway.public, "/ws?auth=hello", &foreign).await.code, "origin_forbidden");
    let unknown = refused(gateway.public, "/ws?auth=Hello", &[]).await;
    assert_eq!((unknown.status, unknown.code.as_str()), (400, "bad_request"));
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

#[tokio::test]
async fn a_reload_takes_over_another_session_secret_and_closes_no_connection() {
    const OTHER: &str = "another cat of thirty-two bytes!";
    let redis = RedisServer::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SECRET).unwrap();
    let path = file.path().to_str().unwrap();
    secrets::keep("a session secret", OTHER);
    let options = Options::redis(&redis).set("server.allowed_origins", ORIGIN);
    let gateway = options.env("TIDINGS_AUTH__SESSION_SECRET_FILE", path).start().await;
    let () = redis.command(&["SET", "sess:one", r#"{"userId":"42"}"#, "EX", "3600"]).await;
    let mut client = connect_with(&gateway, "one").await;
    assert_eq!(client.frame().await["type"], "welcome");

    std::fs::write(file.path(), OTHER).unwrap();
    gateway.signal("HUP");
    eventually("it is reported", async || gateway.log().contains("changed=\"auth.session_secret\"")).await;
    assert_eq!(kept_out(&gateway, &signed("one")).await.status, 401);
    assert!(handshake(gateway.public, "/ws", &browser(&signed_with(OTHER, "one"))).await.is_ok());
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
}
