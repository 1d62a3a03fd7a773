//! The `hanzo-node` binary.
fn main() {}
