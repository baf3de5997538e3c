//! `tidings token`: prints a token for a user, and only that, on standard output.

use std::time::Duration;

use clap::Args;

use super::{ConfigArgs, say, user_id};
use crate::auth::mint;
use crate::config::parse_duration;

#[derive(Debug, Args)]
pub(super) struct Token {
    /// The user whom the token authenticates
    #[arg(allow_negative_numbers = true)]
    user: String,
    /// How long it is valid: 30s, 5m, 1h, 7d
    #[arg(long, default_value = "1h", value_parser = ttl)]
    ttl: Duration,
    #[command(flatten)]
    config: ConfigArgs,
}

fn ttl(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as 30s, 5m, 1h or 7d".to_owned())
}

impl Token {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let config = self.config.load(false)?;
        let secret = config.require_signing_secret()?;
        let user = user_id(&self.user)?;
        Ok(say(&mint(&config.auth, secret, &user, self.ttl)?)?)
    }
}
