//! Metrics of the planners' passes.

use std::time::Instant;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// How a planner's pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassResult {
    /// There was nothing to do.
    Idle,
    /// Its plan was committed.
    Committed,
    /// The plan conflicted with a newer write and was discarded.
    Conflict,
    /// The store failed.
    Failed,
}

impl PassResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Committed => "committed",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

/// Counts and durations of passes, by planner and result.
#[derive(Debug, Clone)]
pub struct ReconcileMetrics {
    passes: IntCounterVec,
    seconds: HistogramVec,
}

/// A pass in progress.
#[derive(Debug)]
pub struct PassTimer<'a> {
    metrics: &'a ReconcileMetrics,
    kind: &'static str,
    began: Instant,
}

impl ReconcileMetrics {
    /// Registers the metric families.
    ///
    /// # Errors
    /// A family of the same name is already registered.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = ["kind", "result"];
        let passes =
            IntCounterVec::new(Opts::new("mesh_reconciles_total", "Passes of the planners."), &labels)?;
        let options = HistogramOpts::new(
            "mesh_reconcile_duration_seconds",
            "Time from the start of a pass until its commit shows in the snapshot.",
        )
        .buckets(vec![0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]);
        let seconds = HistogramVec::new(options, &labels)?;
        registry.register(Box::new(passes.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { passes, seconds })
    }

    /// Starts the timer of a pass.
    pub fn start(&self, kind: &'static str) -> PassTimer<'_> {
        PassTimer { metrics: self, kind, began: Instant::now() }
    }
}

impl PassTimer<'_> {
    /// Stops the timer and counts the pass.
    pub fn stop(self, result: PassResult) {
        let labels = [self.kind, result.as_str()];
        self.metrics.passes.with_label_values(&labels).inc();
        self.metrics.seconds.with_label_values(&labels).observe(self.began.elapsed().as_secs_f64());
    }
}
