//! The CPU time and commands that Redis reports in `INFO`.

use std::time::Duration;

use redis::{Connection, cmd};

/// Totals since Redis started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RedisUsage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Includes the commands that scripts call.
    pub(crate) commands: u64,
    /// Calls of scripts.
    pub(crate) scripts: u64,
}

impl RedisUsage {
    pub(crate) fn read(redis: &mut Connection) -> redis::RedisResult<Self> {
        Ok(Self::parse(&cmd("INFO").arg("all").query::<String>(redis)?))
    }

    pub(crate) fn parse(info: &str) -> Self {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_commands_and_scripts_are_parsed() {
        let text = "# CPU\r\nused_cpu_sys:1.250000\r\nused_cpu_user:0.250000\r\nused_cpu_sys_children:9.0\r\n# Stats\r\n\
                    total_commands_processed:42\r\n# Commandstats\r\n\
                    cmdstat_evalsha:calls=7,usec=99,usec_per_call=14.1,rejected_calls=0,failed_calls=0\r\n\
                    cmdstat_eval:calls=2,usec=9,usec_per_call=4.5,rejected_calls=0,failed_calls=0\r\n\
                    cmdstat_evalsha_ro:calls=100,usec=1\r\n";
        let expected = RedisUsage { cpu: Duration::from_millis(1_500), commands: 42, scripts: 9 };
        assert_eq!(RedisUsage::parse(text), expected);
    }
}
