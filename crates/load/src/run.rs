//! Runs the phases of a plan and measures each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::args::{Mode, Phase, Plan};
use crate::connect::connect;
use crate::plan::SentCounts;
use crate::process::ProcessUsage;
use crate::publisher::Publisher;
use crate::receiver::Receiver;
use crate::redis_usage::RedisUsage;
use crate::report::{Measured, Report, Totals};
use crate::sender::Sender;
use crate::store;
use crate::tally::{Counts, Latencies, Tally};
use crate::{Backend, Gateway, LoadError, Progress};

/// For connecting to Redis, and for each `INFO`.
const DEADLINE: Duration = Duration::from_secs(10);

/// Interval of the reports of progress.
const STEP: Duration = Duration::from_millis(100);

/// The usage of the server and of Redis at one time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// `None` without `--server-pid`.
    pub(crate) server: Option<ProcessUsage>,
    pub(crate) redis: RedisUsage,
}

/// The values at the start of a measurement.
struct Start {
    time: Instant,
    usage: Usage,
    own_cpu: Duration,
    counts: Counts,
}

struct Run<G, P> {
    plan: Arc<Plan>,
    backend: Backend,
    gateway: G,
    progress: P,
    tally: Arc<Tally>,
    redis: redis::Connection,
    /// `None` while the clients are disconnected.
    receiver: Option<Receiver>,
    sent: SentCounts,
    connected_in: Duration,
}

/// Runs a plan, and returns a report of each phase. `progress` is called about ten times a second, for each hundred
/// connections, and for each call that stores notifications.
///
/// # Errors
/// [`LoadError`]. Lost, duplicate and reordered deliveries are not errors; the reports count them.
pub async fn run(
    plan: Plan,
    backend: Backend,
    gateway: impl Gateway,
    progress: impl Fn(Progress),
) -> Result<Vec<Report>, LoadError> {
    let plan = Arc::new(plan);
    let redis = backend.redis()?.get_connection_with_timeout(DEADLINE)?;
    redis.set_read_timeout(Some(DEADLINE))?;
    let mut run = Run {
        tally: Arc::new(Tally::new(plan.copies())),
        redis,
        receiver: None,
        sent: vec![0; plan.users() as usize],
        connected_in: Duration::ZERO,
        plan: Arc::clone(&plan),
        backend,
        gateway,
        progress,
    };
    let before = run.usage()?;
    let received = run.sent.clone();
    run.connect(&received, &[]).await?;
    run.rest("settling", plan.settle).await;
    let idle = run.usage()?;

    let mut reports = Vec::new();
    for phase in plan.phases() {
        let measured = match phase.mode {
            Mode::Reconnect | Mode::Resume => run.reconnect(phase).await?,
            Mode::Refill => run.refill(phase).await?,
            Mode::Unicast | Mode::Turn | Mode::Fanout | Mode::Broadcast | Mode::Miss => run.publish(phase).await?,
        };
        run.rest("lingering", phase.linger).await;
        let totals = Totals {
            server: [before, idle, run.usage()?].map(|usage| usage.server),
            connected_in: run.connected_in,
            expected: plan.expected(&run.sent),
            counts: run.tally.counts(),
        };
        reports.push(Report::new(&plan, phase, &measured, &totals));
    }
    Ok(reports)
}

impl<G: Gateway, P: Fn(Progress)> Run<G, P> {
    async fn connect(&mut self, received: &SentCounts, cursors: &[String]) -> Result<(), LoadError> {
        let start = Instant::now();
        let receiver = Receiver::start(&self.plan, &self.tally)?;
        connect(&self.plan, &receiver, &self.gateway, (received, cursors), &self.progress).await?;
        (self.receiver, self.connected_in) = (Some(receiver), start.elapsed());
        Ok(())
    }

    async fn publish(&mut self, phase: &Phase) -> Result<Measured, LoadError> {
        let sender = Sender::new(&self.plan, phase, &self.backend)?;
        let publisher = Publisher::start(&self.plan, phase, sender, &self.tally, self.sent.clone());
        let tally = Arc::clone(&self.tally);
        let published_since = |before: u64| Some(tally.counts().published - before);
        let is_running = || publisher.is_running();
        let before = tally.counts().published;
        self.watch("warming up", phase.warm_up, || published_since(before), is_running).await;
        self.tally.start_recording();
        let start = self.start()?;
        self.watch("publishing", phase.duration, || published_since(start.counts.published), is_running).await;
        let measured = self.measured_since(&start)?;
        self.sent = publisher.stop().await?;
        self.wait_for_deliveries().await;
        Ok(Measured { latencies: self.tally.stop_recording(), ..measured })
    }

