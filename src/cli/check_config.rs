//! `tidings check-config`: would `tidings serve` with the same configuration start?

use clap::Args;

use super::{ConfigArgs, say};

#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// Check what `serve --dev` would run with
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
        Ok(())
    }
}
