//! `tidings load`: puts a server under load.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use secrecy::SecretString;
use tidings_load::{Backend, Gateway, LoadError, Plan, Position, Report};

use super::progress::ProgressLine;
use super::{ConfigArgs, Usage, as_seen_from_here, block_on, say, stores};
use crate::auth::mint;
use crate::config::Config;
use crate::history::{HistoryStore, Publication};
use crate::protocol::{DEFAULT_EVENT, UserId};

/// The lifetime of the clients' tokens, longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(86_400);

const ONE_SERVER: &str = "expected a single server, such as redis://127.0.0.1:6379: tidings load publishes, and \
                          measures the load of Redis, on one connection";

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
        let url = config.redis.url.get_or_insert_default();
        let backend = Backend {
            redis_url: url.single().ok_or_else(|| Usage(format!("redis.url = {url}: {ONE_SERVER}")))?.clone(),
            redis_prefix: config.redis.prefix.clone(),
            admin: config.server.admin_listen,
            admin_key: config.admin_keys.first().map(|(_, key)| key.clone()),
        };
        let mut plan = self.plan;
        if !plan.has_target() {
            let address = as_seen_from_here("server.listen", config.server.listen, "--target IP:PORT")?;
            plan.set_target(address);
        }
        let line = ProgressLine::default();
        let reports = block_on(async {
            let (_, store) = stores(&config).map_err(|error| LoadError::Store(error.to_string()))?;
            let gateway = Library { store, config: &config, secret };
            Ok(tidings_load::run(plan, backend, gateway, |progress| line.draw(progress)).await?)
        });
        line.clear();
        let reports = reports?;
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
        let publication = Publication { event: DEFAULT_EVENT, data, durable: true, ..Publication::default() };
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
