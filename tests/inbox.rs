//! What a page needs for an inbox: pages of stored notifications over the socket, and read positions that follow each other.

use std::sync::Arc;

use serde_json::{Value, json};
use tidings::internals::{Ack, Move, PageSize, UserId};
use tokio::task::JoinSet;

use crate::history_store;
use crate::support::{Client, Gateway, Options, Proxy, RedisServer, SseClient, Store, Way, Whose, eventually, text};

/// Stores one for the user `42`; gives its id.
async fn store(gateway: &Gateway, data: impl Into<Value>) -> String {
    store_with(gateway, json!({"data": data.into(), "durable": true})).await
}

async fn store_with(gateway: &Gateway, body: Value) -> String {
    let (status, body) = gateway.post(gateway.admin, "/v1/users/42/notifications", &body.to_string()).await;
    assert_eq!(status, 202, "{body}");
    text(&serde_json::from_str::<Value>(&body).unwrap()["id"]).to_owned()
}

async fn store_numbers(gateway: &Gateway, numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    let mut ids = Vec::new();
    for number in numbers {
        ids.push(store(gateway, number).await);
    }
    ids
}

/// Requests a page with these fields, and gives the next frame.
async fn ask(client: &mut Client, mut fields: Value) -> Value {
    fields["type"] = "history".into();
    client.send(&fields.to_string()).await;
    client.frame().await
}

/// The data of a page's notifications.
fn data(page: &Value) -> Vec<u64> {
    assert_eq!(page["type"], "history", "{page}");
    let notifications = page["notifications"].as_array().unwrap();
    notifications.iter().map(|notification| notification["data"].as_u64().unwrap()).collect()
}

fn down(from: u64, to: u64) -> Vec<u64> {
    (to..=from).rev().collect()
}

/// Both keepers: an instance on Redis, and one on the memory backplane.
async fn keepers(redis: &RedisServer) -> [Gateway; 2] {
    [Gateway::redis(redis).await, Gateway::dev().await]
}

#[tokio::test]
async fn pages_joined_by_next_list_all_from_the_newest_to_the_oldest_whatever_is_stored_meanwhile() {
    let redis = RedisServer::start().await;
    for gateway in keepers(&redis).await {
        let ids = store_numbers(&gateway, 1..=45).await;
        let mut client = Client::connect(&gateway, "42").await;
        let first = ask(&mut client, json!({"ref": "a"})).await;
        assert_eq!((&first["ref"], data(&first)), (&json!("a"), down(45, 26)), "{first}");
        let newest = &first["notifications"][0];
        let expected = json!({"id": ids[44], "event": "notification", "data": 45, "ts": newest["ts"]});
        assert_eq!((newest, newest["ts"].is_u64()), (&expected, true));
        store_numbers(&gateway, 46..=48).await;
        for _ in 0..3 {
            assert_eq!(client.frame().await["type"], "event");
        }
        let second = ask(&mut client, json!({"before": first["next"], "limit": 20})).await;
        assert_eq!((second.get("ref"), data(&second)), (None, down(25, 6)));
        let last = ask(&mut client, json!({"before": second["next"], "limit": 5})).await;
        assert_eq!((data(&last), &last["next"]), (down(5, 1), &Value::Null), "there are no older ones");
        let all = ask(&mut client, json!({"limit": 100})).await;
        assert_eq!((data(&all), &all["next"]), (down(48, 1), &Value::Null));
        let (mut nothing, welcome) = Client::connect_with_welcome(&gateway, "43").await;
        for fields in [json!({}), json!({"before": welcome["cursor"]})] {
            let page = ask(&mut nothing, fields).await;
            assert_eq!((data(&page), &page["next"]), (vec![], &Value::Null));
        }
    }
}

