//! What may go wrong around a manager, done to it on purpose: a real manager, real workers, on this machine.
//!
//! Each test breaks one thing, sees that what can serve goes on serving, mends it, and sees that the manager is whole
//! again without a restart. docs/reliability.md lists what happens in each case.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, has a clock of its own, and the worker program ends as it likes"
)]

mod disk;
mod hostile;
mod restarts;
mod shortage;
mod state;
mod stopped;
#[expect(dead_code, reason = "each suite uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    support::run(&[
        shortage::register,
        disk::register,
        state::register,
        stopped::register,
        hostile::register,
        restarts::register,
    ])
}
