//! The contract of the backplane, tested with both implementations: memory and Redis.

use serde_json::{Value, json};

use crate::support::{Client, EventStream, Gateway, Options, RedisServer, eventually};

/// An instance, with the Redis that it needs, if it needs one.
type Home = (Gateway, Option<RedisServer>);

#[tokio::test]
async fn memory_keeps_the_backplane_contract() {
    checks(async || (start(Options::dev()).await, None)).await;
}

#[tokio::test]
async fn redis_keeps_the_backplane_contract() {
    checks(async || {
        let redis = RedisServer::start().await;
        (start(Options::redis(&redis).arg("--dev")).await, Some(redis))
    })
    .await;
}

#[tokio::test]
async fn redis_keeps_the_backplane_contract_in_exact_mode() {
    checks(async || {
        let redis = RedisServer::start().await;
        (start(Options::redis(&redis).arg("--dev").set("redis.subscribe", "exact")).await, Some(redis))
    })
    .await;
}

async fn start(options: Options) -> Gateway {
    options.set("presence.offline_delay", "100ms").start().await
}

/// Every check, each with its own backplane.
async fn checks(home: impl AsyncFn() -> Home) {
    a_notification_reaches_every_connection_and_nobody_else(&home().await.0).await;
    notifications_keep_their_order(&home().await.0).await;
    data_is_kept_byte_for_byte(&home().await.0).await;
    concurrent_publishers_lose_nothing(&home().await.0).await;
    what_cannot_be_published_is_refused_with_a_reason(&home().await.0).await;
    presence_is_a_snapshot_and_then_each_change(&home().await.0).await;
}

/// Publishes over the admin listener.
async fn publish(gateway: &Gateway, user: &str, data: &str) {
    let path = format!("/v1/users/{user}/notifications");
    let (status, body) = gateway.post(gateway.admin, &path, &format!("{{\"data\":{data}}}")).await;
    assert_eq!((status, body.as_str()), (202, r#"{"id":null}"#));
}

async fn a_notification_reaches_every_connection_and_nobody_else(gateway: &Gateway) {
    let mut connections = [Client::connect(gateway, "42").await, Client::connect(gateway, "42").await];
    let mut other = Client::connect(gateway, "43").await;
    publish(gateway, "42", r#"{"for":"42"}"#).await;
    publish(gateway, "43", r#"{"for":"43"}"#).await;
    publish(gateway, "absent", "1").await;
    for connection in &mut connections {
        assert_eq!(connection.event().await["for"], "42");
    }
    assert_eq!(other.event().await["for"], "43");
}

async fn notifications_keep_their_order(gateway: &Gateway) {
    let mut connections = [Client::connect(gateway, "42").await, Client::connect(gateway, "42").await];
    for number in 0..100 {
        publish(gateway, "42", &number.to_string()).await;
    }
    for connection in &mut connections {
        for number in 0..100 {
            assert_eq!(connection.event().await, number);
        }
    }
}

async fn data_is_kept_byte_for_byte(gateway: &Gateway) {
    let mut client = Client::connect(gateway, "42").await;
    for data in [r#"{ "n" : 9007199254740993, "n":1.0 }"#, r#""\u00e9é\/""#, "null", "[1E400]"] {
        publish(gateway, "42", data).await;
        assert_eq!(client.event_text().await, data);
    }
}

async fn concurrent_publishers_lose_nothing(gateway: &Gateway) {
    let mut client = Client::connect(gateway, "42").await;
    let publishing = (0..10).map(async |publisher: u32| {
        for number in 0..20 {
            publish(gateway, "42", &format!("[{publisher},{number}]")).await;
        }
    });
    futures::future::join_all(publishing).await;
    let mut next = [0; 10];
    for _ in 0..200 {
        let event = client.event().await;
        let publisher = usize::try_from(event[0].as_u64().unwrap()).unwrap();
        assert_eq!(event[1], next[publisher], "of publisher {publisher}");
        next[publisher] += 1;
    }
}

async fn what_cannot_be_published_is_refused_with_a_reason(gateway: &Gateway) {
    let mut client = Client::connect(gateway, "42").await;
    let path = "/v1/users/42/notifications";
    let long = format!("/v1/users/{}/notifications", "x".repeat(257));
    let refused = [
        (path, "", 400),
        (path, "{}", 400),
        (path, r#"{"data":1"#, 400),
        (&long, r#"{"data":1}"#, 400),
        ("/v1/users/a%0Ab/notifications", r#"{"data":1}"#, 400),
        (path, &format!("{{\"data\":\"{}\"}}", "x".repeat(64 * 1024)), 413),
    ];
    for (path, body, expected) in refused {
        let (status, answer) = gateway.post(gateway.admin, path, body).await;
        assert_eq!(status, expected, "{path}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"]["code"].is_string() && answer["error"]["message"].is_string(), "{answer}");
    }
    publish(gateway, "42", r#""marker""#).await;
    assert_eq!(client.event().await, "marker");
}

async fn presence_is_a_snapshot_and_then_each_change(gateway: &Gateway) {
    let first = Client::connect(gateway, "a\"b\\c/☂").await;
    let mut stream = EventStream::open(gateway, "/demo/presence").await;
    // The snapshot may be older than the first user's arrival, which is then a change; its users are read before the count.
    let (event, mut seen) = stream.next().await;
    assert_eq!(event, "snapshot");
    if seen["users"] == json!([]) {
        seen = stream.next().await.1;
        assert_eq!((&seen["user"], &seen["status"]), (&json!("a\"b\\c/☂"), &json!("online")));
    } else {
        assert_eq!(seen, json!({"users": ["a\"b\\c/☂"], "online": 1}));
    }

    let second = [Client::connect(gateway, "2").await, Client::connect(gateway, "2").await];
    change(&mut stream, "2", "online").await;
    let [one, other] = second;
    one.close().await;
    first.close().await;
    change(&mut stream, "a\"b\\c/☂", "offline").await;
    let (_, snapshot) = EventStream::open(gateway, "/demo/presence").await.next().await;
    assert_eq!(snapshot, json!({"users": ["2"], "online": 1}));
    other.close().await;
    change(&mut stream, "2", "offline").await;
    eventually("no user is online", async || {
        EventStream::open(gateway, "/demo/presence").await.next().await.1 == json!({"users": [], "online": 0})
    })
    .await;
}

async fn change(stream: &mut EventStream, user: &str, status: &str) {
    let (event, change) = stream.next().await;
    assert_eq!((event.as_str(), &change["user"], &change["status"]), ("change", &json!(user), &json!(status)));
    assert!(change["at"].is_u64(), "{change}");
}