#[tokio::test]
async fn pages_have_no_hole_and_no_double_while_others_store() {
    let redis = RedisServer::start().await;
    // However slowly pages are read, the first one is kept.
    let keep = ("history.max_len", "1000000");
    let gateway = Options::redis(&redis).set(keep.0, keep.1).start().await;
    let publisher = Store::with(&redis, &[keep]);
    publisher.publish("42", 1..=150).await;
    let mut storing = JoinSet::new();
    storing.spawn(async move {
        for number in 151.. {
            publisher.publish("42", [number]).await;
        }
    });
    let mut client = Client::connect(&gateway, "42").await;
    for limit in [1, 7, 100] {
        let (mut listed, mut before) = (Vec::new(), Value::Null);
        loop {
            client.send(&json!({"type": "history", "before": before, "limit": limit}).to_string()).await;
            let mut page = client.frame().await;
            while page["type"] == "event" {
                page = client.frame().await;
            }
            assert!(data(&page).len() <= limit);
            listed.extend(data(&page));
            before = page["next"].take();
            if before.is_null() {
                break;
            }
        }
        assert!(listed[0] >= 150);
        assert_eq!(listed, down(listed[0], 1));
    }
    storing.abort_all();
}

#[tokio::test]
async fn a_request_that_is_refused_is_answered_with_its_ref() {
    let redis = RedisServer::start().await;
    for gateway in keepers(&redis).await {
        let own = store(&gateway, 1).await;
        let mut client = Client::connect(&gateway, "42").await;
        let foreign = Client::connect_with_welcome(&gateway, "43").await.1["cursor"].take();
        let ahead = format!("{}-2", own.strip_suffix("-1").unwrap());
        for fields in [
            json!({"before": foreign}),
            json!({"before": ahead}),
            json!({"before": "0123456789abcdef-1-1"}),
            json!({"before": "garbage"}),
            json!({"limit": 0}),
            json!({"limit": 101}),
            json!({"limit": "5"}),
        ] {
            let mut with_ref = fields.clone();
            with_ref["ref"] = "r".into();
            let error = ask(&mut client, with_ref).await;
            assert_eq!((&error["type"], &error["code"], &error["ref"]), (&json!("error"), &json!(4000), &json!("r")));
            assert_eq!(ask(&mut client, fields).await.get("ref"), None);
        }
        assert_eq!(data(&ask(&mut client, json!({"before": own})).await), Vec::<u64>::new());
        assert_eq!(data(&ask(&mut client, json!({})).await), [1], "the connection goes on");
    }
}

#[tokio::test]
async fn what_expired_by_its_own_ttl_is_on_no_page() {
    let redis = RedisServer::start().await;
    for gateway in keepers(&redis).await {
        store(&gateway, 1).await;
        store_with(&gateway, json!({"data": 2, "durable": true, "ttl_s": 1})).await;
        store(&gateway, 3).await;
        let mut client = Client::connect(&gateway, "42").await;
        eventually("it is gone", async || data(&ask(&mut client, json!({})).await) == [3, 1]).await;
        let page = ask(&mut client, json!({"limit": 1})).await;
        assert_eq!(data(&page), [3]);
        let page = ask(&mut client, json!({"limit": 1, "before": page["next"]})).await;
        assert_eq!((data(&page), &page["next"]), (vec![1], &Value::Null));
    }
}

#[tokio::test]
async fn a_next_that_was_trimmed_since_gives_an_empty_last_page() {
    let redis = RedisServer::start().await;
    for options in [Options::redis(&redis), Options::dev()] {
        let gateway = options.set("history.max_len", "10").start().await;
        store_numbers(&gateway, 1..=8).await;
        let mut client = Client::connect(&gateway, "42").await;
        let mut page = ask(&mut client, json!({"limit": 4})).await;
        assert_eq!(data(&page), down(8, 5));
        drop(client);
        store_numbers(&gateway, 9..=300).await;
        let mut client = Client::connect(&gateway, "42").await;
        page = ask(&mut client, json!({"before": page["next"]})).await;
        assert_eq!((data(&page), &page["next"]), (vec![], &Value::Null));
    }
}

