//! The sections of a configuration: the meaning and the default of each key.
//!
//! Each section reads its keys by name instead of deriving `Deserialize`; the parent module states the reasons.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use secrecy::SecretString;
use toml::Value;

use super::settings::{Settings, mask_url, text};
use super::tls::TlsFiles;
use super::value::format_duration;

/// Keys under `server.`.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where browsers connect.
    pub listen: SocketAddr,
    /// Where operators and backends connect.
    pub admin_listen: SocketAddr,
    /// Origins that may connect; if empty, any may with a token.
    pub allowed_origins: Vec<String>,
    /// From accept to the end of the upgrade.
    pub handshake_timeout: Duration,
    /// From the upgrade to the `hello`.
    pub hello_timeout: Duration,
    /// How long a client may be silent before it is pinged.
    pub heartbeat: Duration,
    /// How long it may stay silent after the ping.
    pub pong_timeout: Duration,
    /// Whether connections to the public listener begin with a PROXY protocol v2 header.
    pub proxy_protocol: bool,
    /// Serves the demo page, which lets visitors sign in as any user.
    pub demo: bool,
    /// The certificate of both listeners; without one they do not use TLS.
    pub tls: Option<TlsFiles>,
}

impl Server {
    pub(super) fn read(settings: &mut Settings, dev: bool) -> Self {
        const MIN: Duration = Duration::from_millis(10);
        Self {
            listen: settings.address("server.listen", "127.0.0.1:8080"),
            admin_listen: settings.address("server.admin_listen", "127.0.0.1:9090"),
            allowed_origins: settings.origins("server.allowed_origins"),
            handshake_timeout: settings.duration("server.handshake_timeout", "10s", MIN),
            hello_timeout: settings.duration("server.hello_timeout", "5s", MIN),
            heartbeat: settings.duration("server.heartbeat", "25s", MIN),
            pong_timeout: settings.duration("server.pong_timeout", "10s", MIN),
            proxy_protocol: settings.boolean("server.proxy_protocol", false),
            demo: settings.boolean("server.demo", dev),
            tls: TlsFiles::from_settings(settings),
        }
    }
}

/// Keys under `redis.`.
#[derive(Debug, Clone)]
pub struct Redis {
    /// The server; without one the backplane is in-process.
    pub url: Option<SecretString>,
    /// Prefix of tidings' own keys in Redis, except those under `presence.`.
    pub prefix: String,
    /// PEM of the authority that signed the server's certificate; default: the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// Interval between probes: messages sent on the command connection that must arrive on the subscription.
    pub probe_interval: Duration,
}

impl Redis {
    /// The URL that `tidings serve` uses if none is configured.
    pub const DEFAULT_URL: &'static str = "redis://127.0.0.1:6379";

    pub(super) fn read(settings: &mut Settings) -> Self {
        const URL: &str = "redis://, rediss:// or unix://, such as redis://user:password@127.0.0.1:6379/0";
        let parse = |value: &Value| {
            let url = text(value)?;
            let scheme = url.split_once("://")?.0.to_owned();
            let known = ["redis", "rediss", "unix"].contains(&scheme.as_str());
            (known && redis::parse_redis_url(&url).is_some()).then_some(url)
        };
        settings.take_from_file("redis.url");
        let url = settings.read("redis.url", URL, parse, |url| mask_url(url).into());
        Self {
            url: url.map(SecretString::from),
            prefix: settings.name("redis.prefix", "tidings:"),
            ca_file: settings.authorities("redis.ca_file"),
            probe_interval: settings.duration("redis.probe_interval", "3s", Duration::from_millis(100)),
        }
    }
}

