//! A message for a user reaches all connections of that user, and no other connection.

use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::support::{Client, Gateway, Light, Options, RedisServer, eventually};

/// The default of `limits.max_payload_bytes`.
const MAX_PAYLOAD: usize = 1_048_576;

#[tokio::test]
async fn every_connection_of_the_user_and_nobody_else_gets_it() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut phone = Client::connect(&gateway, "42").await;
    let mut laptop = Client::connect(&gateway, "42").await;
    let mut other = Client::connect(&gateway, "43").await;

    assert_eq!(redis.publish("42", r#"{"for":"42"}"#).await, 1);
    redis.publish("43", r#"{"for":"43"}"#).await;
    assert_eq!(phone.event().await["for"], "42");
    assert_eq!(laptop.event().await["for"], "42");
    assert_eq!(other.event().await["for"], "43");
}

#[tokio::test]
async fn users_whose_ids_look_alike_are_kept_apart() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let users = ["4", "42", "*", "user:42", "tenant:42", "Zoë ☂", "é", "e\u{301}", "a\"b\\c/d"];
    let mut clients = Vec::new();
    for user in users {
        clients.push((user, Client::connect(&gateway, user).await));
    }
    for user in users {
        redis.publish(user, &serde_json::json!({"for": user}).to_string()).await;
    }
    for user in users {
        redis.publish(user, r#""last""#).await;
    }
    for (user, client) in &mut clients {
        assert_eq!(client.event().await["for"], *user);
        assert_eq!(client.event().await, "last");
    }
}

#[tokio::test]
async fn every_instance_hears_one_publish() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let mut clients = [Client::connect(&one, "42").await, Client::connect(&two, "42").await];
    assert_eq!(redis.publish("42", "1").await, 2);
    assert_eq!(redis.publish("absent", "1").await, 2, "one subscriber for each instance, with or without connections");
    for client in &mut clients {
        assert_eq!(client.event().await, 1);
    }
}

#[tokio::test]
async fn ten_thousand_messages_arrive_on_both_instances_in_order_and_once() {
    const COUNT: u32 = 10_000;
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let mut clients = [Client::connect(&one, "42").await, Client::connect(&two, "42").await];
    let reading = clients.iter_mut().map(async |client| {
        for number in 0..COUNT {
            assert_eq!(client.event().await, number);
        }
    });
    let publishing = redis.publish_all("42", (0..COUNT).map(|number| number.to_string()));
    tokio::join!(publishing, join_all(reading));
    // Nothing came twice: what comes next is new.
    redis.publish("42", r#""marker""#).await;
    for client in &mut clients {
        assert_eq!(client.event().await, "marker");
    }
}

#[tokio::test]
async fn data_arrives_byte_for_byte() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut framed = Client::connect(&gateway, "42").await;
    let mut raw = Client::raw(&gateway, "42").await;
    // What a raw client has no `welcome` for: that it is registered.
    eventually("both are connected", async || gateway.metric("tidings_connections").await == 2.0).await;
    let depth = 200_000;
    let deep = "[".repeat(depth) + &"]".repeat(depth);
    let payloads = [
        r#"{"b":1,"a":{"z":[],"y":{},"b":[null,true,[false,{"x":"y"}]]},"b":2}"#,
        r#"{"id":9007199254740993,"big":123456789012345678901234567890,"float":1.0,"tiny":1e-999,"huge":1E400,"z":-0}"#,
        "\"Zoë ☂ 👩\u{200d}🚀 \u{2028}\u{feff}\u{7f}\"",
        r#""\u00e9\/\"\\\b\f\n\r\t\ud83d\ude80\ud800\u0000""#,
        "{ \"a\" :\t[ 1 ,\r\n 2 ]\n}",
        "null",
        "0",
        r#""""#,
        &deep,
    ];
    for payload in payloads {
        redis.publish("42", payload).await;
        assert!(framed.event_text().await == payload, "{:.100}", payload);
        assert!(raw.text().await == payload, "{:.100}", payload);
    }
    redis.publish("42", " \t\r\n{ \"inner\" : 1 }\n\r\t ").await;
    assert_eq!(framed.event_text().await.trim(), "{ \"inner\" : 1 }");
    assert_eq!(raw.text().await.trim(), "{ \"inner\" : 1 }");
}

/// Publishes what must be dropped, then something good, which must be all that the user's clients get.
async fn dropped(redis: &RedisServer, gateway: &Gateway, reason: &str, bad: &[(&[u8], &[u8])]) {
    let mut clients = [Client::connect(gateway, "42").await, Client::raw(gateway, "42").await];
    eventually("both are connected", async || gateway.metric("tidings_connections").await == 2.0).await;
    for (channel, payload) in bad {
        redis.publish_bytes(channel, payload).await;
        redis.publish("42", r#""marker""#).await;
        assert_eq!(clients[0].event().await, "marker", "{reason}: {:?}", payload.get(..20));
        assert_eq!(clients[1].frame().await, "marker", "{reason}: {:?}", payload.get(..20));
    }
    let name = format!("tidings_messages_dropped_total{{reason=\"{reason}\"}}");
    assert_eq!(gateway.metric(&name).await, f64::from(u32::try_from(bad.len()).unwrap()), "{name}");
    assert!(gateway.log().contains("message dropped"), "{}", gateway.log());
    for client in clients {
        client.close().await;
    }
    eventually("both are gone", async || gateway.metric("tidings_connections").await == 0.0).await;
}

#[tokio::test]
async fn payloads_that_are_no_json_text_harm_nobody() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let no_json: Vec<(&[u8], &[u8])> =
        ["", " ", "hello", "{", "{}}", "1 2", "'a'", "[1,]", "\"a\nb\"", "NaN", "01", "\u{feff}1"]
            .iter()
            .map(|payload| (b"user:42".as_slice(), payload.as_bytes()))
            .collect();
    dropped(&redis, &gateway, "json", &no_json).await;
    let no_utf8: [(&[u8], &[u8]); 2] = [(b"user:42", b"\"\xff\""), (b"user:42", b"\"\xed\xa0\x80\"")];
    dropped(&redis, &gateway, "utf8", &no_utf8).await;
    let mut large = format!("\"{}\"", "x".repeat(MAX_PAYLOAD - 1));
    assert_eq!(large.len(), MAX_PAYLOAD + 1);
    dropped(&redis, &gateway, "size", &[(b"user:42", large.as_bytes())]).await;

    large.remove(1);
    let mut client = Client::connect(&gateway, "42").await;
    redis.publish("42", &large).await;
    assert!(client.event_text().await == large, "a payload of exactly the limit arrives");
}

#[tokio::test]
async fn channels_with_bad_ids_harm_nobody() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let long = format!("user:{}", "x".repeat(257));
    let bad: Vec<(&[u8], &[u8])> = [
        b"user:",
        long.as_bytes(),
        b"user:a\nb",
        b"user:\0",
        b"user:\x7f",
        b"user:\xc2\x85",
        b"user:\xff",
        b"user:42\xff",
    ]
    .iter()
    .map(|channel| (*channel, b"1".as_slice()))
    .collect();
    dropped(&redis, &gateway, "user_id", &bad).await;

    let longest = "é".repeat(128);
    let mut client = Client::connect(&gateway, &longest).await;
    redis.publish(&longest, "1").await;
    assert_eq!(client.event().await, 1);
}

