//! A stop closes all connections at a steady pace, and ends even if Redis does not answer.

use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;

use crate::support::{Client, Gateway, Options, RedisServer, command, eventually, handshake, signal, within};

/// Takes the `reconnect` frame and the close that follows; gives the `after_ms` and when the close came.
async fn sent_away(client: &mut Client) -> (u64, Instant) {
    let frame = client.frame().await;
    assert_eq!(frame["type"], "reconnect", "{frame}");
    let after_ms = frame["after_ms"].as_u64().expect("milliseconds");
    assert_eq!(client.close_frame().await, 4200);
    (after_ms, Instant::now())
}

async fn connect_many(gateway: &Gateway, count: usize) -> Vec<Client> {
    let names: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    let mut clients = Vec::new();
    for names in names.chunks(50) {
        clients.extend(join_all(names.iter().map(|name| Client::connect(gateway, name))).await);
    }
    clients
}

#[tokio::test]
async fn clients_are_told_when_to_come_back_and_closed_evenly_over_the_window() {
    const COUNT: usize = 400;
    const WINDOW: Duration = Duration::from_secs(4);
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).set("drain.window", "4s").start().await;
    let mut clients = connect_many(&gateway, COUNT).await;
    let begun = Instant::now();
    gateway.signal("TERM");
    let ends = join_all(clients.iter_mut().map(sent_away)).await;
    assert_eq!(gateway.exit().await.code(), Some(0));

    let window_ms = u64::try_from(WINDOW.as_millis()).unwrap();
    let mut closed = [0; 4];
    let mut announced = [0; 4];
    for (after_ms, end) in &ends {
        assert!(*after_ms <= window_ms, "{after_ms}");
        // Room for a busy machine, in which a close may be under way.
        assert!(end.duration_since(begun) < WINDOW + Duration::from_secs(2), "the last close is no later");
        announced[usize::try_from(after_ms * 4 / window_ms).unwrap().min(3)] += 1;
        let quarter = (end.duration_since(begun).as_millis() * 4 / WINDOW.as_millis()).min(3);
        closed[usize::try_from(quarter).unwrap()] += 1;
    }
    let mean = COUNT / 4;
    for count in closed.into_iter().chain(announced) {
        assert!((mean / 2..=mean * 2).contains(&count), "closed {closed:?}, announced {announced:?}");
    }
}

#[tokio::test]
async fn a_client_has_time_to_move_between_its_after_ms_and_its_close() {
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).set("drain.window", "4s").start().await;
    let mut clients = connect_many(&gateway, 2).await;
    let begun = Instant::now();
    gateway.signal("TERM");
    for (after_ms, end) in join_all(clients.iter_mut().map(sent_away)).await {
        assert!(end.duration_since(begun) >= Duration::from_millis(after_ms + 500), "{after_ms}");
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_closed_connection_ends_at_once_and_not_with_the_last() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("drain.window", "1h").start().await;
    let mut clients = connect_many(&gateway, 2).await;
    gateway.signal("TERM");
    let [one, other] = &mut clients[..] else { panic!("two clients") };
    let closed = tokio::select! {
        _ = one.close_frame() => one,
        _ = other.close_frame() => other,
    };
    // A browser tells its page of the close only when the socket has ended, too.
    let end = tokio::time::timeout(Duration::from_secs(5), closed.message()).await;
    assert!(end.expect("before the client gives up waiting").is_none());
}

