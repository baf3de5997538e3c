//! `tidings check-config`: validates and prints the configuration of `tidings serve`.

use clap::Args;

use super::{ConfigArgs, say};
use crate::auth::Verifier;

#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// Check the configuration of `serve --dev`
    #[arg(long)]
    dev: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl CheckConfig {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let config = self.config.load(self.dev)?;
        say(config.to_toml().trim_end())?;
        config.require_way_in()?;
        Verifier::new(&config.auth)?;
        Ok(())
    }
}
