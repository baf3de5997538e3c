//! The counters, gauges and histograms of an instance.

mod kind;
mod openmetrics;

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use kind::register;

/// The formats that [`Metrics::render`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    OpenMetrics,
}

impl Format {
    /// The one that this `Accept` header prefers.
    pub fn preferred(accept: &str) -> Self {
        if openmetrics::is_preferred(accept) { Self::OpenMetrics } else { Self::Text }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus::TEXT_FORMAT,
            Self::OpenMetrics => openmetrics::CONTENT_TYPE,
        }
    }
}

/// Declares each metric once: the help text documents the field, and the field and its type determine the metric's
/// name. Every value of a label is listed, and present at 0 from the start, so that a first increase can be seen.
macro_rules! metrics {
    ($($field:ident: $kind:ident $(by $label:literal [$($value:literal)+])? = $help:literal,)+) => {
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// Registered once there is a certificate.
            certificate_expiry: OnceLock<IntGauge>,
            $(#[doc = $help] pub $field: $kind,)+
        }

        impl Metrics {
            pub fn new() -> Self {
                let registry = Registry::new();
                let metrics = Self {
                    $($field: register(&registry, stringify!($field), $help, &[$($label)?]),)+
                    certificate_expiry: OnceLock::new(),
                    registry,
                };
                $($($(metrics.$field.with_label_values(&[$value]);)+)?)+
                metrics.add_build();
                metrics.add_process();
                metrics
            }
        }
    };
}

