//! Removes the namespaces of runs that were killed.

use anyhow::Result;

use mesh_lab::netns::Netns;

/// Removes the namespaces named `prefix` plus the id of a process that has ended; returns this
/// process's own prefix.
pub(super) fn clear(prefix: &str) -> Result<String> {
    for netns in Netns::list()? {
        let owner = netns.name().strip_prefix(prefix).and_then(|rest| rest.split('-').next());
        if let Some(owner) = owner
            && !std::path::Path::new("/proc").join(owner).exists()
        {
            netns.delete()?;
        }
    }
    Ok(format!("{prefix}{}", std::process::id()))
}
