//! The part of the metrics library's interface that tidings uses, without the metrics: counters and histograms do
//! nothing, and nothing is rendered. Gauges work, because one of them limits the backlog.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

pub const TEXT_FORMAT: &str = "text/plain";

pub type Result<T> = std::result::Result<T, std::fmt::Error>;

pub struct Opts;

impl Opts {
    pub fn new(_: impl Into<String>, _: impl Into<String>) -> Self {
        Self
    }

    #[must_use]
    pub fn const_label(self, _: impl Into<String>, _: impl Into<String>) -> Self {
        self
    }

    #[must_use]
    pub fn variable_labels(self, _: Vec<String>) -> Self {
        self
    }
}

pub struct HistogramOpts {
    pub common_opts: Opts,
    pub buckets: Vec<f64>,
}

#[derive(Debug, Clone, Default)]
pub struct IntCounter;

impl IntCounter {
    pub fn with_opts(_: Opts) -> Result<Self> {
        Ok(Self)
    }

    pub fn inc(&self) {}

    pub fn inc_by(&self, _: u64) {}

    pub fn get(&self) -> u64 {
        0
    }
}

#[derive(Debug, Clone, Default)]
pub struct IntCounterVec;

impl IntCounterVec {
    pub fn new(_: Opts, _: &[&str]) -> Result<Self> {
        Ok(Self)
    }

    pub fn with_label_values(&self, _: &[&str]) -> IntCounter {
        IntCounter
    }
}

#[derive(Debug, Clone, Default)]
pub struct Histogram;

impl Histogram {
    pub fn with_opts(_: HistogramOpts) -> Result<Self> {
        Ok(Self)
    }

    pub fn observe(&self, _: f64) {}
}

#[derive(Debug, Clone, Default)]
pub struct Gauge;

impl Gauge {
    pub fn with_opts(_: Opts) -> Result<Self> {
        Ok(Self)
    }

    pub fn set(&self, _: f64) {}
}

#[derive(Debug, Clone, Default)]
pub struct IntGauge(Arc<AtomicI64>);

impl IntGauge {
    pub fn with_opts(_: Opts) -> Result<Self> {
        Ok(Self::default())
    }

    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    pub fn add(&self, value: i64) {
        self.0.fetch_add(value, Relaxed);
    }

    pub fn sub(&self, value: i64) {
        self.add(-value);
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn dec(&self) {
        self.add(-1);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Clone, Default)]
pub struct IntGaugeVec(IntGauge);

impl IntGaugeVec {
    pub fn new(_: Opts, _: &[&str]) -> Result<Self> {
        Ok(Self::default())
    }

    pub fn with_label_values(&self, _: &[&str]) -> IntGauge {
        self.0.clone()
    }
}

#[derive(Debug, Default)]
pub struct Registry;

impl Registry {
    pub fn new() -> Self {
        Self
    }

    pub fn register(&self, _: Box<dyn core::Collector>) -> Result<()> {
        Ok(())
    }

    pub fn gather(&self) -> Vec<proto::MetricFamily> {
        Vec::new()
    }
}

pub struct TextEncoder;

impl TextEncoder {
    pub fn new() -> Self {
        Self
    }

    pub fn encode_to_string(&self, _: &[proto::MetricFamily]) -> Result<String> {
        Ok(String::new())
    }
}

pub mod core {
    use super::proto::MetricFamily;

    pub trait Collector {
        fn collect(&self) -> Vec<MetricFamily> {
            Vec::new()
        }
    }

    impl Collector for super::IntCounter {}
    impl Collector for super::IntCounterVec {}
    impl Collector for super::Histogram {}
    impl Collector for super::Gauge {}
    impl Collector for super::IntGauge {}
    impl Collector for super::IntGaugeVec {}
    impl Collector for super::process_collector::ProcessCollector {}
}

pub mod process_collector {
    pub struct ProcessCollector;

    impl ProcessCollector {
        pub fn for_self() -> Self {
            Self
        }
    }
}

pub mod proto {
    #[derive(Clone)]
    pub struct Gauge(f64);

    impl Gauge {
        pub fn get_value(&self) -> f64 {
            self.0
        }

        pub fn set_value(&mut self, value: f64) {
            self.0 = value;
        }
    }

    pub struct Metric(Gauge);

    impl Metric {
        pub fn get_gauge(&self) -> &Gauge {
            &self.0
        }

        pub fn set_gauge(&mut self, gauge: Gauge) {
            self.0 = gauge;
        }
    }

    pub struct MetricFamily {
        pub name: String,
        pub metrics: Vec<Metric>,
    }

    impl MetricFamily {
        pub fn name(&self) -> &str {
            &self.name
        }

        pub fn get_metric(&self) -> &[Metric] {
            &self.metrics
        }

        pub fn mut_metric(&mut self) -> &mut Vec<Metric> {
            &mut self.metrics
        }
    }
}
