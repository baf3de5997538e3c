//! File, environment and flags, merged and validated into one [`Config`] before any socket is opened.

mod kind;
mod settings;
mod tls;
mod value;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use toml::Value;

pub(crate) use settings::mask_url;
use settings::{Settings, text};
pub use tls::{Pem, TlsError, TlsFiles};
use value::format_duration;
pub use value::parse_duration;

/// Everything wrong with a configuration, one line each: the key, what was given, what is accepted.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// An error of one line.
    #[must_use]
    pub fn new(problem: impl Into<String>) -> Self {
        Self(vec![problem.into()])
    }
}

/// Where the layers come from, lowest first: file, environment, flags.
#[derive(Debug, Default)]
pub struct Layers {
    /// `--config FILE`.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not start with `TIDINGS_` are ignored.
    pub env: Vec<(String, String)>,
    /// Flags, as (flag, key, value).
    pub flags: Vec<(String, String, String)>,
    /// `--dev`: one machine, no set-up.
    pub dev: bool,
}

/// The configuration of one instance, valid as a whole.
#[derive(Debug, Clone)]
pub struct Config {
    /// The listeners and what they accept.
    pub server: Server,
    /// The backplane; without a URL it is the in-process one.
    pub redis: Redis,
    /// How tokens are verified.
    pub auth: Auth,
    /// Named keys of the admin listener; none leaves it open, on loopback only.
    pub admin_keys: Vec<(String, SecretString)>,
    /// Who is online.
    pub presence: Presence,
    /// What is kept of each user's durable notifications.
    pub history: History,
    /// The bound of each connection's queue.
    pub outbox: Outbox,
    /// Over how long the last connections are closed at a stop.
    pub drain_window: Duration,
    /// Sizes that are too much.
    pub limits: Limits,
    /// How it logs.
    pub log: Log,
    /// Run by `--dev`.
    pub dev: bool,
    effective: String,
}

/// Keys under `server.`.
#[derive(Debug, Clone)]
pub struct Server {
    /// Browsers connect here.
    pub listen: SocketAddr,
    /// Operators and backends connect here.
    pub admin_listen: SocketAddr,
    /// Origins that may connect; empty: any, for tokens.
    pub allowed_origins: Vec<String>,
    /// From accept to the end of the upgrade.
    pub handshake_timeout: Duration,
    /// From the upgrade to the `hello`.
    pub hello_timeout: Duration,
    /// How long a client may be silent before it is pinged.
    pub heartbeat: Duration,
    /// How long it may then stay silent.
    pub pong_timeout: Duration,
    /// Whether connections to the public listener begin with a PROXY protocol header of version 2.
    pub proxy_protocol: bool,
    /// Serves the demo page with its open sign-in.
    pub demo: bool,
    /// Both listeners speak TLS with this certificate; none: they do not.
    pub tls: Option<TlsFiles>,
}

/// Keys under `redis.`.
#[derive(Debug, Clone)]
pub struct Redis {
    /// The server; none means the in-process backplane.
    pub url: Option<SecretString>,
    /// What names of ours start with in Redis, apart from those of `presence.`.
    pub prefix: String,
    /// PEM of the authority that signed the server's certificate; else the system's.
    pub ca_file: Option<PathBuf>,
    /// How often a message of our own goes through the command connection and back on the subscription.
    pub probe_interval: Duration,
}

/// Keys under `auth.`.
#[derive(Debug, Clone)]
pub struct Auth {
    /// Signs and verifies HS256, HS384 and HS512.
    pub hmac_secret: Option<SecretString>,
    /// Still verifies, during a rotation.
    pub previous_hmac_secret: Option<SecretString>,
    /// PEM of the public keys, or of the certificate, that tokens are verified with.
    pub public_key_file: Option<PathBuf>,
    /// Where an issuer publishes its keys.
    pub jwks_url: Option<Url>,
    /// Required `iss`.
    pub issuer: Option<String>,
    /// Required `aud`.
    pub audience: Option<String>,
    /// The claim that names the user.
    pub user_claim: String,
    /// Whether `?token=` is looked at.
    pub query_token: bool,
    /// The cookie that may hold a token.
    pub token_cookie: Option<String>,
    /// Sessions that are looked up; none where no secret is given.
    pub sessions: Option<Sessions>,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Keys under `auth.session_`: sessions of express-session, kept by connect-redis.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// Each may have signed a cookie.
    pub secrets: Vec<SecretString>,
    /// The cookie's name.
    pub cookie: String,
    /// What a session's key in Redis starts with.
    pub prefix: String,
    /// Where the user is in a session, as a path with dots.
    pub user: String,
}

