//! A worker's first process, from the gate to its end. Always a pidfd, never a bare pid.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::birth::{Nursery, Program};
use super::order::{self, Order};
use crate::config::model::Signal;
use crate::supervisor::event::Ended;
use crate::sys::{self, Birthplace};

/// The most that a gate may say about its failure, in bytes.
const FAILURE_MAX: usize = 4096;

/// A child of ours, known by pidfd.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Take up a process; its pid must be known to be the right one at this moment, as an unreaped child's is.
    ///
    /// # Errors
    /// What `pidfd_open(2)` says.
    pub fn open(pid: Pid) -> io::Result<Self> {
        Self::keep(pid, rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?)
    }

    /// Go on with a process whose pidfd was kept; it may be over by now, and its status is there then.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn keep(pid: Pid, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { pid, pidfd: sys::watch(pidfd, Interest::READABLE)? })
    }

    /// The pidfd itself.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }

    /// Its number, for messages and for putting it into its fence while it is an unreaped child.
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// The same number, unsigned.
    pub const fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it is not over yet; false too if the kernel cannot say.
    pub fn is_running(&self) -> bool {
        let mut polled = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready == 0)
    }

    /// Send a signal; a process that is over already is no error.
    ///
    /// # Errors
    /// What `pidfd_send_signal(2)` says, e.g. EPERM.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(signal) = rustix::process::Signal::from_named_raw(signal.0) else {
            return sys::pidfd_send_signal(self.pidfd.get_ref().as_fd(), signal.0);
        };
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Wait until it is over, and reap it. Cancel-safe until the status has been taken.
    pub async fn ended(&self) -> Ended {
        loop {
            if let Ok(mut guard) = self.pidfd.readable().await {
                match rustix::process::waitid(
                    WaitId::PidFd(self.pidfd.get_ref().as_fd()),
                    WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
                ) {
                    Ok(Some(status)) => {
                        return status
                            .exit_status()
                            .map(Ended::Exit)
                            .or_else(|| status.terminating_signal().map(|number| Ended::Signal(Signal(number))))
                            .unwrap_or(Ended::Unknown);
                    }
                    Ok(None) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => guard.clear_ready(),
                    // Not our child, or taken by another: over it is, how is not known.
                    Err(_) => return Ended::Unknown,
                }
            } else {
                return Ended::Unknown;
            }
        }
    }
}

/// A worker-to-be, blocked until it gets its order.
#[derive(Debug)]
pub struct Gate {
    /// The process; an unreaped child until [`Process::ended`] says so.
    pub process: Rc<Process>,
    control: UnixStream,
}

/// The running image, whatever its file's name means by now (`proc_pid_exe(5)`).
const IMAGE: &CStr = c"/proc/self/exe";

fn spawn_at(
    birthplace: &Birthplace,
    mark: (&str, &str),
    control: BorrowedFd<'_>,
    nursery: &Nursery,
) -> io::Result<Pid> {
    let (role, mark) = (CString::new(super::gate::ROLE)?, CString::new(format!("{}={}", mark.0, mark.1))?);
    nursery.bear(
        birthplace,
        &Program {
            path: IMAGE,
            arguments: &[IMAGE, &role],
            environment: &[&mark],
            input: control,
            output: nursery.null(),
        },
    )
}

/// For a kernel or a filter of system calls that does not allow the other way.
fn spawn_anywhere(mark: (&str, &str), control: UnixStream) -> io::Result<Pid> {
    let child = Command::new(OsStr::from_bytes(IMAGE.to_bytes()))
        .arg(super::gate::ROLE)
        .env_clear()
        .env(mark.0, mark.1)
        .stdin(Stdio::from(OwnedFd::from(control)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("a child without a pid"))
}

/// Why a gate did not become the worker; reads after "could not start: ".
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The order could not be given.
    #[error("handing over the order: {0}")]
    Order(#[source] io::Error),
    /// The gate said why.
    #[error("{0}")]
    Refused(String),
}

impl Gate {
    /// Start a gate from the running image, so that a broken binary on disk never stops a manager from starting
    /// workers. `mark` is a variable by which it can be found if we die before it has its order. If it cannot be
    /// started in its birthplace, it is where we are.
    ///
    /// # Errors
    /// What `fork(2)`, `execve(2)` or `pidfd_open(2)` say.
    pub fn spawn(mark: (&str, &str), birthplace: &Birthplace, nursery: &Nursery) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let pid = match spawn_at(birthplace, mark, theirs.as_fd(), nursery) {
            Ok(pid) => pid,
            Err(error) => {
                // It is moved instead.
                tracing::debug!("starting a process inside its fence: {error}");
                spawn_anywhere(mark, theirs)?
            }
        };
        ours.set_nonblocking(true)?;
        Ok(Self { process: Rc::new(Process::open(pid)?), control: ours })
    }

    /// Give the order and wait until the command has been exec'd.
    ///
    /// # Errors
    /// See [`GateError`]; the gate is over or about to be.
    pub async fn release(
        &self,
        order: &Order,
        output: BorrowedFd<'_>,
        errors: BorrowedFd<'_>,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), GateError> {
        order::send(self.control.as_fd(), order, output, errors, sockets).map_err(GateError::Order)?;
        let control = self.control.try_clone().map_err(GateError::Order)?;
        let control = sys::watch(control.into(), Interest::READABLE).map_err(GateError::Order)?;
        let mut said = Vec::new();
        loop {
            let mut guard = control.readable().await.map_err(GateError::Order)?;
            let mut chunk = [0_u8; 512];
            match rustix::io::read(control.get_ref(), &mut chunk) {
                Ok(0) if said.is_empty() => return Ok(()),
                Ok(0) => return Err(GateError::Refused(String::from_utf8_lossy(&said).into_owned())),
                Ok(count) => said.extend_from_slice(
                    chunk.get(..count.min(FAILURE_MAX - said.len().min(FAILURE_MAX))).unwrap_or_default(),
                ),
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                // The gate died with its order unread.
                Err(rustix::io::Errno::CONNRESET) => {
                    return Err(GateError::Refused("the process ended before it could execute the command".to_owned()));
                }
                Err(errno) => return Err(GateError::Order(errno.into())),
            }
        }
    }
}
