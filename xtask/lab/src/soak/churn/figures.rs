//! Whether memory, descriptors and the store stay flat. Pure.

use std::collections::BTreeMap;

/// The share of the samples at the beginning that are warm-up.
const WARM_UP: f64 = 0.25;
/// How far a figure may grow after the warm-up.
const GROWTH_MAX: f64 = 0.05;
/// Growth by no more than this is none, whatever the share: a few descriptors …
const DESCRIPTORS: f64 = 8.0;
/// … or KiB of an allocator's or a store's rounding. etcd keeps the changes of some minutes.
const KIB: f64 = 2048.0;

/// The samples of one figure, in the order of time.
pub(super) type Samples = BTreeMap<String, Vec<f64>>;

/// How a figure developed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trend {
    pub(super) name: String,
    /// The median of the samples right after the warm-up, and of the last ones.
    pub(super) early: f64,
    pub(super) late: f64,
}

impl Trend {
    /// Whether the figure is flat: it may fall, and it may grow by a twentieth.
    pub(super) fn is_flat(&self) -> bool {
        let slack = if self.name.contains("KiB") { KIB } else { DESCRIPTORS };
        self.late <= self.early * (1.0 + GROWTH_MAX) || self.late - self.early <= slack
    }
}

/// The trend of each figure with at least four samples.
pub(super) fn trends(samples: &Samples) -> Vec<Trend> {
    let trend = |(name, values): (&String, &Vec<f64>)| {
        let warm = values.get(warm_up(values.len())..).unwrap_or_default();
        let third = (warm.len() / 3).max(1);
        let (early, late) = (warm.get(..third)?, warm.get(warm.len().checked_sub(third)?..)?);
        Some(Trend { name: name.clone(), early: median(early)?, late: median(late)? })
    };
    samples.iter().filter(|(_, values)| values.len() >= 4).filter_map(trend).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a few hundred"
)]
fn warm_up(count: usize) -> usize {
    (count as f64 * WARM_UP).ceil() as usize
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(values: &[f64]) -> Trend {
        let samples = Samples::from([("a".to_owned(), values.to_vec())]);
        trends(&samples).remove(0)
    }

    #[test]
    fn growth_after_the_warm_up_is_seen() {
        let grows: Vec<f64> = (0..40).map(|step| 1000.0 + 10.0 * f64::from(step)).collect();
        assert!(!trend(&grows).is_flat(), "{:?}", trend(&grows));
    }

    #[test]
    fn the_warm_up_and_single_peaks_count_for_nothing() {
        let mut flat = vec![1000.0; 40];
        flat[..10].fill(100.0);
        flat[30] = 9000.0;
        assert!(trend(&flat).is_flat(), "{:?}", trend(&flat));
    }

    #[test]
    fn a_few_more_descriptors_are_flat() {
        let mut values = vec![40.0; 20];
        values[15..].fill(47.0);
        assert!(trend(&values).is_flat());
        values[13..].fill(60.0);
        assert!(!trend(&values).is_flat());
    }

    #[test]
    fn too_few_samples_have_no_trend() {
        assert!(trends(&Samples::from([("a".to_owned(), vec![1.0, 2.0, 3.0])])).is_empty());
    }
}