#[tokio::test]
async fn a_page_fits_into_the_send_queue_and_has_at_least_one_notification() {
    let redis = RedisServer::start().await;
    for options in [Options::redis(&redis), Options::dev()] {
        let gateway = options.set("send_queue.max_bytes", "8192").start().await;
        for number in 1..=30 {
            store(&gateway, json!([number, "x".repeat(if number == 7 { 20_000 } else { 700 })])).await;
        }
        let mut client = Client::connect(&gateway, "42").await;
        let (mut listed, mut before) = (Vec::new(), Value::Null);
        loop {
            client.send(&json!({"type": "history", "before": before, "limit": 100}).to_string()).await;
            let frame = client.text().await;
            let mut page: Value = serde_json::from_str(&frame).unwrap();
            let notifications = page["notifications"].as_array().unwrap();
            assert!(frame.len() <= 8_192 || notifications.len() == 1, "{} bytes", frame.len());
            listed.extend(notifications.iter().map(|notification| notification["data"][0].as_u64().unwrap()));
            before = page["next"].take();
            if before.is_null() {
                break;
            }
        }
        assert_eq!(listed, down(30, 1));
    }
}

#[tokio::test]
async fn requests_wait_for_those_before_them_and_all_are_answered_in_order() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    store_numbers(&gateway, 1..=40).await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.freeze();
    for number in 1..=40 {
        client.send(&json!({"type": "history", "ref": number.to_string(), "limit": number}).to_string()).await;
    }
    redis.thaw();
    for number in 1..=40 {
        let page = client.frame().await;
        assert_eq!((&page["ref"], data(&page).len()), (&json!(number.to_string()), number), "{page}");
    }
    assert_eq!(gateway.metric("tidings_history_requests_total{result=\"ok\"}").await, 40.0);
}

#[tokio::test]
async fn a_history_that_cannot_be_read_is_answered_with_4102() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    redis.kill().await;
    let mut error = ask(&mut client, json!({"ref": "r"})).await;
    while error["type"] == "gap" {
        error = client.frame().await;
    }
    assert_eq!(
        (&error["type"], &error["code"], &error["ref"]),
        (&json!("error"), &json!(4102), &json!("r")),
        "{error}"
    );
}

