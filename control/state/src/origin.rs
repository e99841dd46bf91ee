//! The sources and the compiler of this build, for `mesh_build_info` of agents and managers.

/// The version of the compiler.
pub const RUSTC: &str = env!("MESH_RUSTC");

/// The revision of the sources: `MESH_REVISION` at build time.
pub const REVISION: &str = match option_env!("MESH_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
