//! `check-config --connect`: each resource that the configuration names has a line, and what it lacks is said.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cli::run;
use crate::rights::{documented_rules, with_user};
use crate::support::{
    Authority, Cluster, Issuer, KeyServer, Options, Publishes, RedisServer, SECRET, Sentinel, eventually, key_set,
};

const SECRET_VARIABLE: (&str, &str) = ("TIDINGS_AUTH__HMAC_SECRET", SECRET);

/// The lines of the checks, after an exit with this status.
async fn checked(code: i32, args: &[&str]) -> Vec<String> {
    let done = run(&[&["check-config", "--connect"], args].concat(), &[SECRET_VARIABLE]).await;
    assert_eq!(done.code, code, "{args:?}: {}{}", done.stdout, done.stderr);
    assert!(!(done.stdout.clone() + &done.stderr).contains("hunter2"), "{}{}", done.stdout, done.stderr);
    let (config, checks) = done.stdout.rsplit_once("\n\n").expect("the configuration, then the checks");
    assert!(config.contains("[presence]"), "{config}");
    let lines: Vec<String> = checks.lines().map(str::to_owned).collect();
    let has_level = |line: &String| ["ok: ", "warning: ", "error: "].iter().any(|level| line.starts_with(level));
    assert!(lines.iter().all(has_level), "{lines:?}");
    lines
}

/// Some line has all of these parts.
fn says(lines: &[String], parts: &[&str]) {
    let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
    assert!(lines.iter().any(has_all), "{parts:?} is not said: {lines:#?}");
}

#[tokio::test]
async fn every_check_of_a_redis_set_up_as_documented_is_ok_with_the_documented_rights() {
    let rules = documented_rules();
    let (redis, url) = with_user(&rules.iter().map(String::as_str).collect::<Vec<_>>()).await;
    redis.config_set("appendonly", "yes").await;
    let _: u64 = redis.command(&["SADD", "online_users", "42"]).await;
    let lines = checked(0, &["--redis-url", &url]).await;
    let address = format!("redis 127.0.0.1:{}", redis.port());
    for aspect in ["version", "role", "permissions", "eviction", "persistence", "clock"] {
        says(&lines, &[&format!("ok: {address} {aspect}:")]);
    }
    says(&lines, &["ok: file limit:"]);
    let keys: Vec<String> = redis.command(&["KEYS", "*"]).await;
    assert_eq!(keys, ["online_users"], "nothing is left behind, and nothing is removed");
    assert_eq!(redis.online().await, ["42"]);
}

#[tokio::test]
async fn what_a_redis_lacks_is_said_with_the_setting_and_the_action() {
    let redis = RedisServer::start_with(&["--requirepass", "hunter2"]).await;
    let port = redis.port().to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port, "--masterauth", "hunter2"]).await;
    redis.config_set("maxmemory-policy", "allkeys-lru").await;
    let lines = checked(0, &["--redis-url", &redis.url()]).await;
    says(&lines, &["warning: redis", "eviction: maxmemory-policy is allkeys-lru", "set maxmemory-policy noeviction"]);
    says(&lines, &["warning: redis", "persistence: none", "loses every stored notification", "set appendonly yes"]);
    let lines = checked(2, &["--redis-url", &redis.url(), "--set", "redis.wait_replicas=2"]).await;
    says(
        &lines,
        &["error: redis", "redis.wait_replicas = 2", "no durable notification is confirmed", "start the others"],
    );
    let lines = checked(2, &["--redis-url", &replica.url()]).await;
    says(&lines, &["error: redis", "role: redis: the server is a replica; redis.url must lead to the master"]);
    let wrong = redis.url().replace("hunter2", "hunter2-wrong");
    for (url, why) in
        [(&*wrong, "correct user and password in redis.url"), ("redis://app:hunter2@127.0.0.1:1", "refused")]
    {
        let lines = checked(2, &["--redis-url", url]).await;
        says(&lines, &["error: redis 127.0.0.1:", "connection:", why, "no message is delivered"]);
    }
    let () = redis.command(&["CONFIG", "SET", "save", "3600 1"]).await;
    let lines = checked(0, &["--redis-url", &redis.url()]).await;
    says(&lines, &["warning: redis", "persistence: snapshots only"]);
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_whatever_it_is_one_to() {
    let rules = documented_rules();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    for (right, named) in [
        (&["-zadd"][..], "ZADD on tidings:check"),
        (&["resetkeys", "~tidings:*", "~{tidings:*", "~{online_users}:*"], "key online_users"),
        (&["resetchannels", "&user:*", "&tidings:*"], "SUBSCRIBE presence"),
        (&["resetchannels", "&presence", "&tidings:*"], "PSUBSCRIBE user:*"),
        (&["-eval"], "EVAL"),
        (&["-time"], "TIME on tidings:check"),
    ] {
        let (_redis, url) = with_user(&[&rules, right].concat()).await;
        let lines = checked(2, &["--redis-url", &url]).await;
        says(&lines, &["error: redis", "permissions: refused:", named, "ACL SETUSER"]);
    }
    let (_redis, url) = with_user(&[&rules[..], &["-info"]].concat()).await;
    says(&checked(0, &["--redis-url", &url]).await, &["warning: redis", "version: unknown", "grant +info"]);
}