/// Keys under `auth.`.
#[derive(Debug, Clone)]
pub struct Auth {
    /// Signs and verifies HS256, HS384 and HS512.
    pub hmac_secret: Option<SecretString>,
    /// Verifies tokens during a rotation.
    pub previous_hmac_secret: Option<SecretString>,
    /// PEM of the public keys, or of the certificate, that verify tokens.
    pub public_key_file: Option<PathBuf>,
    /// The URL of the issuer's key set.
    pub jwks_url: Option<Url>,
    /// Required `iss`.
    pub issuer: Option<String>,
    /// Required `aud`.
    pub audience: Option<String>,
    /// The claim that names the user.
    pub user_claim: String,
    /// Whether `?token=` is accepted.
    pub query_token: bool,
    /// The cookie that may carry a token.
    pub token_cookie: Option<String>,
    /// Sessions of express-session; disabled without a secret.
    pub sessions: Option<Sessions>,
    /// The accepted clock skew.
    pub leeway: Duration,
}

impl Auth {
    pub(super) fn read(settings: &mut Settings, dev: bool) -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        let leeway = settings.duration("auth.leeway", "30s", Duration::ZERO);
        if leeway > DAY {
            settings.problem(format!("auth.leeway = {}: expected at most 1d", format_duration(leeway)));
        }
        Self {
            hmac_secret: settings.secret("auth.hmac_secret").or_else(|| dev.then(random_secret)),
            previous_hmac_secret: settings.secret("auth.previous_hmac_secret"),
            public_key_file: settings.readable_file("auth.public_key_file"),
            jwks_url: settings.issuer_url("auth.jwks_url"),
            issuer: settings.optional_text("auth.issuer"),
            audience: settings.optional_text("auth.audience"),
            user_claim: settings.user_claim("auth.user_claim"),
            query_token: settings.boolean("auth.query_token", dev),
            token_cookie: settings.optional_cookie("auth.token_cookie"),
            sessions: Sessions::read(settings),
            leeway,
        }
    }
}

/// The secret of one run of `--dev`.
fn random_secret() -> SecretString {
    let mut bytes = [0_u8; 32];
    #[allow(clippy::expect_used, reason = "failing to start is safer than a guessable secret")]
    getrandom::fill(&mut bytes).expect("randomness from the system");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

/// Keys under `auth.session_`: sessions of express-session, kept by connect-redis.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// The secrets that may have signed a cookie.
    pub secrets: Vec<SecretString>,
    /// The cookie's name.
    pub cookie: String,
    /// Prefix of a session's key in Redis.
    pub prefix: String,
    /// The dotted path of the user in a session.
    pub user: String,
}

impl Sessions {
    pub(super) fn read(settings: &mut Settings) -> Option<Self> {
        let sessions = Self {
            secrets: settings.secrets("auth.session_secret"),
            cookie: settings.cookie("auth.session_cookie", "connect.sid"),
            prefix: settings.key_prefix("auth.session_prefix", "sess:"),
            user: settings.path("auth.session_user", "userId"),
        };
        (!sessions.secrets.is_empty()).then_some(sessions)
    }
}

/// Keys under `presence.`.
#[derive(Debug, Clone)]
pub struct Presence {
    /// The Redis set of online users.
    pub set: String,
    /// The Redis channel of presence changes.
    pub channel: String,
    /// How long a killed instance's users stay online.
    pub lease: Duration,
    /// How long a user without a connection stays online.
    pub offline_delay: Duration,
}

impl Presence {
    pub(super) fn read(settings: &mut Settings) -> Self {
        Self {
            set: settings.name("presence.set", "online_users"),
            channel: settings.name("presence.channel", "presence"),
            lease: settings.duration("presence.lease", "10s", Duration::from_millis(500)),
            offline_delay: settings.duration("presence.offline_delay", "5s", Duration::ZERO),
        }
    }
}

/// Keys under `send_queue.`.
#[derive(Debug, Clone, Copy)]
pub struct SendQueue {
    /// Maximum frames queued for one connection.
    pub max_messages: usize,
    /// Maximum bytes queued for one connection.
    pub max_bytes: usize,
    /// Maximum bytes queued for all connections together.
    pub max_total_bytes: usize,
    /// The action when one of these limits is reached.
    pub slow_client: SlowClient,
    /// How long a write may make no progress.
    pub write_timeout: Duration,
}

