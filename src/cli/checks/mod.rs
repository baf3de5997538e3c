//! What an operator should know of the configuration and of the resources that it names: for `check-config --connect`, and
//! as warnings at each start.

mod files;
mod servers;

use std::fmt;

use secrecy::SecretString;

use crate::auth::Verifier;
use crate::config::{Config, secret_bytes};

pub(super) use servers::of_redis;

/// The minimum for HS256 (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Ok,
    Warning,
    /// The instance, or a part of it, does not work.
    Error,
}

/// The result of one check: a line.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was checked: a key, or a resource and an aspect of it.
    about: String,
    /// What is wrong, what it causes, and the action to take.
    text: String,
    /// Whether a running instance logs the same by itself.
    pub(super) is_logged: bool,
}

impl Finding {
    fn ok(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, about: about.into(), text: text.into(), is_logged: false }
    }

    fn warning(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::ok(about, text) }
    }

    fn error(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Error, ..Self::ok(about, text) }
    }

    /// A running instance logs it, too.
    fn logged(self) -> Self {
        Self { is_logged: true, ..self }
    }

    /// Without the level, as it is logged.
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.about, self.text)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        write!(f, "{level}: {}", self.line())
    }
}

/// Of the configuration, the files that it names, and this process: needs no connection.
pub(super) fn of_process(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let auth = &config.auth;
    let secrets = [("auth.hmac_secret", &auth.hmac_secret), ("auth.previous_hmac_secret", &auth.previous_hmac_secret)];
    let secrets = secrets.into_iter().filter_map(|(key, secret)| Some((key, secret.as_ref()?)));
    let sessions = auth.sessions.iter().flat_map(|sessions| &sessions.secrets);
    for (key, secret) in secrets.chain(sessions.map(|secret| ("auth.session_secret", secret))) {
        findings.extend(short(key, secret));
    }
    if auth.jwks_url.is_some() && auth.audience.is_none() {
        let text = "is not set, but auth.jwks_url is: tokens that the issuer signed for other audiences are accepted too: set it";
        findings.push(Finding::warning("auth.audience", text));
    }
    if auth.jwks_allow_http {
        let text = "is on: an attacker between this instance and the key server may replace the keys, and so sign in as \
                    any user: set it to false, and use an https:// URL";
        findings.push(Finding::warning("auth.jwks_allow_http", text));
    }
    if config.server.demo && !config.dev {
        let text = "is on: any client that reaches this listener may sign in as any user: set it to false";
        findings.push(Finding::warning("server.demo", text));
    }
    findings.extend(files::certificates(config));
    findings.push(files::file_limit(config));
    findings
}

/// A number of these things, of which there may be one.
fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

fn short(key: &str, secret: &SecretString) -> Option<Finding> {
    let text = format!("is shorter than {MIN_SECRET_BYTES} bytes and may be guessed: set a random one");
    (secret_bytes(secret).len() < MIN_SECRET_BYTES).then(|| Finding::warning(key, text))
}

/// Fetches the key set, if one is configured.
pub(super) async fn of_key_set(config: &Config, verifier: &Verifier) -> Option<Finding> {
    let about = format!("auth.jwks_url {:?}:", config.auth.jwks_url.as_ref()?);
    Some(match verifier.jwks()?.check().await {
        Ok(0) => Finding::error(
            about,
            "no key in it verifies tokens: every token of this issuer is refused: correct the URL",
        ),
        Ok(keys) => Finding::ok(about, format!("{keys} of its keys verify tokens")),
        Err(why) => Finding::error(
            about,
            format!(
                "{why}: until it is fetched, tokens of this issuer are not accepted: correct the URL, or make it reachable"
            ),
        ),
    })
}
