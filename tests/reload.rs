//! SIGHUP: what changes while an instance runs, what does not, and that no connection is closed.

use std::path::PathBuf;

use jsonwebtoken::Algorithm;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio_rustls::rustls::version::TLS13;

use crate::support::{
    Authority, Client, Gateway, Issuer, KeyServer, Options, Publishes, RedisServer, SECRET, client_config, eventually,
    handshake, handshake_tls, key_set, now, secrets, served_certificate, sign_with, token,
};

const OTHER_SECRET: &str = "another secret of this file, 32 bytes and more";

const TAKEN: &str = "tidings_config_reloads_total{result=\"taken\"}";

const REFUSED: &str = "tidings_config_reloads_total{result=\"refused\"}";

/// A configuration file that is written again.
struct File(TempDir);

impl File {
    fn new(toml: &str) -> Self {
        [SECRET, OTHER_SECRET].iter().for_each(|secret| secrets::keep("secret in a configuration", secret));
        let file = Self(TempDir::new().unwrap());
        file.write(toml);
        file
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, toml: &str) {
        std::fs::write(self.path("tidings.toml"), toml).unwrap();
    }

    /// Uses only this file, unless more is set.
    fn options(&self, redis: &RedisServer) -> Options {
        Options::redis(redis).without_secret().arg("--config").arg(self.path("tidings.toml").to_str().unwrap())
    }

    /// Writes another configuration, and has it loaded.
    async fn reload(&self, gateway: &Gateway, toml: &str) {
        self.write(toml);
        let before = gateway.metric(TAKEN).await;
        gateway.signal("HUP");
        eventually("it is taken over", async || gateway.metric(TAKEN).await == before + 1.0).await;
    }
}

/// The status of a handshake with these headers; 101 if it is accepted.
async fn status(gateway: &Gateway, token: &str, origin: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    let answer = handshake(gateway.public, "/ws", &[("Authorization", &bearer), ("Origin", origin)]).await;
    answer.err().map_or(101, |refused| refused.status)
}

fn configuration(secret: &str, origin: &str, rest: &str) -> String {
    format!("auth.hmac_secret = {secret:?}\nserver.allowed_origins = [{origin:?}]\n{rest}")
}

#[tokio::test]
async fn sighup_takes_over_secrets_origins_limits_and_the_level_and_closes_no_connection() {
    let (redis, [one, two]) = (RedisServer::start().await, ["https://one.example", "https://two.example"]);
    let limits = "limits.max_connections_per_user = 1\nlimits.max_payload_bytes = 100\n";
    let file = File::new(&configuration(SECRET, one, limits));
    let gateway = file.options(&redis).start().await;
    let other_token = |user: &str| sign_with(Algorithm::HS256, OTHER_SECRET, &json!({"sub": user, "exp": now() + 60}));
    let (large, mut client) = (format!("{:?}", "x".repeat(150)), Client::connect(&gateway, "42").await);
    assert_eq!(status(&gateway, &token("7"), one).await, 101);
    assert_eq!(status(&gateway, &other_token("7"), one).await, 401);
    redis.publish("42", &large).await;
    assert!(!gateway.log().contains("DEBUG"));

    let limits = "limits.max_connections_per_user = 2\nlimits.max_payload_bytes = 200\nlog.level = \"debug\"\n";
    file.reload(&gateway, &configuration(OTHER_SECRET, two, limits)).await;
    let changed = "auth.hmac_secret, limits.max_connections_per_user, limits.max_payload_bytes, log.level, \
                   server.allowed_origins";
    let line = format!("configuration reloaded changed=\"{changed}\"");
    assert!(gateway.log().contains(&line), "{}", gateway.log());
    assert_eq!(status(&gateway, &token("7"), two).await, 401);
    assert_eq!(status(&gateway, &other_token("7"), one).await, 403);
    assert_eq!(status(&gateway, &other_token("42"), two).await, 101, "a second connection");
    redis.publish("42", &large).await;
    assert_eq!(client.event().await.as_str().map(str::len), Some(150), "the first connection lives");
    eventually("a line of the new level", async || gateway.log().contains("DEBUG")).await;

    // Limits that were not there before, and the level back.
    let limits = "limits.connects_per_second_per_user = 1\nlimits.max_connections = 2\n";
    file.reload(&gateway, &configuration(OTHER_SECRET, two, limits)).await;
    assert_eq!(status(&gateway, &other_token("8"), two).await, 101);
    assert_eq!(status(&gateway, &other_token("8"), two).await, 429);
    let lines = gateway.log().matches("DEBUG").count();
    drop(Client::connect_with_token(&gateway, &other_token("9")).await);
    assert_eq!(gateway.log().matches("DEBUG").count(), lines);
}

