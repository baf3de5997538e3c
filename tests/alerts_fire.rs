//! Each alert of deploy/prometheus fires at a real fault, in a real Prometheus with the rules as they are deployed, except that a
//! minute is a second. What its rule does not fire at is in `rules.test.yml`.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::support::{
    Authority, Client, Gateway, KeyServer, Options, Prometheus, Publishes, RedisServer, eventually, now, refused,
};

const NOTIFY: &str = "/v1/users/42/notifications";

async fn watched(options: Options) -> (Gateway, Prometheus) {
    let gateway = options.start().await;
    let prometheus = Prometheus::watch(&[&gateway]).await;
    (gateway, prometheus)
}

/// So many bytes of JSON.
fn large(bytes: usize) -> String {
    format!("\"{}\"", ".".repeat(bytes))
}

/// Closes every subscription.
async fn cut(redis: &RedisServer) {
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
}

#[tokio::test]
async fn an_instance_that_is_dead_not_subscribed_or_not_ready_wakes_the_operator() {
    let dead = async {
        let (mut gateway, prometheus) = watched(Options::dev()).await;
        gateway.kill().await;
        prometheus.fires("TidingsDown").await;
    };
    let unsubscribed = async {
        let mut redis = RedisServer::start().await;
        let (_gateway, prometheus) = watched(Options::redis(&redis)).await;
        redis.kill().await;
        prometheus.fires("TidingsNotSubscribed now").await;
    };
    let again = async {
        let redis = RedisServer::start().await;
        let (gateway, prometheus) = watched(Options::redis(&redis)).await;
        let lose = async || {
            gateway.ready().await;
            cut(&redis).await;
        };
        prometheus.fires_during("TidingsNotSubscribed again", lose).await;
    };
    let not_ready = async {
        let redis = RedisServer::start().await;
        let (_gateway, prometheus) = watched(Options::redis(&redis)).await;
        let () = redis.command(&["ACL", "SETUSER", "default", "-xrange"]).await;
        prometheus.fires("TidingsNotReady").await;
    };
    tokio::join!(dead, unsubscribed, again, not_ready);
}

#[tokio::test]
async fn an_outbox_that_no_instance_relays_wakes_the_operator() {
    let redis = RedisServer::start().await;
    let (_gateway, prometheus) = watched(Options::redis(&redis)).await;
    // Another program holds the lease, without an end.
    let () = redis.command(&["SET", "tidings:outbox:lock", "a-test"]).await;
    let _: String = redis.command(&["XADD", "tidings:outbox", "1000-0", "user", "42", "data", "1"]).await;
    tokio::join!(prometheus.fires("TidingsOutboxNotRelayed"), prometheus.fires("TidingsOutboxOld"));
}

#[tokio::test]
async fn slow_clients_wake_the_operator() {
    let slow = async |set: &[(&str, &str)], clients: usize| {
        let redis = RedisServer::start().await;
        let patient = Options::redis(&redis).set("send_queue.write_timeout", "1h").set("server.heartbeat", "1h");
        let options = set.iter().fold(patient, |options, (key, value)| options.set(key, value));
        let (gateway, prometheus) = watched(options).await;
        let clients = join_all((0..clients).map(|_| Client::connect_narrow(&gateway, "42"))).await;
        (redis, gateway, prometheus, clients)
    };
    let closed = async {
        let (redis, _gateway, prometheus, _clients) = slow(&[("send_queue.max_messages", "1")], 15).await;
        let publish = async || {
            redis.publish("42", &large(100_000)).await;
        };
        prometheus.fires_during("TidingsSlowClients closed", publish).await;
    };
    let dropped = async {
        let set = [("send_queue.max_messages", "1"), ("send_queue.slow_client", "drop_oldest")];
        let (redis, _gateway, prometheus, _clients) = slow(&set, 1).await;
        let publish = async || {
            redis.publish("42", &large(100_000)).await;
        };
        prometheus.fires_during("TidingsSlowClients dropped", publish).await;
    };
    let backlog = async {
        let set = [("send_queue.max_bytes", "33554432"), ("send_queue.max_total_bytes", "1073741824")];
        let (redis, _gateway, prometheus, _clients) = slow(&set, 16).await;
        // The same bytes wait for each of them.
        redis.publish_all("42", (0..20).map(|_| large(1_000_000))).await;
        prometheus.fires("TidingsSlowClients backlog").await;
    };
    tokio::join!(closed, dropped, backlog);
}

