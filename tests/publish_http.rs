//! Publishing over HTTP: durable and ephemeral notifications, keys, many users at once, and a Redis without memory.

use std::collections::BTreeSet;

use futures::future::{join, join_all};
use redis::Pipeline;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Gateway, RedisServer, eventually, within};

const NOTIFY: &str = "/v1/users/42/notifications";
const NOTIFY_MANY: &str = "/v1/notifications";

/// What is stored for a user, as Redis has it: id, event as JSON, data.
async fn stored(redis: &RedisServer, user: &str) -> Vec<(String, String, String)> {
    let stream = format!("tidings:history:{{{user}}}");
    let entries: Vec<(String, Vec<(String, String)>)> = redis.command(&["XRANGE", &stream, "-", "+"]).await;
    let field = |fields: &[(String, String)], name: &str| {
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    entries.into_iter().map(|(id, fields)| (id, field(&fields, "event"), field(&fields, "data"))).collect()
}

/// The data of a user's durable notifications, as listed.
async fn data_of(gateway: &Gateway, user: &str) -> Vec<Value> {
    let page = gateway.ask_admin("GET", &format!("/v1/users/{user}/notifications"), &[], "").await.json();
    assert_eq!(page["next"], Value::Null);
    page["notifications"].as_array().unwrap().iter().map(|one| one["data"].clone()).collect()
}

/// One of each backplane.
async fn each(redis: &RedisServer) -> [Gateway; 2] {
    tokio::join!(Gateway::dev(), Gateway::redis(redis)).into()
}

async fn post(gateway: &Gateway, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    gateway.ask_admin("POST", path, headers, &body.to_string()).await
}

/// The id of what was published.
fn id(answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["id"].as_str().unwrap_or_else(|| panic!("an id in {answer:?}")).to_owned()
}

#[tokio::test]
async fn what_is_durable_is_stored_byte_for_byte_and_has_an_id() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut heard = redis.subscribe("user:42").await;
    let all = [
        r#"{ "n" : 123456789012345678901234567890,	"x":0.10000000000000000555, "é":"\u00e9\/" }"#,
        r#"{"b":1,"a":2,"b":3}"#,
        "[ ]",
        "null",
        "1e400",
    ];
    for (data, count) in all.into_iter().zip(1..) {
        let body = format!(r#"{{ "durable":true, "event":"é \"x\"", "data" :  {data}  }}"#);
        let id = id(&gateway.ask_admin("POST", NOTIFY, &[], &body).await);
        let (place, event, kept) = stored(&redis, "42").await.pop().unwrap();
        assert!(id.ends_with(&format!("-{place}")) && place.ends_with(&format!("-{count}")), "{id} at {place}");
        assert_eq!((event.as_str(), kept.as_str()), (r#""é \"x\"""#, data));
        let message = String::from_utf8(heard.next_bytes().await).unwrap();
        let term: String = redis.command(&["HGET", "tidings:history", "term"]).await;
        assert_eq!(message, format!(r#"~{count}@{term} {id} "é \"x\"" {data}"#));
    }
}

#[tokio::test]
async fn what_is_not_durable_is_not_stored_whatever_its_name() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut heard = redis.subscribe("user:42").await;
    for (body, message) in [
        (json!({"data": 1}), "1"),
        (json!({"data": 2, "durable": false, "event": "notification"}), "2"),
        (json!({"data": 3, "event": null, "ttl_s": null}), "3"),
        (json!({"data": 3, "durable": false, "ttl_s": 60}), "3"),
        (json!({"data": 4, "event": "typing"}), r#"~"typing" 4"#),
    ] {
        let answer = post(&gateway, NOTIFY, &[], &body).await;
        assert_eq!((answer.status, answer.json()), (202, json!({"id": null})), "{body}");
        assert_eq!(heard.next_bytes().await, message.as_bytes());
    }
    assert!(stored(&redis, "42").await.is_empty());
}

#[tokio::test]
async fn a_repeated_key_publishes_once_to_a_user_and_gives_the_first_id() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let other = Gateway::redis(&redis).await;
    let mut heard = redis.subscribe("user:42").await;
    let longest = "~".repeat(256);
    for key in ["a", "!", &longest] {
        let headers = [("Idempotency-Key", key)];
        let first = id(&post(&gateway, NOTIFY, &headers, &json!({"data": key, "durable": true})).await);
        let again = id(&post(&other, NOTIFY, &headers, &json!({"data": "another", "durable": true})).await);
        assert_eq!(first, again);
        // What was stored first under a key is not published as something else either.
        assert_eq!(id(&post(&gateway, NOTIFY, &headers, &json!({"data": "ephemeral"})).await), first);
        let message = String::from_utf8(heard.next_bytes().await).unwrap();
        assert!(message.contains(&first) && message.ends_with(&format!(" {}", json!(key))), "{message}");
        let elsewhere =
            post(&gateway, "/v1/users/43/notifications", &headers, &json!({"data": 1, "durable": true})).await;
        assert_ne!(id(&elsewhere), first, "a key is one user's");
    }
    assert_eq!(stored(&redis, "42").await.len(), 3);
    let headers = [("Idempotency-Key", "ephemeral")];
    for data in [1, 2] {
        let answer = post(&gateway, NOTIFY, &headers, &json!({"data": data, "event": "typing"})).await;
        assert_eq!((answer.status, answer.json()), (202, json!({"id": null})));
    }
    redis.publish("42", "\"marker\"").await;
    assert_eq!(heard.next_bytes().await, br#"~"typing" 1"#);
    assert_eq!(heard.next_bytes().await, b"\"marker\"", "once");
}

#[tokio::test]
async fn in_memory_a_repeated_key_publishes_once_too() {
    let gateway = Gateway::dev().await;
    let headers = [("Idempotency-Key", "k")];
    let posting = (0..50)
        .map(async |number| id(&post(&gateway, NOTIFY, &headers, &json!({"data": number, "durable": true})).await));
    let ids: BTreeSet<String> = join_all(posting).await.into_iter().collect();
    assert_eq!((ids.len(), data_of(&gateway, "42").await.len()), (1, 1));
    let elsewhere = post(&gateway, "/v1/users/43/notifications", &headers, &json!({"data": 1, "durable": true})).await;
    assert!(!ids.contains(&id(&elsewhere)), "a key is one user's");
    let mut client = Client::connect(&gateway, "44").await;
    for data in ["first", "again"] {
        let answer = post(&gateway, "/v1/users/44/notifications", &headers, &json!({"data": data})).await;
        assert_eq!(answer.json(), json!({"id": null}));
    }
    post(&gateway, "/v1/users/44/notifications", &[], &json!({"data": "marker"})).await;
    assert_eq!([client.event().await, client.event().await], ["first", "marker"]);
}

#[tokio::test]
async fn a_key_is_remembered_for_a_day() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for (key, durable) in [("stored", true), ("not", false)] {
        post(&gateway, NOTIFY, &[("Idempotency-Key", key)], &json!({"data": 1, "durable": durable})).await;
        let left: i64 = redis.command(&["PTTL", &format!("tidings:key:2:{{42}}:{key}")]).await;
        assert!((86_000_000..=86_400_000).contains(&left), "{left} ms");
    }
}

#[tokio::test]
async fn fifty_at_once_under_one_key_publish_once() {
    let redis = RedisServer::start().await;
    let gateways = [Gateway::redis(&redis).await, Gateway::redis(&redis).await];
    let mut heard = redis.subscribe("user:42").await;
    let posting = (0..50).map(async |number| {
        let headers = [("Idempotency-Key", "one")];
        id(&post(&gateways[number % 2], NOTIFY, &headers, &json!({"data": number, "durable": true})).await)
    });
    let ids: BTreeSet<String> = join_all(posting).await.into_iter().collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(stored(&redis, "42").await.len(), 1);
    redis.publish("42", "\"marker\"").await;
    heard.next_bytes().await;
    assert_eq!(heard.next_bytes().await, b"\"marker\"", "one message was received");
}

#[tokio::test]
async fn a_batch_of_ten_thousand_is_stored_for_everybody_in_order() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let users: Vec<String> = (0..10_000).map(|number| format!("user-{number}")).collect();
    for batch in 0..3 {
        let body = json!({"users": users, "data": {"batch": batch}, "durable": true});
        let answer = post(&gateway, NOTIFY_MANY, &[], &body).await;
        assert_eq!((answer.status, answer.json()), (202, json!({"accepted": 10_000, "failed": []})));
    }
    let over: Vec<_> = users.iter().chain(&users[..1]).collect();
    assert_eq!(post(&gateway, NOTIFY_MANY, &[], &json!({"users": over, "data": 1})).await.error().0, 400);
    let mut reading = Pipeline::new();
    for user in &users {
        reading.cmd("XRANGE").arg(format!("tidings:history:{{{user}}}")).arg("-").arg("+");
    }
    let mut connection = redis.connection().await;
    let all: Vec<Vec<(String, Vec<String>)>> =
        within("all that is stored", reading.query_async(&mut connection)).await.unwrap();
    for (user, entries) in users.iter().zip(all) {
        let data: Vec<&str> = entries.iter().map(|(_, fields)| fields[3].as_str()).collect();
        assert_eq!(data, [r#"{"batch":0}"#, r#"{"batch":1}"#, r#"{"batch":2}"#], "{user}");
    }
    let count: u64 = redis.command(&["HGET", "tidings:history", "count"]).await;
    assert_eq!(count, 30_000);
}

#[tokio::test]
async fn each_of_a_batch_who_cannot_be_published_to_is_named_with_a_code() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let () = redis.command(&["SET", "tidings:history:{broken}", "no stream"]).await;
    let users = ["42", "", "broken", "a\nb", "43"];
    let answer = post(&gateway, NOTIFY_MANY, &[], &json!({"users": users, "data": 1, "durable": true})).await;
    let failed = json!([
        {"user": "", "code": "bad_user"},
        {"user": "a\nb", "code": "bad_user"},
        {"user": "broken", "code": "backplane_down"},
    ]);
    assert_eq!((answer.status, answer.json()), (202, json!({"accepted": 2, "failed": failed})));
    for user in ["42", "43"] {
        assert_eq!(data_of(&gateway, user).await, [1], "{user}");
    }
    // Also if these are all users: the requests themselves are wrong, and a retry would not help.
    let answer = post(&gateway, NOTIFY_MANY, &[], &json!({"users": ["", "broken"], "data": 1, "durable": true})).await;
    let failed = json!([{"user": "", "code": "bad_user"}, {"user": "broken", "code": "backplane_down"}]);
    assert_eq!((answer.status, answer.json()), (202, json!({"accepted": 0, "failed": failed})));
    for users in [&[][..], &["", "a\nb"]] {
        let answer = post(&gateway, NOTIFY_MANY, &[], &json!({"users": users, "data": 1, "durable": true})).await;
        assert_eq!((answer.status, &answer.json()["accepted"]), (202, &json!(0)), "{users:?}");
    }
}

#[tokio::test]
async fn who_is_named_twice_gets_it_twice_or_once_under_a_key() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis).await {
        for (headers, data, copies) in [(&[][..], "plain", 2), (&[("Idempotency-Key", "k")], "keyed", 1)] {
            let body = json!({"users": ["42", "43", "42"], "data": data, "durable": true});
            let answer = post(&gateway, NOTIFY_MANY, headers, &body).await;
            assert_eq!((answer.status, answer.json()), (202, json!({"accepted": 3, "failed": []})));
            let count = |stored: Vec<Value>| stored.iter().filter(|other| **other == data).count();
            assert_eq!(count(data_of(&gateway, "42").await), copies, "{data}");
            assert_eq!(count(data_of(&gateway, "43").await), 1, "{data}");
        }
    }
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_400_and_says_what_is_accepted() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut heard = redis.subscribe("user:42").await;
    let long = "x".repeat(129);
    for (field, value) in [
        ("event", json!("")),
        ("event", json!("a\nb")),
        ("event", json!(long)),
        ("ttl_s", json!(0)),
        ("ttl_s", json!(-1)),
        ("ttl_s", json!(1.5)),
        ("ttl_s", json!("1h")),
        ("ttl_s", json!(315_360_001)),
    ] {
        let mut body = json!({"data": "wrong", "durable": true, "users": ["42"]});
        body[field] = value;
        let many = post(&gateway, NOTIFY_MANY, &[], &body).await;
        body.as_object_mut().unwrap().remove("users");
        for answer in [many, post(&gateway, NOTIFY, &[], &body).await] {
            assert_eq!(answer.error(), (400, "bad_request".to_owned()), "{body}");
        }
    }
    let message = async |headers: &[(&str, &str)], body: Value| {
        let answer = post(&gateway, NOTIFY, headers, &body).await;
        assert_eq!(answer.error(), (400, "bad_request".to_owned()), "{headers:?} {body}");
        answer.json()["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(message(&[], json!({"data": "wrong", "ttl_s": 0})).await.contains("ttl_s"));
    assert!(message(&[], json!({"data": "wrong", "event": ""})).await.contains("event"));
    let long = "k".repeat(257);
    for keys in [&[""][..], &["a b"], &["é"], &[&long], &["a", "b"], &["a", "a"]] {
        let headers: Vec<_> = keys.iter().map(|key| ("Idempotency-Key", *key)).collect();
        for durable in [true, false] {
            let said = message(&headers, json!({"data": "wrong", "durable": durable})).await;
            assert!(said.contains("Idempotency-Key"), "{keys:?}: {said}");
        }
    }
    redis.publish("42", "\"marker\"").await;
    assert_eq!(heard.next_bytes().await, b"\"marker\"", "nothing was published");
    assert!(stored(&redis, "42").await.is_empty());
}

#[tokio::test]
async fn an_own_ttl_ends_a_stored_notification_early() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis).await {
        for (data, ttl) in [("short", json!(1.0)), ("long", json!(315_360_000)), ("as all", Value::Null)] {
            id(&post(&gateway, NOTIFY, &[], &json!({"data": data, "durable": true, "ttl_s": ttl})).await);
        }
        eventually("the short one has ended", async || {
            let left = data_of(&gateway, "42").await;
            assert!(left.ends_with(&["long".into(), "as all".into()]), "{left:?}");
            left.len() == 2
        })
        .await;
    }
}

#[tokio::test]
async fn while_redis_is_away_nothing_is_accepted() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    redis.kill().await;
    for durable in [true, false] {
        let one = post(&gateway, NOTIFY, &[], &json!({"data": 1, "durable": durable})).await;
        let keyed = post(&gateway, NOTIFY, &[("Idempotency-Key", "k")], &json!({"data": 1, "durable": durable})).await;
        let many = json!({"users": ["42", "43", ""], "data": 1, "durable": durable});
        for answer in [one, keyed, post(&gateway, NOTIFY_MANY, &[], &many).await] {
            assert_eq!(answer.error(), (503, "backplane_down".to_owned()));
            assert!(answer.body.contains("(connection)"), "the kind is named: {answer:?}");
        }
    }
}

/// Everything that publishing writes.
async fn written(redis: &RedisServer) -> (BTreeSet<String>, Vec<String>, u64) {
    (
        redis.command(&["KEYS", "tidings:*"]).await,
        redis.command(&["HGETALL", "tidings:history"]).await,
        redis.command(&["XLEN", "tidings:history:{42}"]).await,
    )
}

#[tokio::test]
async fn a_full_redis_stores_nothing_by_halves_and_live_delivery_goes_on() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "43").await;
    id(&post(&gateway, NOTIFY, &[], &json!({"data": "before", "durable": true})).await);
    let before = written(&redis).await;
    let mut heard = redis.subscribe("user:42").await;

    let () = redis.command(&["SET", "filler", &"x".repeat(8 << 20)]).await;
    let info: String = redis.command(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let limit = used.trim().parse::<u64>().unwrap() - (4 << 20);
    redis.config_set("maxmemory", &limit.to_string()).await;

    let durable = json!({"data": "lost", "durable": true});
    let many = json!({"users": ["42", "44"], "data": "lost", "durable": true});
    let keyed = [("Idempotency-Key", "k")];
    for (path, headers, body) in [
        (NOTIFY, &[][..], &durable),
        (NOTIFY, &keyed, &durable),
        (NOTIFY, &keyed, &json!({"data": "lost"})),
        (NOTIFY_MANY, &[], &many),
        (NOTIFY_MANY, &keyed, &many),
    ] {
        let answer = post(&gateway, path, headers, body).await;
        assert_eq!(answer.error(), (503, "backplane_full".to_owned()), "{path} {headers:?} {body}");
        assert!(answer.body.contains("(OOM)"), "the kind is named: {answer:?}");
    }
    assert_eq!(written(&redis).await, before, "nothing is half done");
    // Ephemeral notifications, reading and removing need no memory.
    assert_eq!(post(&gateway, NOTIFY, &[], &json!({"data": "live"})).await.status, 202);
    assert_eq!(heard.next_bytes().await, b"\"live\"", "nothing of the others was received");
    assert_eq!(post(&gateway, NOTIFY_MANY, &[], &json!({"users": ["43"], "data": "live"})).await.status, 202);
    assert_eq!(client.event().await, "live");
    assert_eq!(gateway.ask_admin("GET", NOTIFY, &[], "").await.json()["notifications"][0]["data"], "before");
    assert_eq!(gateway.ask_admin("DELETE", "/v1/users/43/connections", &[], "").await.status, 202);
    assert_eq!(client.close_code().await, 4011);
    let trimmed: u64 = redis.command(&["XTRIM", "tidings:history:{42}", "MAXLEN", "=", "0"]).await;
    assert_eq!(trimmed, 1);

    let () = redis.command(&["DEL", "filler"]).await;
    id(&post(&gateway, NOTIFY, &keyed, &json!({"data": "after", "durable": true})).await);
    assert_eq!(data_of(&gateway, "42").await, ["after"]);
    eventually("the user who left meanwhile is offline", async || redis.online().await.is_empty()).await;
}