#[tokio::test]
async fn a_right_that_only_this_configuration_needs_is_named_too() {
    let rules = documented_rules();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let (redis, url) = with_user(&[&rules[..], &["-wait", "-unsubscribe"]].concat()).await;
    let _replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &redis.port().to_string()]).await;
    eventually("the replica is connected", async || {
        redis.command::<String>(&["INFO", "replication"]).await.contains("connected_slaves:1")
    })
    .await;
    for (setting, right, named) in [
        ("redis.wait_replicas=1", "+wait", "WAIT"),
        ("redis.subscribe=exact", "+unsubscribe", "UNSUBSCRIBE user:check"),
    ] {
        let args = ["--redis-url", &url, "--set", setting];
        says(&checked(2, &args).await, &["error: redis", &format!("permissions: refused: {named}:"), "ACL SETUSER"]);
        let () = redis.command(&["ACL", "SETUSER", "app", right]).await;
        says(&checked(0, &args).await, &["ok: redis", "permissions: every command"]);
    }
}

#[tokio::test]
async fn the_rights_of_a_cluster_are_tried_at_each_node() {
    let cluster = Cluster::start().await;
    let args = ["--redis-url", &cluster.url(), "--set", "redis.subscribe=sharded"];
    let set_user = async |rules: &[&str]| {
        let () = cluster.node(1).command(&[&["ACL", "SETUSER", "default"], rules].concat()).await;
    };
    let moves = ["-migrate", "-restore-asking"];
    let others = ["-asking", "-cluster|nodes", "-ping", "-ssubscribe", "-sunsubscribe"];
    set_user(&[&moves[..], &others].concat()).await;
    let names = "ASKING, MIGRATE, RESTORE-ASKING, CLUSTER NODES, PING, SSUBSCRIBE user:check, SUNSUBSCRIBE user:check";
    says(&checked(2, &args).await, &["error: redis", &format!("permissions: refused: {names}:")]);
    set_user(&["+@all"]).await;
    set_user(&moves).await;
    let lines = checked(0, &args).await;
    says(
        &lines,
        &["warning: redis", "permissions: refused: MIGRATE, RESTORE-ASKING:", "while a slot moves", "+migrate"],
    );
}

/// A server that gives this version, until dropped; with its port.
async fn server_of_version(version: &'static str) -> (u16, JoinSet<Option<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut answering = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            answering.spawn(answer(socket, version));
        }
        None
    });
    (port, serving)
}

/// Answers each command until the connection ends.
async fn answer(socket: TcpStream, version: &str) -> Option<()> {
    let (from, mut to) = socket.into_split();
    let mut lines = BufReader::new(from).lines();
    loop {
        let words: usize = lines.next_line().await.ok()??.strip_prefix('*')?.parse().ok()?;
        let mut command = Vec::new();
        for _ in 0..words {
            let _length = lines.next_line().await.ok()??;
            command.push(lines.next_line().await.ok()??);
        }
        let info = format!("redis_version:{version}\r\nrole:master\r\n");
        let reply = match &*command[0] {
            "INFO" => format!("${}\r\n{info}\r\n", info.len()),
            "TIME" => "*2\r\n$1\r\n0\r\n$1\r\n0\r\n".to_owned(),
            _ => "+OK\r\n".to_owned(),
        };
        to.write_all(reply.as_bytes()).await.ok()?;
    }
}

