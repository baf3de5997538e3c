//! A client that does not read delays no other client, and costs the instance only bounded memory.

use futures::future::join_all;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Gateway, Options, RedisServer, SseClient, eventually};

const TOO_SLOW: &str = "tidings_connections_closed_total{code=\"4203\"}";

/// A client of either transport, with so little room for what it does not read that the server soon notices.
enum Slow {
    WebSocket(Box<Client>),
    Stream(SseClient),
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    WebSocket,
    Stream,
}

const TRANSPORTS: [Transport; 2] = [Transport::WebSocket, Transport::Stream];

impl Slow {
    async fn connect(gateway: &Gateway, user: &str, transport: Transport) -> Self {
        match transport {
            Transport::WebSocket => Self::WebSocket(Box::new(Client::connect_narrow(gateway, user).await)),
            Transport::Stream => Self::Stream(SseClient::narrow(gateway, user).await),
        }
    }

    async fn event(&mut self) -> Value {
        match self {
            Self::WebSocket(client) => client.event().await,
            Self::Stream(client) => client.event().await,
        }
    }

    /// A client that reads nothing at all may see only the end.
    async fn is_told_or_cut(&mut self) {
        let code = match self {
            Self::WebSocket(client) => u64::from(client.close_code().await),
            Self::Stream(client) => client.last_code().await,
        };
        assert!([4203, 1006].contains(&code), "{code}");
    }
}

/// A payload of about this many bytes with a number in it.
fn numbered(number: u32, bytes: usize) -> String {
    json!({"number": number, "filling": ".".repeat(bytes)}).to_string()
}

/// Publishes rounds to the slow client's user and to another; both others must have a round before the next comes.
async fn rounds(redis: &RedisServer, others: &mut [(&str, Client)], count: std::ops::Range<u32>, bytes: usize) {
    for number in count {
        for user in ["42", "43"] {
            redis.publish(user, &numbered(number, bytes)).await;
        }
        for (user, client) in others.iter_mut() {
            assert_eq!(client.event().await["number"], number, "user {user}");
        }
    }
}

/// Of so many events with a filling of 10,000, the client gets some, the last among them, whole and in order; the
/// others are counted as dropped, and there are some.
pub async fn assert_newest_in_order(gateway: &Gateway, mut next: impl AsyncFnMut() -> Value, count: u32) {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&u64::from(count - 1)) {
        let event = next().await;
        assert_eq!(event["filling"].as_str().unwrap().len(), 10_000);
        numbers.push(event["number"].as_u64().unwrap());
    }
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let lost = f64::from(count - u32::try_from(numbers.len()).unwrap());
    assert!(lost > 0.0);
    assert_eq!(gateway.metric("tidings_deliveries_dropped_total").await, lost);
}

#[tokio::test]
async fn a_client_that_stops_reading_is_ended_and_delays_nobody() {
    for transport in TRANSPORTS {
        stops_reading(transport).await;
    }
}

async fn stops_reading(transport: Transport) {
    let redis = RedisServer::start().await;
    // Only its queue ends it; a slow machine sends no pings meanwhile.
    let options = Options::redis(&redis).set("send_queue.write_timeout", "1h").set("server.heartbeat", "1h");
    let gateway = options.start().await;
    let mut slow = Slow::connect(&gateway, "42", transport).await;
    let mut others = [("42", Client::connect(&gateway, "42").await), ("43", Client::connect(&gateway, "43").await)];
    let mut number = 0;
    while gateway.metric(TOO_SLOW).await == 0.0 {
        rounds(&redis, &mut others, number..number + 10, 100_000).await;
        number += 10;
        assert!(number < 1_000, "100 MB later it is still connected");
    }
    assert_eq!(gateway.metric(TOO_SLOW).await, 1.0);
    assert!(gateway.metric("tidings_deliveries_dropped_total").await > 0.0);
    rounds(&redis, &mut others, number..number + 10, 100_000).await;
    slow.is_told_or_cut().await;
    eventually("it is gone", async || gateway.metric("tidings_connections").await == 2.0).await;
}

