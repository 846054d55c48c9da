//! The hidden role in which every worker begins: wait for the order, become the command.
//!
//! Standard input is the control socket. Success is seen from its closing at exec; a failure is written into it first.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::unistd::{Gid, Uid};

use super::order::{self, Order, Received};
use crate::sys;

/// The one argument that makes paddock a gate.
pub const ROLE: &str = "gate";

/// First descriptor of the sockets: `SD_LISTEN_FDS_START` (`sd_listen_fds(3)`).
const LISTEN_FDS_START: RawFd = 3;

/// A step of becoming the worker that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
struct GateError {
    step: String,
    source: io::Error,
}

trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, GateError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, GateError> {
        self.map_err(|source| GateError { step: step.into(), source: source.into() })
    }
}

/// Whether a process is still a gate, going by its command line (`proc_pid_cmdline(5)`).
pub fn is_gate(pid: rustix::process::Pid) -> bool {
    let own = [b"/proc/self/exe\0".as_slice(), ROLE.as_bytes(), b"\0"].concat();
    std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| line == own)
}

/// Run the gate. Returns only if there is no worker to become.
pub fn run() -> ExitCode {
    // Above every number that the sockets will be placed at.
    let above = LISTEN_FDS_START + RawFd::try_from(order::SOCKETS_MAX).unwrap_or(RawFd::MAX) + 1;
    let Ok(control) = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), above) else {
        return ExitCode::FAILURE;
    };
    match order::receive(control.as_fd()) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(received)) => {
            let Err(error) = become_worker(received, above);
            report(control, &error.to_string());
            ExitCode::FAILURE
        }
        Err(error) => {
            report(control, &format!("reading the order: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn report(control: OwnedFd, message: &str) {
    // The manager may be gone; there is nobody else to tell.
    let _ = File::from(control).write_all(message.as_bytes());
}

fn become_worker(received: Received, above: RawFd) -> Result<std::convert::Infallible, GateError> {
    let Received { order, output, errors, sockets } = received;
    let count = sockets.len();
    place_descriptors(output, errors, sockets, above).step("placing file descriptors")?;
    rustix::process::setsid().step("starting a session")?;
    reset_oom_score().step("resetting oom_score_adj")?;
    order.open_files.set_own().step(format!("setting limits.nofile to {}", order.open_files.soft))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(order.umask));
    drop_privileges(&order)?;
    let mut command = command(&order)?;
    let pid = std::process::id().to_string();
    if count > 0 {
        command.env("LISTEN_PID", &pid);
    }
    if order.environment.iter().any(|(name, _)| name == "WATCHDOG_USEC") {
        command.env("WATCHDOG_PID", &pid);
    }
    if let Some(directory) = &order.working_directory {
        std::env::set_current_dir(directory).step(format!("entering {}", directory.display()))?;
    }
    // Also resets SIGPIPE and the signal mask, which this program's own runtime had changed.
    let error = command.exec();
    Err(error).step(format!("executing {:?}", order.command.first().map_or("", String::as_str)))
}

fn command(order: &Order) -> Result<Command, GateError> {
    let Some((program, arguments)) = order.command.split_first() else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)).step("the command is empty");
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(order.environment.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

fn place_descriptors(output: OwnedFd, errors: OwnedFd, sockets: Vec<OwnedFd>, above: RawFd) -> io::Result<()> {
    // Received numbers may lie where others belong: first lift all out of the way, then let them down in order.
    let lift = |fd: OwnedFd| -> io::Result<OwnedFd> {
        if fd.as_raw_fd() >= above { Ok(fd) } else { Ok(rustix::io::fcntl_dupfd_cloexec(&fd, above)?) }
    };
    let output = lift(output)?;
    let errors = lift(errors)?;
    let sockets = sockets.into_iter().map(lift).collect::<io::Result<Vec<_>>>()?;
    let null: OwnedFd = File::open("/dev/null")?.into();
    sys::place_fd(null, 0)?;
    sys::place_fd(output, 1)?;
    sys::place_fd(errors, 2)?;
    let mut next = LISTEN_FDS_START;
    for socket in sockets {
        sys::place_fd(socket, next)?;
        next += 1;
    }
    sys::close_on_exec_from(next.unsigned_abs());
    Ok(())
}

/// The manager protects itself with a negative score, which its workers must not inherit: -1000 would even exempt them
/// from `memory.oom.group` (cgroup-v2.rst). Raising the score needs no privilege (`proc_pid_oom_score_adj(5)`).
fn reset_oom_score() -> io::Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let score: i32 = std::fs::read_to_string(PATH)?.trim().parse().map_err(io::Error::other)?;
    if score < 0 { std::fs::write(PATH, "0") } else { Ok(()) }
}

fn drop_privileges(order: &Order) -> Result<(), GateError> {
    let Some(account) = &order.account else { return Ok(()) };
    let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    nix::unistd::setgroups(&groups).step(format!("taking the groups of user {}", account.name))?;
    nix::unistd::setresgid(gid, gid, gid).step(format!("becoming group {gid}"))?;
    nix::unistd::setresuid(uid, uid, uid).step(format!("becoming user {}", account.name))?;
    Ok(())
}