#[tokio::test]
async fn a_client_without_frames_gets_no_pages_and_no_notices() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let id = store(&gateway, 1).await;
    let mut raw = Client::raw(&gateway, "42").await;
    gateway.connections(1).await;
    raw.send(r#"{"type":"history"}"#).await;
    redis.publish("42", &format!(r#"~!{{"retracted":"{id}"}}"#)).await;
    redis.publish("42", "2").await;
    assert_eq!(raw.text().await, "2");
}

/// Each of many clients keeps as many requests waiting as it may: an event for another one comes before most of the answers.
#[tokio::test]
async fn a_flood_of_requests_delays_no_live_event_of_others() {
    const CLIENTS: usize = 40;
    const REQUESTS: usize = 9;
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let publisher = Store::on(&redis);
    for _ in 0..100 {
        publisher.publish_json("42", &json!("x".repeat(1_000)).to_string()).await;
    }
    let (mut other, mut flood) = (Client::connect(&gateway, "other").await, Vec::new());
    for _ in 0..CLIENTS {
        flood.push(Client::connect(&gateway, "42").await);
    }
    for client in &mut flood {
        for _ in 0..REQUESTS {
            client.send(r#"{"type":"history","limit":100}"#).await;
        }
    }
    redis.publish("other", "1").await;
    assert_eq!(other.event().await, 1);
    let answered = gateway.metric("tidings_history_requests_total{result=\"ok\"}").await;
    assert!(answered < (CLIENTS * REQUESTS) as f64, "the event came after all {answered} pages");
    for client in &mut flood {
        for _ in 0..REQUESTS {
            let page = client.frame().await;
            // On a slow machine, some wait too long for their turn.
            let is_page = page["notifications"].as_array().is_some_and(|listed| listed.len() == 100);
            assert!(is_page || page["code"] == 4102, "{}", page["type"]);
        }
    }
}

#[tokio::test]
async fn a_read_position_that_moves_is_told_to_the_other_connections_of_the_device_on_every_instance() {
    let redis = RedisServer::start().await;
    let (one, two, dev) = (Gateway::redis(&redis).await, Gateway::redis(&redis).await, Gateway::dev().await);
    for (near, far) in [(&one, &two), (&one, &one), (&dev, &dev)] {
        let ids = store_numbers(near, 1..=5).await;
        let mut mover = Client::connect(near, "42").await;
        let mut same = Client::connect(far, "42").await;
        let (mut stream, _) = SseClient::with(far, "42", "", &[]).await;
        let mut phones = [
            Client::with_query(near, "42", "?device=phone").await.0,
            Client::with_query(far, "42", "?device=phone").await.0,
        ];
        mover.send(&json!({"type": "ack", "id": ids[2]}).to_string()).await;
        let read = |index: usize, unread: u64| json!({"type": "read", "device": "default", "id": ids[index], "unread": unread});
        assert_eq!(same.frame().await, read(2, 2));
        let block = stream.message().await;
        assert_eq!((block.json(), block.id), (read(2, 2), None));
        // Over HTTP, also backwards, and told to all of the device.
        for (index, unread) in [(0, 4), (4, 0)] {
            let body = json!({"id": ids[index]}).to_string();
            let answer = far.ask_admin("PUT", "/v1/users/42/read-position", &[], &body).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert_eq!((same.frame().await, mover.frame().await), (read(index, unread), read(index, unread)));
            assert_eq!(stream.frame().await, read(index, unread));
        }
        // Nothing moves: no connection is told. The next message is the next frame of all.
        far.ask_admin("PUT", "/v1/users/42/read-position", &[], &json!({"id": ids[4]}).to_string()).await;
        phones[0].send(&json!({"type": "ack", "id": ids[0]}).to_string()).await;
        let read = json!({"type": "read", "device": "phone", "id": ids[0], "unread": 4});
        assert_eq!(phones[1].frame().await, read);
        near.post(near.admin, "/v1/users/42/notifications", r#"{"data":"next"}"#).await;
        let [first, second] = &mut phones;
        for client in [&mut mover, &mut same, first, second] {
            assert_eq!(client.event().await, "next");
        }
        assert_eq!(stream.event().await, "next");
        if near.admin == one.admin {
            redis.command::<()>(&["FLUSHALL"]).await;
        }
    }
}

/// What a backend sets is not undone by what a client had acknowledged before, and had not been written yet.
#[tokio::test]
async fn a_read_position_set_over_http_replaces_an_earlier_ack() {
    let redis = RedisServer::start().await;
    for gateway in keepers(&redis).await {
        let ids = store_numbers(&gateway, 1..=5).await;
        let mut client = Client::connect(&gateway, "42").await;
        let mut phone = Client::with_query(&gateway, "42", "?device=phone").await.0;
        for acknowledging in [&mut client, &mut phone] {
            acknowledging.send(&json!({"type": "ack", "id": ids[4]}).to_string()).await;
            // Its answer shows that the ack was read.
            ask(acknowledging, json!({})).await;
        }
        let path = "/v1/users/42/read-position";
        let answer = gateway.ask_admin("PUT", path, &[], &json!({"id": ids[1]}).to_string()).await;
        assert_eq!(answer.json(), json!({"device": "default", "id": ids[1], "unread": 3}));
        let position = async |device: &str| gateway.get(gateway.admin, &format!("{path}?device={device}")).await.1;
        eventually("acks are written", async || position("phone").await.contains(&ids[4])).await;
        assert!(position("default").await.contains(&ids[1]), "{}", position("default").await);
        let read = json!({"type": "read", "device": "default", "id": ids[1], "unread": 3});
        assert_eq!(client.frame().await, read);
    }
}

#[tokio::test]
async fn a_read_position_that_moved_during_a_gap_is_told_after_it() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let ids = store_numbers(&gateway, 1..=5).await;
    let mut client = Client::connect(&gateway, "42").await;
    let mut phone = Client::with_query(&gateway, "42", "?device=phone").await.0;
    // Moved without a notice, as by another instance while this one has no subscription.
    redis.command::<()>(&["HSET", "tidings:read:{42}", "default", &ids[3], "", &ids[3]]).await;
    let _: u32 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(client.frame().await["type"], "gap");
    let read = json!({"type": "read", "device": "default", "id": ids[3], "unread": 1});
    assert_eq!(client.frame().await, read);
    // It has no position, so none can have moved.
    assert_eq!(phone.frame().await["type"], "gap");
    redis.publish("42", "\"next\"").await;
    assert_eq!(phone.event().await, "next");
}

async fn delete(gateway: &Gateway, path: &str) {
    let answer = gateway.ask_admin("DELETE", path, &[], "").await;
    assert_eq!(answer.status, 204, "{}", answer.body);
}

#[tokio::test]
async fn a_retracted_notification_is_told_and_is_on_no_page_and_not_unread() {
    let redis = RedisServer::start().await;
    for gateway in keepers(&redis).await {
        let ids = store_numbers(&gateway, 1..=5).await;
        let mut clients = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "42").await];
        let (mut stream, _) = SseClient::with(&gateway, "42", "", &[]).await;
        delete(&gateway, &format!("/v1/users/42/notifications/{}", ids[2])).await;
        let retracted = json!({"type": "retracted", "id": ids[2]});
        for client in &mut clients {
            assert_eq!(client.frame().await, retracted);
        }
        let block = stream.message().await;
        assert_eq!((block.json(), block.id), (retracted, None));
        assert_eq!(data(&ask(&mut clients[0], json!({})).await), [5, 4, 2, 1]);
        assert_eq!(data(&ask(&mut clients[0], json!({"before": ids[2]})).await), [2, 1], "its cursor is still one");
        clients[0].send(&json!({"type": "ack", "id": ids[1]}).to_string()).await;
        assert_eq!(clients[1].frame().await["unread"], 2);
    }
}

/// The instance learns of the retraction while it waits for the page that Redis has read before it.
#[tokio::test]
async fn a_page_after_the_frame_of_a_retraction_does_not_list_what_was_retracted() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let (gateway, other) = tokio::join!(Options::redis_at(&proxy.url()).start(), Gateway::redis(&redis));
    let ids = store_numbers(&other, 1..=3).await;
    let mut client = Client::connect(&gateway, "42").await;
    assert_eq!(data(&ask(&mut client, json!({})).await), [3, 2, 1]);
    let reads = async || calls(&redis).await.into_iter().find(|(name, _)| name == "xrevrange").unwrap().1;
    let before = reads().await;
    proxy.blackhole(Whose::Commands, Way::FromRedis);
    client.send(&json!({"type": "history"}).to_string()).await;
    eventually("redis has read the page", async || reads().await > before).await;
    delete(&other, &format!("/v1/users/42/notifications/{}", ids[1])).await;
    assert_eq!(client.frame().await, json!({"type": "retracted", "id": ids[1]}));
    proxy.heal();
    assert_eq!(data(&client.frame().await), [3, 1]);
}

