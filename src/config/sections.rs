//! The sections of a configuration: the meaning and the default of each key.
//!
//! Each section reads its keys by name instead of deriving `Deserialize`; the parent module states the reasons.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;

use super::origin::OriginPattern;
use super::redis_url::RedisUrl;
use super::settings::Settings;
use super::tls::TlsFiles;
use super::url::KeySetUrl;

/// Keys under `server.`.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where browsers connect.
    pub listen: SocketAddr,
    /// Where operators and backends connect.
    pub admin_listen: SocketAddr,
    /// Origins that may connect; if empty, any may with a token.
    pub allowed_origins: Vec<OriginPattern>,
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
    /// Serves streams of Server-Sent Events at `/events`.
    pub sse: bool,
    /// Serves `/socket.io/`, for socket.io clients.
    pub socketio: bool,
    /// Whether they may use HTTP long-polling, which they do first by default.
    pub socketio_polling: bool,
    /// Serves the demo page, which lets visitors sign in as any user.
    pub demo: bool,
    /// The certificate of both listeners; without one they do not use TLS.
    pub tls: Option<TlsFiles>,
    /// Instances with the same one accept each other's session tickets; default: a random one.
    pub tls_ticket_secret: Option<SecretString>,
}

impl Server {
    pub(super) fn read(settings: &mut Settings, dev: bool) -> Self {
        const MIN: Duration = Duration::from_millis(10);
        let tls = TlsFiles::from_settings(settings, ["server.tls_cert_file", "server.tls_key_file"]);
        Self {
            listen: settings.address("server.listen", "127.0.0.1:8080"),
            admin_listen: settings.address("server.admin_listen", "127.0.0.1:9090"),
            allowed_origins: settings.origins("server.allowed_origins"),
            handshake_timeout: settings.duration("server.handshake_timeout", "10s", MIN),
            hello_timeout: settings.duration("server.hello_timeout", "5s", MIN),
            heartbeat: settings.duration("server.heartbeat", "25s", MIN),
            pong_timeout: settings.duration("server.pong_timeout", "10s", MIN),
            proxy_protocol: settings.boolean("server.proxy_protocol", false),
            sse: settings.boolean("server.sse", true),
            socketio: settings.boolean("server.socketio", true),
            socketio_polling: settings.boolean("server.socketio_polling", true),
            demo: settings.boolean("server.demo", dev),
            tls_ticket_secret: settings.ticket_secret("server.tls_ticket_secret", tls.is_some()),
            tls,
        }
    }
}

/// Keys under `redis.`.
#[derive(Debug, Clone)]
pub struct Redis {
    /// The servers; without any, the backplane is in-process.
    pub url: Option<RedisUrl>,
    /// Prefix of tidings' own keys in Redis, except those under `presence.`.
    pub prefix: String,
    /// PEM of the authority that signed the server's certificate; default: the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// The certificate that this instance presents to the server.
    pub certificate: Option<TlsFiles>,
    /// Interval between probes: messages sent on the command connection that must arrive on the subscription.
    pub probe_interval: Duration,
    /// Prefix of a user's channel, before the user id.
    pub user_channel: String,
    /// The channels that an instance subscribes to.
    pub subscribe: Subscribe,
    /// Whether frequent messages for the users of other instances are read once per millisecond.
    pub batch_reads: bool,
    /// Replicas that must have a durable notification before it is confirmed.
    pub wait_replicas: u32,
    /// How long to wait for them.
    pub wait_timeout: Duration,
    /// The user on the sentinels; the default one without it.
    pub sentinel_username: Option<String>,
    /// The password on the sentinels.
    pub sentinel_password: Option<SecretString>,
}

/// The channels that an instance subscribes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribe {
    /// Those of all users, by one pattern.
    Pattern,
    /// Those of its own users.
    Exact,
    /// As [`Subscribe::Exact`], and the sharded channels of its own users.
    Sharded,
}

/// A publication must end before the deadlines of its clients do.
const MAX_WAIT: Duration = Duration::from_secs(10);

impl Redis {
    /// The URL that `tidings serve` uses if none is configured.
    pub const DEFAULT_URL: &'static str = "redis://127.0.0.1:6379";

