//! What no device reads in time is handed over to backends, once, whichever process dies.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::cluster;
use crate::support::{
    Client, Cluster, Gateway, Options, RedisServer, clean, command, eventually, output, text, within,
};

pub const UNREAD: &str = "tidings:unread";

/// The fields of an entry.
type Fields = BTreeMap<String, String>;

/// Reads the unread notifications as a backend does, from the first on.
pub struct Unread {
    redis: MultiplexedConnection,
    last: String,
}

impl Unread {
    pub async fn on(redis: &RedisServer) -> Self {
        Self { redis: redis.connection().await, last: "0-0".into() }
    }

    /// Waits for the next entry.
    pub async fn next(&mut self) -> Fields {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(0).arg("STREAMS").arg(UNREAD).arg(&self.last);
        type Page = Vec<(String, Vec<(String, Fields)>)>;
        let page: Page = within("an unread notification", read.query_async(&mut self.redis)).await.unwrap();
        let (id, fields) = page.into_iter().next().unwrap().1.remove(0);
        self.last = id;
        fields
    }

    /// Waits until the entry of this notification, and returns the data of those before it.
    pub async fn until(&mut self, cursor: &str) -> Vec<String> {
        let mut data = Vec::new();
        loop {
            let entry = self.next().await;
            if entry["id"] == cursor {
                return data;
            }
            data.push(entry["data"].clone());
        }
    }

    /// When the last entry that was read was added, in ms.
    fn added(&self) -> u64 {
        self.last.split_once('-').unwrap().0.parse().unwrap()
    }
}

/// Stores a notification for this user, with these fields of the body; gives its cursor.
pub async fn publish(gateway: &Gateway, user: &str, fields: Value) -> String {
    let mut body = json!({ "data": 0, "durable": true });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let path = format!("/v1/users/{user}/notifications");
    let (status, answer) = gateway.post(gateway.admin, &path, &body.to_string()).await;
    assert_eq!(status, 202, "{answer}");
    text(&serde_json::from_str::<Value>(&answer).unwrap()["id"]).to_owned()
}

/// Publishes one that escalates last: those that escalate before it are handed over by then.
async fn sentinel(gateway: &Gateway, user: &str) -> String {
    publish(gateway, user, json!({ "data": "sentinel", "escalate_s": 2 })).await
}

