//! `GET /events`: the stream, its blocks, and the resume. `sse_door.rs` has the requests, `sse_end.rs` how a stream ends.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::{
    Client, Gateway, Nginx, Options, RedisServer, SseClient, Store, eventually, http, text, token, within,
};

const RETRY: std::ops::RangeInclusive<u64> = 1_000..=3_000;

async fn home() -> (RedisServer, Gateway) {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    (redis, gateway)
}

#[tokio::test]
async fn a_stream_has_exactly_the_documented_headers_and_the_welcome_comes_with_them() {
    let gateway = Gateway::dev().await;
    let client = SseClient::ungreeted(&gateway, "42", "", &[("Accept-Encoding", "gzip, deflate, br, zstd")]).await;
    // Nothing was read behind the head, so one write brought both.
    assert!(client.received().starts_with(b"retry: ") && client.received().ends_with(b"\n\n"), "{:?}", client.headers);
    assert_eq!(client.header("content-type"), Some("text/event-stream"));
    assert_eq!(client.header("cache-control"), Some("no-store, no-transform"));
    assert_eq!(client.header("x-accel-buffering"), Some("no"));
    assert_eq!(client.header("connection"), Some("close"));
    for absent in ["content-length", "transfer-encoding", "content-encoding", "access-control-allow-origin"] {
        assert_eq!(client.header(absent), None, "{:?}", client.headers);
    }
}

#[tokio::test]
async fn the_welcome_is_the_first_block_with_a_retry_and_the_cursor_as_its_id() {
    let (_redis, gateway) = home().await;
    let mut retries = HashSet::new();
    for _ in 0..10 {
        let mut client = SseClient::ungreeted(&gateway, "42", "", &[]).await;
        let block = client.block().await.expect("a welcome");
        let welcome = block.json();
        assert_eq!((&welcome["type"], &welcome["user"]), (&json!("welcome"), &json!("42")));
        assert_eq!((&welcome["recovered"], &welcome["unread"]), (&json!(false), &json!(0)), "{welcome}");
        assert_eq!(welcome["heartbeat_ms"], 25_000);
        assert!(welcome["expires_in_ms"].as_u64().is_some_and(|left| left <= 3_600_000), "{welcome}");
        assert_eq!(block.id.as_deref(), welcome["cursor"].as_str());
        let retry = block.retry.expect("a retry");
        assert!(RETRY.contains(&retry), "{retry}");
        retries.insert(retry);
        let (id, data) = (text(&welcome["cursor"]), block.data.unwrap());
        assert_eq!(block.text, format!("retry: {retry}\nid: {id}\ndata: {data}\n\n"));
    }
    assert!(retries.len() > 1, "spread: {retries:?}");
}