#[tokio::test]
async fn connections_of_an_erased_user_go_on_and_earlier_cursors_are_foreign() {
    let redis = RedisServer::start().await;
    for gateway in keepers(&redis).await {
        let ids = store_numbers(&gateway, 1..=5).await;
        let mut client = Client::connect(&gateway, "42").await;
        let (mut stream, _) = SseClient::with(&gateway, "42", "", &[]).await;
        delete(&gateway, "/v1/users/42").await;
        let erased = json!({"type": "retracted", "all": true});
        assert_eq!((client.frame().await, stream.frame().await), (erased.clone(), erased));
        assert_eq!(data(&ask(&mut client, json!({})).await), Vec::<u64>::new());
        let error = ask(&mut client, json!({"before": ids[4], "ref": "r"})).await;
        assert_eq!((&error["code"], &error["ref"]), (&json!(4000), &json!("r")), "{error}");
        let ids = store_numbers(&gateway, 6..=7).await;
        for number in 6..=7 {
            let event = client.frame().await;
            assert_eq!((&event["data"], event.get("replayed")), (&json!(number), None), "{event}");
            assert_eq!(stream.event().await, number);
        }
        assert_eq!(data(&ask(&mut client, json!({"before": ids[1]})).await), [6]);
        client.send(&json!({"type": "ack", "id": ids[0]}).to_string()).await;
        assert_eq!(stream.frame().await["unread"], 1);
    }
}

