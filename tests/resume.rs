//! Durable notifications reach a client in spite of a drop, a change of instance or a lost subscription.

use crate::support::{Client, Gateway, Options, RedisServer, Store, eventually, handshake, text, token};

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
    assert!(gateway.log().contains("a new epoch begins"), "{}", gateway.log());
}

#[tokio::test]
async fn notifications_that_were_evicted_are_missed_by_a_client_that_had_none_of_them() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let welcome = Client::connect_with_welcome(&gateway, "42").await.1;
    let cursors = store.publish("42", 1..=3).await;
    redis.command::<u64>(&["DEL", "tidings:history:{42}"]).await;
    for (from, recovered) in [(text(&welcome["cursor"]), false), (&cursors[1], false), (&cursors[2], true)] {
        let (_, welcome) = Client::resume(&gateway, "42", from).await;
        assert_eq!((&welcome["recovered"], &welcome["cursor"]), (&recovered.into(), &cursors[2].as_str().into()));
    }
}

#[tokio::test]
async fn a_client_that_missed_nothing_recovers_after_everything_it_received_has_expired() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("history.ttl", "1s").start().await;
    let never = Client::connect_with_welcome(&gateway, "43").await.1;
    let (mut client, before) = Client::connect_with_welcome(&gateway, "42").await;
    let id = gateway.store("42", 1).await;
    assert_eq!(client.stored_event().await.1, 1);
    client.close().await;
    eventually("the stream has expired", async || redis.command::<u64>(&["EXISTS", "tidings:history:{42}"]).await == 0)
        .await;
    for (user, from, recovered) in
        [("42", id.as_str(), true), ("42", text(&before["cursor"]), false), ("43", text(&never["cursor"]), true)]
    {
        let welcome = Client::resume(&gateway, user, from).await.1;
        assert_eq!(welcome["recovered"], recovered, "{welcome}");
    }
    let (mut again, welcome) = Client::resume(&gateway, "42", &id).await;
    assert_eq!(welcome["cursor"], id.as_str());
    gateway.store("42", 2).await;
    assert_eq!(again.stored_event().await.1, 2);
}

#[tokio::test]
async fn a_gap_that_cannot_be_filled_closes_with_4205_and_the_resume_tells_it() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let mut client = Client::connect(&gateway, "42").await;
    let cursors = store.publish("42", [1]).await;
    assert_eq!(events(&mut client, 1).await, [1]);
    redis.store_unheard(2).await;
    // Trimmed before any client read it.
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
    let gateway = Options::redis(&redis)
        .set("send_queue.slow_client", "drop_oldest")
        .set("send_queue.write_timeout", "1h")
        .start()
        .await;
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

#[tokio::test]
async fn a_forged_stamp_harms_nobody() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.probe_interval", "100ms").start().await;
    let store = Store::on(&redis);
    let (mut client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    let cursor = store.publish("42", [1]).await.remove(0);
    assert_eq!(events(&mut client, 1).await, [1]);
    let epoch: String = redis.command(&["HGET", "tidings:history", "epoch"]).await;
    let dropped = async || gateway.metric("tidings_messages_dropped_total{reason=\"stamp\"}").await;
    for (user, forged) in [
        ("absent", "~99999999999 x".to_owned()),
        ("absent", "~18446744073709551615 x".to_owned()),
        ("absent", format!("~100000000000000 {cursor} \"notification\" 1")),
        ("42", "~18446744073709551614 x".to_owned()),
        ("42", "~".to_owned()),
        ("42", "~5 0123456789abcdef-1795000000123-17 \"notification\" 1".to_owned()),
        ("42", format!("~1 {cursor} \"notification\" \"again\"")),
    ] {
        redis.publish(user, &forged).await;
    }
    redis.publish("42", "2").await;
    assert_eq!(events(&mut client, 1).await, [2], "no client receives any of them");
    eventually("they are counted", async || dropped().await >= 3.0).await;
    let stored = async || redis.command::<u64>(&["HINCRBY", "tidings:history", "count", "0"]).await;
    assert_eq!(stored().await, 1);
    store.publish("42", [3]).await;
    assert_eq!(events(&mut client, 1).await, [3]);
    let (mut again, later) = Client::resume(&gateway, "42", text(&welcome["cursor"])).await;
    assert_eq!(later["recovered"], true, "{welcome} {later} {}", gateway.log());
    assert_eq!(events(&mut again, 2).await, [1, 3]);
    assert_eq!(redis.command::<String>(&["HGET", "tidings:history", "epoch"]).await, epoch);
    assert_eq!(stored().await, 2);
}