async fn set_read(gateway: &Gateway, user: &str, device: &str, cursor: &str) {
    let path = format!("/v1/users/{user}/read-position?device={device}");
    let answer = gateway.ask_admin("PUT", &path, &[], &json!({ "id": cursor }).to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// An entry may be read before the instance that added it has counted it.
async fn counted(gateway: &Gateway, metric: &str, count: f64) {
    eventually(metric, async || gateway.metric(metric).await == count).await;
}

fn ms(cursor: &str) -> u64 {
    cursor.split('-').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_unread_notification_is_handed_over_once_after_its_escalation_time() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut unread = Unread::on(&redis).await;
    let path = "/v1/users/tenant:42/notifications";
    let body = r#"{"data": {"n": 1.0, "s":"é"} ,"event":"pa\"id","durable":true,"escalate_s":1}"#;
    let (status, answer) = gateway.post(gateway.admin, path, body).await;
    assert_eq!(status, 202, "{answer}");
    let id = text(&serde_json::from_str::<Value>(&answer).unwrap()["id"]).to_owned();
    let entry = unread.next().await;
    let ts = ms(&id);
    let expected = [
        ("user", "tenant:42"),
        ("id", &id),
        ("event", "pa\"id"),
        ("data", "{\"n\": 1.0, \"s\":\"é\"}"),
        ("ts", &ts.to_string()),
    ];
    assert_eq!(entry, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert!((ts + 1_000..ts + 4_000).contains(&unread.added()), "{ts} {}", unread.added());

    let many = r#"{"users":["41","42"],"data":2,"durable":true,"escalate_s":1}"#;
    assert_eq!(gateway.post(gateway.admin, "/v1/notifications", many).await.0, 202);
    let _: String = redis.command(&["XADD", "tidings:outbox", "*", "user", "43", "data", "3", "escalate", "1"]).await;
    let url = redis.url();
    let arguments = ["publish", "44", "4", "--durable", "--escalate", "1", "--redis-url", &url];
    assert!(output(command(&arguments)).await.status.success());
    let admin = format!("http://{}", gateway.admin);
    let arguments = ["publish", "45", "5", "--durable", "--escalate", "1", "--admin", &admin];
    assert!(output(command(&arguments)).await.status.success());
    let mut seen = BTreeMap::new();
    for _ in 0..5 {
        let entry = unread.next().await;
        assert_eq!(seen.insert(entry["user"].clone(), entry["data"].clone()), None, "{entry:?}");
    }
    let expected = [("41", "2"), ("42", "2"), ("43", "3"), ("44", "4"), ("45", "5")];
    assert_eq!(seen, expected.map(|(user, data)| (user.to_owned(), data.to_owned())).into());
    let last = publish(&gateway, "42", json!({ "escalate_s": 1 })).await;
    assert_eq!(unread.until(&last).await, [""; 0], "none comes twice");
    counted(&gateway, "tidings_escalations_total{result=\"handed_over\"}", 7.0).await;
    eventually("none is pending", async || {
        redis.command::<u64>(&["EXISTS", "tidings:escalations", "tidings:escalations:{42}"]).await == 0
    })
    .await;
}

#[tokio::test]
async fn what_any_device_has_read_is_never_handed_over() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut unread = Unread::on(&redis).await;
    let mut client = Client::connect(&gateway, "acked").await;
    let acked = publish(&gateway, "acked", json!({ "escalate_s": 1 })).await;
    client.event().await;
    client.send(&json!({ "type": "ack", "id": acked }).to_string()).await;
    eventually("it is read", async || redis.command::<u64>(&["EXISTS", "tidings:read:{acked}"]).await == 1).await;
    let read = publish(&gateway, "read", json!({ "escalate_s": 1 })).await;
    set_read(&gateway, "read", "phone", &read).await;
    // The later one is not read.
    publish(&gateway, "read", json!({ "data": "later", "escalate_s": 1 })).await;
    let last = sentinel(&gateway, "acked").await;
    assert_eq!(unread.until(&last).await, ["\"later\""]);
    counted(&gateway, "tidings_escalations_total{result=\"read\"}", 2.0).await;
    assert_eq!(gateway.metric("tidings_escalations_lost_total").await, 0.0);
}

#[tokio::test]
async fn what_was_read_and_marked_unread_again_is_never_handed_over() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut unread = Unread::on(&redis).await;
    let first = publish(&gateway, "42", json!({})).await;
    let second = publish(&gateway, "42", json!({ "escalate_s": 1 })).await;
    set_read(&gateway, "42", "default", &second).await;
    set_read(&gateway, "42", "default", &first).await;
    let last = sentinel(&gateway, "42").await;
    assert_eq!(unread.until(&last).await, [""; 0]);
}

#[tokio::test]
async fn what_was_read_before_redis_lost_data_is_never_handed_over() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut unread = Unread::on(&redis).await;
    let read = publish(&gateway, "42", json!({ "escalate_s": 1 })).await;
    set_read(&gateway, "42", "default", &read).await;
    // As after a failover to a replica that was behind: the instance knows a higher count.
    let () = redis.command(&["HSET", "tidings:history", "epoch", "another", "count", "0"]).await;
    let last = sentinel(&gateway, "42").await;
    assert_eq!(unread.until(&last).await, [""; 0]);
}

#[tokio::test]
async fn what_expires_by_its_own_ttl_before_its_time_is_never_handed_over() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut unread = Unread::on(&redis).await;
    for ttl in [1, 2] {
        publish(&gateway, "42", json!({ "escalate_s": 2, "ttl_s": ttl })).await;
    }
    publish(&gateway, "42", json!({ "data": "kept", "escalate_s": 1, "ttl_s": 3 })).await;
    let last = sentinel(&gateway, "42").await;
    assert_eq!(unread.until(&last).await, ["\"kept\""]);
    assert_eq!(gateway.metric("tidings_escalations_lost_total").await, 0.0);
}

