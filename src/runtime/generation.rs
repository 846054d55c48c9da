//! A configuration made ready for starting workers: resolved on this machine, with its account looked up and its
//! environment built.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::config::machine::Machine;
use crate::config::model::Config;
use crate::config::{self, Invocation, Loaded};
use crate::isolation::FenceLimits;
use crate::supervisor::policy::Policy;
use crate::worker::account::{self, Account};
use crate::worker::environment;

/// All that starting a worker of one configuration needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// What was written.
    pub config: Config,
    /// Whose fences they are: the app's name, or another one where its workers must not be mistaken for the app's.
    pub group: String,
    /// For the supervisor.
    pub policy: Policy,
    /// For the fence.
    pub limits: FenceLimits,
    /// Who workers become.
    pub account: Option<Account>,
    /// What is the same in every worker's environment.
    #[serde(with = "pairs")]
    pub environment: BTreeMap<OsString, OsString>,
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether the text is wrong (exit code 2), not the machine (1).
    pub wrong_text: bool,
    /// All that is wrong, as shown to people.
    pub reason: String,
}

impl Problem {
    fn of_machine(reason: String) -> Self {
        Self { wrong_text: false, reason }
    }

    fn of_diagnostics(diagnostics: &config::diagnostic::Diagnostics) -> Self {
        Self { wrong_text: diagnostics.exit_code() == 2, reason: diagnostics.render_errors(false) }
    }
}

/// Where the configuration came from, to be read again by a reload.
#[derive(Debug, Clone)]
pub struct Source {
    /// File and flags.
    pub invocation: Invocation,
    /// The cgroup that workers are below, if that is known; percentages of memory depend on it.
    pub above: Option<String>,
    /// What was in force when the manager started.
    pub running: Config,
}

impl Source {
    /// Read, check and prepare it again.
    ///
    /// # Errors
    /// What is wrong, or which key needs a restart.
    pub fn read_again(&self) -> Result<Prepared, Problem> {
        let loaded = config::load(&self.invocation).map_err(|found| Problem::of_diagnostics(&found))?;
        let changed = config::changes::needing_restart(&self.running, &loaded.config);
        if !changed.is_empty() {
            let keys = changed.iter().map(|key| format!("`{}`", key.path())).collect::<Vec<_>>().join(", ");
            return Err(Problem::of_machine(format!(
                "{keys} cannot be changed by a reload: restart the service, or set the old value again"
            )));
        }
        prepare(&loaded, self.above.as_deref())
    }
}

/// Resolve a configuration on this machine.
///
/// # Errors
/// What is wrong.
pub fn prepare(loaded: &Loaded, above: Option<&str>) -> Result<Prepared, Problem> {
    let resolved =
        config::resolve::resolve(loaded, &Machine::read(above)).map_err(|found| Problem::of_diagnostics(&found))?;
    let config = loaded.config.clone();
    let account = account::resolve(config.user.as_deref(), config.group.as_deref())
        .map_err(|error| Problem::of_machine(format!("user: {error}")))?;
    let environment = environment::base(
        std::env::vars_os(),
        config.inherit_environment,
        account.as_ref(),
        &loaded.file_environment,
        &config.environment,
    );
    Ok(Prepared {
        group: config.name.clone(),
        config,
        policy: resolved.policy,
        limits: resolved.fence,
        account,
        environment,
    })
}

/// A map whose keys are no text: JSON wants pairs.
mod pairs {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(map: &BTreeMap<OsString, OsString>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<OsString, OsString>, D::Error> {
        Ok(Vec::<(OsString, OsString)>::deserialize(from)?.into_iter().collect())
    }
}
