//! Taking notifications back over HTTP, the outbox and the command line.

use serde_json::{Value, json};

use crate::support::{Client, Gateway, Options, RedisServer, eventually};

/// One of each backplane.
async fn each(redis: &RedisServer) -> [Gateway; 2] {
    tokio::join!(Options::dev().start(), Options::redis(redis).start()).into()
}

async fn delete(gateway: &Gateway, path: &str) -> u16 {
    gateway.ask_admin("DELETE", path, &[], "").await.status
}

async fn data(gateway: &Gateway, user: &str) -> Vec<String> {
    gateway.listed(user, 100).await.into_iter().map(|listed| listed.data).collect()
}

async fn unread(gateway: &Gateway, user: &str) -> u64 {
    let (_, body) = gateway.get(gateway.admin, &format!("/v1/users/{user}/read-position")).await;
    serde_json::from_str::<Value>(&body).unwrap()["unread"].as_u64().unwrap()
}

#[tokio::test]
async fn a_notification_retracted_over_http_is_in_no_page_resume_or_count() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis).await {
        let (_, welcome) = Client::connect_with_welcome(&gateway, "42").await;
        let start = welcome["cursor"].as_str().unwrap();
        let mut ids = Vec::new();
        for number in 1..=3 {
            ids.push(gateway.store("42", number).await);
        }
        let path = |id: &str| format!("/v1/users/42/notifications/{id}");
        assert_eq!(delete(&gateway, &path(&ids[1])).await, 204);
        assert_eq!(delete(&gateway, &path(&ids[1])).await, 204, "it is gone");
        assert_eq!(data(&gateway, "42").await, ["1", "3"]);
        assert_eq!(unread(&gateway, "42").await, 2);
        for (after, expected) in [(start, vec![1, 3]), (&ids[0], vec![3]), (&ids[1], vec![3])] {
            let (mut client, welcome) = Client::resume(&gateway, "42", after).await;
            assert_eq!(welcome["recovered"], true);
            for number in expected {
                assert_eq!(client.event().await, number);
            }
        }
        let foreign = gateway.store("43", 1).await;
        for wrong in [foreign.as_str(), "1", "%E2%98%82"] {
            let answer = gateway.ask_admin("DELETE", &path(wrong), &[], "").await;
            assert_eq!(answer.error(), (404, "foreign_cursor".to_owned()), "{wrong}");
        }
        assert_eq!(gateway.ask_admin("DELETE", &path("%ff"), &[], "").await.status, 400);
    }
}

#[tokio::test]
async fn a_notification_with_a_collapse_key_replaces_the_earlier_one_however_it_is_published() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let publish = async |data: u32| {
        gateway.store_as("42", json!({"data": data, "collapse": "chat \"7\""})).await;
    };
    publish(1).await;
    gateway.store("42", 2).await;
    publish(3).await;
    assert_eq!(data(&gateway, "42").await, ["2", "3"]);
    let entry = ["XADD", "tidings:outbox", "*", "user", "42", "data", "4", "collapse", "chat \"7\""];
    let _: String = redis.command(&entry).await;
    eventually("it is relayed", async || data(&gateway, "42").await == ["2", "4"]).await;
    let many = r#"{"users":["42","43"],"data":5,"durable":true,"collapse":"chat \"7\""}"#;
    assert_eq!(gateway.post(gateway.admin, "/v1/notifications", many).await.0, 202);
    assert_eq!(
        (data(&gateway, "42").await, data(&gateway, "43").await),
        (vec!["2".into(), "5".into()], vec!["5".into()])
    );
}

#[tokio::test]
async fn a_replacement_that_redis_refuses_leaves_the_earlier_notification() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (_, welcome) = Client::connect_with_welcome(&gateway, "88").await;
    let start = welcome["cursor"].as_str().unwrap();
    let publish = async |data: u32| {
        let body = json!({"data": data, "durable": true, "collapse": "c"}).to_string();
        gateway.post(gateway.admin, "/v1/users/88/notifications", &body).await.0
    };
    assert_eq!(publish(1).await, 202);
    for (earlier, kind) in (1..).zip(["retracted", "expiring", "escalations"]) {
        let key = format!("tidings:{kind}:{{88}}");
        let () = redis.command(&["SET", &key, "x"]).await;
        assert_eq!(publish(earlier + 1).await, 503, "{kind}");
        assert_eq!(redis.command::<u64>(&["XLEN", "tidings:history:{88}"]).await, 1, "{kind}");
        let () = redis.command(&["DEL", &key]).await;
        let (mut client, welcome) = Client::resume(&gateway, "88", start).await;
        assert_eq!(welcome["recovered"], true, "{kind}");
        assert_eq!(client.event().await, earlier, "{kind}");
        assert_eq!(publish(earlier + 1).await, 202, "{kind}");
        assert_eq!(data(&gateway, "88").await, [(earlier + 1).to_string()]);
    }
}