#[tokio::test]
async fn what_was_retracted_replaced_or_erased_is_never_handed_over() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    what_was_taken_back_is_not_handed_over(&gateway, Unread::on(&redis).await).await;
}

#[tokio::test]
async fn what_was_retracted_replaced_or_erased_is_never_handed_over_in_a_cluster() {
    let cluster = Cluster::start().await;
    let gateway = cluster::options(&cluster).start().await;
    let unread = Unread::on(cluster.node(cluster.owner_of(UNREAD).await)).await;
    what_was_taken_back_is_not_handed_over(&gateway, unread).await;
}

async fn what_was_taken_back_is_not_handed_over(gateway: &Gateway, mut unread: Unread) {
    let delete = async |path: &str| {
        let answer = gateway.ask_admin("DELETE", &format!("/v1/users/{path}"), &[], "").await;
        assert_eq!(answer.status, 204, "{answer:?}");
    };
    let handed_over = publish(gateway, "erased", json!({ "escalate_s": 1 })).await;
    assert_eq!(unread.next().await["id"], handed_over);
    publish(gateway, "erased", json!({ "escalate_s": 1 })).await;
    delete("erased").await;
    let retracted = publish(gateway, "42", json!({ "escalate_s": 1 })).await;
    delete(&format!("42/notifications/{retracted}")).await;
    publish(gateway, "43", json!({ "escalate_s": 1, "collapse": "chat" })).await;
    publish(gateway, "43", json!({ "data": "newest", "escalate_s": 1, "collapse": "chat" })).await;
    let last = sentinel(gateway, "42").await;
    assert_eq!(unread.until(&last).await, ["\"newest\""]);
    unread.last = "0-0".into();
    assert_eq!(unread.next().await["user"], "43", "the erased user's is no longer in the stream");
    assert_eq!(gateway.metric("tidings_escalations_lost_total").await, 0.0);
}

#[tokio::test]
async fn what_was_trimmed_before_its_time_is_counted_as_lost() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("history.max_len", "10").start().await;
    let mut unread = Unread::on(&redis).await;
    let read = publish(&gateway, "42", json!({ "escalate_s": 2 })).await;
    set_read(&gateway, "42", "default", &read).await;
    for _ in 0..2 {
        publish(&gateway, "42", json!({ "escalate_s": 2 })).await;
    }
    let many = json!({ "users": vec!["42"; 300], "data": 1, "durable": true }).to_string();
    assert_eq!(gateway.post(gateway.admin, "/v1/notifications", &many).await.0, 202);
    let last = sentinel(&gateway, "42").await;
    assert_eq!(unread.until(&last).await, [""; 0]);
    counted(&gateway, "tidings_escalations_lost_total", 2.0).await;
    eventually("it is logged", async || gateway.log().contains("escalations lost")).await;
}

#[tokio::test]
async fn a_user_has_hardly_more_escalations_than_stored_notifications() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("history.max_len", "10").start().await;
    let pending = async || redis.command::<u64>(&["ZCARD", "tidings:escalations:{42}"]).await;
    let many = json!({ "users": vec!["42"; 2_000], "data": 1, "durable": true, "escalate_s": 3_600 }).to_string();
    assert_eq!(gateway.post(gateway.admin, "/v1/notifications", &many).await.0, 202);
    // Dropped where they are not judged soon enough.
    assert!(pending().await < 700, "{}", pending().await);
    eventually("those of trimmed notifications are judged", async || pending().await <= 170 + 53).await;
    let kept = pending().await;
    eventually("all others are counted", async || {
        gateway.metric("tidings_escalations_lost_total").await == (2_000 - kept) as f64
    })
    .await;
}