/// Published JSON, and the `data` lines that it becomes.
const SHAPES: [(&str, &str); 7] = [
    (r#"{"a" : [1, 1.0, 1e400,"\u00e9é\r\n"] }"#, r#"data: {"a" : [1, 1.0, 1e400,"\u00e9é\r\n"] }"#),
    ("{\"a\":\n1}", "data: {\"a\":\ndata: 1}"),
    ("{\"a\":\r1}", "data: {\"a\":\ndata: 1}"),
    ("{\"a\":\r\n1}", "data: {\"a\":\ndata: 1}"),
    ("[\r\n\n\r\r 1\n]", "data: [\ndata: \ndata: \ndata: \ndata:  1\ndata: ]"),
    ("\r\n \"id: 7\" \n", "data: \"id: 7\""),
    ("0", "data: 0"),
];

#[tokio::test]
async fn the_json_is_sent_byte_for_byte_and_a_line_break_in_it_starts_another_data_line() {
    let (redis, gateway) = home().await;
    let mut framed = SseClient::connect(&gateway, "42").await.0;
    let mut raw = SseClient::ungreeted(&gateway, "42", "?format=raw", &[]).await;
    assert_eq!(raw.block().await.unwrap().text, ":\n\n", "a stream is open once its body has begun");
    for (published, lines) in SHAPES {
        redis.publish("42", published).await;
        assert_eq!(raw.block().await.unwrap().text, format!("{lines}\n\n"), "{published:?}");
        let json = lines.strip_prefix("data: ").unwrap();
        let expected = format!("data: {{\"type\":\"event\",\"event\":\"notification\",\"data\":{json}}}\n\n");
        assert_eq!(framed.block().await.unwrap().text, expected, "{published:?}");
    }
}

#[tokio::test]
async fn a_stored_event_has_its_cursor_as_id_and_an_ephemeral_one_has_none() {
    let (redis, gateway) = home().await;
    let mut framed = SseClient::connect(&gateway, "42").await.0;
    let mut raw = SseClient::ungreeted(&gateway, "42", "?format=raw", &[]).await;
    gateway.connections(2).await;
    let id = gateway.store_as("42", json!({"data": {"n": 1}, "event": "paid"})).await;
    let block = framed.message().await;
    let (frame, data) = (block.json(), block.data.clone().unwrap());
    assert_eq!((&frame["type"], &frame["event"], &frame["id"]), (&json!("event"), &json!("paid"), &json!(id)));
    assert!(frame["ts"].as_u64().is_some_and(|ts| ts > 1_700_000_000_000), "{frame}");
    assert_eq!(block.text, format!("id: {id}\ndata: {data}\n\n"));
    assert_eq!(raw.message().await.text, format!("id: {id}\ndata: {{\"n\":1}}\n\n"));
    redis.publish("42", "2").await;
    for client in [&mut framed, &mut raw] {
        let block = client.message().await;
        assert_eq!((block.id, block.retry), (None, None), "{}", block.text);
    }
}

#[tokio::test]
async fn a_reconnect_with_last_event_id_recovers_and_its_welcome_has_no_id() {
    let (redis, gateway) = home().await;
    let ids = Store::on(&redis).publish("42", 1..=4).await;
    let (mut client, welcome) = SseClient::with(&gateway, "42", "", &[("Last-Event-ID", &ids[1])]).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    for (id, number) in [(&ids[2], 3), (&ids[3], 4)] {
        assert_eq!(client.stored_event().await, (id.clone(), json!(number)));
    }
    let mut again = SseClient::ungreeted(&gateway, "42", "", &[("Last-Event-ID", &ids[3])]).await;
    let block = again.message().await;
    assert_eq!((block.id.as_ref(), &block.json()["recovered"]), (None, &json!(true)), "{}", block.text);
    assert!(RETRY.contains(&block.retry.expect("a retry")));
    // Raw, where the id is all that a page has.
    let mut raw = SseClient::ungreeted(&gateway, "42", "?format=raw", &[("Last-Event-ID", &ids[2])]).await;
    assert_eq!(raw.message().await.text, format!("id: {}\ndata: 4\n\n", ids[3]));
}

#[tokio::test]
async fn last_event_id_takes_precedence_over_resume_in_the_url() {
    let (redis, gateway) = home().await;
    let ids = Store::on(&redis).publish("42", 1..=3).await;
    let query = format!("?resume={}", ids[0]);
    let (mut from_url, welcome) = SseClient::with(&gateway, "42", &query, &[]).await;
    assert_eq!(welcome["recovered"], true);
    assert_eq!(from_url.stored_event().await.1, 2);
    let (mut from_header, welcome) = SseClient::with(&gateway, "42", &query, &[("Last-Event-ID", &ids[1])]).await;
    assert_eq!(welcome["recovered"], true);
    assert_eq!(from_header.stored_event().await.1, 3);
    // A browser without an id sends none; another client may send an empty one.
    let (mut empty, _) = SseClient::with(&gateway, "42", &query, &[("Last-Event-ID", "")]).await;
    assert_eq!(empty.stored_event().await.1, 2);
}

#[tokio::test]
async fn a_value_that_is_no_cursor_or_of_another_epoch_gives_recovered_false_and_nothing_is_replayed() {
    let (redis, gateway) = home().await;
    let store = Store::on(&redis);
    store.publish("42", 1..=3).await;
    let foreign = store.publish("43", [1]).await.remove(0);
    let long = "x".repeat(4_000);
    for value in ["garbage", "acked", "ü", "~", "0123456789abcdef-1-1", &foreign, &long] {
        let mut client = SseClient::ungreeted(&gateway, "42", "", &[("Last-Event-ID", value)]).await;
        let block = client.message().await;
        let welcome = block.json();
        assert_eq!(welcome["recovered"], false, "{value}: {welcome}");
        assert_eq!(block.id.as_deref(), Some(text(&welcome["cursor"])), "a new position");
        redis.publish("42", "7").await;
        assert_eq!(client.event().await, 7, "nothing before it");
    }
}

#[tokio::test]
async fn an_epoch_that_ended_gives_recovered_false() {
    let (redis, gateway) = home().await;
    let store = Store::on(&redis);
    let old = store.publish("42", 1..=2).await.remove(1);
    redis.command::<()>(&["FLUSHALL"]).await;
    let new = store.publish("42", [3]).await.remove(0);
    let mut client = SseClient::ungreeted(&gateway, "42", "", &[("Last-Event-ID", &old)]).await;
    let block = client.message().await;
    assert_eq!((&block.id, &block.json()["recovered"]), (&Some(new), &json!(false)), "{}", block.text);
}

#[tokio::test]
async fn a_stream_has_a_device_and_resumes_from_its_read_position() {
    let (redis, gateway) = home().await;
    let ids = Store::on(&redis).publish("42", 1..=3).await;
    let (mut phone, _) = Client::with_query(&gateway, "42", "?device=phone").await;
    phone.send(&json!({"type": "ack", "id": ids[0]}).to_string()).await;
    eventually("the ack is written", async || {
        let welcome = SseClient::with(&gateway, "42", "?device=phone", &[]).await.1;
        welcome["unread"] == 2
    })
    .await;
    let (mut client, welcome) = SseClient::with(&gateway, "42", "?device=phone&resume=acked", &[]).await;
    assert_eq!((&welcome["recovered"], &welcome["unread"]), (&json!(true), &json!(2)), "{welcome}");
    assert_eq!((client.stored_event().await.1, client.stored_event().await.1), (json!(2), json!(3)));
    let (_, welcome) = SseClient::with(&gateway, "42", "?device=tablet", &[]).await;
    assert_eq!(welcome["unread"], 3, "{welcome}");
}

#[tokio::test]
async fn history_that_cannot_be_read_ends_a_resume_with_4102_and_gives_others_no_cursor() {
    let (redis, gateway) = home().await;
    let id = Store::on(&redis).publish("42", [1]).await.remove(0);
    redis.freeze();
    let resume = async {
        let mut client = SseClient::ungreeted(&gateway, "42", "", &[("Last-Event-ID", &id)]).await;
        let block = client.message().await;
        assert_eq!(client.block().await, None, "the end of the body");
        block
    };
    let fresh = SseClient::ungreeted(&gateway, "42", "", &[]);
    let (last, mut fresh) = Box::pin(async { tokio::join!(resume, fresh) }).await;
    let error = last.json();
    assert_eq!((&error["type"], &error["code"], last.id), (&json!("error"), &json!(4102), None), "{error}");
    assert!(last.retry.is_some_and(|retry| (1_000..=3_000).contains(&retry)), "{:?}", last.retry);
    assert_eq!(gateway.metric("tidings_refusals_total{code=\"4102\"}").await, 1.0);
    let block = fresh.message().await;
    assert_eq!((&block.json()["cursor"], block.id), (&Value::Null, None), "{}", block.text);
    redis.thaw();
}

#[tokio::test]
async fn everything_published_after_the_welcome_arrives_once_and_in_order() {
    const COUNT: u32 = 2_000;
    let (redis, gateway) = home().await;
    let mut client = SseClient::connect(&gateway, "42").await.0;
    let reading = async {
        for number in 0..COUNT {
            assert_eq!(client.event().await, number);
        }
    };
    tokio::join!(redis.publish_all("42", (0..COUNT).map(|number| number.to_string())), reading);
}

#[tokio::test]
async fn a_gap_is_told_in_a_block_without_id_and_stored_events_follow() {
    let (redis, gateway) = home().await;
    let store = Store::on(&redis);
    let mut client = SseClient::connect(&gateway, "42").await.0;
    redis.command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    store.publish("42", [1]).await;
    // In either order.
    let mut blocks = [client.message().await, client.message().await];
    blocks.sort_by_key(|block| block.json()["type"] == "event");
    let [gap, event] = blocks;
    assert!(gap.json()["since_ms"].is_u64() && gap.json()["type"] == "gap", "{}", gap.text);
    assert_eq!((gap.id, gap.retry), (None, None), "{}", gap.text);
    assert_eq!((&event.json()["data"], event.id.is_some()), (&json!(1), true), "{}", event.text);
}

#[tokio::test]
async fn in_exact_mode_a_stream_subscribes_to_its_user_before_the_welcome() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.subscribe", "exact").start().await;
    let mut client = SseClient::connect(&gateway, "42").await.0;
    assert_eq!(redis.publish("42", "1").await, 1, "the only subscriber");
    assert_eq!(client.event().await, 1);
    assert_eq!(gateway.metric("tidings_subscribed_channels").await, 1.0);
    drop(client);
    eventually("the channel is left", async || gateway.metric("tidings_subscribed_channels").await == 0.0).await;
}

