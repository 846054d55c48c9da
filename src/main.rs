//! argv in, exit code out.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use paddock::cli::{self, Cli, Command, ConfigArgs};
use paddock::command;
use paddock::config::{Invocation, Runner};
use paddock::runtime::setup::Refusal;
use paddock::runtime::upgrade::ask;
use paddock::worker::gate;

fn main() -> ExitCode {
    // The gate is on the way of every start: it needs no command line parser. Nor has the other hidden role any options.
    let mut arguments = std::env::args_os();
    match arguments.nth(1).filter(|_| arguments.next().is_none()) {
        Some(role) if role == gate::ROLE => return gate::run(),
        Some(role) if role == ask::ROLE => return command::can_take_over::run(),
        _ => {}
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match cli::parse(arguments) {
        Ok(cli) => dispatch(cli),
        Err(error) => {
            // Help and version go to standard output and are no error.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

fn dispatch(Cli { runtime_directory, command }: Cli) -> ExitCode {
    let directory = runtime_directory.as_deref();
    match command {
        Command::Run { config, reload_on_change } => run(config, reload_on_change, directory),
        Command::Check { config, no_start } => check(config, no_start),
        Command::ShowConfig { config, json } => command::show_config::run(&invocation(config), json),
        Command::Status { app, json, ready } => command::status::run(app.as_deref(), directory, json, ready),
        Command::Reload { app, no_wait } => command::reload::run(&app, directory, !no_wait),
        Command::Recycle { app, slot } => command::recycle::run(&app, directory, slot),
        Command::Scale { app, workers } => command::scale::run(&app, directory, workers),
        Command::Signal { app, signal, slot } => command::signal::run(&app, directory, signal, slot),
        Command::Stop { app, fast } => command::stop::run(&app, directory, fast),
        Command::Reap { app, after_stop, if_ended } => {
            command::reap::run(&app, directory, after_stop, if_ended.as_deref())
        }
        Command::Import(arguments) => command::import::run(&arguments),
        Command::Completions { shell } => command::completions::run(shell),
        Command::Man { page, directory } => command::man::run(page.as_deref(), directory.as_deref()),
    }
}

fn invocation(config: ConfigArgs) -> Invocation {
    Invocation { file: config.file, flags: config.flags, runner: Runner::of_process() }
}

fn run(config: ConfigArgs, watched: Vec<PathBuf>, directory: Option<&Path>) -> ExitCode {
    match command::run::run(invocation(config), watched, directory, std::io::stderr().is_terminal()) {
        Ok(code) => ExitCode::from(code),
        Err(refusal) => refuse(&refusal),
    }
}

fn check(config: ConfigArgs, no_start: bool) -> ExitCode {
    match command::check::check(invocation(config), !no_start, std::io::stderr().is_terminal()) {
        Ok(said) => {
            let _ = writeln!(std::io::stdout(), "{said}");
            ExitCode::SUCCESS
        }
        Err(refusal) => refuse(&refusal),
    }
}

fn refuse(refusal: &Refusal) -> ExitCode {
    // Nobody may be listening; the exit code says it, too.
    let _ = writeln!(std::io::stderr(), "{}", refusal.message);
    ExitCode::from(refusal.code)
}
