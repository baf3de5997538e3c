//! File, environment and flags, merged and validated into one [`Config`] before any socket is opened.
//!
//! Hand-written rather than with a crate such as figment: it refuses unknown keys by name and suggests the known ones,
//! reports all errors at once with the source of each value, and masks secrets.

#![warn(missing_docs)]

mod fingerprints;
mod kind;
mod live;
mod mask;
mod nearest;
mod origin;
mod redis_checks;
mod redis_url;
mod sections;
mod settings;
mod tls;
mod url;
mod value;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use fingerprints::Fingerprints;
pub use live::LiveLimits;
pub(crate) use mask::{MASK, may_have_secret, shown, shown_path};
pub use origin::{Authority, Origin, OriginPattern};
pub use redis_url::{NodeAddress, RedisTopology, RedisUrl};
pub use sections::{
    Auth, History, Limits, Log, OverUser, Presence, Redis, SendQueue, Server, Sessions, SlowClient, Subscribe,
};
use settings::Settings;
pub(crate) use settings::{ENV_PREFIX, FILE_VARIABLE};
pub use tls::{Pem, TlsError, TlsFiles, Validity};
pub use url::KeySetUrl;
pub(crate) use url::{check_host, harmless_parts};
pub use value::parse_duration;

/// All errors of a configuration, one per line: the key, the given value, and the expected values.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// An error with a single line.
    #[must_use]
    pub fn new(problem: impl Into<String>) -> Self {
        Self(vec![problem.into()])
    }
}

/// The layers of a configuration, in ascending precedence: file, environment, flags.
#[derive(Debug, Default)]
pub struct Layers {
    /// `--config FILE`, or `TIDINGS_CONFIG`.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not start with `TIDINGS_` are ignored.
    pub env: Vec<(String, String)>,
    /// Flags, as (flag, key, value).
    pub flags: Vec<(String, String, String)>,
    /// `--dev`: development mode, without set-up and on loopback only.
    pub dev: bool,
}

/// The configuration of one instance, valid as a whole.
#[derive(Debug, Clone)]
pub struct Config {
    /// The listeners.
    pub server: Server,
    /// The backplane; in-process if there is no URL.
    pub redis: Redis,
    /// How tokens and sessions are verified.
    pub auth: Auth,
    /// Named keys of the admin listener. Without any it is open, and must listen on loopback.
    pub admin_keys: Vec<(String, SecretString)>,
    /// Presence: the set and the channel of online users.
    pub presence: Presence,
    /// The stored history of each user.
    pub history: History,
    /// The send queue of each connection.
    pub send_queue: SendQueue,
    /// The period over which a stop closes the connections.
    pub drain_window: Duration,
    /// Limits on connections, frames and sizes.
    pub limits: LiveLimits,
    /// Format and level of the log.
    pub log: Log,
    /// Started with `--dev`.
    pub dev: bool,
    effective: String,
    fingerprints: Fingerprints,
}

impl Config {
    /// Merges and validates the layers; opens only the files that they name. The error has every problem found.
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
            history: History::read(&mut settings),
            send_queue: SendQueue::read(&mut settings),
            drain_window: settings.duration("drain.window", "8s", Duration::ZERO),
            limits: LiveLimits::new(Limits::read(&mut settings)),
            log: Log::read(&mut settings),
            dev: layers.dev,
            effective: String::new(),
            fingerprints: Fingerprints::default(),
        };
        config.check(&mut settings);
        (config.effective, config.fingerprints) = settings.finish()?;
        Ok(config)
    }

    fn check(&self, settings: &mut Settings) {
        let listeners = [("server.listen", self.server.listen), ("server.admin_listen", self.server.admin_listen)];
        for (key, address) in listeners {
            if self.dev && !address.ip().is_loopback() {
                settings.problem(format!(
                    "{key} = {address}: with --dev, expected a loopback address such as 127.0.0.1:8080"
                ));
            }
        }
        if self.admin_keys.is_empty() && !self.server.admin_listen.ip().is_loopback() {
            settings.problem(format!(
                "server.admin_listen = {}: an address off loopback requires admin.api_key (or admin.api_keys)",
                self.server.admin_listen
            ));
        }
        if self.dev && self.redis.url.is_none() && self.auth.sessions.is_some() {
            settings
                .problem("auth.session_secret is set, but redis.url is not: sessions are in Redis, so set both".into());
        }
        self.redis.check(settings, &self.presence.channel, self.dev && self.redis.url.is_none());
        if self.server.listen.port() != 0 && self.server.listen == self.server.admin_listen {
            let address = self.server.listen;
            settings
                .problem(format!("server.listen and server.admin_listen are both {address}: expected two addresses"));
        }
    }

    /// The effective configuration as TOML, with secrets masked.
    #[must_use]
    pub fn to_toml(&self) -> &str {
        &self.effective
    }

    /// The keys whose values differ from those of another configuration: also a secret, or the contents of a file of
    /// certificates or keys.
    pub(crate) fn differing_keys<'a>(&'a self, other: &'a Self) -> BTreeSet<&'a str> {
        self.fingerprints.differing(&other.fingerprints)
    }

    /// Fails unless tokens or sessions can be verified; the error names the keys to set.
    pub fn require_way_in(&self) -> Result<(), ConfigError> {
        if self.auth.sessions.is_some() { Ok(()) } else { self.require_token_key() }
    }

    /// Fails unless tokens can be verified; the error names the keys to set.
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

    /// The secret that signs tokens; the error names the keys that set it.
    pub fn require_signing_secret(&self) -> Result<&SecretString, ConfigError> {
        self.auth.hmac_secret.as_ref().ok_or_else(|| {
            ConfigError::new(
                "no secret to sign a token with: set auth.hmac_secret (TIDINGS_AUTH__HMAC_SECRET) or \
                 auth.hmac_secret_file (TIDINGS_AUTH__HMAC_SECRET_FILE)",
            )
        })
    }
}

fn admin_keys(settings: &mut Settings) -> Vec<(String, SecretString)> {
    let mut keys = settings.secrets_under("admin.api_keys");
    if let Some(key) = settings.secret("admin.api_key") {
        keys.push(("default".into(), key));
    }
    keys
}

/// Exposes a secret to a library that needs its bytes.
#[must_use]
pub fn secret_bytes(secret: &SecretString) -> &[u8] {
    secret.expose_secret().as_bytes()
}

#[cfg(test)]
mod tests;