/// While clients resume: each is closed by nothing, and receives nothing of before after it was told of the erasure.
#[tokio::test]
async fn an_erasure_during_a_resume_closes_no_connection() {
    let redis = RedisServer::start().await;
    let (near, far) = (Gateway::redis(&redis).await, Gateway::redis(&redis).await);
    let publisher = Store::on(&redis);
    for round in 0..20 {
        let first = publisher.publish("42", 1..=250).await.remove(0);
        let resume = async || Client::resume(&near, "42", &first).await;
        let (resumed, ()) =
            tokio::join!(async { tokio::join!(resume(), resume(), resume(), resume()) }, delete(&far, "/v1/users/42"));
        let marker = publisher.publish("42", [1_000 + round]).await.remove(0);
        for (mut client, welcome) in [resumed.0, resumed.1, resumed.2, resumed.3] {
            let mut is_told = welcome["recovered"] == false;
            loop {
                let frame = client.frame().await;
                match text(&frame["type"]) {
                    "retracted" => is_told = frame["all"] == true,
                    "event" if frame["id"] == marker => break,
                    "event" => assert!(!is_told, "{frame} after it was erased"),
                    _ => panic!("{frame}"),
                }
            }
            assert!(is_told, "{welcome}");
        }
    }
}

#[tokio::test]
async fn the_furthest_position_that_any_device_has_read_is_kept() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let ids = store_numbers(&gateway, 1..=3).await;
    let put = async |device: &str, id: &str| {
        let path = format!("/v1/users/42/read-position?device={device}");
        let answer = gateway.ask_admin("PUT", &path, &[], &json!({"id": id}).to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    let furthest = async || redis.command::<String>(&["HGET", "tidings:read:{42}", ""]).await;
    for (device, id, expected) in [("a", 1, 1), ("b", 0, 1), ("b", 2, 2), ("b", 0, 2), ("a", 2, 2)] {
        put(device, &ids[id]).await;
        assert_eq!(furthest().await, ids[expected], "{device} {id}");
    }
    // It is no device: 16 of them have room.
    for number in 1..=14 {
        put(&format!("c{number}"), &ids[0]).await;
    }
    let body = json!({"id": ids[0]}).to_string();
    let answer = gateway.ask_admin("PUT", "/v1/users/42/read-position?device=d", &[], &body).await;
    assert_eq!(answer.status, 409);
}

#[tokio::test]
async fn a_notice_keeps_its_place_among_the_events() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let id = store(&gateway, 0).await;
    let mut clients = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "42").await];
    let (mut stream, _) = SseClient::with(&gateway, "42", "", &[]).await;
    for number in 0..50 {
        redis.publish("42", &number.to_string()).await;
        redis.publish("42", &format!(r#"~!{{"retracted":"{id}"}}"#)).await;
    }
    redis.publish("42", "~!{}").await;
    redis.publish("42", "50").await;
    let retracted = json!({"type": "retracted", "id": id});
    for number in 0..50 {
        for client in &mut clients {
            assert_eq!((client.event().await, client.frame().await), (json!(number), retracted.clone()));
        }
        assert_eq!(stream.event().await, number);
        let block = stream.message().await;
        assert_eq!((block.json(), block.id), (retracted.clone(), None));
    }
    assert_eq!(clients[0].event().await, 50);
    assert_eq!(gateway.metric("tidings_messages_dropped_total{reason=\"stamp\"}").await, 1.0);
}

/// The welcome's `unread` counts those that are replayed: a badge adds the others.
#[tokio::test]
async fn exactly_the_events_that_the_welcome_counts_are_marked_as_replayed() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let publisher = Store::on(&redis);
    let first = publisher.publish("42", 1..=350).await.remove(0);
    // Fewer in all than the history keeps.
    for stored in (350..950).step_by(30) {
        let storing = async {
            for number in stored + 1..=stored + 30 {
                publisher.publish("42", [number]).await;
            }
        };
        let ((mut client, welcome), ()) = tokio::join!(Client::resume(&gateway, "42", &first), storing);
        let counted = welcome["unread"].as_u64().unwrap();
        for number in 2..=stored + 30 {
            let event = client.frame().await;
            let replayed = (u64::from(number) <= counted).then_some(json!(true));
            assert_eq!((&event["data"], event.get("replayed")), (&json!(number), replayed.as_ref()), "{counted}");
        }
    }
    let (mut stream, welcome) = SseClient::with(&gateway, "42", &format!("?resume={first}"), &[]).await;
    let event = stream.frame().await;
    assert_eq!((&welcome["recovered"], &event["replayed"]), (&json!(true), &json!(true)), "{event}");
}

