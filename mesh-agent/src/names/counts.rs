//! Metrics of the name server, shown by the agent's `/metrics`.

use std::net::Ipv4Addr;
use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::respond::Outcome;

/// Buckets of the histogram in seconds: local answers take microseconds, forwarded ones up to the
/// budget.
const BUCKETS: [f64; 11] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 4.0];

/// Counts what the name server did.
#[derive(Debug, Clone)]
pub struct Counts {
    questions: IntCounterVec,
    durations: HistogramVec,
    listening: IntGaugeVec,
}

impl Counts {
    /// Counters at zero.
    ///
    /// None for these names and labels; the metrics crate checks them at run time.
    pub fn new() -> Result<Self, prometheus::Error> {
        let questions = IntCounterVec::new(
            Opts::new(
                "mesh_dns_questions_total",
                "Questions for names that tasks of this node asked, by result.",
            ),
            &["result"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "mesh_dns_answer_duration_seconds",
                "Time from a question for a name to its answer, by result.",
            )
            .buckets(BUCKETS.to_vec()),
            &["result"],
        )?;
        let listening = IntGaugeVec::new(
            Opts::new(
                "mesh_dns_listening",
                "Whether the name server listens on this address (1), or another program has its port 53 (0).",
            ),
            &["address"],
        )?;
        for outcome in Outcome::ALL {
            questions.with_label_values(&[outcome.as_str()]).inc_by(0);
            durations.with_label_values(&[outcome.as_str()]);
        }
        Ok(Self { questions, durations, listening })
    }

    /// Registers the metrics in `registry`.
    ///
    /// # Errors
    /// The registry has a metric of one of these names.
    pub fn show_in(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.questions.clone()))?;
        registry.register(Box::new(self.durations.clone()))?;
        registry.register(Box::new(self.listening.clone()))
    }

    /// Counts a question and the time that its answer took.
    pub(super) fn count(&self, outcome: Outcome, took: Duration) {
        self.questions.with_label_values(&[outcome.as_str()]).inc();
        self.durations.with_label_values(&[outcome.as_str()]).observe(took.as_secs_f64());
    }

    /// The number of questions with this outcome.
    pub fn seen(&self, outcome: Outcome) -> u64 {
        self.questions.with_label_values(&[outcome.as_str()]).get()
    }

    pub(super) fn listens(&self, address: Ipv4Addr, listens: bool) {
        self.listening.with_label_values(&[&address.to_string()]).set(i64::from(listens));
    }

    pub(super) fn leaves(&self, address: Ipv4Addr) {
        // Removing fails only for labels that were never set.
        self.listening.remove_label_values(&[&address.to_string()]).ok();
    }
}
