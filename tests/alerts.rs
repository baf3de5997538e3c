//! Alerts, their test cases, their entries in the runbook, and the metrics of the dashboard belong together. promtool runs the
//! rules themselves: `scripts/alerts`.

use std::collections::BTreeSet;

use crate::support::Gateway;

const RULES: &str = include_str!("../deploy/prometheus/rules.yml");
const CASES: &str = include_str!("../deploy/prometheus/rules.test.yml");
const DASHBOARD: &str = include_str!("../deploy/grafana/tidings.json");
const FAULTS: &str = include_str!("alerts_fire.rs");
const RUNBOOK: &str = include_str!("../docs/runbook.md");

/// Absent from an instance without TLS.
const WITH_TLS: &str = "tidings_certificate_expiry_timestamp_seconds";

/// Each rule's alert and text.
fn rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    RULES.split("- alert: ").skip(1).map(|rule| rule.split_once('\n').unwrap())
}

/// The names in a text that begin like those of metrics. Alerts are named differently, and job and folder have no `_`.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("tidings_") || word.starts_with("process_")).collect()
}

#[test]
fn every_alert_has_an_entry_in_the_runbook_and_the_runbook_no_other() {
    let alerts: BTreeSet<&str> = rules().map(|(alert, _)| alert).collect();
    let entries: BTreeSet<&str> = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert!(alerts.len() > 12, "{alerts:?}");
    assert_eq!(alerts, entries);
    for (alert, rule) in rules() {
        assert!(rule.contains(&format!("runbook: docs/runbook.md#{}\n", alert.to_lowercase())), "{alert}");
        let (_, entry) = RUNBOOK.split_once(&format!("## {alert}\n")).unwrap();
        let entry = entry.split("\n## ").next().unwrap();
        for part in ["**What.**", "**Why.**", "**Look at.**", "**Do.**"] {
            assert!(entry.contains(part), "{alert}: {part}");
        }
        let sign = rule.split("sign: ").nth(1).map(|rest| rest.split(' ').next().unwrap());
        assert!(
            sign.is_none_or(
                |sign| entry.contains(&format!("`sign=\"{sign}\"`")) || entry.contains(&format!("(`{sign}`)"))
            ),
            "{alert} {sign:?}"
        );
    }
}

#[test]
fn every_rule_has_a_case_that_fires_it() {
    for (alert, rule) in rules() {
        let sign = rule.split("sign: ").nth(1).map(|rest| rest.split(' ').next().unwrap());
        let labels = sign.map_or_else(
            || format!("{{alertname=\"{alert}\"}}"),
            |sign| format!("{{alertname=\"{alert}\", sign=\"{sign}\"}}"),
        );
        assert!(CASES.contains(&labels), "no case fires {labels}");
    }
}

#[test]
fn every_rule_is_seen_firing_at_a_real_fault() {
    for (alert, rule) in rules() {
        let sign = rule.split("sign: ").nth(1).map(|rest| format!(" {}", rest.split(' ').next().unwrap()));
        let named = format!("(\"{alert}{}\"", sign.unwrap_or_default());
        assert!(
            FAULTS.contains(&format!(".fires{named}")) || FAULTS.contains(&format!(".fires_during{named}")),
            "{named}"
        );
    }
}

#[tokio::test]
async fn every_metric_of_the_alerts_the_dashboard_and_the_runbook_exists() {
    let text = Gateway::dev().await.ask_admin("GET", "/metrics", &[], "").await.body;
    let served: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    assert!(served.len() > 40, "{served:?}");
    let documented = metrics(include_str!("../docs/operations.md"));
    for (file, text) in
        [("rules.yml", RULES), ("rules.test.yml", CASES), ("tidings.json", DASHBOARD), ("runbook.md", RUNBOOK)]
    {
        for name in metrics(text) {
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let known = |name| served.contains(name) || documented.contains(name) || name == WITH_TLS;
            let exists = known(name) || family.is_some_and(known);
            assert!(exists, "{file}: {name}");
        }
    }
}

/// The rule names the limit of the manifest.
#[test]
fn the_memory_alert_is_for_the_limit_of_the_manifest() {
    assert!(include_str!("../deploy/kubernetes/base/deployment.yaml").contains("limits: { memory: 1Gi }"));
    let (_, rule) = rules().find(|(alert, _)| *alert == "TidingsMemory").unwrap();
    assert!(rule.contains(&format!("0.85 * {}", 1 << 30)));
}
