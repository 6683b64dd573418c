//! The app's side: listeners, connections, doors, and what crosses between them and a route's stack.

pub mod relay;
pub mod socket;
