//! What people get to see: log lines and the text in them.

pub mod escape;
pub mod log;
