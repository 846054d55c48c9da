//! Registration: a behaviour is one function, run once in each mode that makes sense.

use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::cgroup::Group;

/// `isolation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// No fence.
    None,
    /// A cgroup for each worker.
    Cgroup,
    /// A transient scope for each worker.
    Scope,
}

impl Mode {
    /// The key's value.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cgroup => "cgroup",
            Self::Scope => "scope",
        }
    }

    /// Whether each worker has a fence of its own.
    pub(crate) fn has_fence(self) -> bool {
        self != Self::None
    }

    /// Why this machine cannot run a test in this mode.
    fn missing(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Cgroup => {
                Group::create(&format!("pt-{}-try-{:?}", std::process::id(), std::thread::current().id())).err()
            }
            Self::Scope => (!has_systemd()).then(|| "systemd is not process 1 here".to_owned()),
        }
    }
}

/// Every mode.
pub(crate) const EVERYWHERE: &[Mode] = &[Mode::None, Mode::Cgroup, Mode::Scope];

/// The modes with a fence.
pub(crate) const FENCED: &[Mode] = &[Mode::Cgroup, Mode::Scope];

/// `sd_booted(3)`.
pub(crate) fn has_systemd() -> bool {
    std::path::Path::new("/run/systemd/system").is_dir()
}

/// Tests that assert times hold this alone; all others share it.
static MACHINE: RwLock<()> = RwLock::new(());

/// All tests of a suite.
#[derive(Default)]
pub(crate) struct Suite {
    trials: Vec<Trial>,
    alone: Vec<Trial>,
}

impl Suite {
    /// A test that may run beside others.
    pub(crate) fn add(&mut self, name: &str, modes: &[Mode], test: fn(Mode)) {
        for &mode in modes.iter().filter(|mode| **mode != Mode::Scope || has_systemd()) {
            self.push(trial(name, mode, move || {
                let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
                test(mode);
            }));
        }
    }

    /// A test that has the machine for itself, as far as this suite goes: it asserts times, or loads both processors.
    pub(crate) fn alone(&mut self, name: &str, modes: &[Mode], test: fn(Mode)) {
        for &mode in modes.iter().filter(|mode| **mode != Mode::Scope || has_systemd()) {
            self.alone.push(trial(name, mode, move || {
                let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
                test(mode);
            }));
        }
    }

    /// A test that decides for itself whether it can run here.
    pub(crate) fn push(&mut self, trial: Trial) {
        self.trials.push(trial);
    }

    /// Runs what the command line selects.
    pub(crate) fn run(self) -> ExitCode {
        let mut trials = self.trials;
        trials.extend(self.alone);
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }
}

fn trial(name: &str, mode: Mode, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(format!("{name}::{}", mode.key()), move || -> Result<Completion, Failed> {
        if let Some(reason) = mode.missing() {
            return Ok(Completion::ignored_with(reason));
        }
        test();
        Ok(Completion::Completed)
    })
}
