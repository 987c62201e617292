//! The project's build tool.
fn main() {}
