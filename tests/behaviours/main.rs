//! What paddock does, as anyone can see it from outside: a real manager, real workers, on this machine.
//!
//! Each test carries the number of its behaviour and runs once in each mode that makes sense. Nothing here looks inside
//! the manager: sockets, signals, the command line, the log, the notify protocol and `/proc` are all that there is.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, has a clock of its own, and the worker program ends as it likes"
)]

mod adoption;
mod death;
mod development;
mod memory;
mod operate;
mod recycle;
mod reload;
mod sockets;
mod start;
mod stop;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;

use std::process::ExitCode;

fn main() -> ExitCode {
    support::run(&[
        sockets::register,
        start::register,
        death::register,
        recycle::register,
        memory::register,
        reload::register,
        stop::register,
        operate::register,
        development::register,
        adoption::register,
        upgrade::register,
    ])
}
