//! Metrics of how far the clocks of nodes and managers are from this manager's.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts, Registry};

use crate::feed::clocks::{Clocks, Peer, seconds};

/// Reads the clocks at each scrape.
struct ClockCollector {
    clocks: Arc<Clocks>,
    skew: GaugeVec,
}

/// Registers `mesh_clock_skew_seconds`: of nodes with a session here, by id, and of other managers,
/// by name.
///
/// # Errors
/// A family of the same name is already registered.
pub fn register(clocks: Arc<Clocks>, registry: &Registry) -> Result<(), prometheus::Error> {
    let help = "How far a clock is ahead of this manager's; negative if it is behind.";
    let skew = GaugeVec::new(Opts::new("mesh_clock_skew_seconds", help), &["kind", "peer"])?;
    registry.register(Box::new(ClockCollector { clocks, skew }))
}

impl Collector for ClockCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.skew.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.skew.reset();
        for (peer, ahead) in self.clocks.ahead() {
            let labels = match &peer {
                Peer::Node(id) => ["node", id.as_str()],
                Peer::Manager(name) => ["manager", name],
            };
            self.skew.with_label_values(&labels).set(seconds(ahead));
        }
        self.skew.collect().into_iter().filter(|family| !family.get_metric().is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::Timestamp;
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn each_known_clock_is_exported() {
        let (registry, clocks) = (Registry::new(), Arc::<Clocks>::default());
        register(Arc::clone(&clocks), &registry).unwrap();
        assert_eq!(registry.gather().len(), 0, "a family without a series is no family");
        let moment = |ms| Timestamp::from_timestamp_millis(ms).unwrap();
        clocks.tell(&Peer::Node("n1".into()), moment(1_000), moment(3_500));
        clocks.tell(&Peer::Manager("m2".into()), moment(12_000), moment(0));
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"mesh_clock_skew_seconds{kind="manager",peer="m2"} 12"#,
            r#"mesh_clock_skew_seconds{kind="node",peer="n1"} -2.5"#,
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} is missing in\n{text}");
        }
        clocks.forget(&Peer::Manager("m2".into()));
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(!text.contains("m2"), "a manager that is gone is shown");
    }
}
