//! The report of a phase, as text and as JSON.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::{Pace, Phase, Plan};
use crate::process::ProcessUsage;
use crate::run::Usage;
use crate::tally::{Counts, Latencies};

/// The results of a phase. Times are in microseconds unless the name gives another unit.
#[derive(Debug, Serialize)]
pub struct Report {
    mode: String,
    connections: u32,
    users: u32,
    payload_bytes: usize,
    rate: Option<u32>,
    seconds: f64,
    published: u64,
    published_per_second: f64,
    deliveries: u64,
    deliveries_per_second: f64,
    lost: u64,
    twice: u64,
    out_of_order: u64,
    connections_closed: u64,
    connects_per_second: f64,
    latency_us: Latency,
    /// The latency of each message's last copy, if messages have more than one.
    last_copy_us: Option<Latency>,
    /// The load generator's own CPU time, publishing and receiving.
    load_cpu_us_per_message: f64,
    redis: Redis,
    server: Option<Server>,
}

/// The usage of Redis during the measurement.
#[derive(Debug, Serialize)]
struct Redis {
    cpu_us: f64,
    /// Includes the commands that scripts call.
    commands: u64,
    scripts: u64,
}

#[derive(Debug, Default, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Server {
    /// CPU time during the measurement.
    cpu_us: f64,
    cpu_us_per_delivery: f64,
    user_us_per_delivery: f64,
    system_us_per_delivery: f64,
    cpu_us_per_message: f64,
    cpu_us_per_handshake: f64,
    context_switches_per_delivery: f64,
    resident_bytes: u64,
    resident_bytes_idle: u64,
    resident_bytes_at_end: u64,
    resident_bytes_per_idle_connection: f64,
}

/// The measurements of a phase.
pub(crate) struct Measured {
    pub(crate) took: Duration,
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    /// Usage at the start of the measurement.
    pub(crate) first: Usage,
    /// Usage at its end.
    pub(crate) last: Usage,
    pub(crate) own_cpu: Duration,
    pub(crate) latencies: Latencies,
}

/// The measurements of the run up to the end of a phase. Failed deliveries therefore also count in later phases.
pub(crate) struct Totals {
    pub(crate) connected_in: Duration,
    pub(crate) expected: u64,
    pub(crate) counts: Counts,
    /// The server's usage before the first connection, while all connections were idle, and after the phase.
    pub(crate) server: [Option<ProcessUsage>; 3],
}

impl Report {
    pub(crate) fn new(plan: &Plan, phase: &Phase, measured: &Measured, totals: &Totals) -> Self {
        let Measured { took, published, delivered, first, last, own_cpu, latencies } = measured;
        let (seconds, counts) = (took.as_secs_f64(), &totals.counts);
        Self {
            mode: phase.mode.to_possible_value().map(|mode| mode.get_name().to_owned()).unwrap_or_default(),
            connections: plan.connections,
            users: plan.users(),
            payload_bytes: phase.payload,
            rate: if let Pace::OpenLoop(rate) = phase.pace() { Some(rate) } else { None },
            seconds,
            published: *published,
            published_per_second: ratio(*published, seconds),
            deliveries: *delivered,
            deliveries_per_second: ratio(*delivered, seconds),
            lost: totals.expected.saturating_sub(counts.delivered),
            twice: counts.duplicates,
            out_of_order: counts.out_of_order,
            connections_closed: counts.closed,
            connects_per_second: ratio(plan.connections.into(), totals.connected_in.as_secs_f64()),
            latency_us: latencies.all.as_ref().map(quantiles).unwrap_or_default(),
            last_copy_us: latencies.last_copy.as_ref().filter(|all| !all.is_empty()).map(quantiles),
            load_cpu_us_per_message: per(*own_cpu, *published),
            redis: Redis {
                cpu_us: per(last.redis.cpu.saturating_sub(first.redis.cpu), 1),
                commands: last.redis.commands.saturating_sub(first.redis.commands),
                scripts: last.redis.scripts.saturating_sub(first.redis.scripts),
            },
            server: server(plan.connections, measured, totals),
        }
    }

    /// Whether every message was delivered to each of its connections, once and in order, and no connection closed.
    #[must_use]
    pub fn is_faultless(&self) -> bool {
        self.lost == 0 && self.twice == 0 && self.out_of_order == 0 && self.connections_closed == 0
    }
}

fn quantiles(all: &Histogram<u64>) -> Latency {
    let at = |quantile: f64| micros(all.value_at_quantile(quantile));
    Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: micros(all.max()) }
}

