//! From a configuration to a manager that is ready to turn: what `run` and `check` have in common.

use std::path::Path;
use std::rc::Rc;

use crate::config::diagnostic::Diagnostics;
use crate::config::model::{Config, IsolationChoice};
use crate::config::{self, Invocation, Loaded};
use crate::isolation::select::{self, Chosen};
use crate::isolation::{Drain, Isolation, Mode};
use crate::observe::log::Log;
use crate::supervisor::note::Level;
use crate::systemd::activation::{self, Inherited};

use super::generation::{self, Prepared, Problem};
use super::origin;
use super::upgrade::keep_signals_away;

/// Why there is nothing to run: what to say, and the exit code.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// 1: the machine refused; 2: the text is wrong.
    pub code: u8,
    /// What is wrong, and the remedy.
    pub message: String,
}

impl Refusal {
    /// The machine refused.
    pub fn of_machine(error: impl std::fmt::Display) -> Self {
        Self { code: 1, message: format!("paddock: {error}") }
    }

    /// A configuration that is wrong, shown with its lines.
    pub fn of_diagnostics(found: &Diagnostics, colour: bool) -> Self {
        Self { code: found.exit_code(), message: found.render_errors(colour).trim_end().to_owned() }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let code = if problem.wrong_text { 2 } else { 1 };
        Self { code, message: problem.reason.trim_end().to_owned() }
    }
}

/// Take inherited descriptors; must come before anything opens files.
///
/// # Errors
/// The variables are wrong.
pub fn inherited() -> Result<Inherited, Refusal> {
    activation::take(|name| std::env::var_os(name)).map_err(Refusal::of_machine)
}

/// Read the configuration.
///
/// # Errors
/// All that is wrong with it.
pub fn load(invocation: &Invocation, colour: bool) -> Result<Loaded, Refusal> {
    config::load(invocation).map_err(|found| Refusal::of_diagnostics(&found, colour))
}

/// The fence that is in use, and the first generation for it.
pub struct Fenced {
    /// How workers are fenced.
    pub isolation: Rc<dyn Isolation>,
    /// The cgroup above the workers, if there is one.
    pub above: Option<String>,
    /// The first generation.
    pub prepared: Prepared,
}

/// Choose the isolation, resolve the configuration for it, and say so in one line.
///
/// # Errors
/// The mode that was asked for is not there; the configuration does not fit the machine.
pub async fn fence(loaded: &Loaded, app: &str, log: &Log) -> Result<Fenced, Refusal> {
    let config = &loaded.config;
    let drain = Drain { signal: config.drain_signal, graceful: config.timeouts.graceful };
    let Chosen { isolation, above, explanation } = select::choose(config.isolation, app, drain)
        .await
        .map_err(|error| Refusal::of_machine(format!("isolation: {error}")))?;
    log.say(Level::Info, &explanation);
    let prepared = generation::prepare(loaded, above.as_deref())?;
    for warning in select::warnings(isolation.mode(), &prepared.limits) {
        log.say(Level::Warning, &warning);
    }
    Ok(Fenced { isolation, above, prepared })
}

/// The same for a manager that takes over workers: only the mode that fenced them finds them again.
///
/// # Errors
/// That mode is not there now.
pub async fn fence_again(
    mode: Mode,
    config: &Config,
    log: &Log,
) -> Result<(Rc<dyn Isolation>, Option<String>), Refusal> {
    let choice = match mode {
        Mode::Scope => IsolationChoice::Scope,
        Mode::Cgroup => IsolationChoice::Cgroup,
        Mode::None => IsolationChoice::None,
    };
    let drain = Drain { signal: config.drain_signal, graceful: config.timeouts.graceful };
    let chosen = select::choose(choice, &config.name, drain)
        .await
        .map_err(|error| Refusal::of_machine(format!("workers of an earlier manager serve on, but {error}")))?;
    log.say(Level::Info, &chosen.explanation);
    Ok((chosen.isolation, chosen.above))
}

/// Stop what dead managers of the app left that had this runtime directory; how many workers that were.
///
/// # Errors
/// The fences cannot be listed, or one of them could not be swept.
pub async fn sweep_leftovers(isolation: &dyn Isolation, app: &str, directory: &Path) -> Result<usize, Refusal> {
    let mut leftovers = isolation.leftovers(app).await.map_err(Refusal::of_machine)?.living;
    leftovers.retain(|leftover| origin::is_of(directory, leftover));
    let count = leftovers.len();
    for leftover in leftovers {
        leftover.fence.sweep().await.map_err(Refusal::of_machine)?;
    }
    Ok(count)
}

/// A seed that nobody can guess, so that nobody can foresee jitter.
///
/// # Errors
/// What `getrandom(2)` says.
pub fn seed() -> Result<u64, Refusal> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).map_err(Refusal::of_machine)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Run a future on the loop: one thread, with tasks that stay on it.
///
/// # Errors
/// No event queue or timer could be made.
pub fn on_the_loop<T>(work: impl Future<Output = T>) -> Result<T, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_start(keep_signals_away)
        .build()
        .map_err(Refusal::of_machine)?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, work);
    // A thread that still asks a directory server for a user must not hold the end up.
    runtime.shutdown_background();
    Ok(result)
}