#[tokio::test]
async fn a_count_that_nobody_can_go_on_from_is_begun_anew() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.probe_interval", "100ms").start().await;
    let store = Store::on(&redis);
    for broken in ["18446744073709551616", "x", "1.5", "-1"] {
        let epoch: String = redis.command(&["HGET", "tidings:history", "epoch"]).await;
        redis.command::<u64>(&["HSET", "tidings:history", "count", broken]).await;
        eventually("another epoch", async || {
            redis.command::<String>(&["HGET", "tidings:history", "epoch"]).await != epoch
        })
        .await;
        let mut client = Client::connect(&gateway, "42").await;
        store.publish("42", [7]).await;
        assert_eq!(events(&mut client, 1).await, [7], "after {broken}");
    }
}

/// Of these users: not a position, beyond what Lua represents exactly, and written differently.
const PLACES_OF_ANOTHER_PROGRAM: [(&str, &str); 6] = [
    ("text", "x"),
    ("long", "99999999999999999999999-1"),
    ("many", "1-9007199254740992"),
    ("zeros", "05-07"),
    ("negative", "5--7"),
    ("exponent", "1e3-7"),
];

#[tokio::test]
async fn a_key_that_somebody_else_wrote_to_keeps_no_other_user_from_being_level() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let mut clients = Vec::new();
    for user in ["41", "42", "43"] {
        clients.push(Client::connect(&gateway, user).await);
    }
    let _bad = Client::connect(&gateway, "bad").await;
    redis.command::<()>(&["SET", "tidings:history:{bad}", "x"]).await;
    let mut others = Vec::new();
    for (user, place) in PLACES_OF_ANOTHER_PROGRAM {
        others.push(Client::connect(&gateway, user).await);
        redis.command::<u64>(&["HSET", "tidings:history", &format!(":{user}"), place]).await;
    }
    let entry = ["XADD", "tidings:history:{entry}", "18446744073709551615-1", "event", "\"x\"", "data", "1"];
    redis.command::<String>(&entry).await;
    others.push(Client::connect(&gateway, "entry").await);
    for round in 1..=5 {
        redis.command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        for (user, client) in ["41", "42", "43"].iter().zip(&mut clients) {
            store.publish(user, [round]).await;
            assert_eq!(events(client, 1).await, [u64::from(round)], "{user}");
        }
    }
    for (user, place) in PLACES_OF_ANOTHER_PROGRAM {
        let cursor = store.publish(user, [1]).await.remove(0);
        assert!(cursor.ends_with("-1"), "{cursor}: as if it had no place");
        let welcome = Client::resume(&gateway, user, &cursor).await.1;
        assert_eq!((&welcome["recovered"], &welcome["cursor"]), (&true.into(), &cursor.into()), "after {place}");
    }
}

#[tokio::test]
async fn a_redis_that_went_back_while_an_instance_was_deaf_is_found_out_by_what_had_been_heard() {
    let mut redis = RedisServer::start_with(&["--save", "", "--appendonly", "no"]).await;
    let gateway = Options::redis(&redis).set("redis.probe_interval", "2s").start().await;
    let store = Store::on(&redis);
    let mut client = Client::connect(&gateway, "42").await;
    store.publish("42", 1..=5).await;
    redis.command::<String>(&["SAVE"]).await;
    let epoch: String = redis.command(&["HGET", "tidings:history", "epoch"]).await;
    let cursors = store.publish("42", 6..=7).await;
    assert_eq!(events(&mut client, 7).await, [1, 2, 3, 4, 5, 6, 7]);
    redis.restart().await;
    gateway.ready().await;
    eventually("another epoch", async || redis.command::<String>(&["HGET", "tidings:history", "epoch"]).await != epoch)
        .await;
    assert_eq!(client.close_code().await, 4205);
    let (_, welcome) = Client::resume(&gateway, "42", &cursors[1]).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
}

#[tokio::test]
async fn whoever_waits_for_the_history_is_sent_away_with_everybody_else() {
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).set("drain.window", "100ms").start().await;
    let cursor = Store::on(&redis).publish("42", [1]).await.remove(0);
    redis.freeze();
    let bearer = format!("Bearer {}", token("42"));
    let path = format!("/ws?resume={cursor}");
    let stopping = async {
        eventually("it is there", async || gateway.metric("tidings_connections").await == 1.0).await;
        gateway.signal("TERM");
    };
    let headers = [("Authorization", bearer.as_str())];
    let (client, ()) = tokio::join!(handshake(gateway.public, &path, &headers), stopping);
    let mut client = client.expect("admitted");
    assert_eq!(client.close_code().await, 4200);
    assert!(gateway.exit().await.success());
}
