//! The `bitdelta` binary.
fn main() {}
