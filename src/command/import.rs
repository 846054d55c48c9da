//! `paddock import`: another manager's configuration in, a commented paddock.toml out.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::{ImportArgs, Peer};
use crate::command::terminal::{complain, print};
use crate::import::draft::{Draft, Written};
use crate::import::table::markdown;
use crate::import::{ImportError, Place, celery, gunicorn, python, uwsgi};

/// Import, and say on standard error what needs a human. 0 done, 1 something is missing, 2 a text is wrong.
pub fn run(arguments: &ImportArgs) -> ExitCode {
    if arguments.list {
        print(&match arguments.peer {
            Peer::Gunicorn => markdown(gunicorn::TABLE),
            Peer::Uwsgi => uwsgi::guide(),
            Peer::Celery => markdown(celery::TABLE),
        });
        return ExitCode::SUCCESS;
    }
    // Nobody waits for an application to import only to learn that the file is there.
    if let Some(output) = &arguments.output
        && !arguments.force
        && output.symlink_metadata().is_ok()
    {
        return fail(&exists(output), 1);
    }
    let written = match draft(arguments) {
        Ok(draft) => draft.write(),
        Err(error) => return fail(&error.to_string(), error.exit_code()),
    };
    if let Err(error) = deliver(&written, arguments) {
        return fail(&error, 1);
    }
    for line in &written.attention {
        complain(&format!("paddock: import: {line}"));
    }
    complain(&format!("paddock: import: {}", written.summary));
    ExitCode::SUCCESS
}

fn fail(message: &str, code: u8) -> ExitCode {
    complain(&format!("paddock: import: {message}"));
    ExitCode::from(code)
}

fn draft(arguments: &ImportArgs) -> Result<Draft, ImportError> {
    let environment = |name: &str| std::env::var_os(name);
    let directory = std::env::current_dir()
        .map_err(|error| ImportError::Machine(format!("the working directory cannot be read: {error}")))?;
    let place = Place { directory, python: python::choose(arguments.python.as_deref(), environment) };
    let file = arguments.file.as_deref().or(arguments.config.as_deref());
    if arguments.app.is_some() && arguments.peer != Peer::Celery {
        return Err(ImportError::Text("--app is Celery's: put the others' behind `--`".to_owned()));
    }
    match arguments.peer {
        Peer::Gunicorn => gunicorn::import(file, &arguments.arguments, &place),
        Peer::Celery => celery::import(arguments.app.as_deref(), file, &arguments.arguments, &place),
        Peer::Uwsgi => uwsgi::import(file, &arguments.arguments, &place, std::env::vars_os()),
    }
}

fn exists(path: &Path) -> String {
    format!("{} is there already: --force replaces it", path.display())
}

fn deliver(written: &Written, arguments: &ImportArgs) -> Result<(), String> {
    let Some(output) = &arguments.output else {
        let mut stdout = io::stdout().lock();
        let told = stdout.write_all(written.text.as_bytes()).and_then(|()| stdout.flush());
        return told.map_err(|error| format!("standard output: {error}"));
    };
    let wrong = |error: io::Error| {
        let there = error.kind() == io::ErrorKind::AlreadyExists;
        if there { exists(output) } else { format!("{}: {error}", output.display()) }
    };
    if arguments.force {
        return replace(output, &written.text).map_err(wrong);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(output).map_err(wrong)?;
    file.write_all(written.text.as_bytes()).map_err(wrong)
}

/// The old file stays whole until the new one is.
fn replace(output: &Path, text: &str) -> io::Result<()> {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let next: PathBuf = output.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&next)?;
    let result = fill(&mut file, text).and_then(|()| std::fs::rename(&next, output));
    if result.is_err() {
        let _ = std::fs::remove_file(&next);
    }
    result
}

fn fill(file: &mut File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