#[tokio::test]
async fn a_collapse_key_is_1_to_128_bytes_of_a_durable_notification() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis).await {
        let publish = async |body: Value| {
            let one = gateway.post(gateway.admin, "/v1/users/42/notifications", &body.to_string()).await.0;
            let mut body = body;
            body["users"] = json!(["42"]);
            assert_eq!(gateway.post(gateway.admin, "/v1/notifications", &body.to_string()).await.0, one);
            one
        };
        let with = |key: &str| json!({"data": 1, "durable": true, "collapse": key});
        assert_eq!(publish(with(&"k".repeat(128))).await, 202);
        assert_eq!(publish(json!({"data": 1, "durable": true, "collapse": null})).await, 202);
        for wrong in ["", &"k".repeat(129), &"é".repeat(65)] {
            assert_eq!(publish(with(wrong)).await, 400);
        }
        assert_eq!(publish(json!({"data": 1, "collapse": "k"})).await, 400);
        assert_eq!(publish(json!({"data": 1, "durable": false, "collapse": "k"})).await, 400);
    }
}

#[tokio::test]
async fn an_erased_user_is_in_no_key_or_value_of_redis() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("presence.offline_delay", "100ms").start().await;
    let user = "the:erased:one";
    let client = Client::connect(&gateway, user).await;
    eventually("it is online", async || redis.online().await == [user]).await;
    client.close().await;
    eventually("it is offline", async || redis.contents().await.contains("last_seen")).await;
    let body = r#"{"data":"the data","durable":true,"collapse":"the collapse","ttl_s":60}"#;
    let path = format!("/v1/users/{user}");
    let headers = [("Idempotency-Key", "the-key")];
    let published = gateway.ask_admin("POST", &format!("{path}/notifications"), &headers, body).await;
    let id = published.json()["id"].as_str().unwrap().to_owned();
    let position = json!({ "id": id }).to_string();
    let read = gateway.ask_admin("PUT", &format!("{path}/read-position?device=phone"), &[], &position).await;
    assert_eq!(read.status, 200);
    for stream in ["tidings:outbox", "tidings:unread"] {
        for number in 0..250 {
            let user = if number % 2 == 0 { user } else { "another" };
            let _: String = redis.command(&["XADD", stream, "*", "user", user, "data", "{", "id", "1"]).await;
        }
    }
    eventually("all are rejected", async || redis.command::<usize>(&["XLEN", "tidings:outbox:rejected"]).await == 250)
        .await;
    assert!(redis.contents().await.contains(user));

    assert_eq!(delete(&gateway, &path).await, 204);
    let contents = redis.contents().await;
    for what in [user, "the data", "the collapse", "the-key", "phone"] {
        assert!(!contents.contains(what), "{what}: {contents}");
    }
    for stream in ["tidings:outbox:rejected", "tidings:unread"] {
        assert_eq!(redis.command::<usize>(&["XLEN", stream]).await, 125, "of others: {stream}");
    }
    let (_, presence) = gateway.get(gateway.admin, &format!("{path}/presence")).await;
    assert_eq!(serde_json::from_str::<Value>(&presence).unwrap()["last_seen"], Value::Null);
    let (_, welcome) = Client::resume(&gateway, user, &id).await;
    assert_eq!(welcome["recovered"], false);
    assert_eq!(delete(&gateway, &path).await, 204, "it may be repeated");
}

#[tokio::test]
async fn an_erased_user_has_nothing_without_redis_either() {
    let gateway = Options::dev().set("presence.offline_delay", "100ms").start().await;
    let client = Client::connect(&gateway, "42").await;
    let id = gateway.store("42", 1).await;
    let presence = async || {
        let (_, presence) = gateway.get(gateway.admin, "/v1/users/42/presence").await;
        let presence: Value = serde_json::from_str(&presence).unwrap();
        (presence["online"].as_bool().unwrap(), presence["last_seen"].as_u64())
    };
    eventually("it is online", async || presence().await.0).await;
    client.close().await;
    eventually("it is offline", async || !presence().await.0).await;
    assert!(presence().await.1.is_some());
    assert_eq!(delete(&gateway, "/v1/users/42").await, 204);
    assert_eq!(presence().await, (false, None));
    assert!(data(&gateway, "42").await.is_empty());
    let (_, welcome) = Client::resume(&gateway, "42", &id).await;
    assert_eq!(welcome["recovered"], false);
}

#[tokio::test]
async fn the_log_names_each_notification_that_is_retracted_over_http_at_debug() {
    let gateway = Options::dev().set("log.level", "debug").start().await;
    let id = gateway.store("42", 1).await;
    assert_eq!(delete(&gateway, &format!("/v1/users/42/notifications/{id}")).await, 204);
    let named = format!("notification retracted by a request user=\"42\" cursor=\"{id}\"");
    eventually("the line", async || gateway.log().contains(&named)).await;
}
