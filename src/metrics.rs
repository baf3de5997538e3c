//! Every counter and gauge of an instance, each with a line that says what it counts.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What one instance counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open connections, greeted or not.
    pub connections: IntGauge,
    /// Users with at least one greeted connection here.
    pub users: IntGauge,
    /// Upgrades done.
    pub connections_opened: IntCounter,
    /// Ends of connections, by close code.
    pub connections_closed: IntCounterVec,
    /// Handshakes refused, by HTTP status.
    pub handshakes_refused: IntCounterVec,
    /// TLS handshakes that failed or took too long.
    pub tls_handshakes_failed: IntCounter,
    /// Certificates read anew, by result.
    pub tls_reloads: IntCounterVec,
    /// Connections and clients that a limit refused, by limit.
    pub limited: IntCounterVec,
    /// Decisions on a limit of the whole fleet that were made without the fleet, by limit.
    pub limits_unshared: IntCounterVec,
    /// Connections without a good PROXY header where one must be.
    pub proxy_headers_refused: IntCounter,
    /// Fetches of the key set of `auth.jwks_url`, by result.
    pub jwks_refreshes: IntCounterVec,
    /// Accepts that failed.
    pub accept_errors: IntCounter,
    /// Messages heard from the backplane, whoever they are for.
    pub messages_received: IntCounter,
    /// Messages for users who have no connection here.
    pub messages_missed: IntCounter,
    /// Messages that were nobody's to have, by reason.
    pub messages_dropped: IntCounterVec,
    /// Events handed to a connection.
    pub deliveries: IntCounter,
    /// Events that a slow connection did not get.
    pub deliveries_dropped: IntCounter,
    /// Events read from the history for a client that resumed or had missed them.
    pub replayed: IntCounter,
    /// Resumes asked for, by what came of them.
    pub resumes: IntCounterVec,
    /// Connections found behind their user's history, and brought level.
    pub gaps_found: IntCounter,
    /// Bytes that wait in the queues of all connections.
    pub backlog_bytes: IntGauge,
    /// Notifications accepted over HTTP, also under a key again.
    pub published: IntCounter,
    /// Messages on the control channel, by what they were.
    pub control_messages: IntCounterVec,
    /// Revocations in force.
    pub revocations: IntGauge,
    /// Revocations that found no room, here or in Redis.
    pub revocations_dropped: IntCounter,
    /// Revocations that Redis had lost and has again.
    pub revocations_restored: IntCounter,
    /// Sessions looked up for a handshake, by where the answer came from.
    pub session_lookups: IntCounterVec,
    /// Sessions with connections that could not be read again.
    pub session_rechecks_failed: IntCounter,
    /// Connections closed since their session had ended.
    pub sessions_ended: IntCounter,
    /// 1 while the backplane is subscribed.
    pub backplane_up: IntGauge,
    /// Subscriptions that were lost: each is a gap in what was heard.
    pub backplane_gaps: IntCounter,
    /// Failed operations on the backplane, by kind.
    pub backplane_errors: IntCounterVec,
    /// What the in-process backplane had no room to keep, by what it was.
    pub history_dropped: IntCounterVec,
    /// Read positions that clients gave, by what became of them.
    pub acks: IntCounterVec,
    /// Entries of the outbox that wait, for any instance.
    pub outbox_lag: IntGauge,
    /// Age of the oldest of them.
    pub outbox_oldest_seconds: IntGauge,
    /// 1 while this instance relays from the outbox.
    pub outbox_holder: IntGauge,
    /// Entries of the outbox stored and published.
    pub outbox_relayed: IntCounter,
    /// Entries of the outbox whose key was published before.
    pub outbox_duplicates: IntCounter,
    /// Entries of the outbox that cannot be published, by reason.
    pub outbox_rejected: IntCounterVec,
    /// Batches of presence changes written.
    pub presence_batches: IntCounter,
    /// Incarnations taken; more than one means that a lease was lost.
    pub presence_incarnations: IntCounter,
    /// Users of dead instances taken offline by this one.
    pub presence_reaped: IntCounter,
    /// Times that the presence keys did not agree and were put right.
    pub presence_audits: IntCounter,
}

