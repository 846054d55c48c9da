//! The hidden role in which another image of the program answers whether it could take over a manager: it gets what it
//! would get, on standard input, and tries everything that does not touch the app.

use std::io::{Read, Write};
use std::process::ExitCode;

use crate::cli::{self, Command};
use crate::config::model::IsolationChoice;
use crate::isolation::{Drain, Mode, select};
use crate::runtime::setup;
use crate::runtime::upgrade::handover::Handover;

/// More is not read.
const LONGEST: u64 = 128 << 20;

/// Answer on standard output with the password that was given, and exit code 0; or say why not.
pub fn run() -> ExitCode {
    match answer() {
        Ok(password) => {
            // Without the answer it counts as a refusal.
            let _ = writeln!(std::io::stdout(), "{password}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "paddock {}: {reason}", env!("CARGO_PKG_VERSION"));
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<String, String> {
    let mut text = Vec::new();
    std::io::stdin().lock().take(LONGEST).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let (handover, state) = Handover::parse(&text).map_err(|error| error.to_string())?;
    match cli::parse(handover.arguments.iter().cloned()).map(|cli| cli.command) {
        Ok(Command::Run { .. }) => {}
        Ok(_) => return Err("its command line runs no manager".to_owned()),
        Err(error) => return Err(format!("its command line is wrong for this version: {error}")),
    }
    let running = state.configs.values().next_back().ok_or("the state has no configuration")?;
    let choice = match state.isolation {
        Mode::Scope => IsolationChoice::Scope,
        Mode::Cgroup => IsolationChoice::Cgroup,
        Mode::None => IsolationChoice::None,
    };
    let drain = Drain { signal: running.config.drain_signal, graceful: running.config.timeouts.graceful };
    setup::on_the_loop(select::choose(choice, &running.config.name, drain))
        .map_err(|refusal| refusal.message)?
        .map_err(|error| error.to_string())?;
    Ok(handover.password)
}
