//! One test for each promise of delivery; docs/delivery.md names these tests, and those in other files.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Client, Gateway, Options, Proxy, RedisServer, eventually, handshake, text, within};

#[tokio::test]
async fn what_is_only_published_comes_at_most_once_and_is_stored_nowhere() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (mut client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
    for number in 0..100 {
        redis.publish("42", &number.to_string()).await;
    }
    let (status, answer) = gateway.post(gateway.admin, "/v1/users/42/notifications", r#"{"data":100}"#).await;
    assert_eq!((status, answer.as_str()), (202, r#"{"id":null}"#));
    for number in 0..=100 {
        let frame = client.frame().await;
        assert_eq!(frame, json!({"type": "event", "event": "notification", "data": number}), "no id, no time");
    }
    client.close().await;
    gateway.connections(0).await;
    redis.publish("42", "101").await;
    // The instance receives it while the user has no connection.
    eventually("it is missed", async || gateway.metric("tidings_messages_missed_total").await == 1.0).await;
    let (mut client, welcome) = Client::resume(&gateway, "42", text(&welcome["cursor"])).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    redis.publish("42", "102").await;
    assert_eq!(client.event().await, 102);
    assert_eq!(gateway.listed("42", 100).await, []);
    let streams: Vec<String> = redis.command(&["KEYS", "tidings:history:*"]).await;
    assert!(streams.is_empty(), "{streams:?}");
}

#[tokio::test]
async fn every_stored_event_reaches_a_client_that_resumes_in_order_each_id_once() {
    const COUNT: u32 = 300;
    let redis = RedisServer::start().await;
    let gateways = join_all((0..2).map(|_| Gateway::redis(&redis))).await;
    let mut client = Client::connect(&gateways[0], "42").await;
    let publishing = async {
        let mut ids = Vec::new();
        for number in 0..COUNT {
            ids.push(gateways[0].store("42", number).await);
        }
        ids
    };
    let reading = async {
        let mut heard = Vec::new();
        for number in 0..COUNT {
            let (id, data) = client.stored_event().await;
            assert_eq!(data, number);
            // Disconnects in the middle, with or without a close frame, and resumes on another instance.
            if number % 10 == 9 {
                let elsewhere = &gateways[usize::from(number % 20 == 9)];
                let (back, welcome) = Client::resume(elsewhere, "42", &id).await;
                assert_eq!(welcome["recovered"], true, "{welcome}");
                let left = std::mem::replace(&mut client, back);
                if number % 20 == 9 {
                    left.close().await;
                }
            }
            heard.push(id);
        }
        heard
    };
    let (ids, heard) = tokio::join!(publishing, reading);
    assert_eq!(heard, ids);
    let listed = gateways[1].listed("42", 7).await;
    assert_eq!(listed.into_iter().map(|one| one.id).collect::<Vec<_>>(), ids);
}

#[tokio::test]
async fn so_many_as_history_max_len_are_kept_and_at_most_200_more() {
    const MAX_LEN: usize = 50;
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("history.max_len", &MAX_LEN.to_string()).start().await;
    let mut stored = 0;
    for step in [1, MAX_LEN - 1, 1, 1, 10, 100, 100, 1, 500, 1] {
        redis.store_all("42", (stored..stored + step).map(|number| number.to_string())).await;
        stored += step;
        let listed = gateway.listed("42", 1_000).await;
        assert!((stored.min(MAX_LEN)..=MAX_LEN + 200).contains(&listed.len()), "{} of {stored}", listed.len());
        let newest = (stored - listed.len()..stored).map(|number| number.to_string());
        assert!(listed.iter().map(|one| one.data.clone()).eq(newest), "the newest");
    }
}

#[tokio::test]
async fn each_is_kept_for_history_ttl_and_whoever_missed_it_then_is_told() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("history.ttl", "3s").start().await;
    let before = Client::connect_with_welcome(&gateway, "42").await.1;
    let before = text(&before["cursor"]);
    gateway.store("42", 0).await;
    let (mut client, welcome) = Client::resume(&gateway, "42", before).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    assert_eq!(client.stored_event().await.1, 0);
    eventually("it is gone", async || gateway.listed("42", 100).await.is_empty()).await;
    let welcome = Client::resume(&gateway, "42", before).await.1;
    assert_eq!((&welcome["recovered"], &welcome["unread"]), (&json!(false), &json!(0)), "{welcome}");
    // Also beside those that are younger.
    gateway.store("42", 1).await;
    eventually("one is gone, and others are not", async || {
        gateway.store("42", 2).await;
        gateway.listed("42", 1_000).await.iter().all(|one| one.data != "1")
    })
    .await;
    let welcome = Client::resume(&gateway, "42", before).await.1;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    // And at last nothing is left of it in Redis.
    eventually("the stream ends", async || {
        redis.command::<Vec<String>>(&["KEYS", "tidings:history:*"]).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn one_whose_own_ttl_has_ended_is_not_missed() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let before = Client::connect_with_welcome(&gateway, "42").await.1;
    let before = text(&before["cursor"]);
    gateway.store("42", 0).await;
    let brief = gateway.store_as("42", json!({"data": 1, "ttl_s": 1})).await;
    gateway.store("42", 2).await;
    gateway.store_as("42", json!({"data": 3, "ttl_s": 1})).await;
    eventually("they end", async || gateway.listed("42", 100).await.len() == 2).await;
    for (cursor, left) in [(before, &[0, 2][..]), (&brief, &[2])] {
        let (mut client, welcome) = Client::resume(&gateway, "42", cursor).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        for data in left {
            assert_eq!(client.stored_event().await.1, *data);
        }
        redis.publish("42", r#""now""#).await;
        assert_eq!(client.event().await, "now");
    }
}

#[tokio::test]
async fn each_key_is_published_once_to_a_user_however_it_comes() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    let key = [("idempotency-key", "k-1")];
    let one = r#"{"data":1,"durable":true}"#;
    let many = r#"{"users":["42","43"],"data":2,"durable":true}"#;
    let first = gateway.ask_admin("POST", "/v1/users/42/notifications", &key, one).await;
    let again = gateway.ask_admin("POST", "/v1/users/42/notifications", &key, one).await;
    assert_eq!((first.status, first.json()), (again.status, again.json()));
    let batch = gateway.ask_admin("POST", "/v1/notifications", &key, many).await;
    assert_eq!((batch.status, batch.json()), (202, json!({"accepted": 2, "failed": []})));
    let add = ["XADD", "tidings:outbox", "*", "user", "42", "data"];
    let _: String = redis.command(&[&add[..], &["3", "key", "k-1"]].concat()).await;
    let _: String = redis.command(&[&add[..], &["4"]].concat()).await;
    assert_eq!((client.event().await, client.event().await), (1.into(), 4.into()));
    assert_eq!(gateway.listed("43", 100).await.len(), 1, "a key is of one user");
}

#[tokio::test]
async fn one_users_entries_of_the_outbox_keep_their_order_and_carry_what_they_say() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    let add = ["XADD", "tidings:outbox", "*", "user", "42"];
    let _: String = redis.command(&[&add[..], &["data", r#"{ "n" : 1.0 }"#, "event", "order.paid"]].concat()).await;
    redis.store_all("42", (0..200).map(|number| number.to_string())).await;
    let frame = client.text().await;
    let told: Value = serde_json::from_str(&frame).unwrap();
    assert!(frame.contains(r#""data":{ "n" : 1.0 }"#), "byte for byte: {frame}");
    assert_eq!((&told["event"], told["ts"].is_u64()), (&json!("order.paid"), true), "{frame}");
    for number in 0..200 {
        assert_eq!(client.stored_event().await.1, number);
    }
}

#[tokio::test]
async fn what_is_stored_while_an_instance_is_deaf_arrives_within_2_s_of_its_subscription() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let unsubscribed = Options::redis_at(&proxy.url()).start().await;
    let other = Gateway::redis(&redis).await;
    let users: Vec<_> = (0..50).map(|user| format!("u{user}")).collect();
    let mut clients = join_all(users.iter().map(|user| Client::connect(&unsubscribed, user))).await;
    proxy.refuse();
    unsubscribed.not_ready().await;
    for user in &users {
        other.store(user, 1).await;
        other.store(user, 2).await;
    }
    proxy.heal();
    unsubscribed.ready().await;
    let all = clients.iter_mut().map(async |client| (client.stored_event().await.1, client.stored_event().await.1));
    let all = timeout(Duration::from_secs(2), join_all(all)).await.expect("within 2 s");
    assert!(all.iter().all(|events| *events == (json!(1), json!(2))), "{all:?}");
}

#[tokio::test]
async fn a_subscriber_of_its_own_sees_the_stamp_in_front_of_what_is_stored_or_named() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut heard = redis.subscribe("user:42").await;
    let mut next = async || String::from_utf8(heard.next_bytes().await).unwrap();
    redis.publish("42", r#"{"text":"plain"}"#).await;
    assert_eq!(next().await, r#"{"text":"plain"}"#);
    let path = "/v1/users/42/notifications";
    let (status, _) = gateway.post(gateway.admin, path, r#"{"data":{"n":1},"event":"order \"paid\""}"#).await;
    assert_eq!((status, next().await), (202, r#"~"order \"paid\"" {"n":1}"#.to_owned()));
    let id = gateway.store("42", json!({"n": 2})).await;
    let term: String = redis.command(&["HGET", "tidings:history", "term"]).await;
    assert_eq!(next().await, format!(r#"~1@{term} {id} "notification" {{"n":2}}"#));
}

#[tokio::test]
async fn a_client_that_resumes_and_does_not_read_delays_nobody() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("send_queue.write_timeout", "1h").start().await;
    let before = Client::connect_with_welcome(&gateway, "42").await.1;
    let filling = "x".repeat(20_000);
    redis.store_all("42", (0..500).map(|number| format!("[{number},\"{filling}\"]"))).await;
    let (_idle, welcome) = Client::resume_narrow(&gateway, "42", text(&before["cursor"])).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    let mut others = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "43").await];
    for number in 0..50 {
        for (user, client) in ["42", "43"].iter().zip(&mut others) {
            gateway.store(user, number).await;
            assert_eq!(client.event().await, number);
        }
    }
    assert_eq!(gateway.metric("tidings_connections_closed_total{code=\"4203\"}").await, 0.0);
}

/// The blocks of one language on the page, in their order.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let begun = include_str!("../docs/delivery.md").split(fence.as_str()).skip(1);
    begun.map(|rest| rest.split("```").next().unwrap()).collect()
}

async fn run(program: &str, args: &[&str]) -> String {
    let output = within(program, tokio::process::Command::new(program).args(args).output()).await.unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_commands_of_the_page_on_delivery_do_what_it_says() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).arg("--dev").start().await;
    let here = |block: &str| {
        let block = block.replace("redis-cli ", &format!("redis-cli -p {} ", redis.port()));
        let block = block.replace("127.0.0.1:9090", &gateway.admin.to_string());
        block.replace("127.0.0.1:8080", &gateway.public.to_string())
    };
    let [publish, take_back, broadcast, _serve, connect, store, position] = blocks("sh").try_into().unwrap();
    run("sh", &["-ec", &here(publish)]).await;
    eventually("all three are stored", async || gateway.listed("42", 100).await.len() == 3).await;
    let events = gateway.listed("42", 100).await.into_iter().map(|one| one.event).collect::<Vec<_>>();
    assert_eq!(events.iter().filter(|event| *event == "paid").count(), 2, "{events:?}");
    // All but wscat, of which every line begins with `npx`: it is not there.
    let without_wscat = |block: &str| {
        let lines = block.lines().filter(|line| !line.starts_with("npx"));
        here(&lines.map(|line| format!("{line}\n")).collect::<String>())
    };
    let token = run("sh", &["-ec", &(without_wscat(connect) + "printf %s \"$TOKEN\"")]).await;
    crate::support::secrets::keep_token(&token);
    let bearer = format!("Bearer {token}");
    let mut client = handshake(gateway.public, "/ws", &[("Authorization", &bearer)]).await.expect("admitted");
    let welcome = client.frame().await;
    assert_eq!((&welcome["type"], &welcome["unread"]), (&json!("welcome"), &json!(3)), "{welcome}");
    client.close().await;
    run("sh", &["-ec", &without_wscat(store)]).await;
    let path = format!("/ws?resume={}", text(&welcome["cursor"]));
    let mut client = handshake(gateway.public, &path, &[("Authorization", &bearer)]).await.expect("admitted");
    assert_eq!(client.frame().await["recovered"], true);
    let (_, first) = client.stored_event().await;
    let (id, second) = client.stored_event().await;
    assert_eq!((&first["text"], &second["text"]), (&json!("while you were away"), &json!("this too")));
    client.send(&json!({"type": "ack", "id": id}).to_string()).await;
    eventually("it is acked", async || run("sh", &["-ec", &here(position)]).await.contains(&id)).await;

    run("sh", &["-ec", &here(broadcast)]).await;
    let (first, second) = (client.frame().await, client.frame().await);
    assert_eq!((&first["event"], &second["event"]), (&json!("notification"), &json!("sale")), "{first} {second}");
    let publish = format!("{} publish --admin http://{}", env!("CARGO_BIN_EXE_tidings"), gateway.admin);
    let script = format!("ID={id}\n{}", here(take_back).replace("tidings publish", &publish));
    run("sh", &["-ec", &script]).await;
    assert_eq!(client.frame().await, json!({"type": "retracted", "id": id}));
    assert_eq!(client.frame().await, json!({"type": "retracted", "all": true}));
    assert_eq!(client.stored_event().await.1, json!({"unread": 3}));
}

#[tokio::test]
async fn a_backend_takes_the_data_out_of_what_it_hears_as_the_page_says() {
    let messages = [
        (r#"{"text":"hello"}"#, r#"{"text":"hello"}"#),
        (r#"~"paid" {"order":7}"#, r#"{"order":7}"#),
        (r#"~12 a1b2c3d4e5f60718-1795000000123-17 "paid" {"order":7}"#, r#"{"order":7}"#),
        (r#"~12@?0a1b a1b2c3d4e5f60718-1795000000123-17 "paid" {"order":7}"#, r#"{"order":7}"#),
        (r#"~1 a1b2c3d4e5f60718-1-1 "a \"b\" 1 c" "~x \"y\" z""#, r#""~x \"y\" z""#),
        (r#"~13 a1b2c3d4e5f60718-1795000000123-18 ="a \"b\" c" "paid" {"order":7}"#, r#"{"order":7}"#),
        (r#"~"12 x " 5"#, "5"),
        (r#"~"paid","00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" "5""#, r#""5""#),
    ];
    let (mut heard, data): (Vec<&str>, Vec<&str>) = messages.into_iter().unzip();
    let mut data: Vec<Option<String>> = data.into_iter().map(|data| Some(data.to_owned())).collect();
    heard.push(r#"~!{"retracted":"a1b2c3d4e5f60718-1795000000123-17"}"#);
    data.push(None);
    let javascript = format!("{}\nconsole.log(JSON.stringify({}.map(dataOf)))", blocks("js")[0], json!(heard));
    let taken: Vec<Option<String>> = serde_json::from_str(&run("node", &["-e", &javascript]).await).unwrap();
    assert_eq!(taken, data);
    let python = format!(
        "{}\nimport sys\nprint(json.dumps([data_of(message) for message in json.loads(sys.argv[1])]))",
        blocks("python")[0]
    );
    // Tests need Node, and no Python.
    if tokio::process::Command::new("python3").arg("--version").output().await.is_err() {
        println!("no python3: the Python of the page was not run");
        return;
    }
    let taken: Vec<Option<String>> =
        serde_json::from_str(&run("python3", &["-c", &python, &json!(heard).to_string()]).await).unwrap();
    assert_eq!(taken, data, "in Python");
}
