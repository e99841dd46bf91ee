//! Decides which images are pulled, and how long a registry may stay silent. Pure.

use std::time::Duration;

/// How long a registry may send nothing while a missing image is pulled.
pub(super) const PULL_PATIENCE: Duration = Duration::from_mins(2);
/// How long a registry may send nothing when it is asked whether a tag has moved. After that the
/// local copy is used.
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
