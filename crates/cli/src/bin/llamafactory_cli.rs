//! The `llamafactory-cli` binary.
fn main() {}
