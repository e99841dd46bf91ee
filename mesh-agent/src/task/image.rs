//! Which images are asked for at their registry, and for how long. Pure.

use std::time::Duration;

/// How long a registry may say nothing while an image that is missing is pulled.
pub(super) const PULL_PATIENCE: Duration = Duration::from_mins(2);
/// How long a registry may say nothing when it is asked whether a tag has moved. A copy that is here serves then.
pub(super) const FRESHNESS_PATIENCE: Duration = Duration::from_secs(10);

/// Whether a reference names one image for ever: it holds a digest, or is an image's id.
pub(super) fn is_pinned(reference: &str) -> bool {
    reference.contains('@') || reference.starts_with("sha256:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_pins_and_a_tag_does_not() {
        let digest = "0".repeat(64);
        for pinned in [format!("nginx:1.27@sha256:{digest}"), format!("sha256:{digest}")] {
            assert!(is_pinned(&pinned), "{pinned}");
        }
        for moves in ["nginx", "nginx:1.27", "registry:5000/nginx", "sha256"] {
            assert!(!is_pinned(moves), "{moves}");
        }
    }
}