#[tokio::test]
async fn refused_clients_wake_the_operator() {
    let (gateway, prometheus) = watched(Options::dev()).await;
    let knock = async || {
        let refused = refused(gateway.public, "/ws", &[("Authorization", "Bearer none")]).await;
        assert_eq!(refused.status, 401);
    };
    prometheus.fires_during("TidingsRefusals", knock).await;
}

#[tokio::test]
async fn a_redis_that_is_full_or_may_evict_wakes_the_operator() {
    let redis = RedisServer::start().await;
    let (gateway, prometheus) = watched(Options::redis(&redis)).await;
    redis.config_set("maxmemory", "1").await;
    let store = async || {
        assert_eq!(gateway.post(gateway.admin, NOTIFY, r#"{"data":1,"durable":true}"#).await.0, 503);
    };
    prometheus.fires_during("TidingsRedisFull", store).await;
    redis.config_set("maxmemory", "0").await;
    redis.config_set("maxmemory-policy", "allkeys-lru").await;
    cut(&redis).await;
    prometheus.fires("TidingsRedisEvicts").await;
}

#[tokio::test]
async fn data_that_redis_lost_wakes_the_operator() {
    let flushed = async {
        let redis = RedisServer::start().await;
        let (gateway, prometheus) = watched(Options::redis(&redis)).await;
        let users: Vec<String> = (0..15).map(|user| user.to_string()).collect();
        let cursor = async |user: &String| Client::connect_with_welcome(&gateway, user).await.1["cursor"].clone();
        let cursors = join_all(users.iter().map(cursor)).await;
        let missed = json!({ "users": users, "data": 1, "durable": true }).to_string();
        assert_eq!(gateway.post(gateway.admin, "/v1/notifications", &missed).await.0, 202);
        let revoke = json!({ "revoke": { "jti": "stolen", "until": now() + 600 } }).to_string();
        let _: u64 = redis.command(&["PUBLISH", "tidings:control", &revoke]).await;
        eventually("it is kept", async || redis.command::<u64>(&["ZCARD", "tidings:revoked"]).await == 1).await;
        let () = redis.command(&["FLUSHALL"]).await;
        for (user, cursor) in users.iter().zip(&cursors) {
            let (_, welcome) = Client::resume(&gateway, user, cursor.as_str().unwrap()).await;
            assert_eq!(welcome["recovered"], false);
        }
        tokio::join!(prometheus.fires("TidingsDataLost resumes"), prometheus.fires("TidingsDataLost revocations"));
    };
    let by_hand = async {
        let redis = RedisServer::start().await;
        let (gateway, prometheus) = watched(Options::redis(&redis)).await;
        let _client = Client::connect(&gateway, "42").await;
        eventually("42 is online", async || redis.online().await == ["42"]).await;
        let () = redis.command(&["DEL", "online_users"]).await;
        prometheus.fires("TidingsDataLost presence").await;
    };
    let trimmed = async {
        let redis = RedisServer::start().await;
        let (gateway, prometheus) = watched(Options::redis(&redis).set("history.max_len", "10")).await;
        let important = r#"{"data":1,"durable":true,"escalate_s":2}"#;
        assert_eq!(gateway.post(gateway.admin, NOTIFY, important).await.0, 202);
        let many = json!({ "users": vec!["42"; 300], "data": 2, "durable": true }).to_string();
        assert_eq!(gateway.post(gateway.admin, "/v1/notifications", &many).await.0, 202);
        prometheus.fires("TidingsDataLost escalations").await;
    };
    tokio::join!(flushed, by_hand, trimmed);
}

#[tokio::test]
async fn late_delivery_wakes_the_operator() {
    let late = async {
        let redis = RedisServer::start().await;
        // More than the system buffers for a connection.
        let roomy = Options::redis(&redis).set("limits.max_payload_bytes", "8388608").set("server.heartbeat", "1h");
        let (gateway, prometheus) = watched(roomy.set("send_queue.max_bytes", "33554432")).await;
        let mut client = Client::connect_narrow(&gateway, "42").await;
        // Each reading comes after 300 ms; one delivery a second is measured.
        let read_late = async || {
            redis.publish("42", &large(8_000_000)).await;
            sleep(Duration::from_millis(300)).await;
            client.event_text().await;
            sleep(Duration::from_millis(800)).await;
        };
        prometheus.fires_during("TidingsDeliverySlow p99", read_late).await;
    };
    let behind = async {
        let redis = RedisServer::start().await;
        let (_gateway, prometheus) = watched(Options::redis(&redis)).await;
        redis.freeze();
        prometheus.fires("TidingsDeliverySlow lag").await;
        redis.thaw();
    };
    tokio::join!(late, behind);
}

#[tokio::test]
async fn memory_and_descriptors_that_run_short_wake_the_operator() {
    let memory = async {
        let redis = RedisServer::start().await;
        let roomy = Options::redis(&redis).set("send_queue.max_bytes", "134217728").set("server.heartbeat", "1h");
        let gateway = roomy.set("send_queue.write_timeout", "1h").start().await;
        let prometheus = Prometheus::watch_memory(&gateway, (gateway.resident_bytes() + (32 << 20)) * 100 / 85).await;
        let _client = Client::connect_narrow(&gateway, "42").await;
        // Slowly: Redis drops a subscriber that is 32 MB behind.
        for _ in 0..64 {
            redis.publish("42", &large(1_000_000)).await;
            sleep(Duration::from_millis(50)).await;
        }
        prometheus.fires("TidingsMemory").await;
    };
    let descriptors = async {
        // Of these, 64 are in reserve.
        let few = Options::dev().ulimit("-n 640").set("server.handshake_timeout", "60s");
        let (gateway, prometheus) = watched(few).await;
        let connect = async |_| TcpStream::connect(gateway.public).await.unwrap();
        let _silent = join_all((0..540).map(connect)).await;
        prometheus.fires("TidingsDescriptors").await;
    };
    tokio::join!(memory, descriptors);
}

#[tokio::test]
async fn a_certificate_that_ends_soon_or_cannot_be_used_wakes_the_operator() {
    let authority = Authority::new();
    let files = authority.certificate_for_days(&["127.0.0.1"], 3);
    let gateway = Options::dev().tls(&authority, &files).start().await;
    let prometheus = Prometheus::watch_tls(&gateway).await;
    prometheus.fires("TidingsCertificate expires").await;
    std::fs::write(&files[0], "not a certificate").unwrap();
    prometheus.fires("TidingsCertificate refused").await;
}

/// The other version is what an instance of it would serve: the metrics of this one, with another commit.
#[tokio::test]
async fn a_forgotten_version_wakes_the_operator() {
    let gateway = Gateway::dev().await;
    let (_, metrics) = gateway.get(gateway.admin, "/metrics").await;
    let commit = format!("commit=\"{}\"", tidings::COMMIT);
    assert!(metrics.contains(&commit));
    let older = metrics.replace(&commit, "commit=\"000000000000\"");
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n{older}");
    let forgotten = KeyServer::start(Publishes::Bytes(answer)).await;
    let prometheus = Prometheus::watch_at(&[gateway.admin, forgotten.address()]).await;
    prometheus.fires("TidingsVersionSkew").await;
}
