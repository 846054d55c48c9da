//! Starts a program with sockets as systemd passes them: at 3 and up, announced by `LISTEN_FDS` and `LISTEN_PID`.
//!
//! The sockets travel over a unix socket to a fresh process of this same file, where they land at the lowest free
//! numbers; that process then becomes the program. So nothing here can leak into another test's manager.

use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use rustix::process::{Resource, Rlimit};

/// The most sockets that one call passes.
const MOST: usize = 16;

/// How the program's `LISTEN_PID` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenPid {
    /// Its own pid.
    Own,
    /// That of process 1.
    Another,
}

/// A command that will run `program` with these sockets, inside these cgroups (directories with a `cgroup.procs`).
pub(crate) fn command(
    program: &Path,
    sockets: &[BorrowedFd<'_>],
    listen_pid: ListenPid,
    cgroups: &[std::path::PathBuf],
) -> Command {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    if !sockets.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(sockets)), "too many sockets");
        sendmsg(&ours, &[IoSlice::new(b"!")], &mut ancillary, SendFlags::empty()).expect("sockets are sent");
    }
    let mut command = Command::new(std::env::current_exe().expect("this program's path"));
    command.arg("--activate").arg(sockets.len().to_string()).stdin(Stdio::from(OwnedFd::from(theirs)));
    command.arg(if listen_pid == ListenPid::Own { "own" } else { "another" });
    for group in cgroups {
        command.arg(group);
    }
    command.arg("--").arg(program);
    command
}

/// The fresh process's part.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match become_the_program(arguments.collect()) {
        Ok(never) => match never {},
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "activation failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn become_the_program(arguments: Vec<OsString>) -> std::io::Result<std::convert::Infallible> {
    let malformed = || std::io::Error::other("malformed arguments");
    let mut arguments = arguments.into_iter();
    let count = arguments.next().and_then(|count| count.to_str()?.parse::<usize>().ok()).ok_or_else(malformed)?;
    let own = arguments.next().ok_or_else(malformed)? == "own";
    for group in arguments.by_ref().take_while(|argument| argument != "--") {
        std::fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string())?;
    }
    if let Some(most) = std::env::var("W_OPEN_FILES").ok().and_then(|most| most.parse().ok()) {
        let limits = rustix::process::getrlimit(Resource::Nofile);
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limits })?;
    }
    let mut command = Command::new(arguments.next().ok_or_else(malformed)?);
    command.args(arguments);
    if count > 0 {
        receive_at_three(count)?;
        let pid = if own { std::process::id() } else { 1 };
        command.env("LISTEN_FDS", count.to_string()).env("LISTEN_PID", pid.to_string());
    }
    Err(command.exec())
}

/// Receives the sockets, not to be closed on exec, and leaves them open at 3 and up.
fn receive_at_three(count: usize) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(std::io::stdin(), &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty())?;
    let mut received: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            received.extend(fds);
        }
    }
    let numbers: Vec<i32> = received.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    let wanted: Vec<i32> = (3..).take(count).collect();
    if numbers != wanted {
        return Err(std::io::Error::other(format!("the sockets are at {numbers:?}, not at {wanted:?}")));
    }
    for socket in received {
        debug_assert!(socket.as_raw_fd() >= 3);
        std::mem::forget(socket);
    }
    Ok(())
}
