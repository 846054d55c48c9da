//! Asking the user's own Python: a configuration that is a program is run, not guessed at.
//!
//! The script comes on the command line, its standard output is the pipe for one line of JSON, and what the
//! configuration prints goes elsewhere. Time and sizes are bounded, and nothing it started is left behind.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, Interest};
use tokio::process::Command;

use crate::observe::escape::single_line;

/// How long the configuration may take; a large application may take a while to import.
const TIME: Duration = Duration::from_mins(1);

/// How long to wait for the last of its standard error.
const GRACE: Duration = Duration::from_millis(500);

/// The most that may come back, in bytes.
const LONGEST_ANSWER: usize = 4 << 20;

/// How much of its standard error is kept, in bytes.
const LONGEST_WORDS: usize = 16 << 10;

/// What every script can use: the request, `tell`, `plain` and `installed`.
const PRELUDE: &str = include_str!("prelude.py");

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum PythonError {
    /// It could not be started.
    #[error("{}: {error}; name the Python that runs your application with --python", path.display())]
    Start {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It took too long.
    #[error("{} did not finish within {} s{words}", path.display(), TIME.as_secs())]
    Slow {
        /// Which.
        path: PathBuf,
        /// What it said, with a line break in front.
        words: String,
    },
    /// It ended without an answer.
    #[error("{} failed ({end}){words}", path.display())]
    Failed {
        /// Which.
        path: PathBuf,
        /// How it ended.
        end: String,
        /// What it said, with a line break in front.
        words: String,
    },
    /// What came back was no answer.
    #[error("{}: its answer cannot be read: {reason}", path.display())]
    Answer {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Which Python: the one that was named, else the virtual environment's, else the first on PATH.
pub fn choose(named: Option<&Path>, environment: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    if let Some(named) = named {
        return named.to_path_buf();
    }
    match environment("VIRTUAL_ENV").filter(|directory| !directory.is_empty()) {
        Some(directory) => Path::new(&directory).join("bin/python3"),
        None => PathBuf::from("python3"),
    }
}

/// The answer of a script behind the [`PRELUDE`] to a request, both JSON.
///
/// # Errors
/// It could not be started, took too long, failed or said something else.
pub fn ask<T: serde::de::DeserializeOwned>(python: &Path, script: &str, request: &str) -> Result<T, PythonError> {
    let machine = |error| PythonError::Start { path: python.to_path_buf(), error };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(machine)?;
    let line = runtime.block_on(run(python, &format!("{PRELUDE}\n{script}"), request))?;
    serde_json::from_slice(&line)
        .map_err(|error| PythonError::Answer { path: python.to_path_buf(), reason: error.to_string() })
}

async fn run(python: &Path, script: &str, request: &str) -> Result<Vec<u8>, PythonError> {
    let mut child = Command::new(python)
        .args(["-c", script, request])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Whatever the configuration starts dies with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| PythonError::Start { path: python.to_path_buf(), error })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // Its end is seen, not reaped, so that the number of its group stays its own until the group is gone.
    let ended = group
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(std::io::Error::from)
        .and_then(|fd| crate::sys::watch(fd, Interest::READABLE))
        .map_err(|error| PythonError::Start { path: python.to_path_buf(), error })?;
    let answer = child.stdout.take();
    let mut words = Words::default();
    let mut errors = child.stderr.take();
    let told = tokio::time::timeout(TIME, Box::pin(listen(answer, errors.as_mut(), &mut words, &ended))).await;
    if matches!(told, Ok(Told::Nothing)) {
        // Python closes its files before it ends: its own end is the one to tell.
        let _ = tokio::time::timeout(GRACE, ended.readable()).await;
    }
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let Ok(told) = told else {
        return Err(PythonError::Slow { path: python.to_path_buf(), words: words.spell() });
    };
    match told {
        Told::Line(line) => Ok(line),
        Told::TooLong => Err(PythonError::Answer {
            path: python.to_path_buf(),
            reason: format!("longer than {} MiB", LONGEST_ANSWER >> 20),
        }),
        Told::Nothing => {
            let end = match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            if let Some(errors) = errors {
                let _ = tokio::time::timeout(GRACE, words.hear(errors)).await;
            }
            Err(PythonError::Failed { path: python.to_path_buf(), end, words: words.spell() })
        }
    }
}

/// What came back.
enum Told {
    /// One whole line.
    Line(Vec<u8>),
    /// Too much.
    TooLong,
    /// It ended, or closed its output, before the line was whole.
    Nothing,
}

async fn listen(
    answer: Option<impl AsyncRead + Unpin>,
    errors: Option<impl AsyncRead + Unpin>,
    words: &mut Words,
    ended: &AsyncFd<OwnedFd>,
) -> Told {
    let answer = async {
        match answer {
            Some(answer) => first_line(answer).await,
            None => Told::Nothing,
        }
    };
    let others = async {
        // A process that it left behind may hold the pipes open for ever: what counts is whether it lives itself.
        let heard = async {
            if let Some(errors) = errors {
                words.hear(errors).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = heard => {}
            _ = ended.readable() => {}
        }
    };
    tokio::pin!(answer);
    tokio::select! {
        told = &mut answer => told,
        () = others => tokio::time::timeout(GRACE, answer).await.unwrap_or(Told::Nothing),
    }
}

async fn first_line(mut answer: impl AsyncRead + Unpin) -> Told {
    let mut line = Vec::new();
    let mut buffer = [0_u8; 16384];
    loop {
        let Ok(count) = answer.read(&mut buffer).await else { return Told::Nothing };
        let read = buffer.get(..count).unwrap_or_default();
        if read.is_empty() {
            return Told::Nothing;
        }
        if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            line.extend_from_slice(read.get(..end).unwrap_or_default());
            return Told::Line(line);
        }
        line.extend_from_slice(read);
        if line.len() > LONGEST_ANSWER {
            return Told::TooLong;
        }
    }
}

/// The end of what it wrote to its standard error.
#[derive(Default)]
struct Words(Vec<u8>);

impl Words {
    async fn hear(&mut self, mut errors: impl AsyncRead + Unpin) {
        let mut buffer = [0_u8; 4096];
        while let Ok(count) = errors.read(&mut buffer).await {
            let read = buffer.get(..count).unwrap_or_default();
            if read.is_empty() {
                return;
            }
            self.0.extend_from_slice(read);
            let surplus = self.0.len().saturating_sub(LONGEST_WORDS);
            self.0.drain(..surplus);
        }
    }

    /// Its lines, safe to show, each below the message.
    fn spell(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        text.lines().filter(|line| !line.trim().is_empty()).fold(String::new(), |mut all, line| {
            all.push_str("\n  ");
            all.push_str(&single_line(line, 400));
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python() -> PathBuf {
        PathBuf::from("python3")
    }

    fn ask_text(script: &str) -> Result<serde_json::Value, String> {
        ask(&python(), script, "{}").map_err(|error| error.to_string())
    }

    #[test]
    fn the_virtual_environment_beats_the_path_and_a_name_beats_both() {
        let environment = |name: &str| (name == "VIRTUAL_ENV").then(|| OsString::from("/srv/venv"));
        assert_eq!(choose(None, environment), Path::new("/srv/venv/bin/python3"));
        assert_eq!(choose(None, |_| None), Path::new("python3"));
        assert_eq!(choose(Some(Path::new("/opt/py")), environment), Path::new("/opt/py"));
    }

    #[test]
    fn an_answer_is_one_line_whatever_is_left_running() {
        let script = "import time\nif os.fork() == 0: time.sleep(100)\nprint('hello')\ntell(a=1)";
        assert_eq!(ask_text(script), Ok(serde_json::json!({"a": 1})));
    }

    #[test]
    fn a_failure_shows_the_traceback_without_control_characters() {
        let wrong = ask_text("import sys\nsys.stderr.write('\\x1b[2J\\n')\nraise ValueError('no')").unwrap_err();
        assert!(wrong.contains("exit status: 1") && wrong.contains("ValueError: no"), "{wrong}");
        assert!(wrong.contains("\\x1b[2J") && !wrong.contains('\x1b'), "{wrong}");
    }

    #[test]
    fn what_ends_without_an_answer_while_its_child_holds_the_pipe_has_failed() {
        let wrong = ask_text("import os, time\nif os.fork() == 0: time.sleep(100)\nos._exit(3)").unwrap_err();
        assert!(wrong.contains("exit status: 3"), "{wrong}");
    }

    #[test]
    fn an_endless_answer_is_cut() {
        let wrong = ask_text("while True: answer.write('x' * 65536)").unwrap_err();
        assert!(wrong.contains("longer than 4 MiB"), "{wrong}");
        let wrong = ask_text("answer.write('nonsense\\n')").unwrap_err();
        assert!(wrong.contains("its answer cannot be read"), "{wrong}");
    }

    #[test]
    fn a_python_that_is_not_there_is_named() {
        let missing = Path::new("/nonexistent/python");
        let wrong = ask::<serde_json::Value>(missing, "", "{}").unwrap_err().to_string();
        assert!(wrong.starts_with("/nonexistent/python: ") && wrong.contains("--python"), "{wrong}");
    }
}