#[tokio::test]
async fn a_reload_to_a_more_verbose_level_reports_what_changed() {
    let redis = RedisServer::start().await;
    for (before, after) in [("warn", "debug"), ("error", "info"), ("info", "warn")] {
        let toml = |level: &str| format!("auth.hmac_secret = {SECRET:?}\nlog.level = {level:?}\n");
        let file = File::new(&toml(before));
        let gateway = file.options(&redis).start().await;
        file.reload(&gateway, &toml(after)).await;
        let log = gateway.log();
        assert!(log.contains("configuration reloaded changed=\"log.level\""), "{before} to {after}: {log}");
    }
}

#[tokio::test]
async fn a_reload_gives_the_warnings_of_a_start() {
    let short = "of 20 bytes, no more";
    secrets::keep("secret in a configuration", short);
    let redis = RedisServer::start().await;
    let file = File::new(&format!("auth.hmac_secret = {SECRET:?}\n"));
    let gateway = file.options(&redis).start().await;
    let warnings =
        ["auth.hmac_secret is shorter than 32 bytes", "is reached: raise the hard limit of file descriptors"];
    let log = gateway.log();
    assert!(!warnings.iter().any(|warning| log.contains(warning)), "{log}");
    file.reload(&gateway, &format!("auth.hmac_secret = {short:?}\nlimits.max_connections = 4000000000\n")).await;
    for warning in warnings {
        eventually(warning, async || gateway.log().contains(warning)).await;
    }
}

