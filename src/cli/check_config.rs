//! `tidings check-config`: validates and prints the configuration of `tidings serve`, and checks the resources that it names.

use clap::Args;

use super::checks::{Finding, Level, of_key_set, of_process, of_redis};
use super::{ConfigArgs, block_on, say, stores};
use crate::auth::Verifier;
use crate::config::{Config, ConfigError};

#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// Check the configuration of `serve --dev`
    #[arg(long)]
    dev: bool,
    /// Also check the resources that it names: Redis, the key set, the certificates, the file limit; one line each: ok, warning
    /// or error
    #[arg(long)]
    connect: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl CheckConfig {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut config = self.config.load(self.dev)?;
        say(config.to_toml().trim_end())?;
        config.require_way_in()?;
        let verifier = Verifier::new(&config.auth)?;
        if !self.connect {
            return Ok(());
        }
        if !self.dev {
            // As `tidings serve` does.
            config.redis.url.get_or_insert_default();
        }
        let findings = block_on(check(&config, &verifier))?;
        say("")?;
        for finding in &findings {
            say(&finding.to_string())?;
        }
        match findings.iter().filter(|finding| finding.level == Level::Error).count() {
            0 => Ok(()),
            errors => Err(ConfigError::new(format!("{errors} of {} checks failed", findings.len())).into()),
        }
    }
}

async fn check(config: &Config, verifier: &Verifier) -> anyhow::Result<Vec<Finding>> {
    let mut findings = of_process(config);
    findings.extend(of_key_set(config, verifier).await);
    let (backplane, _) = stores(config)?;
    if let Some(redis) = backplane.redis() {
        findings.extend(of_redis(redis, config, true).await);
    }
    Ok(findings)
}