metrics! {
    ready: IntGauge = "1 while /readyz is 200, else 0.",
    draining: IntGauge = "1 while this instance closes its connections in order to stop, else 0.",
    config_reloads: IntCounterVec by "result" ["taken" "refused"] =
        "Reloads of the configuration (SIGHUP), by result: taken or refused.",
    handshake_seconds: Histogram =
        "From the request of an accepted handshake to the response, which has the welcome unless a hello follows.",
    delivery_seconds: Histogram =
        "From the read of a message from the backplane to the acceptance of its event by a socket, of sampled deliveries.",
    redis_roundtrip_seconds: Histogram = "From a command, or several in one request, to the replies of Redis.",
    store_seconds: Histogram = "Time to store durable notifications: those of one request, or of one step of the outbox.",
    connections: IntGauge = "Open connections, including those not yet authenticated.",
    transport_connections: IntGaugeVec by "transport" ["websocket" "sse" "socketio"] =
        "Open connections, by transport: websocket, sse or socketio.",
    users: IntGauge = "Users with at least one authenticated connection on this instance.",
    connections_opened: IntCounter = "Connections opened: upgrades to a WebSocket, and streams begun.",
    connections_closed: IntCounterVec by "code" [
        "1000" "1002" "1003" "1006" "1007" "1009" "4003" "4004" "4009" "4010" "4011" "4012"
        "4100" "4101" "4102" "4200" "4201" "4203" "4205"
    ] = "Closed connections, by close code.",
    refusals: IntCounterVec by "code" [
        "upgrade_required" "bad_request" "method_not_allowed" "no_token" "draining" "timeout" "over_capacity"
        "max_connections" "max_connections_per_ip" "connects_per_second_per_ip"
        "max_connections_per_user" "connects_per_second_per_user"
        "origin_forbidden" "query_token_not_allowed" "bad_token" "token_expired" "token_revoked" "bad_user"
        "keys_unavailable" "bad_session" "session_ended" "not_logged_in" "too_many_sessions"
        "backplane_down" "backplane_full" "transport_unknown" "session_unknown" "protocol_unsupported" "too_large"
        "4003" "4004" "4009" "4010" "4011" "4012" "4100" "4101" "4102" "4200" "4203"
    ] = "Refused handshakes, by the code of the response, and refused hellos and streams, by close code.",
    connections_released: IntCounterVec by "reason" ["unanswered" "replaced"] =
        "Connections closed to make room for another of the same user, by reason.",
    tls_handshakes_failed: IntCounter = "TLS handshakes that failed or timed out.",
    tls_reloads: IntCounterVec by "result" ["taken" "refused"] = "Reloads of the TLS certificate, by result: taken or refused.",
    limited: IntCounterVec by "limit" [
        "max_connections" "max_connections_per_ip" "max_connections_per_user"
        "connects_per_second_per_ip" "connects_per_second_per_user"
        "inbound_frames_per_second" "inbound_bytes_per_second" "inbound_fragments"
        "max_total_bytes" "file_descriptors" "sessions"
    ] = "Refusals, by limit.",
    limits_unshared: IntCounterVec by "limit" [
        "max_connections_per_user" "connects_per_second_per_ip" "connects_per_second_per_user"
    ] =
        "Decisions on a fleet-wide limit that this instance made alone, by limit.",
    proxy_headers_refused: IntCounter = "Connections without a valid PROXY header.",
    jwks_refreshes: IntCounterVec by "result" ["ok" "unreachable" "timeout" "status" "too_large" "malformed"] =
        "Fetches of auth.jwks_url, by result: ok, unreachable, timeout, status, too_large or malformed.",
    accept_errors: IntCounter = "Connections that could not be accepted.",
    messages_received: IntCounter = "Messages received from the backplane.",
    messages_missed: IntCounter = "Messages for users without a connection here.",
    messages_dropped: IntCounterVec by "reason" [
        "json" "utf8" "stamp" "size" "user_id" "reserved_event" "outdated" "overflow"
    ] =
        "Messages dropped as malformed, too large, (reserved_event) not for socket.io clients or (overflow) behind too many broadcasts, by reason.",
    broadcasts: IntCounter = "Broadcasts written to the connections here.",
    socketio_ignored: IntCounter = "Events and acks of socket.io clients, which have no recipient.",
    deliveries: IntCounter = "Events written to or queued for a connection.",
    deliveries_dropped: IntCounter = "Events dropped because a connection was too slow.",
    replayed: IntCounter = "Stored events read for clients that resumed or had missed them.",
    resumes: IntCounterVec by "result" ["recovered" "lost" "unreadable"] =
        "Requested resumes, by result: recovered, lost (events are missing) or unreadable.",
    gaps_found: IntCounter = "Connections that had missed a stored event while connected.",
    backlog_bytes: IntGauge = "Bytes in the send queues of connections that cannot be written to.",
    published: IntCounter = "Notifications and broadcasts accepted over HTTP, including repeated idempotency keys.",
    control_messages: IntCounterVec by "command" ["disconnect" "revoke" "room" "connections" "unknown" "bad"] =
        "Messages on the control channel, by command: disconnect, revoke, room and connections (sent by instances), unknown or bad.",
    connection_questions: IntCounterVec by "result" ["answered" "dropped" "failed"] =
        "Questions of other instances about a user's connections, by result: answered, dropped for lack of space or time, or failed.",
    revocations: IntGauge = "Revocations in force.",
    revocations_dropped: IntCounter = "Revocations dropped for lack of space, here or in Redis.",
    revocations_restored: IntCounter = "Revocations stored again after Redis had lost them.",
    session_lookups: IntCounterVec by "from" ["cache" "redis" "failed"] =
        "Session lookups of handshakes, by source: cache, redis, or failed.",
    session_rechecks_failed: IntCounter = "Sessions with connections whose recheck failed.",
    sessions_ended: IntCounter = "Connections closed because their session had ended.",
    backplane_up: IntGauge = "1 while subscribed to the backplane, else 0.",
    backplane_lag_seconds: Gauge =
        "Delay of the last probe through the backplane, or the age of one that has not returned.",
    subscribed_channels: IntGauge = "Users' channels subscribed to (redis.subscribe = exact or sharded).",
    subscriptions_late: IntCounter =
        "Connections greeted before their user's channel was subscribed to (redis.subscribe = exact or sharded).",
    backplane_gaps: IntCounter = "Lost subscriptions, each a gap in the received events.",
    sharded_gaps: IntCounter =
        "Users' sharded channels that were not subscribed to for a time, each a gap for its user (redis.subscribe = sharded).",
    redis_evicts: IntGauge = "1 if Redis may evict keys: its maxmemory-policy is not noeviction.",
    backplane_errors: IntCounterVec by "kind" [
        "ASK" "CLUSTERDOWN" "CROSSSLOT" "LOADING" "MASTERDOWN" "MISCONF" "MOVED" "NOAUTH" "NOPERM" "NOREPLICAS" "OOM"
        "READONLY" "TRYAGAIN" "UNBLOCKED" "WRONGPASS"
        "cluster" "config" "connection" "malformed" "not_replicated" "overload" "refused" "replica" "sentinel" "silent"
        "timeout" "unknown_command" "unsupported"
    ] = "Failed backplane operations, by kind.",
    history_dropped: IntCounterVec by "what" ["notifications" "users" "keys"] =
        "Data that the in-process backplane dropped for lack of space, by kind: notifications, users or keys.",
    history_requests: IntCounterVec by "result" ["ok" "foreign" "unreadable"] =
        "Requests of clients for stored notifications, by result: ok, foreign or unreadable.",
    acks: IntCounterVec by "result" ["kept" "foreign" "too_many_devices" "dropped"] =
        "Read positions from clients, by result: kept, foreign, too_many_devices, or dropped for lack of space.",
    outbox_lag: IntGauge = "Outbox entries waiting to be relayed by any instance.",
    outbox_oldest_seconds: IntGauge = "Age of the oldest waiting outbox entry.",
    outbox_holder: IntGauge = "1 while this instance relays the outbox, else 0.",
    outbox_relayed: IntCounter = "Outbox entries stored and published.",
    outbox_duplicates: IntCounter = "Outbox entries dropped because their key had been published before.",
    outbox_rejected: IntCounterVec by "reason" [
        "no_user" "bad_user" "no_data" "bad_json" "too_large" "bad_event" "bad_ttl" "bad_key" "bad_collapse"
        "bad_escalate" "unknown_field" "repeated_field" "unstorable"
    ] =
        "Invalid outbox entries, moved to outbox:rejected, by reason.",
    escalations: IntCounterVec by "result" ["handed_over" "read"] =
        "Escalations judged when they were due, by result: handed_over to the stream of unread notifications, or read.",
    escalations_lost: IntCounter =
        "Escalations whose notifications were trimmed, expired by history.ttl or evicted before their time, unread.",
    escalation_users: IntGauge =
        "Users with pending escalations, as counted by the instance that relays the outbox; 0 on the others.",
    escalation_overdue_seconds: IntGauge =
        "For how long the earliest pending escalation has been due; 0 on instances that do not relay the outbox.",
    presence_batches: IntCounter = "Batches of presence changes written.",
    presence_incarnations: IntCounter =
        "Presence incarnations registered; each after the first means that a lease was lost.",
    presence_reaped: IntCounter = "Users of dead instances taken offline.",
    presence_audits: IntCounter = "Audits that found and repaired inconsistent presence keys.",
}