#[tokio::test]
async fn a_limit_per_user_that_a_reload_sets_is_shared_with_the_fleet() {
    let redis = RedisServer::start().await;
    let file = File::new(&format!("auth.hmac_secret = {SECRET:?}\n"));
    let (first, second) = (file.options(&redis).start().await, file.options(&redis).start().await);
    let limited = format!("auth.hmac_secret = {SECRET:?}\nlimits.max_connections_per_user = 1\n");
    for gateway in [&first, &second] {
        file.reload(gateway, &limited).await;
    }
    let _only = Client::connect(&first, "42").await.answering();
    assert_eq!(status(&second, &token("42"), "https://page.example").await, 429);
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_changes_nothing_and_is_logged() {
    let (redis, origin) = (RedisServer::start().await, "https://one.example");
    let good = configuration(SECRET, origin, "");
    let file = File::new(&good);
    let gateway = file.options(&redis).start().await;
    std::fs::write(file.path("no-key.pem"), "no key").unwrap();
    let no_key = format!("auth.public_key_file = {:?}\n", file.path("no-key.pem"));
    let bad = [
        ("no toml", "line 1".to_owned()),
        ("server.allowed_origins = 5\nlimits.max_connections = 0\n", "limits.max_connections = 0".to_owned()),
        ("unknown = 1\n", "unknown key unknown".to_owned()),
        ("log.level = \"debug\"\n", "no way to verify a token".to_owned()),
        (&no_key, "auth.public_key_file".to_owned()),
    ];
    for (index, (toml, named)) in bad.iter().enumerate() {
        file.write(toml);
        gateway.signal("HUP");
        #[allow(clippy::cast_precision_loss, reason = "a small number")]
        let count = (index + 1) as f64;
        eventually("it is refused", async || gateway.metric(REFUSED).await == count).await;
        let log = gateway.log();
        let line = log.lines().rfind(|line| line.contains("configuration not reloaded")).unwrap();
        assert!(line.contains("ERROR") && line.contains(named), "{toml}: {line}");
        assert_eq!(status(&gateway, &token("42"), origin).await, 101);
        assert_eq!(status(&gateway, &token("42"), "https://two.example").await, 403);
    }
    assert_eq!(gateway.metric(TAKEN).await, 0.0);
    assert!(!gateway.log().contains("DEBUG"), "{}", gateway.log());
    file.reload(&gateway, &good).await;
    assert!(gateway.log().contains("configuration reloaded: nothing has changed"));
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named_as_long_as_they_differ() {
    let redis = RedisServer::start().await;
    let file = File::new(&format!("auth.hmac_secret = {SECRET:?}\n"));
    let gateway = file.options(&redis).start().await;
    let changed = format!(
        "auth.hmac_secret = {SECRET:?}\nauth.leeway = \"7s\"\nadmin.api_key = \"{OTHER_SECRET}\"\npresence.lease = \"7s\"\n"
    );
    let named = |gateway: &Gateway| {
        let log = gateway.log();
        log.lines()
            .filter(|line| {
                line.contains("WARN") && line.contains("keys=\"admin.api_key, auth.leeway, presence.lease\"")
            })
            .count()
    };
    file.reload(&gateway, &changed).await;
    assert_eq!(named(&gateway), 1, "{}", gateway.log());
    file.reload(&gateway, &changed).await;
    assert_eq!(named(&gateway), 2, "{}", gateway.log());
    file.reload(&gateway, &format!("auth.hmac_secret = {SECRET:?}\n")).await;
    assert_eq!(named(&gateway), 2, "{}", gateway.log());
}

#[tokio::test]
async fn another_certificate_and_another_key_set_are_used_from_the_next_handshake_on() {
    let (redis, authority, [old, new]) =
        (RedisServer::start().await, Authority::new(), [1, 2].map(|_| Issuer::new("ES256")));
    let (set, other_set) = (
        KeyServer::start(Publishes::Keys(key_set(&[&old]))).await,
        KeyServer::start(Publishes::Keys(key_set(&[&new]))).await,
    );
    // The authority writes each pair to the same files.
    let pairs = ["first", "second"].map(|name| {
        let [certificate, key] = authority.certificate(&["127.0.0.1"]);
        let kept = [certificate.with_file_name(format!("{name}.pem")), key.with_file_name(format!("{name}.key"))];
        std::fs::copy(certificate, &kept[0]).unwrap();
        std::fs::copy(key, &kept[1]).unwrap();
        kept
    });
    let toml = |[certificate, key]: &[PathBuf; 2], set: &KeyServer| {
        let tls = format!("server.tls_cert_file = {certificate:?}\nserver.tls_key_file = {key:?}\n");
        format!("{tls}auth.jwks_url = {:?}\n", set.url())
    };
    let file = File::new(&toml(&pairs[0], &set));
    let gateway = file.options(&redis).trust(&authority).start().await;
    let config = client_config(&authority, &TLS13);
    let shown = async || {
        let tls = handshake_tls(TcpSocket::new_v4().unwrap(), gateway.public, &config).await.unwrap();
        served_certificate(&tls)
    };
    let first = shown().await;
    file.reload(&gateway, &toml(&pairs[1], &other_set)).await;
    eventually("the other certificate is served", async || shown().await != first).await;
    eventually("the other key set is fetched", async || other_set.requests() == 1).await;
    let log = gateway.log();
    assert!(log.contains("changed=\"auth.jwks_url, server.tls_cert_file, server.tls_key_file\""), "{log}");
    assert!(gateway.metric("tidings_certificate_expiry_timestamp_seconds").await > 0.0);
}
