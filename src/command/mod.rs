//! One file for each subcommand.

use std::path::Path;
use std::process::ExitCode;

use crate::control::ControlRequest;
use crate::control::client::Connection;
use crate::control::directory::Surroundings;

pub mod can_take_over;
pub mod check;
pub mod completions;
pub mod figures;
pub mod import;
pub mod man;
pub mod reap;
pub mod recycle;
pub mod reload;
pub mod run;
pub mod scale;
pub mod show_config;
pub mod signal;
pub mod status;
pub mod stop;
pub mod table;
pub mod terminal;

/// Have the app's manager do something, and say what it said.
fn ask(app: &str, directory: Option<&Path>, request: &ControlRequest) -> ExitCode {
    let surroundings = Surroundings::of_process(directory);
    match Connection::open(&surroundings, app).and_then(|mut manager| manager.perform(request, |_| {})) {
        Ok(message) => {
            terminal::print(&(message + "\n"));
            ExitCode::SUCCESS
        }
        Err(error) => terminal::fail(&error),
    }
}