impl Metrics {
    /// All metrics in one of the formats.
    pub fn render(&self, format: Format) -> String {
        let open = self.transport_connections.collect();
        let open = open.iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_gauge().get_value());
        #[allow(clippy::cast_possible_truncation, reason = "a sum of whole numbers")]
        self.connections.set(open.sum::<f64>() as i64);
        let mut families = self.registry.gather();
        add_start_time(&mut families);
        let text = TextEncoder::new().encode_to_string(&families).unwrap_or_default();
        match format {
            Format::Text => text,
            Format::OpenMetrics => openmetrics::from_text(&text),
        }
    }

    /// The end of the certificate that the listeners use, in seconds since 1970.
    pub fn set_certificate_expiry(&self, at: i64) {
        const NAME: &str = "certificate_expiry_timestamp_seconds";
        const HELP: &str = "When the certificate of the listeners expires, or an earlier one of its chain.";
        self.certificate_expiry.get_or_init(|| register(&self.registry, NAME, HELP, &[])).set(at);
    }

    fn add_build(&self) {
        let opts = Opts::new("tidings_build_info", "1; the labels name this build.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("commit", env!("BUILD_COMMIT"));
        #[allow(clippy::expect_used, reason = "every metric is created by a test")]
        let info = IntGauge::with_opts(opts).expect("valid names");
        info.set(1);
        self.add(info);
    }

    fn add(&self, collector: impl Collector + 'static) {
        #[allow(clippy::expect_used, reason = "every metric is created by a test")]
        self.registry.register(Box::new(collector)).expect("a unique name");
    }

    /// The standard metrics of a process, which the library reads from /proc.
    fn add_process(&self) {
        #[cfg(target_os = "linux")]
        self.add(prometheus::process_collector::ProcessCollector::for_self());
    }
}

/// The library needs /proc/stat for the start of the process, which a service manager may hide (`ProcSubset=pid`).
fn add_start_time(families: &mut [MetricFamily]) {
    static STARTED: OnceLock<f64> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let started = STARTED.get_or_init(now).floor();
    let unknown = families.iter_mut().filter(|family| family.name() == "process_start_time_seconds");
    for metric in unknown.flat_map(MetricFamily::mut_metric).filter(|metric| metric.get_gauge().get_value() == 0.0) {
        let mut gauge = metric.get_gauge().clone();
        gauge.set_value(started);
        metric.set_gauge(gauge);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_with_its_help() {
        let metrics = Metrics::new();
        metrics.backplane_gaps.inc();
        metrics.messages_dropped.with_label_values(&["json"]).inc();
        let text = metrics.render(Format::Text);
        assert!(text.contains("# HELP tidings_backplane_gaps_total "));
        assert!(text.contains("tidings_backplane_gaps_total 1"));
        assert!(text.contains(r#"tidings_messages_dropped_total{reason="json"} 1"#));
    }

    #[test]
    fn the_expiry_of_a_certificate_is_absent_without_one() {
        const NAME: &str = "tidings_certificate_expiry_timestamp_seconds";
        let metrics = Metrics::new();
        assert!(!metrics.render(Format::Text).contains(NAME));
        metrics.set_certificate_expiry(1_795_000_000);
        metrics.set_certificate_expiry(1_795_000_001);
        assert!(metrics.render(Format::Text).contains(&format!("{NAME} 1795000001")));
    }
}
