//! Draws bar charts as SVG.

use std::fmt::Write as _;

/// One bar.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    /// The label beside the bar.
    pub(super) label: String,
    /// The value that the bar's length stands for.
    pub(super) value: f64,
    /// The smallest value seen.
    pub(super) least: f64,
    /// The largest value seen.
    pub(super) most: f64,
    /// The target that a mark shows, if there is one.
    pub(super) target: Option<f64>,
}

const WIDTH: f64 = 900.0;
const LABELS: f64 = 290.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 46.0;
const ROW: f64 = 24.0;

/// Horizontal bars from 0 on, each with a line for the spread and a mark for the target.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    let most = bars.iter().flat_map(|bar| [bar.most, bar.target.unwrap_or(0.0)]).fold(1.0, f64::max);
    let x = |value: f64| LABELS + value / most * (WIDTH - LABELS - RIGHT);
    #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
    let y = |row: usize| TOP + row as f64 * ROW;
    let height = y(bars.len()) + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    for (row, bar) in bars.iter().enumerate() {
        let (top, middle, end) = (y(row), y(row) + ROW / 2.0, x(bar.value));
        // Writing to a String can't fail.
        _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#4878a8\"/>\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#222\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>",
            LABELS - 8.0,
            middle + 4.0,
            escaped(&bar.label),
            top + 4.0,
            end - LABELS,
            ROW - 8.0,
            x(bar.least),
            x(bar.most),
            x(bar.most.max(bar.target.unwrap_or(0.0))) + 6.0,
            middle + 4.0,
            bar.value,
        );
        if let Some(target) = bar.target {
            _ = writeln!(
                svg,
                "<path d=\"M{0:.1} {1:.1}V{2:.1}\" stroke=\"#c03030\" stroke-width=\"2\"/>",
                x(target),
                top + 1.0,
                top + ROW - 1.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let bar = |value, target| Bar { label: "a < b".into(), value, least: value, most: value, target };
        let svg = bars("t", &[bar(1.0, Some(2.0)), bar(2.0, None)]);
        assert!(svg.contains("a &lt; b"), "labels are escaped: {svg}");
        let widths: Vec<f64> = svg
            .match_indices("width=\"")
            .filter_map(|(at, found)| svg[at + found.len()..].split('"').next()?.parse().ok())
            .filter(|width| *width > 10.0)
            .collect();
        assert_eq!(widths.len(), 2, "two bars: {svg}");
        assert!((widths[1] - 2.0 * widths[0]).abs() < 0.2, "twice the value is twice as long: {widths:?}");
    }
}
