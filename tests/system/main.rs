//! What paddock does as a service under the real systemd of the machine that this runs on: the shipped units, scopes,
//! the journal, `systemctl`.
//!
//! Where systemd is not process 1 every test says so and is skipped. The tests install the units for this boot only
//! (`/run/systemd/system`), give each app a name of its own and remove what they made.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, has a clock of its own, and the worker program ends as it likes"
)]

mod adoption;
mod faults;
mod isolation;
mod journal;
mod reload;
mod service;
mod shutdown;
mod stop;
#[expect(dead_code, reason = "most of it is for the suite that starts managers itself")]
#[path = "../support/mod.rs"]
mod support;
mod upgrade;
mod variants;
mod verdicts;

use std::process::ExitCode;

use libtest_mimic::{Completion, Failed, Trial};

use support::suite::{Suite, has_systemd};

fn main() -> ExitCode {
    support::run(&[
        isolation::register,
        verdicts::register,
        reload::register,
        journal::register,
        variants::register,
        faults::register,
        adoption::register,
        stop::register,
        shutdown::register,
        upgrade::register,
    ])
}

impl Suite {
    /// A test of the service under systemd, skipped where systemd is not process 1 or this is not root.
    pub(crate) fn system(&mut self, name: &str, test: fn()) {
        self.system_since(0, name, test);
    }

    /// One that is skipped where systemd is older than this, too.
    pub(crate) fn system_since(&mut self, oldest: u32, name: &str, test: fn()) {
        self.push(Trial::ignorable_test(name, move || -> Result<Completion, Failed> {
            if !has_systemd() {
                return Ok(Completion::ignored_with("systemd is not process 1 here"));
            }
            if !rustix::process::geteuid().is_root() {
                return Ok(Completion::ignored_with("only root can install units"));
            }
            let version = service::systemd_version();
            if version < oldest {
                return Ok(Completion::ignored_with(format!("systemd {version} is older than {oldest}")));
            }
            test();
            Ok(Completion::Completed)
        }));
    }
}
