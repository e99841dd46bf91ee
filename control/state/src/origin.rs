//! What this build was made from, for `mesh_build_info` of agents and managers alike.

/// Version of the compiler.
pub const RUSTC: &str = env!("MESH_RUSTC");

/// The revision of the sources: `MESH_REVISION` as it was when they were built.
pub const REVISION: &str = match option_env!("MESH_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
