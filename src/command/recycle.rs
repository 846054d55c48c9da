//! `paddock recycle APP SLOT`.

use std::path::Path;
use std::process::ExitCode;

use super::ask;
use crate::control::ControlRequest;

/// Replace the worker of one slot, start before stop.
pub fn run(app: &str, directory: Option<&Path>, slot: u32) -> ExitCode {
    ask(app, directory, &ControlRequest::Recycle { slot })
}
