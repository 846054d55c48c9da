//! `paddock run`: the manager of one app, in the foreground.

use std::path::Path;

use crate::config::{Invocation, Loaded};
use crate::control::directory::{RuntimeDirectory, Surroundings};
use crate::control::server::Server;
use crate::observe::log::Log;
use crate::runtime::generation::Source;
use crate::runtime::listeners::Listeners;
use crate::runtime::manager::{self, Parts};
use crate::runtime::setup::{self, Refusal};
use crate::supervisor::note::Level;
use crate::systemd::activation::Inherited;
use crate::systemd::notify::{ServiceNotifier, watchdog_interval};
use crate::worker::files;

/// Run until stopped; the exit code.
///
/// # Errors
/// Why nothing was started.
pub fn run(invocation: Invocation, directory: Option<&Path>, colour: bool) -> Result<u8, Refusal> {
    let inherited = setup::inherited()?;
    let loaded = setup::load(&invocation, colour)?;
    let log = Log::open(&loaded.config.name, loaded.config.log.format, |name| std::env::var_os(name));
    log.install();
    for warning in loaded.warnings.list() {
        let remedy = warning.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        log.say(Level::Warning, &format!("{}: {}{remedy}", warning.key, warning.message));
    }
    let result = setup::on_the_loop(manage(invocation, loaded, inherited, directory, &log))?;
    log.flush();
    result
}

async fn manage(
    invocation: Invocation,
    loaded: Loaded,
    inherited: Inherited,
    directory: Option<&Path>,
    log: &Log,
) -> Result<u8, Refusal> {
    let config = loaded.config.clone();
    let path = Surroundings::of_process(directory).of_manager(&config.name).map_err(Refusal::of_machine)?;
    let directory = RuntimeDirectory::create(&path).map_err(Refusal::of_machine)?;
    let _lock = directory.lock(&config.name).map_err(Refusal::of_machine)?;
    remove_leftovers(&path);
    let fenced = setup::fence(&loaded, &config.name, log).await?;
    let listeners = Listeners::open(inherited, &config.listen).map_err(Refusal::of_machine)?;
    let notifier = ServiceNotifier::from_environment(|name| std::env::var_os(name)).map_err(Refusal::of_machine)?;
    let control =
        Server::bind(&directory, &config.name, config.control.group.as_deref()).map_err(Refusal::of_machine)?;
    manager::run(Parts {
        log: log.clone(),
        directory: path,
        isolation: fenced.isolation,
        listeners,
        notifier,
        ping_interval: watchdog_interval(),
        control: Some(control),
        prepared: fenced.prepared,
        source: Source { invocation, above: fenced.above, running: config },
        seed: setup::seed()?,
        listener: None,
    })
    .await
    .map_err(Refusal::of_machine)
}

/// What workers of a dead manager had in the runtime directory; we hold its lock.
fn remove_leftovers(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(files::is_worker_file) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
