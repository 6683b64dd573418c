//! The `outgate` program.
fn main() {}