    pub(super) fn read(settings: &mut Settings) -> Self {
        settings.take_from_file("redis.url");
        Self {
            url: settings.read_url("redis.url", str::parse),
            certificate: TlsFiles::from_settings(settings, ["redis.cert_file", "redis.key_file"]),
            prefix: settings.name("redis.prefix", "tidings:"),
            ca_file: settings.authorities("redis.ca_file"),
            probe_interval: settings.duration("redis.probe_interval", "3s", Duration::from_millis(100)),
            user_channel: settings.channel_prefix("redis.user_channel", "user:"),
            subscribe: settings.choice(
                "redis.subscribe",
                &[("pattern", Subscribe::Pattern), ("exact", Subscribe::Exact), ("sharded", Subscribe::Sharded)],
            ),
            batch_reads: settings.boolean("redis.batch_reads", true),
            wait_replicas: settings.count_or_zero("redis.wait_replicas"),
            wait_timeout: settings.duration_within("redis.wait_timeout", "1s", Duration::from_millis(10)..=MAX_WAIT),
            sentinel_username: settings.optional_text("redis.sentinel_username"),
            sentinel_password: settings.secret("redis.sentinel_password"),
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
    pub jwks_url: Option<KeySetUrl>,
    /// PEM of authorities that may sign the certificate of its server, in addition to the system's.
    pub jwks_ca_file: Option<PathBuf>,
    /// Whether its URL may be `http://` on another machine.
    pub jwks_allow_http: bool,
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
        let leeway = settings.duration_within("auth.leeway", "30s", Duration::ZERO..=DAY);
        let jwks_allow_http = settings.boolean("auth.jwks_allow_http", false);
        let jwks_url = settings.key_set_url("auth.jwks_url", jwks_allow_http);
        let jwks_ca_file = settings.authorities("auth.jwks_ca_file");
        if jwks_ca_file.is_some() && jwks_url.as_ref().is_none_or(|url| url.expose().scheme() != "https") {
            settings.problem("auth.jwks_ca_file is set, but auth.jwks_url is not an https:// URL".into());
        }
        Self {
            hmac_secret: settings.secret("auth.hmac_secret").or_else(|| dev.then(random_secret)),
            previous_hmac_secret: settings.secret("auth.previous_hmac_secret"),
            public_key_file: settings.readable_file("auth.public_key_file"),
            jwks_url,
            jwks_ca_file,
            jwks_allow_http,
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

/// The secret of one run of `--dev`: a reload keeps it.
fn random_secret() -> SecretString {
    static SECRET: LazyLock<SecretString> = LazyLock::new(|| {
        let mut bytes = [0_u8; 32];
        #[allow(clippy::expect_used, reason = "failing to start is safer than a guessable secret")]
        getrandom::fill(&mut bytes).expect("randomness from the system");
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
    });
    SECRET.clone()
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
    /// The action when a user has that many, and all of them answer.
    pub over_user: OverUser,
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

/// The treatment of a new connection of a user who has as many as are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverUser {
    /// Refuse it.
    Refuse,
    /// Close the user's oldest connection with 4004, and accept the new one.
    ReplaceOldest,
}

impl Limits {
    pub(super) fn read(settings: &mut Settings) -> Self {
        Self {
            max_connections: settings.optional_count("limits.max_connections"),
            max_connections_per_user: settings.optional_count("limits.max_connections_per_user"),
            over_user: settings.choice(
                "limits.over_user",
                &[("refuse", OverUser::Refuse), ("replace_oldest", OverUser::ReplaceOldest)],
            ),
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
    /// The names of `log.format`, and whether each is JSON; the first is the default.
    pub const FORMATS: [(&str, bool); 2] = [("text", false), ("json", true)];

    /// The names of `log.level`; the first is the default.
    pub const LEVELS: [(&str, tracing::Level); 5] = [
        ("info", tracing::Level::INFO),
        ("trace", tracing::Level::TRACE),
        ("debug", tracing::Level::DEBUG),
        ("warn", tracing::Level::WARN),
        ("error", tracing::Level::ERROR),
    ];

    pub(super) fn read(settings: &mut Settings) -> Self {
        Self { json: settings.choice("log.format", &Self::FORMATS), level: settings.choice("log.level", &Self::LEVELS) }
    }
}
