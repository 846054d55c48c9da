//! `paddock scale APP N`.

use std::path::Path;
use std::process::ExitCode;

use super::ask;
use crate::control::ControlRequest;

/// Have so many workers until a reload changes `workers`.
pub fn run(app: &str, directory: Option<&Path>, workers: u32) -> ExitCode {
    ask(app, directory, &ControlRequest::Scale { workers })
}
