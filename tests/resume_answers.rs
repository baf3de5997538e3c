//! The replies to a client that resumes: everything since its cursor, or that some of it is gone; never a failure.

use std::ops::Range;

use serde_json::{Value, json};

use crate::support::{
    Client, Gateway, Options, Proxy, RedisServer, Store, eventually, handshake, refused, text, token,
};

const PERSISTENT: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

async fn home() -> (RedisServer, Gateway) {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    (redis, gateway)
}

/// Stores numbers for user 42; gives their ids.
async fn store(gateway: &Gateway, numbers: Range<u32>) -> Vec<String> {
    let mut ids = Vec::new();
    for number in numbers {
        ids.push(gateway.store("42", number).await);
    }
    ids
}

/// The welcome says that everything follows; these follow, with these ids, and nothing else before new events.
async fn all_follows(redis: &RedisServer, (mut client, welcome): (Client, Value), first: u32, ids: &[String]) {
    assert_eq!(welcome["recovered"], true, "{welcome}");
    assert!(welcome["cursor"].is_string(), "{welcome}");
    for (number, id) in (first..).zip(ids) {
        assert_eq!(client.stored_event().await, (id.clone(), number.into()));
    }
    goes_on(redis, &mut client).await;
}

/// The welcome reports a gap; nothing is replayed, and the cursor is that of the newest.
async fn some_is_gone(redis: &RedisServer, (mut client, welcome): (Client, Value), newest: Option<&String>) {
    assert_eq!(welcome["recovered"], false, "{welcome}");
    assert!(welcome["cursor"].is_string(), "{welcome}");
    if let Some(newest) = newest {
        assert_eq!(welcome["cursor"], *newest);
    }
    goes_on(redis, &mut client).await;
}

