//! Reads single values of Prometheus' text format. Pure.

/// The value of the first sample of the family `name` whose labels contain `label`, as in
/// `certificate="node"`.
pub(crate) fn sample(text: &str, name: &str, label: &str) -> Option<f64> {
    samples(text, name).find(|(labels, _)| labels.contains(label)).map(|(_, value)| value)
}

/// Labels and values of the family `name`.
pub(crate) fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels, value.trim().parse().ok()?))
    })
}

/// The value of a label, as `version` in `version="0.1.0",revision="x"`.
pub(crate) fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let at = labels.find(&format!("{name}=\""))? + name.len() + 2;
    labels.get(at..)?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP mesh_certificate_seconds_left Seconds
mesh_certificate_seconds_left{certificate=\"node\"} 90
mesh_certificate_seconds_left{certificate=\"ca\"} -5
mesh_build_info{version=\"0.1.0\",revision=\"x\"} 1
mesh_store_connected 1
mesh_store_connected_more 7
";

    #[test]
    fn values_and_labels_are_found() {
        assert_eq!(sample(TEXT, "mesh_certificate_seconds_left", "certificate=\"ca\""), Some(-5.0));
        assert_eq!(sample(TEXT, "mesh_store_connected", ""), Some(1.0));
        assert_eq!(sample(TEXT, "mesh_absent", ""), None);
        let (labels, _) = samples(TEXT, "mesh_build_info").next().expect("a sample");
        assert_eq!(label(labels, "version"), Some("0.1.0"));
        assert_eq!(label(labels, "rustc"), None);
    }
}
