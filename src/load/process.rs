//! What a process has used so far, from `/proc` (proc(5)).

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

/// The kernel counts CPU time in these ticks for user space: `USER_HZ`, 100 on every Linux that matters.
const TICK: Duration = Duration::from_millis(10);

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// User and system together, to the nanosecond where the kernel tells; threads that have ended are not in it.
    pub(super) cpu: Duration,
    pub(super) user: Duration,
    pub(super) system: Duration,
    pub(super) resident_bytes: u64,
    pub(super) context_switches: u64,
}

impl Usage {
    pub(super) fn read(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (user, system) = cpu_ticks(&stat).ok_or_else(|| Error::new(ErrorKind::InvalidData, "/proc/PID/stat"))?;
        let mut usage = Self {
            cpu: Duration::ZERO,
            user: ticks(user),
            system: ticks(system),
            resident_bytes: field(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:") * 1_024,
            context_switches: 0,
        };
        // The process's own status has the switches of its main thread only.
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end meanwhile.
            let task = task?.path();
            if let Ok(times) = std::fs::read_to_string(task.join("schedstat")) {
                usage.cpu += on_cpu(&times).unwrap_or_default();
            }
            if let Ok(status) = std::fs::read_to_string(task.join("status")) {
                let switches =
                    field(&status, "voluntary_ctxt_switches:") + field(&status, "nonvoluntary_ctxt_switches:");
                usage.context_switches += switches;
            }
        }
        if usage.cpu.is_zero() {
            usage.cpu = usage.user + usage.system;
        }
        Ok(usage)
    }
}

/// The first of three numbers: nanoseconds on a CPU.
fn on_cpu(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn ticks(count: u64) -> Duration {
    TICK.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Fields 14 and 15. The second one, a name in brackets, may hold anything.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((after_name.next()?.parse().ok()?, after_name.next()?.parse().ok()?))
}

fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "42 (a) b) c) S 1 42 42 0 -1 4194560 100 0 0 0 7 9 0 0 20 0 3";
        assert_eq!(cpu_ticks(stat), Some((7, 9)));
    }

    #[test]
    fn this_process_can_be_read() {
        let usage = Usage::read(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 100_000 && usage.context_switches > 0, "{usage:?}");
    }
}