/// Keys under `presence.`.
#[derive(Debug, Clone)]
pub struct Presence {
    /// The Redis set of who is online.
    pub set: String,
    /// The Redis channel of changes.
    pub channel: String,
    /// How long a killed instance's users stay online.
    pub lease: Duration,
    /// How long a user without a connection stays online.
    pub offline_delay: Duration,
}

/// Keys under `outbox.`.
#[derive(Debug, Clone, Copy)]
pub struct Outbox {
    /// Most queued frames of one connection.
    pub max_messages: usize,
    /// Most queued bytes of one connection.
    pub max_bytes: usize,
    /// Most bytes that wait in the queues of all connections together.
    pub max_total_bytes: usize,
    /// What happens when one of them is reached.
    pub slow_client: SlowClient,
    /// How long a queue may make no progress.
    pub write_timeout: Duration,
}

/// Keys under `history.`.
#[derive(Debug, Clone, Copy)]
pub struct History {
    /// How many notifications of a user are kept.
    pub max_len: usize,
    /// How long each is kept.
    pub ttl: Duration,
}

/// What happens to a client whose outbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowClient {
    /// It is closed with 4203.
    Disconnect,
    /// Its oldest queued events are dropped and counted.
    DropOldest,
}

/// Keys under `limits.`; what is absent has no limit.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most open connections of this instance.
    pub max_connections: Option<u32>,
    /// Most open connections of one user, on all instances together.
    pub max_connections_per_user: Option<u32>,
    /// Most open connections of one client address to this instance.
    pub max_connections_per_ip: Option<u32>,
    /// Most handshakes of one client address in a second, on all instances together.
    pub connects_per_second_per_ip: Option<u32>,
    /// Most handshakes of one user in a second, on all instances together.
    pub connects_per_second_per_user: Option<u32>,
    /// Proxies whose word on the client's address is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// WebSocket frames that one client may send in a second.
    pub inbound_frames_per_second: u32,
    /// Bytes that one client may send in a second.
    pub inbound_bytes_per_second: u32,
    /// Largest message from a client, inclusive, in bytes.
    pub max_inbound_bytes: usize,
    /// Largest published notification, in bytes.
    pub max_payload_bytes: usize,
}

/// Keys under `log.`.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// The least severe level that is written.
    pub level: tracing::Level,
}

impl Config {
    /// Merges the layers, validates all of them, and opens nothing but the files they name.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem found.
    pub fn load(layers: Layers) -> Result<Self, ConfigError> {
        let mut settings = Settings::default();
        if let Some(path) = &layers.file {
            settings.add_file(path)?;
        }
        settings.add_env(layers.env);
        for (flag, key, value) in &layers.flags {
            settings.add_flag(flag, key, value);
        }
        let mut config = Self {
            server: Server::read(&mut settings, layers.dev),
            redis: Redis::read(&mut settings),
            auth: Auth::read(&mut settings, layers.dev),
            admin_keys: admin_keys(&mut settings),
            presence: Presence::read(&mut settings),
            history: History {
                max_len: settings.size("history.max_len", 1_000),
                ttl: settings.duration("history.ttl", "7d", Duration::from_millis(100)),
            },
            outbox: Outbox::read(&mut settings),
            drain_window: settings.duration("drain.window", "10s", Duration::ZERO),
            limits: Limits::read(&mut settings),
            log: Log::read(&mut settings),
            dev: layers.dev,
            effective: String::new(),
        };
        config.check(&mut settings);
        config.effective = settings.finish()?;
        Ok(config)
    }

    fn check(&self, settings: &mut Settings) {
        let listeners = [("server.listen", self.server.listen), ("server.admin_listen", self.server.admin_listen)];
        for (key, address) in listeners {
            if self.dev && !address.ip().is_loopback() {
                settings.problem(format!(
                    "{key} = {address}: with --dev, accepted is a loopback address such as 127.0.0.1:8080"
                ));
            }
        }
        if self.admin_keys.is_empty() && !self.server.admin_listen.ip().is_loopback() {
            settings.problem(format!(
                "server.admin_listen = {}: off loopback, accepted only with admin.api_key (or admin.api_keys) set",
                self.server.admin_listen
            ));
        }
        if self.dev && self.redis.url.is_none() && self.auth.sessions.is_some() {
            settings.problem(
                "auth.session_secret is set, and redis.url is not: sessions are in Redis, so accepted is to set both"
                    .into(),
            );
        }
        if self.server.listen.port() != 0 && self.server.listen == self.server.admin_listen {
            let address = self.server.listen;
            settings.problem(format!(
                "server.listen and server.admin_listen are both {address}: accepted are two addresses"
            ));
        }
    }

    /// The whole effective configuration as TOML, secrets masked.
    #[must_use]
    pub fn to_toml(&self) -> &str {
        &self.effective
    }

