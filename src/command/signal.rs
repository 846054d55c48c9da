//! `paddock signal APP SIG [SLOT]`.

use std::path::Path;
use std::process::ExitCode;

use super::ask;
use crate::config::model::Signal;
use crate::control::ControlRequest;

/// Send a signal to the first process of one slot's worker, or of all workers.
pub fn run(app: &str, directory: Option<&Path>, signal: Signal, slot: Option<u32>) -> ExitCode {
    ask(app, directory, &ControlRequest::Signal { signal, slot })
}
