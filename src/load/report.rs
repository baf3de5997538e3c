//! What a run found, for people and for programs.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::info::Info;
use super::process::Usage;
use super::tally::Latencies;
use super::{Mode, Pace, Phase, Reading, Run};

/// Everything a phase found. Times are in microseconds unless they say otherwise.
#[derive(Debug, Serialize)]
pub struct Report {
    mode: &'static str,
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
    /// Until the last of a message's copies, where there are many.
    last_copy_us: Option<Latency>,
    /// What the load generator itself costs, publishing and receiving.
    load_cpu_us_per_message: f64,
    redis: Redis,
    server: Option<Server>,
}

/// Used while it was measured.
#[derive(Debug, Serialize)]
struct Redis {
    cpu_us: f64,
    /// Those that scripts call among them.
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
    /// Used while it was measured.
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

/// What a phase came to.
pub(super) struct Measured {
    pub(super) took: Duration,
    pub(super) published: u64,
    pub(super) delivered: u64,
    pub(super) first: Reading,
    pub(super) last: Reading,
    pub(super) own_cpu: Duration,
    pub(super) latencies: Latencies,
}

impl Report {
    /// What was lost or doubled in an earlier phase of the run counts in each that follows.
    pub(super) fn new(run: &Run, phase: &Phase, measured: &Measured, end: &Reading) -> Self {
        let Measured { took, published, delivered, first, last, own_cpu, latencies } = measured;
        let (plan, tally, seconds) = (&run.plan, &run.tally, took.as_secs_f64());
        Self {
            mode: match phase.mode {
                Mode::Unicast => "unicast",
                Mode::Turn => "turn",
                Mode::Fanout => "fanout",
                Mode::Miss => "miss",
                Mode::Reconnect => "reconnect",
                Mode::Resume => "resume",
                Mode::Refill => "refill",
            },
            connections: plan.connections,
            users: plan.users,
            payload_bytes: phase.payload,
            rate: if let Pace::OpenLoop(rate) = phase.pace { Some(rate) } else { None },
            seconds,
            published: *published,
            published_per_second: ratio(*published, seconds),
            deliveries: *delivered,
            deliveries_per_second: ratio(*delivered, seconds),
            lost: plan.expected(&run.sent).saturating_sub(tally.delivered()),
            twice: tally.twice(),
            out_of_order: tally.out_of_order(),
            connections_closed: tally.closed(),
            connects_per_second: ratio(plan.connections.into(), run.connected_in.as_secs_f64()),
            latency_us: latencies.all.as_ref().map(quantiles).unwrap_or_default(),
            last_copy_us: latencies.last_copy.as_ref().filter(|all| !all.is_empty()).map(quantiles),
            load_cpu_us_per_message: per(*own_cpu, *published),
            redis: Redis::between(&first.redis, &last.redis),
            server: server(plan.connections, measured, &[run.before, run.idle, *end].map(|reading| reading.server)),
        }
    }

    /// Whether every message reached everybody it was for, once and in order.
    #[must_use]
    pub fn is_faultless(&self) -> bool {
        self.lost == 0 && self.twice == 0 && self.out_of_order == 0 && self.connections_closed == 0
    }
}

fn quantiles(all: &Histogram<u64>) -> Latency {
    let at = |quantile: f64| micros(all.value_at_quantile(quantile));
    Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: micros(all.max()) }
}

impl Redis {
    fn between(first: &Info, last: &Info) -> Self {
        let Info { cpu, commands, scripts } = last.since(first);
        Self { cpu_us: per(cpu, 1), commands, scripts }
    }
}