    /// That there is a way for somebody to get in.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the keys which would do.
    pub fn require_way_in(&self) -> Result<(), ConfigError> {
        if self.auth.sessions.is_some() { Ok(()) } else { self.require_token_key() }
    }

    /// That there is a way to verify a token.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the keys which would do.
    pub fn require_token_key(&self) -> Result<(), ConfigError> {
        let Auth { hmac_secret, public_key_file, jwks_url, .. } = &self.auth;
        if hmac_secret.is_some() || public_key_file.is_some() || jwks_url.is_some() {
            return Ok(());
        }
        Err(ConfigError::new(
            "no way to verify a token: set auth.hmac_secret (TIDINGS_AUTH__HMAC_SECRET) or auth.hmac_secret_file \
             (TIDINGS_AUTH__HMAC_SECRET_FILE), auth.public_key_file (TIDINGS_AUTH__PUBLIC_KEY_FILE) or \
             auth.jwks_url (TIDINGS_AUTH__JWKS_URL), or auth.session_secret (TIDINGS_AUTH__SESSION_SECRET), or run \
             `tidings serve --dev`",
        ))
    }

    /// The secret that tokens are signed with here.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the keys which give one.
    pub fn require_signing_secret(&self) -> Result<&SecretString, ConfigError> {
        self.auth.hmac_secret.as_ref().ok_or_else(|| {
            ConfigError::new(
                "no secret to sign a token with: set auth.hmac_secret (TIDINGS_AUTH__HMAC_SECRET) or \
                 auth.hmac_secret_file (TIDINGS_AUTH__HMAC_SECRET_FILE)",
            )
        })
    }
}

impl Server {
    fn read(settings: &mut Settings, dev: bool) -> Self {
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

impl Redis {
    /// Where `tidings serve` looks for Redis when nothing names one.
    pub const DEFAULT_URL: &'static str = "redis://127.0.0.1:6379";

    fn read(settings: &mut Settings) -> Self {
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

impl Auth {
    fn read(settings: &mut Settings, dev: bool) -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        let leeway = settings.duration("auth.leeway", "30s", Duration::ZERO);
        if leeway > DAY {
            settings.problem(format!("auth.leeway = {}: accepted is at most 1d", format_duration(leeway)));
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

impl Sessions {
    fn read(settings: &mut Settings) -> Option<Self> {
        let sessions = Self {
            secrets: settings.secrets("auth.session_secret"),
            cookie: settings.cookie("auth.session_cookie", "connect.sid"),
            prefix: settings.key_prefix("auth.session_prefix", "sess:"),
            user: settings.path("auth.session_user", "userId"),
        };
        (!sessions.secrets.is_empty()).then_some(sessions)
    }
}

/// For one run of `--dev`; where the system has no randomness to give, there is none.
fn random_secret() -> SecretString {
    let mut bytes = [0_u8; 32];
    #[allow(clippy::expect_used, reason = "a guessable secret would be worse than no start")]
    getrandom::fill(&mut bytes).expect("randomness from the system");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

fn admin_keys(settings: &mut Settings) -> Vec<(String, SecretString)> {
    let mut keys = settings.secrets_under("admin.api_keys");
    if let Some(key) = settings.secret("admin.api_key") {
        keys.push(("default".into(), key));
    }
    keys
}

impl Presence {
    fn read(settings: &mut Settings) -> Self {
        Self {
            set: settings.name("presence.set", "online_users"),
            channel: settings.name("presence.channel", "presence"),
            lease: settings.duration("presence.lease", "10s", Duration::from_millis(500)),
            offline_delay: settings.duration("presence.offline_delay", "5s", Duration::ZERO),
        }
    }
}

impl Outbox {
    fn read(settings: &mut Settings) -> Self {
        let slow_client = settings.choice(
            "outbox.slow_client",
            &[("disconnect", SlowClient::Disconnect), ("drop_oldest", SlowClient::DropOldest)],
        );
        Self {
            max_messages: settings.size("outbox.max_messages", 256),
            max_bytes: settings.size("outbox.max_bytes", 1_048_576),
            max_total_bytes: settings.size("outbox.max_total_bytes", 268_435_456),
            slow_client,
            write_timeout: settings.duration("outbox.write_timeout", "10s", Duration::from_millis(10)),
        }
    }
}

impl Limits {
    fn read(settings: &mut Settings) -> Self {
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

impl Log {
    fn read(settings: &mut Settings) -> Self {
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

/// The secret's bytes, where a library must have them.
#[must_use]
pub fn secret_bytes(secret: &SecretString) -> &[u8] {
    secret.expose_secret().as_bytes()
}

#[cfg(test)]
mod tests;
