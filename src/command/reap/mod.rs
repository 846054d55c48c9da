//! `paddock reap APP`: stop the workers that a dead manager left behind.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::terminal::{complain, print};
use crate::config::model::IsolationChoice;
use crate::control::client::ClientError;
use crate::control::directory::{LockError, RuntimeDirectory, SOCKET, Surroundings};
use crate::isolation::{Drain, proc, select};
use crate::runtime::setup;
use crate::runtime::state::StateFile;
use crate::systemd::dbus::{Bus, Which};
use crate::worker::files::is_worker_file;

pub mod find;

use find::Marks;

/// How long workers may drain: the default of `timeouts.graceful`. What the app says about it died with its manager.
const GRACEFUL: Duration = Duration::from_secs(30);
/// How long killed processes may take to be gone, each time.
const GONE: Duration = Duration::from_secs(5);
/// How often is looked for more, in case processes multiply while they are killed.
const ROUNDS: u32 = 20;

/// Ask the first processes of all workers to end, kill what is left, and remove what they had in the runtime directory.
/// With a living manager nothing is done. `after_stop`: only after a service that systemd calls successful; `if_ended`:
/// only if systemd says that this unit will not start again by itself.
pub fn run(app: &str, directory: Option<&Path>, after_stop: bool, if_ended: Option<&str>) -> ExitCode {
    let result = std::env::var("SERVICE_RESULT").unwrap_or_default();
    if after_stop && result != "success" {
        let why =
            if result.is_empty() { "SERVICE_RESULT is not set" } else { &*format!("the service ended: {result}") };
        print(&format!("{app}: nothing is stopped: {why}\n"));
        return ExitCode::SUCCESS;
    }
    match if_ended.map(has_ended).transpose() {
        Ok(None | Some(Ok(()))) => {}
        Ok(Some(Err(why))) => {
            print(&format!("{app}: nothing is stopped: {why}\n"));
            return ExitCode::SUCCESS;
        }
        Err(Refusal { code, reason }) => {
            complain(&format!("paddock: {reason}"));
            return ExitCode::from(code);
        }
    }
    match reap(app, &Surroundings::of_process(directory)) {
        Ok(sentence) => {
            print(&(sentence + "\n"));
            ExitCode::SUCCESS
        }
        Err(Refusal { code, reason }) => {
            complain(&format!("paddock: {reason}"));
            ExitCode::from(code)
        }
    }
}

struct Refusal {
    code: u8,
    reason: String,
}

impl Refusal {
    fn failed(reason: &impl ToString) -> Self {
        Self { code: 1, reason: reason.to_string() }
    }
}

/// Whether systemd is done with a unit; if not, the inner error says what it is about to do.
fn has_ended(unit: &str) -> Result<Result<(), String>, Refusal> {
    // A service of the system that runs as somebody else is still the system's; a user's own have this variable.
    let of_user = !rustix::process::geteuid().is_root() && std::env::var_os("XDG_RUNTIME_DIR").is_some();
    let which = if of_user { Which::User } else { Which::System };
    let state = setup::on_the_loop(async { Bus::new(which).active_state(unit).await })
        .map_err(|error| Refusal::failed(&error.message))?
        .map_err(|error| Refusal::failed(&format!("asking systemd about {unit}: {error}")))?;
    // `auto-restart` is `activating`: its workers wait for the next manager.
    Ok(if matches!(&*state, "failed" | "inactive") { Ok(()) } else { Err(format!("{unit} is {state}")) })
}

