//! Prints findings, for people and for programs. Pure.

use std::fmt::Write as _;

use serde_json::json;

use crate::finding::{Finding, Severity, errors, warnings};

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Whether signs are coloured.
    pub is_coloured: bool,
    /// Whether only warnings and errors are shown.
    pub is_quiet: bool,
}

/// Findings for people: those of a category under its name, and a last line that counts. Nothing at
/// all if it is quiet and all is well.
pub fn text(findings: &[Finding], style: Style) -> String {
    let wanted = |finding: &&Finding| !style.is_quiet || finding.severity >= Severity::Warning;
    let shown: Vec<&Finding> = findings.iter().filter(wanted).collect();
    let mut text = String::new();
    let mut categories: Vec<&str> = Vec::new();
    for finding in &shown {
        if !categories.contains(&finding.category()) {
            categories.push(finding.category());
        }
    }
    for category in categories {
        if !style.is_quiet {
            add(&mut text, &format!("{category}\n{}", "-".repeat(category.len())));
        }
        for finding in shown.iter().filter(|finding| finding.category() == category) {
            add(&mut text, &format!("{} {}", sign(finding.severity, style.is_coloured), finding.seen));
            if !finding.cure.is_empty() {
                add(&mut text, &format!("    cure: {}", finding.cure));
            }
        }
        if !style.is_quiet {
            add(&mut text, "");
        }
    }
    if !(style.is_quiet && shown.is_empty()) {
        add(&mut text, &verdict(findings));
    }
    text.truncate(text.trim_end().len());
    text
}

fn add(text: &mut String, line: &str) {
    // Writing to a string can't fail.
    let _always = writeln!(text, "{line}");
}

fn verdict(findings: &[Finding]) -> String {
    match (errors(findings), warnings(findings)) {
        (0, 0) => "all is well".to_owned(),
        (errors, warnings) => format!("errors: {errors}, warnings: {warnings}"),
    }
}

fn sign(severity: Severity, is_coloured: bool) -> String {
    let (sign, colour) = match severity {
        Severity::Ok => ("√", "32"),
        Severity::Skipped => ("-", "2"),
        Severity::Warning => ("‼", "33"),
        Severity::Error => ("×", "31"),
    };
    if is_coloured { format!("\x1b[{colour}m{sign}\x1b[0m") } else { sign.to_owned() }
}

/// Findings for programs: `{"errors", "warnings", "findings": [{"check", "severity", "seen",
/// "cure"}]}`. Keys are only ever added.
pub fn json(findings: &[Finding]) -> String {
    json!({"errors": errors(findings), "warnings": warnings(findings), "findings": findings}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> [Finding; 4] {
        [
            Finding::ok("kernel.version", "Linux 6.12 has tcx"),
            Finding::warning("time.ntp", "no NTP", "set-ntp"),
            Finding::skipped("kernel.btf", "not seen"),
            Finding::error("ports.free", "nginx holds port 4800", "stop it"),
        ]
    }

    #[test]
    fn findings_are_shown_by_category() {
        let expected = "\
kernel
------
√ Linux 6.12 has tcx
- not seen

time
----
‼ no NTP
    cure: set-ntp

ports
-----
× nginx holds port 4800
    cure: stop it

errors: 1, warnings: 1";
        assert_eq!(text(&findings(), Style::default()), expected);
        let coloured = text(&findings(), Style { is_coloured: true, is_quiet: false });
        assert!(coloured.contains("\x1b[31m×\x1b[0m nginx"), "{coloured}");
    }

    #[test]
    fn quiet_shows_what_needs_a_hand() {
        let quiet = Style { is_quiet: true, ..Style::default() };
        let expected =
            "‼ no NTP\n    cure: set-ntp\n× nginx holds port 4800\n    cure: stop it\nerrors: 1, warnings: 1";
        assert_eq!(text(&findings(), quiet), expected);
        assert_eq!(text(&findings()[..1], quiet), "", "all is well");
        assert_eq!(text(&findings()[..1], Style::default()).lines().last(), Some("all is well"));
    }

    #[test]
    fn json_has_stable_keys() {
        let said: serde_json::Value = serde_json::from_str(&json(&findings())).expect("JSON");
        assert_eq!(said["errors"], 1);
        let last = &said["findings"][3];
        let words =
            ["check", "severity", "seen", "cure"].map(|key| last[key].as_str().expect("text").to_owned());
        assert_eq!(words, ["ports.free", "error", "nginx holds port 4800", "stop it"]);
    }
}
