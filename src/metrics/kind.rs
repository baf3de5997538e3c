//! The kinds of metrics, and how each is created from the name of its field.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

/// The upper bounds of the buckets of every histogram, in seconds: from a fast delivery to the deadline of a handshake.
const BUCKETS: [f64; 16] =
    [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

pub(super) trait Kind: Collector + Clone + 'static {
    /// Follows the field's name in the metric's name.
    const SUFFIX: &str = "";

    fn create(opts: Opts, labels: &[&str]) -> Result<Self>;
}

impl Kind for IntGauge {
    fn create(opts: Opts, _: &[&str]) -> Result<Self> {
        Self::with_opts(opts)
    }
}

impl Kind for IntGaugeVec {
    fn create(opts: Opts, labels: &[&str]) -> Result<Self> {
        Self::new(opts, labels)
    }
}

impl Kind for Gauge {
    fn create(opts: Opts, _: &[&str]) -> Result<Self> {
        Self::with_opts(opts)
    }
}

impl Kind for Histogram {
    fn create(common_opts: Opts, _: &[&str]) -> Result<Self> {
        Self::with_opts(HistogramOpts { common_opts, buckets: BUCKETS.to_vec() })
    }
}

impl Kind for IntCounter {
    const SUFFIX: &str = "_total";

    fn create(opts: Opts, _: &[&str]) -> Result<Self> {
        Self::with_opts(opts)
    }
}

impl Kind for IntCounterVec {
    const SUFFIX: &str = "_total";

    fn create(opts: Opts, labels: &[&str]) -> Result<Self> {
        Self::new(opts, labels)
    }
}

pub(super) fn register<M: Kind>(registry: &Registry, field: &str, help: &str, labels: &[&str]) -> M {
    // A label on a gauge or counter without labels is refused here, not ignored.
    let opts = Opts::new(format!("tidings_{field}{}", M::SUFFIX), help)
        .variable_labels(labels.iter().map(ToString::to_string).collect());
    #[allow(clippy::expect_used, reason = "the name is that of a field, and a test creates every metric")]
    let metric = M::create(opts, labels).expect("a valid name");
    #[allow(clippy::expect_used, reason = "field names are unique, and a test creates every metric")]
    registry.register(Box::new(metric.clone())).expect("a unique name");
    metric
}
