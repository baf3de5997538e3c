//! What Redis has used so far, from its own `INFO`.

use std::time::Duration;

use redis::{Connection, cmd};

/// One reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// User and system together.
    pub(super) cpu: Duration,
    /// Those that scripts call among them.
    pub(super) commands: u64,
    /// Scripts that were called.
    pub(super) scripts: u64,
}

impl Info {
    pub(super) fn read(redis: &mut Connection) -> redis::RedisResult<Self> {
        Ok(Self::parse(&cmd("INFO").arg("all").query::<String>(redis)?))
    }

    pub(super) fn parse(info: &str) -> Self {
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let seconds = |name| field(name).and_then(|text| text.trim().parse::<f64>().ok()).unwrap_or_default();
        let calls = |name| {
            let text = field(name)?.strip_prefix("calls=")?;
            text.split(',').next()?.parse::<u64>().ok()
        };
        Self {
            cpu: Duration::from_secs_f64(seconds("used_cpu_sys") + seconds("used_cpu_user")),
            commands: field("total_commands_processed").and_then(|text| text.trim().parse().ok()).unwrap_or_default(),
            scripts: ["cmdstat_eval", "cmdstat_evalsha"].into_iter().filter_map(calls).sum(),
        }
    }

    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            commands: self.commands.saturating_sub(earlier.commands),
            scripts: self.scripts.saturating_sub(earlier.scripts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_time_the_commands_and_the_scripts_are_found() {
        let text = "# CPU\r\nused_cpu_sys:1.250000\r\nused_cpu_user:0.250000\r\nused_cpu_sys_children:9.0\r\n# Stats\r\n\
                    total_commands_processed:42\r\n# Commandstats\r\n\
                    cmdstat_evalsha:calls=7,usec=99,usec_per_call=14.1,rejected_calls=0,failed_calls=0\r\n\
                    cmdstat_eval:calls=2,usec=9,usec_per_call=4.5,rejected_calls=0,failed_calls=0\r\n\
                    cmdstat_evalsha_ro:calls=100,usec=1\r\n";
        assert_eq!(Info::parse(text), Info { cpu: Duration::from_millis(1_500), commands: 42, scripts: 9 });
    }
}
