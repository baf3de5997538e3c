//! Every counter and gauge of an instance, each with a line that says what it counts.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Declares each metric once: the help is the field's documentation too, and the field and its type give the name.
macro_rules! metrics {
    ($($field:ident: $kind:ident $(by $label:literal)? = $help:literal,)+) => {
        /// What one instance counts.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $kind,)+
        }

        impl Metrics {
            /// All at zero.
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
    connections: IntGauge = "Open connections, greeted or not.",
    users: IntGauge = "Users with at least one greeted connection on this instance.",
    connections_opened: IntCounter = "WebSocket upgrades done.",
    connections_closed: IntCounterVec by "code" = "Ended connections, by close code.",
    handshakes_refused: IntCounterVec by "status" = "Refused handshakes, by status.",
    tls_handshakes_failed: IntCounter = "TLS handshakes that failed or took too long.",
    tls_reloads: IntCounterVec by "result" = "TLS certificates read anew: taken, or refused.",
    limited: IntCounterVec by "limit" = "What a limit refused, by limit.",
    limits_unshared: IntCounterVec by "limit" =
        "Decisions on a limit of the whole fleet made by this instance alone, by limit.",
    proxy_headers_refused: IntCounter = "Connections without a good PROXY header.",
    jwks_refreshes: IntCounterVec by "result" =
        "Fetches of auth.jwks_url, by result: ok, unreachable, timeout, status, too_large or malformed.",
    accept_errors: IntCounter = "Connections that could not be accepted.",
    messages_received: IntCounter = "Messages heard from the backplane.",
    messages_missed: IntCounter = "Messages for users without a connection here.",
    messages_dropped: IntCounterVec by "reason" =
        "Messages that no connection could be given, by reason: json, utf8, stamp, size or user_id.",
    deliveries: IntCounter = "Events handed to a connection.",
    deliveries_dropped: IntCounter = "Events that a slow connection did not get.",
    replayed: IntCounter = "Stored events read for clients that resumed or had missed them.",
    resumes: IntCounterVec by "result" = "Resumes asked for: recovered, lost (some of it is gone) or unreadable.",
    gaps_found: IntCounter = "Connections that had missed a stored event while connected.",
    backlog_bytes: IntGauge = "Bytes waiting in the queues of connections that take no more.",
    published: IntCounter = "Notifications accepted over HTTP, also under a key again.",
    control_messages: IntCounterVec by "command" =
        "Messages on the control channel: disconnect, revoke, unknown or bad.",
    revocations: IntGauge = "Revocations in force.",
    revocations_dropped: IntCounter = "Revocations that there was no room for.",
    revocations_restored: IntCounter = "Revocations that Redis had lost and was given again.",
    session_lookups: IntCounterVec by "from" =
        "Sessions looked up for a handshake: from the cache, from redis, or failed.",
    session_rechecks_failed: IntCounter = "Sessions with connections that could not be read again.",
    sessions_ended: IntCounter = "Connections closed since their session had ended.",
    backplane_up: IntGauge = "1 while subscribed to the backplane, else 0.",
    backplane_gaps: IntCounter = "Lost subscriptions, each a gap in what was heard.",
    backplane_errors: IntCounterVec by "kind" = "Failed backplane operations, by kind.",
    history_dropped: IntCounterVec by "what" =
        "What the in-process backplane had no room to keep: notifications, users or keys.",
    acks: IntCounterVec by "result" =
        "Read positions that clients gave: kept, foreign, too_many_devices, or dropped for want of room.",
    outbox_lag: IntGauge = "Outbox entries that wait, whichever instance relays them.",
    outbox_oldest_seconds: IntGauge = "Age of the oldest outbox entry that waits.",
    outbox_holder: IntGauge = "1 while this instance relays from the outbox, else 0.",
    outbox_relayed: IntCounter = "Outbox entries stored and published.",
    outbox_duplicates: IntCounter = "Outbox entries dropped since their key was published before.",
    outbox_rejected: IntCounterVec by "reason" =
        "Outbox entries that cannot be published, moved to outbox:rejected, by reason.",
    presence_batches: IntCounter = "Batches of presence changes written.",
    presence_incarnations: IntCounter =
        "Presence incarnations taken; each beyond the first means that a lease was lost.",
    presence_reaped: IntCounter = "Users of dead instances taken offline.",
    presence_audits: IntCounter = "Times presence keys disagreed and were put right.",
}

impl Metrics {
    /// Everything, as Prometheus text.
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
    /// What the metric's name has behind the field's.
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
    // A label on a kind that has none is refused here, not ignored.
    let opts = Opts::new(format!("tidings_{field}{}", M::SUFFIX), help)
        .variable_labels(labels.iter().map(ToString::to_string).collect());
    #[allow(clippy::expect_used, reason = "the name is a field's, and a test makes them all")]
    let metric = M::create(opts, labels).expect("a valid name");
    #[allow(clippy::expect_used, reason = "fields differ, so names do, and a test makes them all")]
    registry.register(Box::new(metric.clone())).expect("a name of its own");
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