#[tokio::test]
async fn a_draining_instance_answers_503_until_its_last_close() {
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).set("drain.window", "3s").start().await;
    let mut clients = connect_many(&gateway, 3).await;
    gateway.signal("TERM");
    gateway.not_ready().await;
    let (status, body) = gateway.get(gateway.admin, "/readyz").await;
    assert!(status == 503 && body.contains("draining"), "{body}");
    assert_eq!(gateway.get(gateway.public, "/healthz").await.0, 200);
    let refused = handshake(gateway.public, "/ws", &[]).await.err().expect("refused");
    assert_eq!((refused.status, refused.code.as_str()), (503, "draining"));
    let retry_after = refused.headers["retry-after"].to_str().unwrap();
    assert!(retry_after.parse::<u32>().is_ok(), "{retry_after}");
    assert_eq!(gateway.metric("tidings_draining").await, 1.0);
    // A client was still connected during all of that.
    assert!(gateway.metric("tidings_connections").await >= 1.0);
    join_all(clients.iter_mut().map(sent_away)).await;
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_published_while_draining_still_arrives() {
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).set("drain.window", "3s").start().await;
    let mut clients = connect_many(&gateway, 3).await;
    gateway.signal("TERM");
    gateway.not_ready().await;
    for client in &mut clients {
        assert_eq!(client.frame().await["type"], "reconnect");
    }
    for user in 0..3 {
        redis.publish(&user.to_string(), "1").await;
    }
    let mut arrived = 0;
    for client in &mut clients {
        while let Some(message) = client.message().await {
            arrived += usize::from(message.is_text());
        }
    }
    assert!(arrived >= 2, "only the first may have been closed before: {arrived}");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

/// Every kind of client gets its close, and the instance ends well.
async fn stops_well_on(signal: &str) {
    let redis = RedisServer::start().await;
    let mut gateway = Gateway::redis(&redis).await;
    let mut framed = Client::connect(&gateway, "42").await;
    let mut raw = Client::raw(&gateway, "42").await;
    let mut anonymous = Client::anonymous(&gateway).await;
    eventually("all are connected", async || gateway.metric("tidings_connections").await == 3.0).await;
    redis.publish("42", "1").await;
    assert_eq!((framed.event().await, raw.frame().await), (1.into(), 1.into()));
    gateway.signal(signal);
    sent_away(&mut framed).await;
    // Nothing but the close, without a frame of ours before it.
    for client in [&mut raw, &mut anonymous] {
        let message = client.message().await.expect("a close");
        let tokio_tungstenite::tungstenite::Message::Close(Some(close)) = message else { panic!("{message:?}") };
        assert_eq!(u16::from(close.code), 4200);
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn sigterm_closes_every_kind_of_client_and_ends_with_0() {
    stops_well_on("TERM").await;
}

#[tokio::test]
async fn sigint_does_the_same() {
    stops_well_on("INT").await;
}

#[tokio::test]
async fn a_client_that_answers_nothing_does_not_hold_the_instance_up() {
    let redis = RedisServer::start().await;
    let mut gateway = Gateway::redis(&redis).await;
    let silent = [Client::connect_narrow(&gateway, "42").await, Client::anonymous(&gateway).await];
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0));
    drop(silent);
}

#[tokio::test]
async fn it_ends_with_redis_down() {
    let mut redis = RedisServer::start().await;
    let mut gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    eventually("42 is online", async || redis.online().await == ["42"]).await;
    redis.kill().await;
    gateway.not_ready().await;
    gateway.signal("TERM");
    sent_away(&mut client).await;
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn it_ends_with_redis_frozen() {
    let redis = RedisServer::start().await;
    let mut gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    eventually("42 is online", async || redis.online().await == ["42"]).await;
    redis.freeze();
    gateway.signal("TERM");
    sent_away(&mut client).await;
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn it_ends_without_ever_having_had_redis() {
    let mut redis = RedisServer::start().await;
    redis.kill().await;
    let mut gateway = Options::redis(&redis).start_unready().await;
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).set("drain.window", "1h").start().await;
    let mut clients = connect_many(&gateway, 2).await;
    gateway.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.frame().await["type"], "reconnect");
    }
    gateway.signal("INT");
    let status = gateway.exit().await;
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
}

#[tokio::test]
async fn a_signal_ends_it_at_once_while_redis_is_silent_at_its_start() {
    // Accepts, and answers nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let mut serve = command(&["serve", "--dev", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let mut child = serve.args(["--redis-url", &url]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let started = within("it starts", log.next_line()).await.unwrap();
    assert!(started.is_some_and(|line| line.contains("file descriptors")));
    let (_asking, _) = within("it asks Redis", silent.accept()).await.unwrap();
    let begun = Instant::now();
    signal(child.id().unwrap(), "TERM");
    let status = within("it ends", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    while let Some(line) = log.next_line().await.unwrap() {
        rest.push(line);
    }
    assert!(!rest.iter().any(|line| line.contains("listening")), "{rest:?}");
}
