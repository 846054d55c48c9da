//! The promises of docs/threat-model.md that take a real manager to be seen: whom it trusts, what it gives away, and what
//! holds it up. Most of them need root, for it takes two users to be strangers.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, has a clock of its own, and the worker program ends as it likes"
)]

mod given;
mod linger;
mod links;
#[expect(dead_code, reason = "each suite uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod trust;

use std::process::ExitCode;

use libtest_mimic::{Completion, Trial};
use support::suite::Suite;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(linger::ROLE) {
        return linger::run();
    }
    support::run(&[trust::register, given::register, links::register, linger::register])
}

/// A test that only root can do.
fn as_root(suite: &mut Suite, name: &str, test: fn()) {
    suite.push(Trial::ignorable_test(name, move || {
        if !rustix::process::geteuid().is_root() {
            return Ok(Completion::ignored_with("takes root"));
        }
        test();
        Ok(Completion::Completed)
    }));
}
