//! `paddock stop APP`: workers drain, or with `--fast` are killed, and the manager ends.

use std::path::Path;
use std::process::ExitCode;

use super::terminal::{complain, fail, print};
use crate::control::ControlRequest;
use crate::control::client::{Connection, wait_for_end};
use crate::control::directory::Surroundings;

/// Returns when the manager's process is over, so that the app can be started again at once.
pub fn run(app: &str, directory: Option<&Path>, fast: bool) -> ExitCode {
    let surroundings = Surroundings::of_process(directory);
    let stopped = Connection::open(&surroundings, app).and_then(|mut manager| {
        // Before the request: afterwards its pid may be somebody else's.
        let process = manager.manager();
        let message = manager.perform(&ControlRequest::Stop { fast }, |_| {})?;
        Ok((message, process))
    });
    match stopped {
        Ok((message, process)) => {
            if let Some(process) = process
                && let Err(error) = wait_for_end(&process)
            {
                complain(&format!("paddock: cannot wait for the manager's end: {error}"));
                return ExitCode::FAILURE;
            }
            print(&(message + "\n"));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}
