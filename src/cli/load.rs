//! `tidings load`: puts a server under load.

use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use secrecy::SecretString;
use tidings_load::{Backend, Gateway, LoadError, Plan, Position, Report};

use super::{ConfigArgs, Usage, block_on, say, stores};
use crate::auth::mint;
use crate::config::{self, Config};
use crate::history::{HistoryStore, Publication};
use crate::protocol::{DEFAULT_EVENT, UserId};

/// The lifetime of the clients' tokens, longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(86_400);

#[derive(Debug, Args)]
pub(super) struct Load {
    #[command(flatten)]
    plan: Plan,
    /// Print one line of JSON for each phase instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Load {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.plan.validate().map_err(|error| Usage(error.to_string()))?;
        let mut config = self.config.load(false)?;
        let secret = config.require_signing_secret()?.clone();
        let backend = Backend {
            redis_url: config.redis.url.get_or_insert_with(|| config::Redis::DEFAULT_URL.into()).clone(),
            redis_prefix: config.redis.prefix.clone(),
            admin_url: format!("http://{}", config.server.admin_listen),
            admin_key: config.admin_keys.first().map(|(_, key)| key.clone()),
        };
        let plan = self.plan;
        let reports = block_on(async {
            let (_, store) = stores(&config).map_err(|error| LoadError::Store(error.to_string()))?;
            let gateway = Library { store, config: &config, secret };
            Ok(tidings_load::run(plan, backend, gateway, progress()).await?)
        })?;
        clear_bar();
        for report in &reports {
            say(&if self.json { serde_json::to_string(report)? } else { report.to_string() })?;
        }
        if !reports.iter().all(Report::is_faultless) {
            bail!("deliveries were lost, duplicated or out of order, or connections closed");
        }
        Ok(())
    }
}

/// Issues tokens and stores notifications as an instance with this configuration does.
struct Library<'a> {
    store: Arc<HistoryStore>,
    config: &'a Config,
    secret: SecretString,
}

impl Gateway for Library<'_> {
    fn token(&self, user: &str) -> String {
        // A number is always a valid user id, and signing with a validated secret does not fail.
        let user = UserId::new(user).ok();
        user.and_then(|user| mint(&self.config.auth, &self.secret, &user, TOKEN_TTL).ok()).unwrap_or_default()
    }

    async fn publish(&self, users: &[&str], data: &str) -> Result<Vec<String>, String> {
        let publication = Publication { event: DEFAULT_EVENT, data, durable: true, ttl: None, key: None };
        let published = self.store.publish(&user_ids(users), &publication).await;
        let cursor = |stored: Option<_>| stored.map(|cursor| format!("{cursor}")).ok_or_else(|| "no cursor".to_owned());
        published.into_iter().map(|outcome| outcome.map_err(str::to_owned).and_then(cursor)).collect()
    }

    async fn newest(&self, users: &[&str]) -> Result<Vec<Position>, String> {
        let newest = self.store.newest(&user_ids(users)).await.map_err(|error| error.to_string())?;
        Ok(newest.into_iter().map(|cursor| Position { ms: cursor.ms, number: cursor.number }).collect())
    }
}

fn user_ids(users: &[&str]) -> Vec<UserId> {
    users.iter().filter_map(|user| UserId::new(user).ok()).collect()
}

/// Draws a progress bar if standard error is a terminal.
fn progress() -> impl Fn(&str, f64) {
    let terminal = std::io::stderr().is_terminal();
    move |activity, share| {
        if terminal {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 30")]
            let done = (share.clamp(0.0, 1.0) * 30.0) as usize;
            // A failed write only loses the bar.
            write!(std::io::stderr(), "\r{activity:<12} [{:<30}]", "#".repeat(done)).ok();
        }
    }
}

fn clear_bar() {
    if std::io::stderr().is_terminal() {
        write!(std::io::stderr(), "\r{:<46}\r", "").ok();
    }
}