/// The other readings are from before the first connection, from when all were there and idle, and from the end.
fn server(connections: u32, measured: &Measured, others: &[Option<Usage>; 3]) -> Option<Server> {
    let Measured { published, delivered, .. } = *measured;
    let [before, idle, end] = *others;
    let (before, idle, end, first, last) = (before?, idle?, end?, measured.first.server?, measured.last.server?);
    let between = |from: &Usage, to: &Usage| to.cpu.saturating_sub(from.cpu);
    let cpu = between(&first, &last);
    // A thread that ends takes what it has counted with it.
    let switches = last.context_switches.saturating_sub(first.context_switches);
    Some(Server {
        cpu_us: per(cpu, 1),
        cpu_us_per_delivery: per(cpu, delivered),
        user_us_per_delivery: per(last.user.saturating_sub(first.user), delivered),
        system_us_per_delivery: per(last.system.saturating_sub(first.system), delivered),
        cpu_us_per_message: per(cpu, published),
        // With what a handshake leaves to be done behind the client's back, such as presence.
        cpu_us_per_handshake: per(between(&before, &idle), connections.into()),
        context_switches_per_delivery: ratio(switches, whole(delivered)),
        resident_bytes: last.resident_bytes,
        resident_bytes_idle: idle.resident_bytes,
        resident_bytes_at_end: end.resident_bytes,
        resident_bytes_per_idle_connection: ratio(
            idle.resident_bytes.saturating_sub(before.resident_bytes),
            f64::from(connections.max(1)),
        ),
    })
}

fn per(time: Duration, count: u64) -> f64 {
    micros(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)) / whole(count)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn ratio(count: u64, by: f64) -> f64 {
    count as f64 / by
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1_000.0
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn whole(count: u64) -> f64 {
    count.max(1) as f64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { latency_us, .. } = self;
        writeln!(
            f,
            "{}: {} connections of {} users, {} bytes",
            self.mode, self.connections, self.users, self.payload_bytes
        )?;
        writeln!(f, "  connected    {:>12.0} /s", self.connects_per_second)?;
        writeln!(f, "  published    {:>12.0} /s over {:.1} s", self.published_per_second, self.seconds)?;
        writeln!(f, "  delivered    {:>12.0} /s", self.deliveries_per_second)?;
        writeln!(f, "  lost, twice, out of order: {}, {}, {}", self.lost, self.twice, self.out_of_order)?;
        writeln!(f, "  connections closed by the server: {}", self.connections_closed)?;
        writeln!(
            f,
            "  latency (µs) p50 {:.0}, p90 {:.0}, p99 {:.0}, p99.9 {:.0}, max {:.0}",
            latency_us.p50, latency_us.p90, latency_us.p99, latency_us.p99_9, latency_us.max
        )?;
        if let Some(last) = &self.last_copy_us {
            writeln!(f, "  last copy    p50 {:.0}, p90 {:.0}, max {:.0}", last.p50, last.p90, last.max)?;
        }
        writeln!(f, "  own CPU      {:>12.2} µs a message", self.load_cpu_us_per_message)?;
        let Redis { cpu_us, commands, scripts } = &self.redis;
        writeln!(f, "  redis        {cpu_us:>12.0} µs, {commands} commands, of them {scripts} scripts")?;
        let Some(server) = &self.server else { return Ok(()) };
        writeln!(
            f,
            "  server's CPU {:>12.2} µs a delivery (user {:.2}, system {:.2}), {:.2} µs a message",
            server.cpu_us_per_delivery,
            server.user_us_per_delivery,
            server.system_us_per_delivery,
            server.cpu_us_per_message
        )?;
        writeln!(f, "               {:>12.1} µs a handshake", server.cpu_us_per_handshake)?;
        writeln!(f, "  switches     {:>12.3} a delivery", server.context_switches_per_delivery)?;
        write!(
            f,
            "  memory       {:>12.0} bytes an idle connection, {} MB in all",
            server.resident_bytes_per_idle_connection,
            server.resident_bytes / 1_000_000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_lost_threads_meanwhile_is_reported_of() {
        let cpu = Duration::from_secs(2);
        let first = Usage { cpu, user: cpu, system: cpu, resident_bytes: 2, context_switches: 2 };
        let second = Duration::from_secs(1);
        let last = Usage { cpu: second, user: second, system: second, resident_bytes: 1, context_switches: 1 };
        let reading = |usage| Reading { server: Some(usage), redis: Info::default() };
        let measured = Measured {
            took: cpu,
            published: 1,
            delivered: 1,
            first: reading(first),
            last: reading(last),
            own_cpu: cpu,
            latencies: Latencies::default(),
        };
        let server = server(1, &measured, &[Some(first), Some(last), Some(last)]).unwrap();
        assert_eq!((server.cpu_us_per_delivery, server.context_switches_per_delivery), (0.0, 0.0));
    }
}