#[tokio::test]
async fn a_stream_and_a_websocket_of_a_user_receive_the_same_and_are_counted_by_transport() {
    let (redis, gateway) = home().await;
    let mut stream = SseClient::connect(&gateway, "42").await.0;
    let mut raw = SseClient::ungreeted(&gateway, "42", "?format=raw", &[]).await;
    let mut socket = Client::connect(&gateway, "42").await;
    gateway.connections(3).await;
    let open = async |transport: &str| {
        gateway.metric(&format!("tidings_transport_connections{{transport=\"{transport}\"}}")).await
    };
    assert_eq!((open("sse").await, open("websocket").await), (2.0, 1.0));
    redis.publish("42", "1").await;
    assert_eq!(
        (stream.event().await, socket.event().await, raw.message().await.json()),
        (json!(1), json!(1), json!(1))
    );
    drop((stream, raw));
    eventually("they are gone", async || open("sse").await == 0.0).await;
    assert_eq!(open("websocket").await, 1.0);
}

#[tokio::test]
async fn through_nginx_every_block_comes_at_once_and_the_end_with_its_reason() {
    let (redis, gateway) = home().await;
    let nginx = Nginx::start(&[&gateway]).await;
    let mut client = reqwest_stream(&nginx, &token("42")).await;
    assert_eq!(client.headers()["content-type"], "text/event-stream");
    assert_eq!(client.headers()["cache-control"], "no-store, no-transform");
    let welcome = next_block(&mut client).await;
    assert!(welcome.starts_with("retry: ") && welcome.contains("\"type\":\"welcome\""), "{welcome}");
    for number in 0..5 {
        redis.publish("42", &number.to_string()).await;
        assert!(next_block(&mut client).await.contains(&format!("\"data\":{number}}}")));
    }
    let id = gateway.store("42", 7).await;
    assert!(next_block(&mut client).await.starts_with(&format!("id: {id}\n")));
    assert_eq!(gateway.ask_admin("DELETE", "/v1/users/42/connections", &[], "").await.status, 202);
    assert!(next_block(&mut client).await.contains("\"code\":4011"));
    assert!(client.chunk().await.unwrap().is_none(), "the end of the body");
    assert!(nginx.log().contains("\"GET /events\" 200"), "{}", nginx.log());
}

async fn reqwest_stream(nginx: &Nginx, token: &str) -> reqwest::Response {
    let request = http().get(format!("http://{}/events", nginx.address)).bearer_auth(token);
    within("a response", request.send()).await.unwrap()
}

/// The next block of a stream that is read as a body.
pub async fn next_block(response: &mut reqwest::Response) -> String {
    let mut block = String::new();
    while !block.ends_with("\n\n") {
        let chunk = within("a block", response.chunk()).await.unwrap().expect("the stream goes on");
        block.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    block
}
