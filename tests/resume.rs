//! Stored notifications reach a client whatever comes between: a drop, another instance, a lost subscription.

use serde_json::Value;

use crate::support::{Client, Gateway, Options, RedisServer, Store, eventually, handshake, token};

/// Connects, and resumes from a cursor.
async fn resume(gateway: &Gateway, user: &str, cursor: &str) -> (Client, Value) {
    let bearer = format!("Bearer {}", token(user));
    let path = format!("/ws?resume={cursor}");
    let mut client = handshake(gateway.public, &path, &[("Authorization", &bearer)]).await.expect("admitted");
    let welcome = client.frame().await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    (client, welcome)
}

/// The data of the next events.
async fn events(client: &mut Client, count: usize) -> Vec<u64> {
    let mut events = Vec::new();
    while events.len() < count {
        events.push(client.event().await.as_u64().unwrap());
    }
    events
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

#[tokio::test]
async fn a_stored_event_tells_its_id_and_time_and_the_next_follows_the_cursor() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let (mut client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    assert_eq!((&welcome["recovered"], &welcome["unread"]), (&false.into(), &0.into()), "{welcome}");
    let cursors = store.publish("42", 1..=2).await;
    for (number, cursor) in (1..).zip(&cursors) {
        let event = client.frame().await;
        assert_eq!((text(&event["id"]), &event["data"]), (cursor.as_str(), &number.into()), "{event}");
        assert!(event["ts"].as_u64().is_some_and(|ms| ms > 1_700_000_000_000), "{event}");
    }
    let (mut again, welcome) = resume(&gateway, "42", text(&welcome["cursor"])).await;
    assert_eq!((&welcome["recovered"], &welcome["unread"]), (&true.into(), &2.into()), "{welcome}");
    assert_eq!(events(&mut again, 2).await, [1, 2]);
    store.publish("42", [3]).await;
    assert_eq!((events(&mut again, 1).await, events(&mut client, 1).await), (vec![3], vec![3]));
}

#[tokio::test]
async fn what_was_stored_while_away_follows_in_order_on_any_instance() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let store = Store::on(&redis);
    let mut client = Client::connect(&one, "42").await;
    let cursors = store.publish("42", 1..=3).await;
    assert_eq!(events(&mut client, 3).await, [1, 2, 3]);
    drop(client);
    store.publish("42", 4..=700).await;
    let (mut client, welcome) = resume(&two, "42", &cursors[2]).await;
    assert_eq!((&welcome["recovered"], text(&welcome["cursor"])), (&true.into(), cursors[2].as_str()), "{welcome}");
    store.publish("42", 701..=710).await;
    assert_eq!(events(&mut client, 707).await, (4..=710).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_place_that_is_not_there_is_answered_and_nothing_is_replayed() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("history.max_len", "10").start().await;
    let store = Store::with(&redis, &[("history.max_len", "10")]);
    let first = store.publish("42", [1]).await.remove(0);
    let foreign = store.publish("43", [1]).await.remove(0);
    store.publish("42", 2..=300).await;
    for cursor in [first.as_str(), &foreign, "garbage", "", "%00", "0123456789abcdef-1-1"] {
        let (mut client, welcome) = resume(&gateway, "42", cursor).await;
        assert_eq!(welcome["recovered"], false, "{cursor}: {welcome}");
        let (mut again, welcome) = resume(&gateway, "42", text(&welcome["cursor"])).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        let number = store.publish("42", [999]).await.len() as u64;
        assert_eq!((events(&mut client, 1).await, events(&mut again, 1).await), (vec![999 * number], vec![999]));
    }
    redis.command::<()>(&["FLUSHALL"]).await;
    let last = store.publish("42", [1]).await.remove(0);
    let (_, welcome) = resume(&gateway, "42", &first).await;
    assert_eq!((&welcome["recovered"], text(&welcome["cursor"])), (&false.into(), last.as_str()), "{welcome}");
}

#[tokio::test]
async fn what_a_lost_subscription_missed_is_filled_without_the_client_noticing() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let mut clients = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "42").await];
    store.publish("42", [1]).await;
    for round in 0..20 {
        redis.command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        store.publish("42", [10 * round + 2, 10 * round + 3]).await;
    }
    let expected: Vec<u64> = std::iter::once(1).chain((0..20).flat_map(|r| [10 * r + 2, 10 * r + 3])).collect();
    for client in &mut clients {
        assert_eq!(events(client, 41).await, expected);
    }
}

#[tokio::test]
async fn a_stored_event_that_was_not_heard_is_found_by_the_next_and_by_itself() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.probe_interval", "200ms").start().await;
    let store = Store::on(&redis);
    let mut client = Client::connect(&gateway, "42").await;
    let unheard = async |data: u32| {
        // Stored as the script would, and never published.
        let cursor = store.publish("nobody-here", [data]).await.remove(0);
        let last: Vec<(String, Vec<String>)> =
            redis.command(&["XREVRANGE", "tidings:history:{42}", "+", "-", "COUNT", "1"]).await;
        let (ms, number) = last.first().map_or(("0", 0), |(id, _)| {
            let (ms, number) = id.split_once('-').unwrap();
            (ms, number.parse::<u64>().unwrap())
        });
        let ms = ms.parse::<u64>().unwrap().max(cursor.split('-').nth(1).unwrap().parse().unwrap());
        let (id, data) = (format!("{ms}-{}", number + 1), data.to_string());
        let entry = ["XADD", "tidings:history:{42}", &id, "event", "\"notification\"", "data", &data];
        redis.command::<String>(&entry).await;
        redis.command::<u64>(&["HINCRBY", "tidings:history", "count", "1"]).await;
    };
    unheard(1).await;
    store.publish("42", [2]).await;
    assert_eq!(events(&mut client, 2).await, [1, 2]);
    unheard(3).await;
    assert_eq!(events(&mut client, 1).await, [3]);
    assert!(gateway.metric("tidings_gaps_found_total").await > 0.0);
}

#[tokio::test]
async fn a_redis_that_went_back_begins_another_epoch_and_clients_are_told() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.probe_interval", "200ms").start().await;
    let store = Store::on(&redis);
    let mut client = Client::connect(&gateway, "42").await;
    let cursors = store.publish("42", 1..=5).await;
    assert_eq!(events(&mut client, 5).await, [1, 2, 3, 4, 5]);
    let epoch: String = redis.command(&["HGET", "tidings:history", "epoch"]).await;
    eventually("the count is known", async || redis.command::<u64>(&["HGET", "tidings:history", "count"]).await == 5)
        .await;
    // As a backup from before the last two would have it.
    redis.command::<u64>(&["HSET", "tidings:history", "count", "3"]).await;
    redis.command::<u64>(&["XTRIM", "tidings:history:{42}", "MAXLEN", "0"]).await;
    eventually("another epoch", async || redis.command::<String>(&["HGET", "tidings:history", "epoch"]).await != epoch)
        .await;
    let (_, welcome) = resume(&gateway, "42", &cursors[4]).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    assert!(gateway.log().contains("another epoch"), "{}", gateway.log());
}
