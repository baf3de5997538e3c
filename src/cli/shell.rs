//! `tidings completions` and `tidings man`: texts that clap's own crates generate from the commands.

use anyhow::anyhow;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Usage, VERSION, print};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell that reads the script
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The page of this command instead of the one of tidings
    command: Option<String>,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "tidings", &mut script);
        Ok(print(&script)?)
    }
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut command = Cli::command();
        if let Some(name) = self.command {
            let found = command.find_subcommand(&name).cloned();
            let found =
                found.ok_or_else(|| anyhow!(Usage(format!("COMMAND {name:?}: expected a command of tidings"))))?;
            command = found.display_name(format!("tidings-{name}")).bin_name(format!("tidings {name}"));
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(command).source(format!("tidings {VERSION}")).render(&mut page)?;
        Ok(print(&page)?)
    }
}