fn reap(app: &str, surroundings: &Surroundings) -> Result<String, Refusal> {
    let path = surroundings.of_manager(app).map_err(|error| {
        let error = ClientError::from(error);
        Refusal { code: error.exit_code(), reason: error.to_string() }
    })?;
    if std::fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        let reason = format!("there is no runtime directory of {app} (looked in {})", path.display());
        return Err(Refusal { code: 3, reason });
    }
    let directory = RuntimeDirectory::create(&path).map_err(|error| Refusal::failed(&error))?;
    let _lock = directory.lock(app).map_err(|error| match error {
        LockError::Held { .. } => Refusal::failed(&format!("{error}; reap is for what a dead manager left, use stop")),
        LockError::Io { .. } => Refusal::failed(&error),
    })?;
    let marks = Marks::of(app, &path, surroundings);
    let outcome = stop(&marks, GRACEFUL).map_err(|error| Refusal::failed(&error))?;
    remove_files(&path);
    StateFile::new(&path).remove();
    sweep_fences(app, &path)?;
    if !outcome.stuck.is_empty() {
        let pids: Vec<String> = outcome.stuck.iter().map(|pid| pid.as_raw_pid().to_string()).collect();
        return Err(Refusal::failed(&format!("killed, and not gone: process {}", pids.join(", "))));
    }
    Ok(match outcome {
        Outcome { ended: 0, killed: 0, .. } => format!("{app} has left nothing"),
        Outcome { ended, killed, .. } => {
            format!("{app}: {ended} ended when asked, {killed} processes were killed")
        }
    })
}

/// Remove what is left of the fences, failed scopes above all.
fn sweep_fences(app: &str, directory: &Path) -> Result<(), Refusal> {
    // For fences that are made; none is.
    let signal = crate::config::model::Signal(nix::libc::SIGTERM);
    let drain = Drain { signal, graceful: GRACEFUL };
    let swept = setup::on_the_loop(async {
        let chosen =
            select::choose(IsolationChoice::Auto, app, drain).await.map_err(|error| Refusal::failed(&error))?;
        setup::sweep_leftovers(&*chosen.isolation, app, directory)
            .await
            .map_err(|error| Refusal::failed(&error.message))
    });
    swept.map_err(|error| Refusal::failed(&error.message))?.map(drop)
}

/// What became of the processes that were found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// First processes that ended when they were asked.
    pub ended: usize,
    /// Processes that were killed.
    pub killed: usize,
    /// Processes that are still there.
    pub stuck: Vec<Pid>,
}

/// Stop every process that bears the marks: TERM to the first processes, and when they have ended or `graceful` is
/// over, SIGKILL to whatever is left.
///
/// # Errors
/// What reading `/proc`, opening pidfds or signalling says.
pub fn stop(marks: &Marks, graceful: Duration) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut known = BTreeSet::new();
    let found = find::marked(marks, &mut known)?;
    let first = found.iter().filter(|process| !found.iter().any(|other| other.pid == process.parent));
    let asked = signal(first, Signal::TERM)?;
    let late = wait(&asked, graceful)?;
    outcome.ended = asked.len() - late;
    for _ in 0..ROUNDS {
        let found = find::marked(marks, &mut known)?;
        if found.is_empty() {
            return Ok(outcome);
        }
        let killed = signal(found.iter(), Signal::KILL)?;
        outcome.killed += killed.len() - wait(&killed, GONE)?;
    }
    outcome.stuck = find::marked(marks, &mut known)?.iter().filter_map(|process| Pid::from_raw(process.pid)).collect();
    Ok(outcome)
}

/// Signal processes through pidfds, each only if it still is the one that was found.
fn signal<'a>(processes: impl Iterator<Item = &'a find::Process>, signal: Signal) -> io::Result<Vec<OwnedFd>> {
    let mut signalled = Vec::new();
    for process in processes {
        let Some(pid) = Pid::from_raw(process.pid) else { continue };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if proc::stat(pid).is_ok_and(|stat| stat.start_time == process.start_time) {
            match rustix::process::pidfd_send_signal(&pidfd, signal) {
                Ok(()) | Err(Errno::SRCH) => signalled.push(pidfd),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(signalled)
}

/// Wait until all are over, or for `at_most`; returns how many are not over.
fn wait(pidfds: &[OwnedFd], at_most: Duration) -> io::Result<usize> {
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let once = Timespec::try_from(at_most).map_err(|_| Errno::INVAL)?;
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::time::timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: never, it_value: once },
    )?;
    let mut left: Vec<&OwnedFd> = pidfds.iter().collect();
    while !left.is_empty() {
        let mut fds: Vec<PollFd<'_>> =
            left.iter().copied().chain([&timer]).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let over: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut each = over.iter();
        left.retain(|_| each.next() != Some(&true));
        if over.last() == Some(&true) {
            break;
        }
    }
    Ok(left.len())
}

/// What the manager and its workers had in the runtime directory; we hold its lock.
fn remove_files(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name == SOCKET || is_worker_file(name)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
