//! mesh-control.
fn main() {}