#[tokio::test]
async fn the_stream_is_bounded_by_number_and_by_age_and_keeps_its_groups() {
    let redis = RedisServer::start().await;
    let fill = "for i = 1, tonumber(ARGV[2]) do redis.call('XADD', KEYS[1], ARGV[1] .. '-' .. i, 'user', 'x') end";
    let now = crate::support::now() * 1_000;
    let old = (now - 8 * 86_400_000).to_string();
    let () = redis.command(&["EVAL", fill, "1", UNREAD, &old, "250"]).await;
    let () = redis.command(&["XGROUP", "CREATE", UNREAD, "mail", "0"]).await;
    let gateway = Gateway::redis(&redis).await;
    let length = async || redis.command::<u64>(&["XLEN", UNREAD]).await;
    eventually("old entries are removed", async || length().await == 0).await;
    let groups: Vec<redis::Value> = redis.command(&["XINFO", "GROUPS", UNREAD]).await;
    assert_eq!(groups.len(), 1);

    let () = redis.command(&["EVAL", fill, "1", UNREAD, &now.to_string(), "100500"]).await;
    let last = publish(&gateway, "42", json!({ "escalate_s": 1 })).await;
    eventually("it is handed over", async || {
        let newest: Vec<(String, Fields)> = redis.command(&["XREVRANGE", UNREAD, "+", "-", "COUNT", "1"]).await;
        newest[0].1.get("id") == Some(&last)
    })
    .await;
    assert!((100_000..=100_200).contains(&length().await), "{}", length().await);
}

#[tokio::test]
async fn a_full_redis_delays_an_escalation_and_loses_none() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut unread = Unread::on(&redis).await;
    let id = publish(&gateway, "42", json!({ "escalate_s": 1 })).await;
    redis.config_set("maxmemory", "1mb").await;
    let refused = "tidings_backplane_errors_total{kind=\"OOM\"}";
    eventually("redis refuses it", async || gateway.metric(refused).await > 1.0).await;
    eventually("it is overdue", async || gateway.metric("tidings_escalation_overdue_seconds").await >= 1.0).await;
    assert_eq!(redis.command::<u64>(&["XLEN", UNREAD]).await, 0);
    redis.config_set("maxmemory", "0").await;
    assert_eq!(unread.next().await["id"], id);
    let last = publish(&gateway, "42", json!({ "escalate_s": 1 })).await;
    assert_eq!(unread.until(&last).await, [""; 0]);
}

#[tokio::test]
async fn a_user_whose_keys_another_program_has_written_delays_no_other() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut unread = Unread::on(&redis).await;
    publish(&gateway, "broken", json!({ "escalate_s": 1 })).await;
    let () = redis.command(&["SET", "tidings:read:{broken}", "x"]).await;
    let _: u64 = redis.command(&["ZADD", "tidings:escalations", "1", "not a\nuser"]).await;
    let first = publish(&gateway, "42", json!({ "escalate_s": 1 })).await;
    assert_eq!(unread.next().await["id"], first);
    let _: u64 = redis.command(&["DEL", "tidings:read:{broken}"]).await;
    assert_eq!(unread.next().await["user"], "broken");
}