    /// Disconnects all clients, stores notifications, and measures until the clients have reconnected. With
    /// [`Mode::Resume`] they resume from their last notification, and the measurement includes the missed ones.
    async fn reconnect(&mut self, phase: &Phase) -> Result<Measured, LoadError> {
        let mut cursors = Vec::new();
        if phase.mode == Mode::Resume {
            let each = self.sent.len();
            cursors = store::publish(&self.gateway, each, phase.payload, &mut self.sent, &self.progress).await?;
            self.wait_for_deliveries().await;
        }
        // Closes the sockets.
        self.receiver = None;
        let received = self.sent.clone();
        store::publish(&self.gateway, phase.stored as usize, phase.payload, &mut self.sent, &self.progress).await?;
        self.rest("settling", self.plan.settle).await;

        let mut start = self.start()?;
        start.time = Instant::now();
        self.connect(&received, &cursors).await?;
        self.wait_for_deliveries().await;
        Ok(Measured { published: phase.stored.into(), ..self.measured_since(&start)? })
    }

    /// Stores notifications while no instance is subscribed, and measures until the connected clients have them.
    async fn refill(&mut self, phase: &Phase) -> Result<Measured, LoadError> {
        let mut start = self.start()?;
        let (count, size) = (phase.stored as usize, phase.payload);
        start.usage.redis = store::store_unpublished(&self.gateway, &self.backend, count, size, &mut self.sent).await?;
        start.time = Instant::now();
        self.wait_for_deliveries().await;
        Ok(Measured { published: phase.stored.into(), ..self.measured_since(&start)? })
    }

    /// Waits for this time, as long as its work is running; reports how much of it has passed and what was done in it.
    async fn watch(
        &self,
        activity: &'static str,
        time: Duration,
        count: impl Fn() -> Option<u64>,
        is_running: impl Fn() -> bool,
    ) {
        let start = Instant::now();
        while let Some(left) = time.checked_sub(start.elapsed()).filter(|left| !left.is_zero())
            && is_running()
        {
            let share = 1.0 - left.as_secs_f64() / time.as_secs_f64();
            (self.progress)(Progress { activity, share, count: count() });
            sleep(left.min(STEP)).await;
        }
    }

    async fn rest(&self, activity: &'static str, time: Duration) {
        self.watch(activity, time, || None, || true).await;
    }

    fn start(&mut self) -> Result<Start, LoadError> {
        let time = Instant::now();
        Ok(Start { time, usage: self.usage()?, own_cpu: own_cpu(), counts: self.tally.counts() })
    }

    fn measured_since(&mut self, start: &Start) -> Result<Measured, LoadError> {
        let (took, last, own_cpu) = (start.time.elapsed(), self.usage()?, own_cpu().saturating_sub(start.own_cpu));
        let counts = self.tally.counts();
        Ok(Measured {
            took,
            published: counts.published - start.counts.published,
            delivered: counts.delivered - start.counts.delivered,
            first: start.usage,
            last,
            own_cpu,
            latencies: Latencies::default(),
        })
    }

    /// Waits until all messages are delivered, or until no more arrive.
    async fn wait_for_deliveries(&self) {
        let (before, expected) = (self.tally.delivered(), self.plan.expected(&self.sent));
        let report = async {
            loop {
                sleep(STEP).await;
                let count = self.tally.delivered().saturating_sub(before);
                (self.progress)(Progress::of("receiving", count, expected.saturating_sub(before)));
            }
        };
        tokio::select! {
            () = self.tally.wait_for(expected) => {}
            () = report => {}
        }
    }

    fn usage(&mut self) -> Result<Usage, LoadError> {
        let read = |pid| ProcessUsage::read(pid).map_err(|error| LoadError::Process(pid, error));
        let each: Vec<_> = self.plan.server_pid.iter().copied().map(read).collect::<Result<_, _>>()?;
        let server = each.into_iter().reduce(ProcessUsage::plus);
        Ok(Usage { server, redis: RedisUsage::read(&mut self.redis)? })
    }
}

/// The CPU time of the load generator, or zero if it is not available.
fn own_cpu() -> Duration {
    ProcessUsage::read(std::process::id()).map_or(Duration::ZERO, |usage| usage.cpu)
}
