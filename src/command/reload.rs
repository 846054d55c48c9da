//! `paddock reload APP`: the manager reads its configuration again and replaces every worker.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use super::terminal::{complain, fail, print};
use crate::control::ControlRequest;
use crate::control::client::Connection;
use crate::control::directory::Surroundings;

/// With `wait`, to the end of the roll: exit 1 with the reason and the worker's last words if it was undone, 2 with the
/// diagnostic if the configuration file is wrong. On a terminal the steps are shown meanwhile.
pub fn run(app: &str, directory: Option<&Path>, wait: bool) -> ExitCode {
    let surroundings = Surroundings::of_process(directory);
    let watched = std::io::stderr().is_terminal();
    let done = Connection::open(&surroundings, app).and_then(|mut manager| {
        manager.perform(&ControlRequest::Reload { wait }, |step| {
            if watched {
                complain(step);
            }
        })
    });
    match done {
        Ok(message) => {
            print(&(message + "\n"));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}
