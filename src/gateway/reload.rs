//! Takes over another configuration while the instance runs: the parts that can change without closing a connection.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::{Gateway, StartError};
use crate::auth::OriginPolicy;
use crate::config::{Config, ConfigError};

/// The keys under `auth.` that stay as they were at the start.
const KEPT: [&str; 5] =
    ["auth.leeway", "auth.query_token", "auth.token_cookie", "auth.session_cookie", "auth.session_prefix"];

/// The keys that decide which key set is fetched.
const KEY_SET: [&str; 3] = ["auth.jwks_url", "auth.jwks_url_file", "auth.jwks_ca_file"];

impl Gateway {
    /// Takes over what can change while the instance runs: certificates, the keys and secrets that verify tokens and
    /// sessions, allowed Origins and limits; not `log.level`, which is the process's. Connections stay open. Logs which keys
    /// have changed, and which differ but stay as they were at the start; `before_report` is called before these lines.
    ///
    /// A configuration that cannot be used changes nothing; the error is logged, too.
    pub fn reload(&self, loaded: Result<Config, ConfigError>, before_report: impl FnOnce()) -> Result<(), StartError> {
        let taken = loaded.map_err(StartError::from).and_then(|config| self.take_over(config, before_report));
        let result = match &taken {
            Ok(()) => "taken",
            Err(error) => {
                let error = error.to_string().replace('\n', "; ");
                error!(error, "configuration not reloaded: nothing has changed");
                "refused"
            }
        };
        self.app.context.metrics.config_reloads.with_label_values(&[result]).inc();
        taken
    }

    fn take_over(&self, config: Config, before_report: impl FnOnce()) -> Result<(), StartError> {
        config.require_way_in()?;
        let (app, mut current) = (&self.app, self.current.lock());
        let differing = config.differing_keys(&current);
        let is_other_set = KEY_SET.iter().any(|key| differing.contains(key));
        // The only step that can fail.
        app.context.authenticator.replace(&config.auth, is_other_set)?;
        if let (Some(sessions), Some(configured)) = (&app.sessions, &config.auth.sessions) {
            sessions.replace(configured);
        }
        app.origins.store(Arc::new(OriginPolicy::new(&config.server.allowed_origins, config.dev)));
        app.config.limits.replace(&config.limits);
        app.context.limiter.share();
        if let (Some(tls), Some(files)) = (&app.tls, &config.server.tls) {
            tls.reload(files.clone());
        }
        before_report();
        let changed: Vec<&str> = differing.into_iter().filter(|key| self.is_reloadable(key, &config)).collect();
        if changed.is_empty() {
            info!("configuration reloaded: nothing has changed");
        } else {
            info!(changed = changed.join(", "), "configuration reloaded");
        }
        let since_start = config.differing_keys(&app.config);
        let kept: Vec<&str> = since_start.into_iter().filter(|key| !self.is_reloadable(key, &config)).collect();
        if !kept.is_empty() {
            warn!(keys = kept.join(", "), "these keys differ, and take effect at the next start only");
        }
        *current = config;
        Ok(())
    }

    /// Whether a change of this key takes effect by a reload of this configuration.
    fn is_reloadable(&self, key: &str, config: &Config) -> bool {
        let (started, app) = (&self.app.config, &self.app);
        match key {
            "server.allowed_origins" | "log.level" => true,
            // TLS, and sessions, cannot begin or end.
            "server.tls_cert_file" | "server.tls_key_file" => app.tls.is_some() && config.server.tls.is_some(),
            // The same files are read again for each connection to Redis.
            "redis.ca_file" => config.redis.ca_file == started.redis.ca_file,
            "redis.cert_file" | "redis.key_file" => config.redis.certificate == started.redis.certificate,
            _ if key.starts_with("limits.") => true,
            _ if key.starts_with("auth.session_") => {
                app.sessions.is_some() && config.auth.sessions.is_some() && !KEPT.contains(&key)
            }
            _ => key.starts_with("auth.") && !KEPT.contains(&key),
        }
    }
}