#[tokio::test]
async fn pages_over_http_from_the_newest_are_those_over_the_socket() {
    let redis = RedisServer::start().await;
    for gateway in keepers(&redis).await {
        let ids = store_numbers(&gateway, 1..=7).await;
        let list = async |query: &str| {
            let answer = gateway.ask_admin("GET", &format!("/v1/users/42/notifications{query}"), &[], "").await;
            (answer.status, serde_json::from_str::<Value>(&answer.body).unwrap())
        };
        let mut client = Client::connect(&gateway, "42").await;
        let mut over_socket = ask(&mut client, json!({"limit": 4})).await;
        over_socket.as_object_mut().unwrap().remove("type");
        assert_eq!(list("?order=newest&limit=4").await, (200, over_socket.clone()));
        let query = format!("?order=newest&limit=4&before={}", text(&over_socket["next"]));
        let (status, rest) = list(&query).await;
        let listed: Vec<_> = rest["notifications"].as_array().unwrap().iter().map(|one| text(&one["id"])).collect();
        assert_eq!((status, listed, &rest["next"]), (200, vec![ids[2].as_str(), &ids[1], &ids[0]], &Value::Null));
        assert_eq!(list("?order=oldest&limit=1").await.1["notifications"][0]["id"], ids[0]);
        for (query, status, code) in [
            ("?order=newest&before=0123456789abcdef-1-1", 410, "cursor_gone"),
            ("?order=newest&before=x", 400, "bad_cursor"),
            ("?order=other", 400, "bad_request"),
            (&format!("?before={}", ids[0]), 400, "bad_request"),
            (&format!("?order=newest&after={}", ids[0]), 400, "bad_request"),
        ] {
            let (got, body) = list(query).await;
            assert_eq!((got, &body["error"]["code"]), (status, &json!(code)), "{query}");
        }
    }
}

/// The calls of each command so far, those of scripts too.
async fn calls(redis: &RedisServer) -> Vec<(String, u64)> {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let call = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().unwrap()))
    };
    let own = |name: &str| matches!(name, "info" | "config|resetstat") || name.starts_with("client") || name == "hello";
    stats.lines().filter_map(call).filter(|(name, _)| !own(name)).collect()
}

#[tokio::test]
async fn a_page_and_an_ack_cost_redis_one_script_and_few_commands() {
    let redis = Arc::new(RedisServer::start().await);
    let store = history_store::Store::new(Some(&redis), &[]);
    let user = UserId::new("42").unwrap();
    let mut places = Vec::new();
    for number in 0..60 {
        places.push(store.store("42", &number.to_string()).await);
    }
    let page = PageSize { entries: 20, bytes: 1 << 20 };
    store.ack("42", "default", places[0]).await;
    store.history.page(&user, None, page).await.unwrap().unwrap();
    // The scripts, and the commands in them, since the last call.
    let cost = async |what: &str| {
        let calls = calls(&redis).await;
        redis.command::<()>(&["CONFIG", "RESETSTAT"]).await;
        println!("{what}: {calls:?}");
        let scripts: u64 = calls.iter().filter(|(name, _)| name.starts_with("eval")).map(|(_, count)| count).sum();
        (scripts, calls.iter().map(|(_, count)| count).sum::<u64>() - scripts)
    };
    cost("before").await;
    let listed = store.history.page(&user, None, page).await.unwrap().unwrap();
    assert_eq!(listed.entries.len(), 20);
    assert_eq!(cost("a page").await, (1, 3));
    // All are read then, or a few are not. Moving a position without telling it took 7.
    for (index, commands) in [(59, 5), (50, 7)] {
        let ack = Ack { user: user.clone(), device: "default".into(), cursor: places[index], by: None };
        store.history.ack(&[ack], Move::Exactly).await.unwrap();
        assert_eq!(cost("an ack").await, (1, commands), "{index}");
    }
}