#[tokio::test]
async fn a_version_that_is_not_supported_is_an_error_and_never_ok() {
    let (port, _serving) = server_of_version("6.0.16").await;
    let lines = checked(2, &["--redis-url", &format!("redis://127.0.0.1:{port}")]).await;
    says(&lines, &[&format!("error: redis 127.0.0.1:{port} version:"), "6.0.16", "expected Redis 6.2 or later"]);
    assert!(!lines.iter().any(|line| line.starts_with("ok: redis")), "{lines:#?}");
}

#[tokio::test]
async fn certificates_and_the_key_set_are_checked_too() {
    let (redis, authority) = (RedisServer::start().await, Authority::new());
    let url = redis.url();
    let [certificate, key] = authority.expired_certificate(&["127.0.0.1"]);
    let tls = [("server.tls_cert_file", certificate), ("server.tls_key_file", key)]
        .map(|(name, path)| format!("{name}={}", path.display()));
    let lines = checked(2, &["--redis-url", &url, "--set", &tls[0], "--set", &tls[1]]).await;
    says(&lines, &["error: server.tls_cert_file expired", "renew it"]);

    let good = KeyServer::start(Publishes::Keys(key_set(&[&Issuer::new("ES256").named("a")]))).await;
    let empty = KeyServer::start(Publishes::Keys(key_set(&[]))).await;
    for (code, keys, said) in [
        (0, good.url(), "ok: auth.jwks_url"),
        (2, empty.url(), "no key in it verifies tokens"),
        (
            2,
            "http://127.0.0.1:1/keys?key=hunter2".to_owned(),
            "error: auth.jwks_url http://127.0.0.1:1/keys: no response",
        ),
    ] {
        let keys = format!("auth.jwks_url={keys}");
        says(&checked(code, &["--redis-url", &url, "--set", &keys, "--set", "auth.audience=us"]).await, &[said]);
    }
    says(
        &checked(0, &["--redis-url", &url, "--set", &format!("auth.jwks_url={}", good.url())]).await,
        &["warning: auth.audience is not set"],
    );
}

#[tokio::test]
async fn every_node_of_a_sentinel_fleet_and_of_a_cluster_is_checked() {
    let fleet = Sentinel::start().await;
    fleet.servers()[2].config_set("maxmemory-policy", "volatile-lru").await;
    let lines = checked(0, &["--redis-url", &fleet.url()]).await;
    for sentinel in fleet.sentinels() {
        says(&lines, &[&format!("ok: sentinel 127.0.0.1:{}: names the master", sentinel.port())]);
    }
    for server in fleet.servers() {
        says(&lines, &[&format!("ok: redis 127.0.0.1:{} version:", server.port())]);
    }
    says(&lines, &[&format!("warning: redis 127.0.0.1:{} eviction:", fleet.servers()[2].port()), "volatile-lru"]);

    let cluster = Cluster::start().await;
    let lines = checked(0, &["--redis-url", &cluster.url()]).await;
    let masters = lines.iter().filter(|line| line.contains("permissions: every command")).count();
    assert_eq!(masters, 3, "{lines:#?}");
    assert_eq!(lines.iter().filter(|line| line.contains(" version: ")).count(), 6, "{lines:#?}");
    let () = cluster.node(1).command(&["ACL", "SETUSER", "default", "-zadd"]).await;
    let lines = checked(2, &["--redis-url", &cluster.url()]).await;
    says(&lines, &[&format!("error: redis 127.0.0.1:{} permissions: refused: ZADD", cluster.node(1).port())]);
}

#[tokio::test]
async fn an_instance_logs_the_same_warnings_at_its_start() {
    let (redis, authority) = (RedisServer::start().await, Authority::new());
    let expired = authority.expired_certificate(&["127.0.0.1"]).map(|path| path.display().to_string());
    let gateway = Options::redis(&redis)
        .set("server.tls_cert_file", &expired[0])
        .set("server.tls_key_file", &expired[1])
        .start_unready()
        .await;
    eventually("both are logged", async || {
        let log = gateway.log();
        let has =
            |parts: [&str; 2]| log.lines().any(|line| line.contains("WARN") && parts.iter().all(|p| line.contains(p)));
        has(["server.tls_cert_file", "expired"]) && has(["persistence: none", "set appendonly yes"])
    })
    .await;
    let evicts = gateway.log().matches("maxmemory-policy").count();
    assert_eq!(evicts, 0, "{}", gateway.log());
}
