//! The counters and gauges of an instance.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Declares each metric once: the help text documents the field, and the field and its type determine the metric's
/// name.
macro_rules! metrics {
    ($($field:ident: $kind:ident $(by $label:literal)? = $help:literal,)+) => {
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $kind,)+
        }

        impl Metrics {
            pub fn new() -> Self {
                let registry = Registry::new();
                Self {
                    $($field: register(&registry, stringify!($field), $help, &[$($label)?]),)+
                    registry,
                }
            }
        }
    };
}

metrics! {
    connections: IntGauge = "Open connections, including those not yet authenticated.",
    users: IntGauge = "Users with at least one authenticated connection on this instance.",
    connections_opened: IntCounter = "WebSocket upgrades completed.",
    connections_closed: IntCounterVec by "code" = "Closed connections, by close code.",
    handshakes_refused: IntCounterVec by "status" = "Refused handshakes, by HTTP status.",
    tls_handshakes_failed: IntCounter = "TLS handshakes that failed or timed out.",
    tls_reloads: IntCounterVec by "result" = "Reloads of the TLS certificate, by result: taken or refused.",
    limited: IntCounterVec by "limit" = "Refusals, by limit.",
    limits_unshared: IntCounterVec by "limit" =
        "Decisions on a fleet-wide limit that this instance made alone, by limit.",
    proxy_headers_refused: IntCounter = "Connections without a valid PROXY header.",
    jwks_refreshes: IntCounterVec by "result" =
        "Fetches of auth.jwks_url, by result: ok, unreachable, timeout, status, too_large or malformed.",
    accept_errors: IntCounter = "Connections that could not be accepted.",
    messages_received: IntCounter = "Messages received from the backplane.",
    messages_missed: IntCounter = "Messages for users without a connection here.",
    messages_dropped: IntCounterVec by "reason" =
        "Messages dropped as malformed or too large, by reason: json, utf8, stamp, size or user_id.",
    deliveries: IntCounter = "Events written to or queued for a connection.",
    deliveries_dropped: IntCounter = "Events dropped because a connection was too slow.",
    replayed: IntCounter = "Stored events read for clients that resumed or had missed them.",
    resumes: IntCounterVec by "result" = "Requested resumes, by result: recovered, lost (events are missing) or unreadable.",
    gaps_found: IntCounter = "Connections that had missed a stored event while connected.",
    backlog_bytes: IntGauge = "Bytes in the send queues of connections that cannot be written to.",
    published: IntCounter = "Notifications accepted over HTTP, including repeated idempotency keys.",
    control_messages: IntCounterVec by "command" =
        "Messages on the control channel, by command: disconnect, revoke, unknown or bad.",
    revocations: IntGauge = "Revocations in force.",
    revocations_dropped: IntCounter = "Revocations dropped for lack of space, here or in Redis.",
    revocations_restored: IntCounter = "Revocations stored again after Redis had lost them.",
    session_lookups: IntCounterVec by "from" =
        "Session lookups of handshakes, by source: cache, redis, or failed.",
    session_rechecks_failed: IntCounter = "Sessions with connections whose recheck failed.",
    sessions_ended: IntCounter = "Connections closed because their session had ended.",
    backplane_up: IntGauge = "1 while subscribed to the backplane, else 0.",
    backplane_gaps: IntCounter = "Lost subscriptions, each a gap in the received events.",
    backplane_errors: IntCounterVec by "kind" = "Failed backplane operations, by kind.",
    history_dropped: IntCounterVec by "what" =
        "Data that the in-process backplane dropped for lack of space, by kind: notifications, users or keys.",
    acks: IntCounterVec by "result" =
        "Read positions from clients, by result: kept, foreign, too_many_devices, or dropped for lack of space.",
    outbox_lag: IntGauge = "Outbox entries waiting to be relayed by any instance.",
    outbox_oldest_seconds: IntGauge = "Age of the oldest waiting outbox entry.",
    outbox_holder: IntGauge = "1 while this instance relays the outbox, else 0.",
    outbox_relayed: IntCounter = "Outbox entries stored and published.",
    outbox_duplicates: IntCounter = "Outbox entries dropped because their key had been published before.",
    outbox_rejected: IntCounterVec by "reason" =
        "Invalid outbox entries, moved to outbox:rejected, by reason.",
    presence_batches: IntCounter = "Batches of presence changes written.",
    presence_incarnations: IntCounter =
        "Presence incarnations registered; each after the first means that a lease was lost.",
    presence_reaped: IntCounter = "Users of dead instances taken offline.",
    presence_audits: IntCounter = "Audits that found and repaired inconsistent presence keys.",
}

impl Metrics {
    /// All metrics in the Prometheus text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

trait Kind: Collector + Clone + 'static {
    /// Follows the field's name in the metric's name.
    const SUFFIX: &str = "_total";

    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

impl Kind for IntGauge {
    const SUFFIX: &str = "";

    fn create(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Kind for IntCounter {
    fn create(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Kind for IntCounterVec {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(opts, labels)
    }
}

fn register<M: Kind>(registry: &Registry, field: &str, help: &str, labels: &[&str]) -> M {
    // A label on a gauge or counter without labels is refused here, not ignored.
    let opts = Opts::new(format!("tidings_{field}{}", M::SUFFIX), help)
        .variable_labels(labels.iter().map(ToString::to_string).collect());
    #[allow(clippy::expect_used, reason = "the name is that of a field, and a test creates every metric")]
    let metric = M::create(opts, labels).expect("a valid name");
    #[allow(clippy::expect_used, reason = "field names are unique, and a test creates every metric")]
    registry.register(Box::new(metric.clone())).expect("a unique name");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_with_its_help() {
        let metrics = Metrics::new();
        metrics.backplane_gaps.inc();
        metrics.messages_dropped.with_label_values(&["json"]).inc();
        let text = metrics.render();
        assert!(text.contains("# HELP tidings_backplane_gaps_total "));
        assert!(text.contains("tidings_backplane_gaps_total 1"));
        assert!(text.contains(r#"tidings_messages_dropped_total{reason="json"} 1"#));
    }
}