impl Metrics {
    /// All at zero.
    #[must_use]
    #[allow(clippy::too_many_lines, reason = "a list, an entry for each counter")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        Self {
            connections: gauge(r, "connections", "Open connections, greeted or not."),
            users: gauge(r, "users", "Users with at least one greeted connection on this instance."),
            connections_opened: counter(r, "connections_opened_total", "WebSocket upgrades done."),
            connections_closed: labelled(r, "connections_closed_total", "Ended connections, by close code.", "code"),
            handshakes_refused: labelled(r, "handshakes_refused_total", "Refused handshakes, by status.", "status"),
            tls_handshakes_failed: counter(
                r,
                "tls_handshakes_failed_total",
                "TLS handshakes that failed or took too long.",
            ),
            tls_reloads: labelled(r, "tls_reloads_total", "TLS certificates read anew: taken, or refused.", "result"),
            limited: labelled(r, "limited_total", "What a limit refused, by limit.", "limit"),
            limits_unshared: labelled(
                r,
                "limits_unshared_total",
                "Decisions on a limit of the whole fleet made by this instance alone, by limit.",
                "limit",
            ),
            proxy_headers_refused: counter(
                r,
                "proxy_headers_refused_total",
                "Connections without a good PROXY header.",
            ),
            jwks_refreshes: labelled(
                r,
                "jwks_refreshes_total",
                "Fetches of auth.jwks_url, by result: ok, unreachable, timeout, status, too_large or malformed.",
                "result",
            ),
            accept_errors: counter(r, "accept_errors_total", "Connections that could not be accepted."),
            messages_received: counter(r, "messages_received_total", "Messages heard from the backplane."),
            messages_missed: counter(r, "messages_missed_total", "Messages for users without a connection here."),
            messages_dropped: labelled(
                r,
                "messages_dropped_total",
                "Messages that no connection could be given, by reason: json, utf8, stamp, size or user_id.",
                "reason",
            ),
            deliveries: counter(r, "deliveries_total", "Events handed to a connection."),
            deliveries_dropped: counter(r, "deliveries_dropped_total", "Events that a slow connection did not get."),
            replayed: counter(r, "replayed_total", "Stored events read for clients that resumed or had missed them."),
            resumes: labelled(
                r,
                "resumes_total",
                "Resumes asked for: recovered, lost (some of it is gone) or unreadable.",
                "result",
            ),
            gaps_found: counter(r, "gaps_found_total", "Connections that had missed a stored event while connected."),
            backlog_bytes: gauge(r, "backlog_bytes", "Bytes waiting in the queues of connections that take no more."),
            published: counter(r, "published_total", "Notifications accepted over HTTP, also under a key again."),
            control_messages: labelled(
                r,
                "control_messages_total",
                "Messages on the control channel: disconnect, revoke, unknown or bad.",
                "command",
            ),
            revocations: gauge(r, "revocations", "Revocations in force."),
            revocations_dropped: counter(r, "revocations_dropped_total", "Revocations that there was no room for."),
            revocations_restored: counter(
                r,
                "revocations_restored_total",
                "Revocations that Redis had lost and was given again.",
            ),
            session_lookups: labelled(
                r,
                "session_lookups_total",
                "Sessions looked up for a handshake: from the cache, from redis, or failed.",
                "from",
            ),
            session_rechecks_failed: counter(
                r,
                "session_rechecks_failed_total",
                "Sessions with connections that could not be read again.",
            ),
            sessions_ended: counter(r, "sessions_ended_total", "Connections closed since their session had ended."),
            backplane_up: gauge(r, "backplane_up", "1 while subscribed to the backplane, else 0."),
            backplane_gaps: counter(r, "backplane_gaps_total", "Lost subscriptions, each a gap in what was heard."),
            backplane_errors: labelled(r, "backplane_errors_total", "Failed backplane operations, by kind.", "kind"),
            history_dropped: labelled(
                r,
                "history_dropped_total",
                "What the in-process backplane had no room to keep: notifications, users or keys.",
                "what",
            ),
            acks: labelled(
                r,
                "acks_total",
                "Read positions that clients gave: kept, foreign, too_many_devices, or dropped for want of room.",
                "result",
            ),
            outbox_lag: gauge(r, "outbox_lag", "Outbox entries that wait, whichever instance relays them."),
            outbox_oldest_seconds: gauge(r, "outbox_oldest_seconds", "Age of the oldest outbox entry that waits."),
            outbox_holder: gauge(r, "outbox_holder", "1 while this instance relays from the outbox, else 0."),
            outbox_relayed: counter(r, "outbox_relayed_total", "Outbox entries stored and published."),
            outbox_duplicates: counter(
                r,
                "outbox_duplicates_total",
                "Outbox entries dropped since their key was published before.",
            ),
            outbox_rejected: labelled(
                r,
                "outbox_rejected_total",
                "Outbox entries that cannot be published, moved to outbox:rejected, by reason.",
                "reason",
            ),
            presence_batches: counter(r, "presence_batches_total", "Batches of presence changes written."),
            presence_incarnations: counter(
                r,
                "presence_incarnations_total",
                "Presence incarnations taken; each beyond the first means that a lease was lost.",
            ),
            presence_reaped: counter(r, "presence_reaped_total", "Users of dead instances taken offline."),
            presence_audits: counter(r, "presence_audits_total", "Times presence keys disagreed and were put right."),
            registry,
        }
    }

    /// Everything, as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

// The names are constants of this file and all different, which a test holds: none of these can fail.

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    #[allow(clippy::expect_used, reason = "names are constants, and a test makes them all")]
    let metric = metric.expect("a valid name");
    #[allow(clippy::expect_used, reason = "names are constants, and a test makes them all")]
    registry.register(Box::new(metric.clone())).expect("a name of its own");
    metric
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("tidings_{name}"), help)
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::with_opts(opts(name, help)))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(name, help)))
}

fn labelled(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), &[label]))
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