/// The next event is the one that is published now.
async fn goes_on(redis: &RedisServer, client: &mut Client) {
    redis.publish("42", r#""now""#).await;
    let frame = client.frame().await;
    assert_eq!(frame, json!({"type": "event", "event": "notification", "data": "now"}));
}

#[tokio::test]
async fn on_another_instance_all_that_was_missed_follows() {
    let (redis, one) = home().await;
    let other = Gateway::redis(&redis).await;
    let mut client = Client::connect(&one, "42").await;
    let ids = store(&other, 0..10).await;
    for (number, id) in (0..5_u32).zip(&ids) {
        assert_eq!(client.stored_event().await, (id.clone(), number.into()));
    }
    client.close().await;
    all_follows(&redis, Client::resume(&other, "42", &ids[4]).await, 5, &ids[5..]).await;
    all_follows(&redis, Client::resume(&one, "42", &ids[9]).await, 10, &[]).await;
}

#[tokio::test]
async fn after_the_instance_was_killed_and_started_again_all_that_was_missed_follows() {
    let (redis, mut gateway) = home().await;
    let ids = store(&gateway, 0..10).await;
    gateway.kill().await;
    let gateway = Gateway::redis(&redis).await;
    all_follows(&redis, Client::resume(&gateway, "42", &ids[2]).await, 3, &ids[3..]).await;
}

#[tokio::test]
async fn after_redis_was_restarted_with_what_it_had_all_that_was_missed_follows() {
    let mut redis = RedisServer::start_with(&PERSISTENT).await;
    let gateway = Gateway::redis(&redis).await;
    let mut steady = Client::connect(&gateway, "42").await;
    let mut ids = store(&gateway, 0..5).await;
    redis.restart().await;
    gateway.ready().await;
    eventually("it is published again", async || {
        gateway.post(gateway.admin, "/v1/users/43/notifications", r#"{"data":1,"durable":true}"#).await.0 == 202
    })
    .await;
    ids.extend(store(&gateway, 5..10).await);
    for (number, id) in (0..10_u32).zip(&ids) {
        assert_eq!(steady.stored_event().await, (id.clone(), number.into()), "a client that stayed notices nothing");
    }
    all_follows(&redis, Client::resume(&gateway, "42", &ids[2]).await, 3, &ids[3..]).await;
}

#[tokio::test]
async fn who_missed_what_was_trimmed_is_told_and_who_missed_so_many_as_are_kept_is_not() {
    const KEPT: usize = 10;
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("history.max_len", &KEPT.to_string()).start().await;
    let ids = store(&gateway, 0..400).await;
    let newest = ids.last();
    for gone in [0, 100, 180] {
        some_is_gone(&redis, Client::resume(&gateway, "42", &ids[gone]).await, newest).await;
    }
    let last = ids.len() - 1 - KEPT;
    let resumed = Client::resume(&gateway, "42", &ids[last]).await;
    all_follows(&redis, resumed, u32::try_from(last).unwrap() + 1, &ids[last + 1..]).await;
}

#[tokio::test]
async fn after_flushall_a_cursor_from_before_is_of_another_epoch() {
    let (redis, gateway) = home().await;
    let before = store(&gateway, 0..3).await;
    let () = redis.command(&["FLUSHALL"]).await;
    some_is_gone(&redis, Client::resume(&gateway, "42", &before[0]).await, None).await;
    some_is_gone(&redis, Client::resume(&gateway, "42", &before[2]).await, None).await;
    let (mut client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    let after = store(&gateway, 3..6).await;
    for (number, id) in (3..6_u32).zip(&after) {
        assert_eq!(client.stored_event().await, (id.clone(), number.into()));
    }
    some_is_gone(&redis, Client::resume(&gateway, "42", &before[1]).await, after.last()).await;
    let cursor = text(&welcome["cursor"]);
    all_follows(&redis, Client::resume(&gateway, "42", cursor).await, 3, &after).await;
}

#[tokio::test]
async fn another_users_cursor_and_garbage_are_gone_and_fail_no_connection() {
    let (redis, gateway) = home().await;
    let newest = store(&gateway, 0..3).await.pop();
    let others = gateway.store("43", 1).await;
    let long = "x".repeat(2_000);
    let (epoch, place) = newest.as_ref().unwrap().split_once('-').unwrap();
    let other_epoch = format!("0000000000000001-{place}");
    let ahead = format!("{epoch}-9007199254740991-9007199254740991");
    let garbage = ["x", "-", "0-0-0", "null", "%22", "%E2%98%82", "a%00b", "1%202", &long, &other_epoch, &ahead];
    for cursor in garbage.into_iter().chain([others.as_str()]) {
        some_is_gone(&redis, Client::resume(&gateway, "42", cursor).await, newest.as_ref()).await;
        if !cursor.contains('%') {
            some_is_gone(&redis, said_hello(&gateway, json!(cursor)).await, newest.as_ref()).await;
        }
    }
}

/// A client that says in its `hello` from where it resumes.
async fn said_hello(gateway: &Gateway, resume: Value) -> (Client, Value) {
    let mut client = Client::anonymous(gateway).await;
    client.send(&json!({"type": "hello", "token": token("42"), "resume": resume}).to_string()).await;
    let welcome = client.frame().await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    (client, welcome)
}

#[tokio::test]
async fn a_resume_in_the_hello_is_as_one_in_the_url() {
    let (redis, gateway) = home().await;
    let ids = store(&gateway, 0..5).await;
    all_follows(&redis, Client::resume(&gateway, "42", &ids[1]).await, 2, &ids[2..]).await;
    all_follows(&redis, said_hello(&gateway, json!(ids[1])).await, 2, &ids[2..]).await;
    let (_, welcome) = said_hello(&gateway, Value::Null).await;
    assert_eq!((&welcome["recovered"], &welcome["cursor"]), (&json!(false), &json!(ids[4])));
}

#[tokio::test]
async fn without_a_resume_the_welcome_has_the_newest_cursor_and_recovers_nothing() {
    let (redis, gateway) = home().await;
    let newest = store(&gateway, 0..3).await.pop();
    some_is_gone(&redis, Client::connect_with_welcome(&gateway, "42").await, newest.as_ref()).await;
}

#[tokio::test]
async fn the_welcome_of_a_user_who_never_had_any_has_a_cursor_that_resumes() {
    let (redis, gateway) = home().await;
    let (client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    client.close().await;
    let cursor = text(&welcome["cursor"]);
    all_follows(&redis, Client::resume(&gateway, "42", cursor).await, 0, &[]).await;
    let ids = store(&gateway, 0..3).await;
    all_follows(&redis, Client::resume(&gateway, "42", cursor).await, 0, &ids).await;
}

#[tokio::test]
async fn the_cursor_of_every_welcome_resumes_from_what_had_come_by_then() {
    let (redis, gateway) = home().await;
    let ids = store(&gateway, 0..6).await;
    let (client, welcome) = Client::resume(&gateway, "42", &ids[1]).await;
    client.close().await;
    // It disconnected before it received anything.
    let cursor = text(&welcome["cursor"]);
    all_follows(&redis, Client::resume(&gateway, "42", cursor).await, 2, &ids[2..]).await;
}

#[tokio::test]
async fn history_that_cannot_be_read_closes_a_resume_with_4102_and_gives_others_no_cursor() {
    let mut redis = RedisServer::start_with(&PERSISTENT).await;
    let gateway = Gateway::redis(&redis).await;
    let first = store(&gateway, 0..3).await.remove(0);
    redis.freeze();
    let let_in = cannot_be_read(&gateway, &first).await;
    redis.thaw();
    can_be_read_again(&redis, &gateway, &first, let_in, 3).await;
    redis.kill().await;
    let let_in = cannot_be_read(&gateway, &first).await;
    redis.restart().await;
    can_be_read_again(&redis, &gateway, &first, let_in, 5).await;
}

/// Gives a client that was let in, since it does not resume.
async fn cannot_be_read(gateway: &Gateway, cursor: &str) -> Client {
    let in_the_url = async { Client::unsure(gateway, "42", &format!("?resume={cursor}")).await.close_code().await };
    let in_the_hello = async {
        let mut client = Client::anonymous(gateway).await;
        client.send(&json!({"type": "hello", "token": token("42"), "resume": cursor}).to_string()).await;
        client.close_code().await
    };
    let no_cursor = Client::resume(gateway, "42", "x");
    let not_asked = Client::connect_with_welcome(gateway, "42");
    let all = Box::pin(async { tokio::join!(in_the_url, in_the_hello, no_cursor, not_asked) });
    let (in_the_url, in_the_hello, (_, unknown), (mut client, welcome)) = all.await;
    assert_eq!((in_the_url, in_the_hello, &unknown["recovered"]), (4102, 4102, &json!(false)));
    let told = (&welcome["cursor"], &welcome["unread"], &welcome["recovered"]);
    assert_eq!(told, (&Value::Null, &Value::Null, &json!(false)));
    client.send(r#"{"type":"what"}"#).await;
    assert_eq!(client.frame().await["type"], "error", "the connection is live");
    client
}

/// A newly connected client receives what is stored from then on, `next` and one more; a resuming client receives all.
async fn can_be_read_again(redis: &RedisServer, gateway: &Gateway, cursor: &str, mut let_in: Client, next: u32) {
    gateway.ready().await;
    eventually("history can be read", async || gateway.get(gateway.admin, "/v1/users/42/notifications").await.0 == 200)
        .await;
    redis.store_unheard(next).await;
    gateway.store("42", next + 1).await;
    let mut numbers = Vec::new();
    while numbers.last() != Some(&json!(next + 1)) {
        numbers.push(let_in.stored_event().await.1);
    }
    assert!(numbers.ends_with(&[json!(next), json!(next + 1)]), "{numbers:?}");
    let ids: Vec<_> = gateway.listed("42", 100).await.into_iter().map(|one| one.id).collect();
    all_follows(redis, Client::resume(gateway, "42", cursor).await, 1, &ids[1..]).await;
}

#[tokio::test]
async fn a_raw_client_resumes_too() {
    let (redis, gateway) = home().await;
    let ids = store(&gateway, 0..5).await;
    let bearer = format!("Bearer {}", token("42"));
    let path = format!("/ws?format=raw&resume={}", ids[1]);
    let mut raw = handshake(gateway.public, &path, &[("Authorization", &bearer)]).await.expect("admitted");
    for number in 2..5 {
        assert_eq!(raw.text().await, number.to_string());
    }
    redis.publish("42", r#""now""#).await;
    assert_eq!(raw.text().await, r#""now""#);
    // Nothing of ours, though some of it is gone.
    let path = "/ws?format=raw&resume=x";
    let mut raw = handshake(gateway.public, path, &[("Authorization", &bearer)]).await.expect("admitted");
    gateway.connections(2).await;
    redis.publish("42", r#""now""#).await;
    assert_eq!(raw.text().await, r#""now""#);
}

#[tokio::test]
async fn resume_acked_goes_on_behind_what_the_device_has_handled() {
    let (redis, gateway) = home().await;
    let ids = store(&gateway, 0..5).await;
    let acked = |device: &str| format!("?resume=acked&device={device}");
    all_follows(&redis, Client::with_query(&gateway, "42", &acked("phone")).await, 0, &ids).await;
    let (mut phone, _) = Client::with_query(&gateway, "42", "?device=phone").await;
    for id in [&ids[2], &ids[0]] {
        phone.send(&json!({"type": "ack", "id": id}).to_string()).await;
    }
    let position = async || {
        let (status, body) = gateway.get(gateway.admin, "/v1/users/42/read-position?device=phone").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    eventually("the ack is written", async || position().await["id"] == ids[2]).await;
    assert_eq!(position().await["unread"], 2);
    let other = Gateway::redis(&redis).await;
    let resumed = Client::with_query(&other, "42", &acked("phone")).await;
    assert_eq!(resumed.1["unread"], 2, "{}", resumed.1);
    all_follows(&redis, resumed, 3, &ids[3..]).await;
    all_follows(&redis, Client::with_query(&other, "42", &acked("laptop")).await, 0, &ids).await;
    all_follows(&redis, Client::with_query(&other, "42", "?resume=acked").await, 0, &ids).await;
    let bearer = format!("Bearer {}", token("42"));
    let refused = refused(other.public, "/ws?device=", &[("Authorization", &bearer)]).await;
    assert_eq!((refused.status, refused.code.as_str()), (400, "bad_request"));
}

/// Numbers, each stored, and then the same in brackets, not stored.
async fn publish_both_kinds(redis: &RedisServer, numbers: Range<u32>) {
    let (store, mut plain) = (Store::on(redis), redis.connection().await);
    for number in numbers {
        store.publish("42", [number]).await;
        let publish = redis::cmd("PUBLISH").arg("user:42").arg(format!("[{number}]")).to_owned();
        let _: u64 = publish.query_async(&mut plain).await.unwrap();
    }
}

/// The notifications of both kinds that a client received: each kind in order, and no ephemeral one before a durable one
/// that was published earlier. (The reverse is possible where the history is read.)
struct BothKinds {
    stored: u32,
    plain: Option<u32>,
    between: usize,
}

impl BothKinds {
    /// Receives one; returns the id of a durable one.
    async fn hear(&mut self, client: &mut Client) -> Option<String> {
        let frame = client.frame().await;
        if let Some(id) = frame["id"].as_str() {
            self.stored += 1;
            assert_eq!(frame["data"], self.stored);
            return Some(id.to_owned());
        }
        let number = u32::try_from(frame["data"][0].as_u64().unwrap()).unwrap();
        assert!(number <= self.stored && self.plain < Some(number), "{number} behind {} {:?}", self.stored, self.plain);
        self.plain = Some(number);
        self.between += 1;
        None
    }
}

#[tokio::test]
async fn replayed_and_live_ones_come_in_one_order_with_those_that_are_not_stored_between() {
    let (redis, gateway) = home().await;
    redis.store_all("42", (0..600).map(|number| number.to_string())).await;
    let first = gateway.listed("42", 1_000).await[0].id.clone();
    let (mut client, welcome) = Client::resume(&gateway, "42", &first).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    let mut heard = BothKinds { stored: 0, plain: None, between: 0 };
    let reading = async {
        while heard.plain != Some(649) {
            heard.hear(&mut client).await;
        }
    };
    tokio::join!(publish_both_kinds(&redis, 600..650), reading);
    assert_eq!((heard.stored, heard.between), (649, 50));
}

#[tokio::test]
async fn clients_that_come_in_the_middle_of_it_get_both_kinds_in_one_order() {
    const LAST: u32 = 1_500;
    let (redis, gateway) = home().await;
    let welcome = Client::connect_with_welcome(&gateway, "42").await.1;
    let mut cursor = text(&welcome["cursor"]).to_owned();
    let mut heard = BothKinds { stored: 0, plain: None, between: 0 };
    let reading = async {
        while heard.stored < LAST {
            let (mut client, welcome) = Client::resume(&gateway, "42", &cursor).await;
            assert_eq!(welcome["recovered"], true, "{welcome}");
            for _ in 0..30 {
                if heard.stored < LAST
                    && let Some(id) = heard.hear(&mut client).await
                {
                    cursor = id;
                }
            }
        }
    };
    tokio::join!(publish_both_kinds(&redis, 1..LAST + 1), reading);
    assert!(heard.between > 100, "only {}", heard.between);
}

#[tokio::test]
async fn a_thousand_are_resumed_by_a_client_that_reads_slowly_within_the_bound_of_its_outbox() {
    const BOUND: u32 = 200_000;
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis)
        .set("send_queue.max_bytes", &BOUND.to_string())
        .set("send_queue.max_messages", "64")
        .set("send_queue.write_timeout", "1h")
        .start()
        .await;
    let cursor = Client::connect_with_welcome(&gateway, "42").await.1["cursor"].as_str().unwrap().to_owned();
    let filling = "x".repeat(20_000);
    redis.store_all("42", (0..1_000).map(|number| format!("[{number},\"{filling}\"]"))).await;
    let before = gateway.resident_bytes();
    let (mut slow, welcome) = Client::resume_narrow(&gateway, "42", &cursor).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    for number in 0..1_000 {
        if number % 20 == 0 {
            // While it does not read.
            assert!(gateway.metric("tidings_backlog_bytes").await <= f64::from(BOUND));
            let grown = gateway.resident_bytes().saturating_sub(before);
            assert!(grown < 10_000_000, "by {grown} bytes");
        }
        assert_eq!(slow.stored_event().await.1[0], number);
    }
    goes_on(&redis, &mut slow).await;
}

#[tokio::test]
async fn what_redis_lost_before_a_deaf_instance_heard_it_is_told_with_4205() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let (unsubscribed, other) = tokio::join!(Options::redis_at(&proxy.url()).start(), Gateway::redis(&redis));
    // The loss is detected by the next event, or at the new subscription.
    for (next, new) in [(true, "43"), (false, "44")] {
        let mut client = Client::connect(&unsubscribed, "42").await;
        let mut newcomer = Client::connect(&unsubscribed, new).await;
        let id = other.store("42", 1).await;
        assert_eq!(client.stored_event().await, (id.clone(), 1.into()));
        proxy.refuse();
        unsubscribed.not_ready().await;
        other.store("42", 2).await;
        let () = redis.command(&["FLUSHALL"]).await;
        if next {
            other.store("42", 3).await;
        }
        proxy.heal();
        assert_eq!(client.close_code().await, 4205);
        unsubscribed.ready().await;
        assert_eq!(Client::resume(&unsubscribed, "42", &id).await.1["recovered"], false);
        // A user without stored notifications may have missed the first, and is closed when another is stored.
        redis.publish(new, "1").await;
        assert_eq!(newcomer.event().await, 1);
        other.store(new, 1).await;
        assert_eq!(newcomer.close_code().await, 4205);
    }
}
