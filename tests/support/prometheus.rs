//! Debian's Prometheus with the rules of deploy/prometheus, to which a minute is a second.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Child;

use super::redis::free_port;
use super::{Gateway, clean, eventually, eventually_within, http, text, within};

const RULES: &str = include_str!("../../deploy/prometheus/rules.yml");

/// Longer than the longest `for`, in seconds instead of minutes.
const SOON: Duration = Duration::from_secs(90);

/// What scrapes some instances; killed when dropped.
pub struct Prometheus {
    address: SocketAddr,
    _dir: TempDir,
    _child: Child,
}

impl Prometheus {
    /// With all rules, of which none fires: nothing is wrong yet.
    pub async fn watch(gateways: &[&Gateway]) -> Self {
        let targets: Vec<SocketAddr> = gateways.iter().map(|gateway| gateway.admin).collect();
        Self::start("http", &targets, RULES).await
    }

    /// Of one instance on TLS.
    pub async fn watch_tls(gateway: &Gateway) -> Self {
        Self::start("https", &[gateway.admin], RULES).await
    }

    /// With this memory limit instead of the one that the rules name.
    pub async fn watch_memory(gateway: &Gateway, limit: u64) -> Self {
        let named = (1_u64 << 30).to_string();
        assert!(RULES.contains(&named));
        Self::start("http", &[gateway.admin], &RULES.replace(&named, &limit.to_string())).await
    }

    /// Of any servers of metrics.
    pub async fn watch_at(targets: &[SocketAddr]) -> Self {
        Self::start("http", targets, RULES).await
    }

    async fn start(scheme: &str, targets: &[SocketAddr], rules: &str) -> Self {
        let (dir, address) = (TempDir::new().unwrap(), SocketAddr::from(([127, 0, 0, 1], free_port())));
        let path = |name: &str| dir.path().join(name);
        fs::write(path("rules.yml"), hurried(rules)).unwrap();
        let job = json!({
            "job_name": "tidings", "scheme": scheme, "tls_config": { "insecure_skip_verify": true },
            "static_configs": [{ "targets": targets }],
        });
        let global = json!({ "scrape_interval": "500ms", "evaluation_interval": "500ms" });
        let config = json!({ "global": global, "rule_files": ["rules.yml"], "scrape_configs": [job] });
        // JSON is YAML.
        fs::write(path("prometheus.yml"), config.to_string()).unwrap();
        let child = clean("prometheus")
            .arg(format!("--config.file={}", path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).unwrap())
            .spawn()
            .expect("prometheus is installed (scripts/setup)");
        let prometheus = Self { address, _dir: dir, _child: child };
        eventually("prometheus is ready", async || {
            let asked = http().get(prometheus.url("/-/ready")).send().await;
            asked.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        eventually("all are scraped", async || {
            let up = prometheus.ask("/api/v1/query?query=count(up==1)").await;
            up["result"][0]["value"][1].as_str() == Some(targets.len().to_string().as_str())
        })
        .await;
        assert_eq!(prometheus.firing().await, BTreeSet::new(), "before the fault");
        prometheus
    }

    /// Waits until this alert fires: `NAME`, or `NAME SIGN`.
    pub async fn fires(&self, alert: &str) {
        self.fires_during(alert, async || ()).await;
    }

    /// As [`Prometheus::fires`], while the fault goes on.
    pub async fn fires_during(&self, alert: &str, mut fault: impl AsyncFnMut()) {
        eventually_within(SOON, alert, async || {
            fault().await;
            self.firing().await.contains(alert)
        })
        .await;
    }

    async fn firing(&self) -> BTreeSet<String> {
        let data = self.ask("/api/v1/alerts").await;
        let firing = data["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
        let named = firing.map(|alert| {
            let labels = &alert["labels"];
            let sign = labels["sign"].as_str().map(|sign| format!(" {sign}")).unwrap_or_default();
            format!("{}{sign}", text(&labels["alertname"]))
        });
        named.collect()
    }

    async fn ask(&self, path: &str) -> Value {
        let answer = within(path, http().get(self.url(path)).send()).await.unwrap();
        let mut answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(answer["status"], "success", "{answer}");
        answer["data"].take()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// The rules with seconds for minutes, in their ranges and in what they wait for.
fn hurried(rules: &str) -> String {
    let mut hurried = String::new();
    for line in rules.lines() {
        let line = match line.trim_start().strip_prefix("for: ") {
            Some("30s") => line.replace("30s", "500ms"),
            Some(_) => line.replace('m', "s"),
            None => line.replace("m]", "s]"),
        };
        hurried += &line;
        hurried.push('\n');
    }
    hurried
}
