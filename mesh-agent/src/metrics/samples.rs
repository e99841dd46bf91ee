//! Collects samples into metric families, one value at a time.
//!
//! Invariant: families come out in the catalogue's order, and only those with a sample.

use std::collections::BTreeMap;

use mesh_ebpf::abi::Histogram as Durations;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::catalogue::{ALL, Family};

/// A sample's labels.
pub(super) type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Which buckets of a histogram are shown; counts of the others go to the next one that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Index of the first bucket.
    pub(super) first: usize,
    /// Index of the last bucket before infinity.
    pub(super) last: usize,
    /// The distance between two buckets that are shown.
    pub(super) step: usize,
}

/// Samples by family.
#[derive(Debug, Default)]
pub(super) struct Samples {
    metrics: BTreeMap<&'static str, Vec<Metric>>,
}

impl Samples {
    /// Adds a sample. Its labels must differ from those of every other sample of the family.
    pub(super) fn add(&mut self, family: &Family, labels: &[(&'static str, &str)], value: f64) {
        let mut metric = Metric::from_label(labels.iter().map(label_pair).collect());
        if family.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.entry(family.name).or_default().push(metric);
    }

    /// Adds the sample of a histogram.
    pub(super) fn add_histogram(
        &mut self,
        family: &Family,
        labels: &[(&'static str, &str)],
        held: &Durations,
        bounds: Bounds,
    ) {
        let bucket = |bucket: usize| {
            let mut shown = Bucket::default();
            shown.set_upper_bound(seconds(Durations::bound_ns(bucket)));
            shown.set_cumulative_count(held.buckets[..=bucket].iter().sum());
            shown
        };
        let mut histogram = Histogram::default();
        histogram.set_bucket((bounds.first..=bounds.last).step_by(bounds.step).map(bucket).collect());
        histogram.set_sample_count(held.count());
        histogram.set_sample_sum(seconds(held.sum_ns));
        let mut metric = Metric::from_label(labels.iter().map(label_pair).collect());
        metric.set_histogram(histogram);
        self.metrics.entry(family.name).or_default().push(metric);
    }

    /// The samples as families, for the registry.
    pub(super) fn into_families(mut self) -> Vec<MetricFamily> {
        ALL.iter()
            .filter_map(|family| {
                let metrics = self.metrics.remove(family.name)?;
                let mut filled = MetricFamily::default();
                filled.set_name(family.name.to_owned());
                filled.set_help(family.help.to_owned());
                filled.set_field_type(family.kind);
                filled.set_metric(metrics);
                Some(filled)
            })
            .collect()
    }
}

/// Converts a count to Prometheus's type.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floats only; exact up to 2^53")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

/// Converts nanoseconds to seconds, Prometheus's unit.
fn seconds(nanoseconds: u64) -> f64 {
    number(nanoseconds) / 1e9
}

fn label_pair((name, value): &(&'static str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name((*name).to_owned());
    pair.set_value((*value).to_owned());
    pair
}
