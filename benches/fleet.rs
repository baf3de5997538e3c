//! What Redis spends on watching the leases of a fleet and on auditing its presence: `cargo bench --bench fleet`.
//!
//! Each simulated instance holds 2,000 users on connections of its own and runs the real reaper, for some seconds. Prints
//! the share of Redis's CPU beyond that of the idle connections; a promise that is not kept is printed as *missed*.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tidings::internals::{Backplane, Batch, InstanceId, Metrics, PresenceStore, UserId, run_reaper};
use tidings::{Config, Layers};
use tokio::task::JoinSet;
use tokio::time::sleep;

const USERS: usize = 2_000;

/// Users in one batch.
const BATCH: usize = 1_000;

/// Longer than the run, so that the leases need no renewals, which would be measured too.
const LEASE: &str = "1h";

const SETTLE: Duration = Duration::from_secs(6);
const MEASURED: Duration = Duration::from_secs(20);

const MOST_OF_FIFTY: f64 = 1.0;
const MOST_OF_TWICE_AS_MANY: f64 = 1.2;

struct Redis {
    process: Child,
    url: String,
}

impl Redis {
    async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = ["--port", &port.to_string(), "--save", "", "--appendonly", "no"];
        let process = Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn().expect("redis-server");
        let redis = Self { process, url: format!("redis://127.0.0.1:{port}") };
        while redis::Client::open(redis.url.as_str()).unwrap().get_connection().is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        redis
    }

    /// Seconds of CPU so far.
    fn cpu(&self) -> f64 {
        let mut connection = redis::Client::open(self.url.as_str()).unwrap().get_connection().unwrap();
        let info: String = redis::cmd("INFO").arg("cpu").query(&mut connection).unwrap();
        let of = |field: &str| info.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().parse::<f64>();
        of("used_cpu_sys:").unwrap() + of("used_cpu_user:").unwrap()
    }

    /// Percent of one core.
    async fn share(&self) -> f64 {
        let before = self.cpu();
        sleep(MEASURED).await;
        (self.cpu() - before) / MEASURED.as_secs_f64() * 100.0
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// An instance that holds users of its own, and a tenth of those of the first instance.
async fn instance(number: usize, url: &str, metrics: &Arc<Metrics>) -> Arc<PresenceStore> {
    let flag = |key: &str, value: &str| ("--set".to_owned(), key.to_owned(), value.to_owned());
    let flags = vec![flag("redis.url", url), flag("presence.lease", LEASE)];
    let config = Config::load(Layers { flags, ..Layers::default() }).unwrap();
    let store = PresenceStore::new(&config.presence, &Backplane::new(&config, &InstanceId::random(), metrics).unwrap());
    let incarnation = format!("instance-{number}");
    store.register(&incarnation).await.unwrap();
    for batch in 0..USERS / BATCH {
        let user = |i: usize| if i.is_multiple_of(10) { format!("all-{i}") } else { format!("{number}-{i}") };
        let held = (batch * BATCH..(batch + 1) * BATCH).map(|i| (UserId::new(&user(i)).unwrap(), 1)).collect();
        let (sequence, size) = (batch as u64 + 1, (batch + 1) * BATCH);
        let batch = Batch { incarnation: incarnation.clone(), sequence, held, released: vec![], size, silent: false };
        store.apply(&batch).await.unwrap();
    }
    store
}

/// The share of Redis's CPU that the reapers of so many instances take.
async fn reapers(instances: usize) -> f64 {
    let (redis, metrics) = (Redis::start().await, Arc::new(Metrics::new()));
    let mut stores = Vec::new();
    for number in 0..instances {
        stores.push(instance(number, &redis.url, &metrics).await);
    }
    let idle = redis.share().await;
    let mut running = JoinSet::new();
    for store in stores {
        let metrics = Arc::clone(&metrics);
        // As instances that were not started at the same moment.
        let delay = Duration::from_millis(fastrand::u64(..2_000));
        running.spawn(async move {
            sleep(delay).await;
            run_reaper(&store, Duration::from_secs(3_600), &metrics).await;
        });
    }
    sleep(SETTLE).await;
    let busy = redis.share().await;
    assert_eq!(metrics.presence_audits.get(), 0, "the keys agree");
    busy - idle
}

fn verdict(kept: bool) -> &'static str {
    if kept { "met" } else { "*missed*" }
}

#[tokio::main]
async fn main() {
    let measure = async |instances| {
        let share = reapers(instances).await;
        println!("{instances} instances of {USERS} users: {share:.2} % of Redis");
        share
    };
    let (fifty, hundred) = (measure(50).await, measure(100).await);
    measure(200).await;
    println!("at most {MOST_OF_FIFTY} % at 50: {}", verdict(fifty <= MOST_OF_FIFTY));
    let times = hundred / fifty;
    println!("at most {MOST_OF_TWICE_AS_MANY} x at 100: {times:.2} x, {}", verdict(times <= MOST_OF_TWICE_AS_MANY));
}
