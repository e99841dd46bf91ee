//! Medians and spreads.

/// The samples of several rounds.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a sample.
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// Whether there are no samples.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The median; of an even number, the mean of the two in the middle. 0 without samples.
    pub(super) fn median(&self) -> f64 {
        let (half, count) = (self.0.len() / 2, self.0.len());
        match (count, count % 2) {
            (0, _) => 0.0,
            (_, 1) => self.0[half],
            _ => self.0[half - 1].midpoint(self.0[half]),
        }
    }

    /// The smallest sample.
    pub(super) fn least(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    /// The largest sample.
    pub(super) fn most(&self) -> f64 {
        self.0.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let mut samples = Samples::default();
        assert!(samples.median().abs() < f64::EPSILON, "without samples");
        for (value, median) in [(3.0, 3.0), (1.0, 2.0), (9.0, 3.0)] {
            samples.push(value);
            assert!((samples.median() - median).abs() < 1e-9, "after {value}: {samples:?}");
        }
        assert!((samples.least() - 1.0).abs() < 1e-9 && (samples.most() - 9.0).abs() < 1e-9);
    }
}