#[tokio::test]
async fn a_batch_through_a_redis_that_fills_up_says_for_whom_there_was_no_room() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let users: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
    let info: String = redis.command(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let limit = used.trim().parse::<u64>().unwrap() + (6 << 20);
    redis.config_set("maxmemory", &limit.to_string()).await;
    let body = json!({"users": users, "data": "x".repeat(1_000), "durable": true});
    let answer = post(&gateway, NOTIFY_MANY, &[], &body).await;
    assert_eq!(answer.status, 202, "some found room");
    let answer = answer.json();
    let failed: BTreeSet<String> = answer["failed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            assert_eq!(one["code"], "backplane_full", "{one}");
            one["user"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(answer["accepted"], 10_000 - failed.len());
    assert!(!failed.is_empty(), "no room for all users");
    let stored: Vec<String> = redis.command(&["KEYS", "tidings:history:*"]).await;
    let stored: BTreeSet<String> =
        stored.iter().map(|key| key["tidings:history:{".len()..].trim_end_matches('}').to_owned()).collect();
    assert!(stored.is_disjoint(&failed), "nothing is stored for a user listed as failed");
    assert_eq!(stored.len() + failed.len(), 10_000);
}

#[tokio::test]
async fn what_is_stored_and_what_is_not_keep_one_order() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut heard = redis.subscribe("user:42").await;
    let publishing = async {
        for number in 0..100 {
            let body = json!({"data": number, "durable": number % 2 == 0});
            assert_eq!(post(&gateway, NOTIFY, &[], &body).await.status, 202);
        }
    };
    let hearing = async {
        for number in 0..100 {
            let message = String::from_utf8(heard.next_bytes().await).unwrap();
            assert_eq!(message.rsplit(' ').next(), Some(number.to_string().as_str()), "{message}");
        }
    };
    join(publishing, hearing).await;
}