#[tokio::test]
async fn a_client_that_reads_is_not_closed_for_a_burst_while_it_connects() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("send_queue.max_messages", "1").start().await;
    let bursts = async {
        loop {
            redis.publish_all("42", (0..2_000).map(|number: u32| number.to_string())).await;
        }
    };
    let connect = async |_| {
        let mut client = Client::connect(&gateway, "42").await;
        for event in 0..5 {
            match client.message().await {
                Some(Message::Text(_)) => {}
                other => panic!("{other:?} as event {event}"),
            }
        }
    };
    let connects = async {
        for _ in 0..30 {
            join_all((0..20).map(connect)).await;
        }
    };
    tokio::select! {
        () = bursts => {}
        () = connects => {}
    }
    assert_eq!(gateway.metric(TOO_SLOW).await, 0.0);
}

#[tokio::test]
async fn dropping_the_oldest_keeps_the_client_and_the_newest_in_order() {
    for transport in TRANSPORTS {
        drops_the_oldest(transport).await;
    }
}

async fn drops_the_oldest(transport: Transport) {
    const COUNT: u32 = 1_000;
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis)
        .set("send_queue.slow_client", "drop_oldest")
        .set("send_queue.write_timeout", "1h")
        .set("server.heartbeat", "1h")
        .start()
        .await;
    let mut slow = Slow::connect(&gateway, "42", transport).await;
    let mut others = [("42", Client::connect(&gateway, "42").await), ("43", Client::connect(&gateway, "43").await)];
    rounds(&redis, &mut others, 0..COUNT, 10_000).await;

    assert_newest_in_order(&gateway, async || slow.event().await, COUNT).await;
    // It is a client like any other again.
    redis.publish("42", "1").await;
    assert_eq!(slow.event().await, 1);
    assert_eq!(gateway.metric(TOO_SLOW).await, 0.0);
}

#[tokio::test]
async fn a_write_that_makes_no_progress_times_out() {
    for transport in TRANSPORTS {
        times_out(transport).await;
    }
}

async fn times_out(transport: Transport) {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis)
        .set("send_queue.write_timeout", "300ms")
        .set("send_queue.max_bytes", "1000000000")
        .set("send_queue.max_messages", "1000000")
        .set("server.heartbeat", "1h")
        .start()
        .await;
    let mut slow = Slow::connect(&gateway, "42", transport).await;
    let mut others = [("42", Client::connect(&gateway, "42").await), ("43", Client::connect(&gateway, "43").await)];
    rounds(&redis, &mut others, 0..100, 100_000).await;
    eventually("it is closed", async || gateway.metric(TOO_SLOW).await == 1.0).await;
    slow.is_told_or_cut().await;
    rounds(&redis, &mut others, 100..101, 10).await;
}

#[tokio::test]
async fn a_burst_is_not_slow_for_a_client_that_reads() {
    // The default send queue, and one that is smaller than one read from Redis.
    for max_messages in ["256", "16"] {
        burst(max_messages).await;
    }
}

async fn burst(max_messages: &str) {
    const COUNT: u32 = 5_000;
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("send_queue.max_messages", max_messages).start().await;
    let mut connections = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "42").await];
    let reading = connections.iter_mut().map(async |connection| {
        for number in 0..COUNT {
            assert_eq!(connection.event().await["number"], number);
        }
    });
    tokio::join!(redis.publish_all("42", (0..COUNT).map(|number| numbered(number, 100))), join_all(reading));
    assert_eq!(gateway.metric(TOO_SLOW).await, 0.0);
}

/// Publishes 100 MB at two clients that never read, never faster than the instance takes them.
async fn memory_is_bounded(mode: &str) {
    let redis = RedisServer::start().await;
    let gateway =
        Options::redis(&redis).set("send_queue.slow_client", mode).set("send_queue.write_timeout", "1h").start().await;
    let _slow = join_all(TRANSPORTS.map(|transport| Slow::connect(&gateway, "42", transport))).await;
    let mut pace = Client::connect(&gateway, "43").await.answering();
    let before = gateway.resident_bytes();
    let mut most = before;
    for batch in 0..50 {
        redis.publish_all("42", (0..20).map(|number| numbered(number, 100_000))).await;
        redis.publish("43", &batch.to_string()).await;
        assert_eq!(pace.event().await, batch);
        most = most.max(gateway.resident_bytes());
    }
    assert!(gateway.metric("tidings_deliveries_dropped_total").await > 0.0);
    let grown = most - before;
    assert!(grown < 20_000_000, "{mode}: grew by {grown} bytes");
}

#[tokio::test]
async fn memory_is_bounded_where_slow_clients_are_disconnected() {
    memory_is_bounded("disconnect").await;
}

#[tokio::test]
async fn memory_is_bounded_where_the_oldest_are_dropped() {
    memory_is_bounded("drop_oldest").await;
}
