//! What a check found.

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Could not be looked at.
    Skipped,
    /// Works, but something is likely to be missed or to fail later.
    Warning,
    /// Something of mesh does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's stable name, `category.subject`, for programs.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was seen.
    pub seen: String,
    /// What to do about it, a command where there is one; empty if nothing is to be done.
    pub cure: String,
}

impl Finding {
    /// Something that is as it should be.
    pub fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, seen: seen.into(), cure: String::new() }
    }

    /// Something that could not be looked at.
    pub fn skipped(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, severity: Severity::Skipped, seen: seen.into(), cure: String::new() }
    }

    /// Something that is likely to fail later.
    pub fn warning(check: &'static str, seen: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, seen: seen.into(), cure: cure.into() }
    }

    /// Something that does not work.
    pub fn error(check: &'static str, seen: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, severity: Severity::Error, seen: seen.into(), cure: cure.into() }
    }

    /// The part of the check's name before the dot.
    pub fn category(&self) -> &'static str {
        self.check.split_once('.').map_or(self.check, |(category, _)| category)
    }
}

/// The number of errors.
pub fn errors(findings: &[Finding]) -> usize {
    count(findings, Severity::Error)
}

/// The number of warnings.
pub fn warnings(findings: &[Finding]) -> usize {
    count(findings, Severity::Warning)
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}