#[tokio::test]
async fn an_escalation_requires_a_stored_notification_redis_and_whole_seconds_up_to_thirty_days() {
    let redis = RedisServer::start().await;
    let (gateway, memory) = (Gateway::redis(&redis).await, Gateway::dev().await);
    let ask = async |gateway: &Gateway, fields: &str| {
        let one = format!(r#"{{"data":1,{fields}}}"#);
        let many = format!(r#"{{"users":["42"],"data":1,{fields}}}"#);
        let one = gateway.ask_admin("POST", "/v1/users/42/notifications", &[], &one).await;
        let many = gateway.ask_admin("POST", "/v1/notifications", &[], &many).await;
        assert_eq!(one.status, many.status, "{fields}");
        one
    };
    for seconds in ["0", "-1", "1.5", "2592001", "\"1\"", "true"] {
        let answer = ask(&gateway, &format!(r#""durable":true,"escalate_s":{seconds}"#)).await;
        assert_eq!(answer.error(), (400, "bad_request".to_owned()), "{seconds}");
    }
    assert_eq!(ask(&gateway, r#""escalate_s":1"#).await.error(), (400, "bad_request".to_owned()));
    for seconds in ["1", "60.0", "2592000"] {
        let fields = format!(r#""durable":true,"escalate_s":{seconds}"#);
        assert_eq!(ask(&gateway, &fields).await.status, 202, "{seconds}");
        assert_eq!(ask(&memory, &fields).await.error(), (400, "needs_redis".to_owned()));
    }
    for arguments in [&["--escalate", "1"][..], &["--durable", "--escalate", "0"], &["--durable", "--escalate", "x"]] {
        let refused = output(command(&[&["publish", "42", "1"], arguments].concat())).await;
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
    }
}

/// Which of these relays the outbox, and so hands over.
async fn keeper(gateways: &[Gateway]) -> usize {
    let mut found = None;
    eventually("one relays the outbox", async || {
        for (index, gateway) in gateways.iter().enumerate() {
            if gateway.metric("tidings_outbox_holder").await == 1.0 {
                found = Some(index);
            }
        }
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Kills the instance that hands over, while it does.
#[allow(clippy::print_stdout, reason = "what repeats a run")]
async fn handing_over_while_killed(options: impl Fn() -> Options, mut unread: Unread) {
    let mut gateways = Vec::new();
    for _ in 0..3 {
        gateways.push(options().start().await);
    }
    let random = fastrand::u64(..);
    println!("seed {random}");
    let mut random = fastrand::Rng::with_seed(random);
    let (users, mut seen): (Vec<_>, Vec<_>) = ((0..400).map(|user| format!("u{user}")).collect(), Vec::new());
    for round in 0..2 {
        let victim = keeper(&gateways).await;
        let mut victim = gateways.remove(victim);
        let body = json!({ "users": users, "data": round, "durable": true, "escalate_s": 1 }).to_string();
        assert_eq!(gateways[0].post(gateways[0].admin, "/v1/notifications", &body).await.0, 202);
        for _ in 0..random.usize(1..350) {
            seen.push(unread.next().await);
        }
        victim.kill().await;
        while seen.len() < (round + 1) * users.len() {
            seen.push(unread.next().await);
        }
    }
    // All of an earlier sweep, in whichever bucket, are before the second.
    for _ in 0..2 {
        let last = publish(&gateways[0], "last", json!({ "escalate_s": 1 })).await;
        assert_eq!(unread.until(&last).await, [""; 0], "none comes twice");
    }
    let mut seen: Vec<_> = seen.into_iter().map(|entry| (entry["data"].clone(), entry["user"].clone())).collect();
    seen.sort();
    let mut expected: Vec<_> =
        (0..2).flat_map(|round| users.iter().map(move |user| (round.to_string(), user.clone()))).collect();
    expected.sort();
    assert!(seen == expected, "{} entries", seen.len());
}

#[tokio::test]
async fn each_is_handed_over_once_while_the_instances_that_do_it_are_killed() {
    let redis = RedisServer::start().await;
    handing_over_while_killed(|| Options::redis(&redis), Unread::on(&redis).await).await;
}

#[tokio::test]
async fn each_is_handed_over_once_in_a_cluster_while_the_instances_that_do_it_are_killed() {
    let cluster = Cluster::start().await;
    let unread = Unread::on(cluster.node(cluster.owner_of(UNREAD).await)).await;
    handing_over_while_killed(|| cluster::options(&cluster), unread).await;
}

#[tokio::test]
async fn in_a_cluster_what_was_read_is_not_handed_over_and_no_mark_remains() {
    let cluster = Cluster::start().await;
    let gateway = cluster::options(&cluster).start().await;
    let mut unread = Unread::on(cluster.node(cluster.owner_of(UNREAD).await)).await;
    for user in cluster::users_of_each(&cluster, &[0, 1, 2]).await {
        let read = publish(&gateway, &user, json!({ "escalate_s": 1 })).await;
        set_read(&gateway, &user, "phone", &read).await;
        let last = sentinel(&gateway, &user).await;
        assert_eq!(unread.until(&last).await, [""; 0]);
    }
    eventually("no mark remains", async || cluster.command::<u64>(&["EXISTS", "{tidings:unread}:marks"]).await == 0)
        .await;
}

/// Publishes one that is read, and two that are not; gives the cursors of the latter.
async fn read_one_of_three(redis: &RedisServer) -> (Gateway, [String; 2]) {
    let gateway = Gateway::redis(redis).await;
    let notify = async |user: &str, text: &str| {
        publish(&gateway, user, json!({ "data": { "text": text }, "event": "invoice", "escalate_s": 1 })).await
    };
    let read = notify("41", "read in time").await;
    set_read(&gateway, "41", "default", &read).await;
    let unread = [notify("42", "your invoice").await, notify("43", "and yours").await];
    (gateway, unread)
}

#[tokio::test]
async fn the_node_example_sends_a_mail_for_the_unread_notifications_alone() {
    let redis = RedisServer::start().await;
    let (_gateway, [first, second]) = read_one_of_three(&redis).await;
    // Standard input is a module of the current directory, whose packages it imports.
    let mut command = clean("node");
    command.arg("--input-type=module").current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/express"));
    command.env("REDIS_URL", redis.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("node is installed (scripts/setup)");
    let mut input = child.stdin.take().unwrap();
    input.write_all(include_bytes!("../examples/escalation/mail.mjs")).await.unwrap();
    drop(input);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for (user, content, id) in [("42", "your invoice", &first), ("43", "and yours", &second)] {
        let line = within("a mail", lines.next_line()).await.unwrap().expect("the example runs");
        let expected = json!({
            "to": format!("user-{user}@example.com"),
            "subject": "You have an unread notification: invoice",
            "text": content,
            "messageId": format!("<{id}@example.com>"),
        });
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
    }
    acknowledged(&redis).await;
}

#[tokio::test]
async fn the_python_example_sends_a_mail_for_the_unread_notifications_alone() {
    let redis = RedisServer::start().await;
    let (_gateway, [first, second]) = read_one_of_three(&redis).await;
    let sink = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    let python = target.join("clients/bin/python");
    let mut command = clean(python.to_str().unwrap());
    command.arg(root.join("examples/escalation/mail.py"));
    command.env("REDIS_URL", redis.url()).env("SMTP", sink.local_addr().unwrap().to_string());
    let _child = command.spawn().expect("Python's clients are installed (scripts/setup)");
    for (user, content, id) in [("42", "your invoice", &first), ("43", "and yours", &second)] {
        let mail = within("a mail", received_mail(&sink)).await;
        let lines = [format!("To: user-{user}@example.com"), format!("Message-ID: <{id}@example.com>"), content.into()];
        assert!(lines.iter().all(|line| mail.contains(line)), "{mail:?}");
    }
    acknowledged(&redis).await;
}

/// Waits until the group has handled both entries, and no other.
async fn acknowledged(redis: &RedisServer) {
    eventually("both are acknowledged", async || {
        let group: Vec<BTreeMap<String, redis::Value>> = redis.command(&["XINFO", "GROUPS", UNREAD]).await;
        group[0]["pending"] == redis::Value::Int(0)
    })
    .await;
    assert_eq!(redis.command::<u64>(&["XLEN", UNREAD]).await, 2);
}

/// Takes one mail as a server of SMTP; gives its lines.
async fn received_mail(sink: &TcpListener) -> Vec<String> {
    let (reader, mut writer) = sink.accept().await.unwrap().0.into_split();
    let (mut lines, mut mail) = (BufReader::new(reader).lines(), Vec::new());
    writer.write_all(b"220 sink\r\n").await.unwrap();
    while let Some(line) = lines.next_line().await.unwrap() {
        let reply = match line.to_ascii_lowercase().as_str() {
            "data" => "354 go on\r\n",
            "quit" => "221 bye\r\n",
            _ => "250 ok\r\n",
        };
        writer.write_all(reply.as_bytes()).await.unwrap();
        while reply.starts_with("354") {
            match lines.next_line().await.unwrap().expect("a whole mail") {
                end if end == "." => {
                    writer.write_all(b"250 ok\r\n").await.unwrap();
                    break;
                }
                line => mail.push(line),
            }
        }
    }
    mail
}
