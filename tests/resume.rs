//! Stored notifications reach a client whatever comes between: a drop, another instance, a lost subscription.

use crate::support::{Client, Gateway, Options, RedisServer, Store, eventually, text};

/// The data of the next events.
async fn events(client: &mut Client, count: usize) -> Vec<u64> {
    let mut events = Vec::new();
    while events.len() < count {
        events.push(client.event().await.as_u64().unwrap());
    }
    events
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
    let (mut again, welcome) = Client::resume(&gateway, "42", text(&welcome["cursor"])).await;
    assert_eq!((&welcome["recovered"], &welcome["unread"]), (&true.into(), &2.into()), "{welcome}");
    assert_eq!(events(&mut again, 2).await, [1, 2]);
    store.publish("42", [3]).await;
    assert_eq!((events(&mut again, 1).await, events(&mut client, 1).await), (vec![3], vec![3]));
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
        let (mut client, welcome) = Client::resume(&gateway, "42", cursor).await;
        assert_eq!(welcome["recovered"], false, "{cursor}: {welcome}");
        let (mut again, welcome) = Client::resume(&gateway, "42", text(&welcome["cursor"])).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        let number = store.publish("42", [999]).await.len() as u64;
        assert_eq!((events(&mut client, 1).await, events(&mut again, 1).await), (vec![999 * number], vec![999]));
    }
    redis.command::<()>(&["FLUSHALL"]).await;
    let last = store.publish("42", [1]).await.remove(0);
    let (_, welcome) = Client::resume(&gateway, "42", &first).await;
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
    redis.store_unheard(1).await;
    store.publish("42", [2]).await;
    assert_eq!(events(&mut client, 2).await, [1, 2]);
    redis.store_unheard(3).await;
    assert_eq!(events(&mut client, 1).await, [3]);
    assert!(gateway.metric("tidings_gaps_found_total").await > 0.0);
}

#[tokio::test]
async fn a_stored_event_that_was_not_heard_is_found_by_the_next_of_any_user() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.probe_interval", "1h").start().await;
    let store = Store::on(&redis);
    let mut client = Client::connect(&gateway, "42").await;
    store.publish("43", [1]).await;
    redis.store_unheard(2).await;
    store.publish("43", [3]).await;
    assert_eq!(events(&mut client, 1).await, [2]);
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
    let (_, welcome) = Client::resume(&gateway, "42", &cursors[4]).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    assert!(gateway.log().contains("another epoch"), "{}", gateway.log());
}

#[tokio::test]
async fn a_gap_that_cannot_be_filled_closes_with_4205_and_the_resume_tells_it() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let mut client = Client::connect(&gateway, "42").await;
    let cursors = store.publish("42", [1]).await;
    assert_eq!(events(&mut client, 1).await, [1]);
    redis.store_unheard(2).await;
    // Trimmed before anybody read it.
    redis.store_unheard(3).await;
    redis.command::<u64>(&["XTRIM", "tidings:history:{42}", "MAXLEN", "1"]).await;
    store.publish("42", [4]).await;
    assert_eq!(client.close_code().await, 4205);
    let (_, welcome) = Client::resume(&gateway, "42", &cursors[0]).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
}

#[tokio::test]
async fn a_slow_client_whose_oldest_are_dropped_gets_every_stored_event_all_the_same() {
    const COUNT: u32 = 900;
    let redis = RedisServer::start().await;
    let gateway =
        Options::redis(&redis).set("outbox.slow_client", "drop_oldest").set("outbox.write_timeout", "1h").start().await;
    let store = Store::on(&redis);
    let mut slow = Client::connect_narrow(&gateway, "42").await;
    let mut pace = Client::connect(&gateway, "43").await;
    let filling = format!("\"{}\"", ".".repeat(10_000));
    for number in 0..COUNT {
        store.publish("42", [number]).await;
        redis.publish("42", &filling).await;
        redis.publish("43", "1").await;
        pace.event().await;
    }
    assert!(gateway.metric("tidings_deliveries_dropped_total").await > 0.0);
    let mut numbers = Vec::new();
    while numbers.last() != Some(&u64::from(COUNT - 1)) {
        numbers.extend(slow.event().await.as_u64());
    }
    assert_eq!(numbers, (0..u64::from(COUNT)).collect::<Vec<_>>());
    assert!(gateway.metric("tidings_replayed_total").await > 0.0);
}
