//! Replaces what two clusters can't have in common (ids, times, addresses, digests) by its kind,
//! and prints JSON as one line per value.
//!
//! Invariant: pure. What is replaced here needs no reason; every other difference does.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

use super::accepted::Rewrite;

/// A pattern and its replacement.
type Rule = (Regex, &'static str);

/// A rule. Every pattern is a constant, and a test uses it.
fn rule(pattern: &str, replacement: &'static str) -> Rule {
    (Regex::new(pattern).expect("a constant pattern"), replacement)
}

/// The rules, in this order: longer texts before their parts.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    vec![
        rule(r"(?s)-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", "<pem>"),
        rule(r"SWMTKN-1-[a-z0-9]+-[a-z0-9]+", "<token>"),
        rule(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?\+0000( UTC)?|Z)?( utc)?", "<time>"),
        rule(
            r"((?:L|l)ess than a second|(?:A|a)bout an? (minute|hour)|\d+ (second|minute|hour)s?) ago",
            "<ago>",
        ),
        rule(r"\b(sha256:)?[0-9a-f]{64}\b", "<digest>"),
        rule(r"\b[a-z0-9]{25}\b", "<id>"),
        rule(r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "<mac>"),
        rule(r"\b\d{1,3}(\.\d{1,3}){3}(/\d{1,2}|:\d+)?\b", "<address>"),
        rule(r"[A-Za-z0-9+/]{60,}={0,2}", "<base64>"),
    ]
});

static NODE: LazyLock<Rule> = LazyLock::new(|| rule(r"\bnode-\d\b", "<node>"));
/// The CLI's progress output, which depends on the moments at which it polls.
static PROGRESS: LazyLock<Rule> = LazyLock::new(|| {
    rule(r"^(overall progress: |\d+/\d+: |<id>: |[a-z0-9]{12}: |verify: Waiting |verify: Service )", "")
});
static SHORT_ID: LazyLock<Rule> = LazyLock::new(|| rule(r"^[a-z0-9]{12}(\s|$)", "<id>$1"));
static GAP: LazyLock<Rule> = LazyLock::new(|| rule(r"\s{2,}", "  "));

/// Numbers that depend on chance.
const CHANCE_NUMBERS: [&str; 2] = ["Index", "PID"];

/// The lines of a command's output, comparable between clusters.
pub(super) fn lines(text: &str, shows_nodes: bool, rewrites: &[Rewrite]) -> Vec<String> {
    let words = |text: &str| {
        let mut text = replaced(text);
        if !shows_nodes {
            text = NODE.0.replace_all(&text, NODE.1).into_owned();
        }
        rewrites.iter().fold(text, |text, rewrite| rewrite.apply(&text))
    };
    if let Some(values) = as_json(text) {
        let mut lines = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let root = if values.len() == 1 { String::new() } else { format!("#{index}") };
            flatten(&root, value, &words, &mut lines);
        }
        return lines;
    }
    let mut is_table = false;
    words(text)
        .lines()
        .map(|line| {
            is_table |= line.starts_with("ID ") || line.starts_with("NETWORK ID");
            let line =
                if is_table || is_bare_id(line) { SHORT_ID.0.replace(line, SHORT_ID.1) } else { line.into() };
            GAP.0.replace_all(line.trim_end(), GAP.1).into_owned()
        })
        .filter(|line| !PROGRESS.0.is_match(line))
        .collect()
}

fn replaced(text: &str) -> String {
    RULES.iter().fold(text.to_owned(), |text, (pattern, replacement)| {
        pattern.replace_all(&text, |_: &Captures<'_>| (*replacement).to_owned()).into_owned()
    })
}

/// Whether a line is nothing but a shortened id, as `-q` prints them.
fn is_bare_id(line: &str) -> bool {
    line.len() == 12 && line.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The text as one JSON value, or as one per line; scalars alone are text.
fn as_json(text: &str) -> Option<Vec<Value>> {
    let is_composed = |value: &Value| value.is_object() || value.is_array();
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        return is_composed(&value).then(|| vec![value]);
    }
    let values: Vec<Value> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).ok().filter(is_composed))
        .collect::<Option<_>>()?;
    (!values.is_empty()).then_some(values)
}

/// One line for every scalar value: `[0].Spec.Name = "web"`.
fn flatten(path: &str, value: &Value, words: &impl Fn(&str) -> String, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = format!("{path}.{}", words(name));
                if CHANCE_NUMBERS.contains(&name.as_str()) && value.is_number() {
                    lines.push(format!("{path} = <number>"));
                } else if name == "ID" && value.as_str().is_some_and(is_bare_id) {
                    lines.push(format!("{path} = \"<id>\""));
                } else {
                    flatten(&path, value, words, lines);
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), item, words, lines);
            }
        }
        Value::String(text) => lines.push(format!("{path} = {:?}", words(text))),
        other => lines.push(format!("{path} = {}", words(&other.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(lines(text, false, &[]), expected, "of {text:?}");
    }

    #[test]
    fn what_depends_on_chance_is_replaced() {
        check("made at 2026-11-25T07:00:01.5Z", &["made at <time>"]);
        check("x 2026-11-25 07:00:01.123 +0000 UTC y", &["x <time> y"]);
        check("Running 5 seconds ago\nRunning Less than a second ago", &["Running <ago>", "Running <ago>"]);
        check("qx8cybw2c1ol8nhbm5v6c1sgz", &["<id>"]);
        check("10.77.0.11:2377 and 10.0.0.0/24", &["<address> and <address>"]);
        check("02:4d:0a:4d:00:0d", &["<mac>"]);
        check("docker swarm join --token SWMTKN-1-abc-d1 x", &["docker swarm join --token <token> x"]);
        check("-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n", &["<pem>"]);
        check(&"ab".repeat(32), &["<digest>"]);
        check(&format!("M{}=", "Zx".repeat(40)), &["<base64>"]);
    }

    #[test]
    fn a_tables_ids_and_column_widths_are_replaced() {
        check(
            "ID             NAME        NODE\nb4uf5bgxx4m8   objective_jackson   node-2\n",
            &["ID  NAME  NODE", "<id>  objective_jackson  <node>"],
        );
        check("accumulating\n", &["<id>"]);
        check("one  two accumulating", &["one  two accumulating"]);
    }

    #[test]
    fn json_is_one_line_per_value() {
        check(
            r#"[{"ID":"b4uf5bgxx4m8","Version":{"Index":12},"Labels":{},"Ports":null,"Name":"node-1"}]"#,
            &[
                "[0].ID = \"<id>\"",
                "[0].Labels = {}",
                "[0].Name = \"<node>\"",
                "[0].Ports = null",
                "[0].Version.Index = <number>",
            ],
        );
        check("{\"a\":1}\n{\"a\":2}\n", &["#0.a = 1", "#1.a = 2"]);
        check("7\n", &["7"]);
    }

    #[test]
    fn progress_is_dropped() {
        check(
            "overall progress: 0 out of 2 tasks\n1/2: preparing\nverify: Waiting 5 seconds to verify\nok",
            &["ok"],
        );
    }
}
