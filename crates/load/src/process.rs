//! The resources that a process has used, from `/proc` (proc(5)).

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

/// The unit of CPU time in `/proc`: `USER_HZ` is 100 on all supported Linux platforms.
#[cfg(target_os = "linux")]
const TICK: Duration = Duration::from_millis(10);

/// Totals since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessUsage {
    /// User and system time, in nanoseconds if the kernel provides them; excludes threads that have ended.
    pub(crate) cpu: Duration,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) resident_bytes: u64,
    pub(crate) context_switches: u64,
}

impl ProcessUsage {
    /// The sum of two processes.
    pub(crate) fn plus(mut self, other: Self) -> Self {
        self.cpu += other.cpu;
        self.user += other.user;
        self.system += other.system;
        self.resident_bytes += other.resident_bytes;
        self.context_switches += other.context_switches;
        self
    }
}

#[cfg(target_os = "linux")]
impl ProcessUsage {
    pub(crate) fn read(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (user, system) = cpu_ticks(&stat).ok_or_else(|| Error::new(ErrorKind::InvalidData, "/proc/PID/stat"))?;
        let ticks = |count: u64| TICK.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
        let mut usage = Self {
            cpu: Duration::ZERO,
            user: ticks(user),
            system: ticks(system),
            resident_bytes: field(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:") * 1_024,
            context_switches: 0,
        };
        // The status of the process counts the switches of its main thread only.
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end while the directory is read.
            let task = task?.path();
            if let Ok(times) = std::fs::read_to_string(task.join("schedstat")) {
                // The first of three numbers is the time on a CPU, in nanoseconds.
                usage.cpu += Duration::from_nanos(field(&times, ""));
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

#[cfg(not(target_os = "linux"))]
impl ProcessUsage {
    pub(crate) fn read(_: u32) -> Result<Self> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// Fields 14 and 15 (user and system time). Field 2, a name in parentheses, may contain spaces and parentheses.
#[cfg(target_os = "linux")]
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((after_name.next()?.parse().ok()?, after_name.next()?.parse().ok()?))
}

#[cfg(target_os = "linux")]
fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "42 (a) b) c) S 1 42 42 0 -1 4194560 100 0 0 0 7 9 0 0 20 0 3";
        assert_eq!(cpu_ticks(stat), Some((7, 9)));
    }

    #[test]
    fn the_usage_of_this_process_is_read() {
        let usage = ProcessUsage::read(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 100_000 && usage.context_switches > 0, "{usage:?}");
    }
}