/// The treatment of a client whose send queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowClient {
    /// Close it with 4203.
    Disconnect,
    /// Drop and count its oldest queued events.
    DropOldest,
}

impl SendQueue {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let slow_client = settings.choice(
            "send_queue.slow_client",
            &[("disconnect", SlowClient::Disconnect), ("drop_oldest", SlowClient::DropOldest)],
        );
        Self {
            max_messages: settings.size("send_queue.max_messages", 256),
            max_bytes: settings.size("send_queue.max_bytes", 1_048_576),
            max_total_bytes: settings.size("send_queue.max_total_bytes", 268_435_456),
            slow_client,
            write_timeout: settings.duration("send_queue.write_timeout", "10s", Duration::from_millis(10)),
        }
    }
}

/// Keys under `history.`.
#[derive(Debug, Clone, Copy)]
pub struct History {
    /// Maximum notifications stored for one user.
    pub max_len: usize,
    /// How long each is stored.
    pub ttl: Duration,
}

impl History {
    pub(super) fn read(settings: &mut Settings) -> Self {
        Self {
            max_len: settings.size("history.max_len", 1_000),
            ttl: settings.duration("history.ttl", "7d", Duration::from_millis(100)),
        }
    }
}

/// Keys under `limits.`; `None` means unlimited.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Maximum open connections of this instance.
    pub max_connections: Option<u32>,
    /// Maximum open connections of one user in the fleet.
    pub max_connections_per_user: Option<u32>,
    /// Maximum open connections of one client address to this instance.
    pub max_connections_per_ip: Option<u32>,
    /// Maximum handshakes per second of one client address in the fleet.
    pub connects_per_second_per_ip: Option<u32>,
    /// Maximum handshakes per second of one user in the fleet.
    pub connects_per_second_per_user: Option<u32>,
    /// Proxies that are trusted to name the client's address.
    pub trusted_proxies: Vec<IpNet>,
    /// Maximum WebSocket frames per second from one client.
    pub inbound_frames_per_second: u32,
    /// Maximum bytes per second from one client.
    pub inbound_bytes_per_second: u32,
    /// Maximum size of a message from a client, in bytes.
    pub max_inbound_bytes: usize,
    /// Maximum size of a published notification, in bytes.
    pub max_payload_bytes: usize,
}

impl Limits {
    pub(super) fn read(settings: &mut Settings) -> Self {
        Self {
            max_connections: settings.optional_count("limits.max_connections"),
            max_connections_per_user: settings.optional_count("limits.max_connections_per_user"),
            max_connections_per_ip: settings.optional_count("limits.max_connections_per_ip"),
            connects_per_second_per_ip: settings.optional_count("limits.connects_per_second_per_ip"),
            connects_per_second_per_user: settings.optional_count("limits.connects_per_second_per_user"),
            trusted_proxies: settings.networks("limits.trusted_proxies"),
            inbound_frames_per_second: settings.count("limits.inbound_frames_per_second", 100),
            inbound_bytes_per_second: settings.count("limits.inbound_bytes_per_second", 65_536),
            max_inbound_bytes: settings.size("limits.max_inbound_bytes", 16_384),
            max_payload_bytes: settings.size("limits.max_payload_bytes", 1_048_576),
        }
    }
}

/// Keys under `log.`.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// One JSON object per line instead of text.
    pub json: bool,
    /// The least severe level written.
    pub level: tracing::Level,
}

impl Log {
    pub(super) fn read(settings: &mut Settings) -> Self {
        use tracing::Level;
        let levels = [
            ("info", Level::INFO),
            ("trace", Level::TRACE),
            ("debug", Level::DEBUG),
            ("warn", Level::WARN),
            ("error", Level::ERROR),
        ];
        Self {
            json: settings.choice("log.format", &[("text", false), ("json", true)]),
            level: settings.choice("log.level", &levels),
        }
    }
}