#[tokio::test]
async fn a_flood_of_bad_messages_is_logged_at_a_bounded_rate() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    let begun = Instant::now();
    redis.publish_all("42", std::iter::repeat_n("this is no JSON".to_owned(), 2_000)).await;
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    assert_eq!(gateway.metric("tidings_messages_dropped_total{reason=\"json\"}").await, 2_000.0);
    let lines = gateway.log().lines().filter(|line| line.contains("message dropped")).count();
    let most = usize::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    assert!((1..=most).contains(&lines), "{lines} lines in {:?}", begun.elapsed());
}

#[tokio::test]
async fn the_line_of_a_dropped_message_names_the_channel_of_its_user() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("limits.max_payload_bytes", "100").start().await;
    let _client = Client::connect(&gateway, "42").await;
    for (payload, reason) in [("no JSON".to_owned(), "json"), (format!("\"{}\"", "x".repeat(5_000)), "size")] {
        let named = format!("message dropped reason=\"{reason}\" channel=\"user:42\"");
        // At most one line a second.
        eventually(reason, async || {
            redis.publish("42", &payload).await;
            gateway.log().contains(&named)
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_published_right_after_the_welcome_arrives() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("presence.offline_delay", "0ms").start().await;
    let publisher = redis.connection().await;
    let connecting = (0..50).map(async |user: u32| {
        let mut publisher = publisher.clone();
        for round in 0..10 {
            let mut client = Client::connect(&gateway, &user.to_string()).await;
            let publish = redis::cmd("PUBLISH").arg(format!("user:{user}")).arg(round).to_owned();
            let heard: u64 = publish.query_async(&mut publisher).await.unwrap();
            assert_eq!((heard, client.event().await), (1, round.into()));
            client.close().await;
        }
    });
    join_all(connecting).await;
}

#[tokio::test]
async fn a_connection_gets_everything_however_many_others_come_and_go() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut steady = Client::connect(&gateway, "42").await;
    let churn = async {
        for _ in 0..100 {
            Client::connect(&gateway, "42").await.close().await;
        }
    };
    let steady = async {
        for number in 0..500 {
            redis.publish("42", &number.to_string()).await;
            assert_eq!(steady.event().await, number);
        }
    };
    tokio::join!(churn, steady);
    assert!(gateway.log().lines().all(|line| !line.contains("panicked")), "{}", gateway.log());
    let idle = eventually("only one is left", async || gateway.metric("tidings_connections").await == 1.0);
    tokio::time::timeout(Duration::from_secs(10), idle).await.unwrap();
}

#[tokio::test]
async fn a_user_of_thousands_of_connections_gets_everything_on_each_in_order() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut clients = Vec::new();
    for _ in 0..1_500 {
        clients.push(Light::connect(gateway.public, "42").await.unwrap());
    }
    let reading: Vec<_> = clients
        .into_iter()
        .map(|mut client| async move {
            for number in 0..50 {
                assert_eq!(client.event().await.unwrap(), number);
            }
        })
        .collect();
    for number in 0..50 {
        redis.publish("42", &number.to_string()).await;
    }
    join_all(reading).await;
    assert_eq!(gateway.metric("tidings_deliveries_total").await, 1_500.0 * 50.0);
}
