//! `paddock reap`: stop the workers that a dead manager left behind.

use std::path::Path;
use std::process::ExitCode;

use crate::config::model::IsolationChoice;
use crate::control::client::{ClientError, Connection};
use crate::control::directory::{RuntimeDirectory, Surroundings};
use crate::isolation::select;
use crate::runtime::setup::{self, Refusal};

use super::terminal;

/// How long systemd may let what is left end by itself.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Stop them; a living manager is left alone.
pub fn run(app: &str, directory: Option<&Path>) -> ExitCode {
    let surroundings = Surroundings::of_process(directory);
    match Connection::open(&surroundings, app) {
        Ok(_) => {
            terminal::complain(&format!("paddock: the manager of {app} is alive; use paddock stop {app}"));
            return ExitCode::FAILURE;
        }
        Err(ClientError::NotRunning { .. }) => {}
        Err(error) => return terminal::fail(&error),
    }
    match reap(app, &surroundings) {
        Ok(0) => {
            terminal::print(&format!("{app}: nothing was left\n"));
            ExitCode::SUCCESS
        }
        Ok(count) => {
            terminal::print(&format!("{app}: {count} stopped\n"));
            ExitCode::SUCCESS
        }
        Err(refusal) => {
            terminal::complain(&refusal.message);
            ExitCode::from(refusal.code)
        }
    }
}

fn reap(app: &str, surroundings: &Surroundings) -> Result<usize, Refusal> {
    let path = surroundings.of_manager(app).map_err(Refusal::of_machine)?;
    let directory = RuntimeDirectory::create(&path).map_err(Refusal::of_machine)?;
    // A manager that starts now must not find half of them.
    let _lock = directory.lock(app).map_err(Refusal::of_machine)?;
    setup::on_the_loop(async {
        let chosen = select::choose(IsolationChoice::Auto, app, PATIENCE).await.map_err(Refusal::of_machine)?;
        setup::sweep_leftovers(&*chosen.isolation, app).await
    })?
}