fn server(connections: u32, measured: &Measured, totals: &Totals) -> Option<Server> {
    let Measured { published, delivered, .. } = *measured;
    let [before, idle, end] = totals.server;
    let (before, idle, end, first, last) = (before?, idle?, end?, measured.first.server?, measured.last.server?);
    let cpu = last.cpu.saturating_sub(first.cpu);
    // The counters of a thread disappear when it ends, so that a total may decrease.
    let switches = last.context_switches.saturating_sub(first.context_switches);
    let (connections, growth) = (connections.into(), idle.resident_bytes.saturating_sub(before.resident_bytes));
    Some(Server {
        cpu_us: per(cpu, 1),
        cpu_us_per_delivery: per(cpu, delivered),
        user_us_per_delivery: per(last.user.saturating_sub(first.user), delivered),
        system_us_per_delivery: per(last.system.saturating_sub(first.system), delivered),
        cpu_us_per_message: per(cpu, published),
        // Includes work that a handshake causes later, such as presence.
        cpu_us_per_handshake: per(idle.cpu.saturating_sub(before.cpu), connections),
        context_switches_per_delivery: ratio(switches, at_least_one(delivered)),
        resident_bytes: last.resident_bytes,
        resident_bytes_idle: idle.resident_bytes,
        resident_bytes_at_end: end.resident_bytes,
        resident_bytes_per_idle_connection: ratio(growth, at_least_one(connections)),
    })
}

fn per(time: Duration, count: u64) -> f64 {
    micros(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)) / at_least_one(count)
}

#[allow(clippy::cast_precision_loss, reason = "reported values need no more precision")]
fn ratio(count: u64, by: f64) -> f64 {
    count as f64 / by
}

fn micros(nanos: u64) -> f64 {
    ratio(nanos, 1_000.0)
}

fn at_least_one(count: u64) -> f64 {
    ratio(count.max(1), 1.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, connections, users, payload_bytes, lost, twice, out_of_order, .. } = self;
        writeln!(f, "{mode}: {connections} connections of {users} users, {payload_bytes} bytes")?;
        writeln!(f, "  connected    {:>12.0} /s", self.connects_per_second)?;
        writeln!(f, "  published    {:>12.0} /s over {:.1} s", self.published_per_second, self.seconds)?;
        writeln!(f, "  delivered    {:>12.0} /s", self.deliveries_per_second)?;
        writeln!(f, "  lost, twice, out of order: {lost}, {twice}, {out_of_order}")?;
        writeln!(f, "  connections closed by the server: {}", self.connections_closed)?;
        let Latency { p50, p90, p99, p99_9, max } = self.latency_us;
        writeln!(f, "  latency (µs) p50 {p50:.0}, p90 {p90:.0}, p99 {p99:.0}, p99.9 {p99_9:.0}, max {max:.0}")?;
        if let Some(Latency { p50, p90, max, .. }) = self.last_copy_us {
            writeln!(f, "  last copy    p50 {p50:.0}, p90 {p90:.0}, max {max:.0}")?;
        }
        writeln!(f, "  own CPU      {:>12.2} µs a message", self.load_cpu_us_per_message)?;
        let Redis { cpu_us, commands, scripts } = &self.redis;
        writeln!(f, "  redis        {cpu_us:>12.0} µs, {commands} commands, of them {scripts} scripts")?;
        let Some(server) = &self.server else { return Ok(()) };
        write!(f, "  server's CPU {:>12.2} µs a delivery ", server.cpu_us_per_delivery)?;
        write!(f, "(user {:.2}, system {:.2}), ", server.user_us_per_delivery, server.system_us_per_delivery)?;
        writeln!(f, "{:.2} µs a message", server.cpu_us_per_message)?;
        writeln!(f, "               {:>12.1} µs a handshake", server.cpu_us_per_handshake)?;
        writeln!(f, "  switches     {:>12.3} a delivery", server.context_switches_per_delivery)?;
        write!(f, "  memory       {:>12.0} bytes an idle connection, ", server.resident_bytes_per_idle_connection)?;
        write!(f, "{} MB in all", server.resident_bytes / 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_usage::RedisUsage;

    #[test]
    fn totals_that_decrease_because_a_thread_ended_are_reported_as_zero() {
        let usage = |seconds, count| {
            let time = Duration::from_secs(seconds);
            ProcessUsage { cpu: time, user: time, system: time, resident_bytes: count, context_switches: count }
        };
        let (first, last) = (usage(2, 2), usage(1, 1));
        let reading = |usage| Usage { server: Some(usage), redis: RedisUsage::default() };
        let measured = Measured {
            took: Duration::from_secs(2),
            published: 1,
            delivered: 1,
            first: reading(first),
            last: reading(last),
            own_cpu: Duration::from_secs(2),
            latencies: Latencies::default(),
        };
        let totals = Totals {
            connected_in: Duration::from_secs(1),
            expected: 1,
            counts: Counts::default(),
            server: [Some(first), Some(last), Some(last)],
        };
        let server = server(1, &measured, &totals).unwrap();
        assert_eq!((server.cpu_us_per_delivery, server.context_switches_per_delivery), (0.0, 0.0));
    }
}
