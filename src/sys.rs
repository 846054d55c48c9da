//! Every `unsafe` of the project, each with its reason; everything else calls these.
#![expect(unsafe_code, reason = "the one place for what the type system cannot see")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watch a file descriptor on the current loop; call inside a tokio runtime.
///
/// # Errors
/// What `epoll_ctl(2)` says; EPERM for a regular file.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, always answers as_raw_fd with the same number, and is closed only when the AsyncFd
    // that owns it gives it up.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// The same for a descriptor that another closes.
///
/// # Errors
/// What `epoll_ctl(2)` says.
pub fn watch_entrusted(fd: Entrusted, interest: Interest) -> io::Result<AsyncFd<Entrusted>> {
    // SAFETY: as above: its number never changes, and it is let go of only by the AsyncFd that owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Take ownership of a descriptor that the process was started with, as `sd_listen_fds(3)` passes them.
///
/// # Errors
/// EBADF if it is not open.
pub fn adopt_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl does not touch memory; it answers EBADF for a number that is not open.
    let flags = unsafe { nix::libc::fcntl(number, nix::libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, and its caller takes each inherited number once, before anything else opens files.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Give an open file the number `at` in this process, to be kept across exec; whatever was open there is closed.
///
/// For the gate only, which knows that nothing of its own lives at the low numbers any more.
///
/// # Errors
/// What `dup2(2)` says.
pub fn place_fd(fd: OwnedFd, at: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == at {
        let number = fd.into_raw_fd();
        // SAFETY: fcntl does not touch memory; the descriptor is open and now belongs to the process for good.
        let result = unsafe { nix::libc::fcntl(number, nix::libc::F_SETFD, 0) };
        return if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    }
    // SAFETY: dup2 does not touch memory; the caller owns what is at the target number.
    let result = unsafe { nix::libc::dup2(fd.as_raw_fd(), at) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Send any signal number, realtime ones included, by pidfd (`pidfd_send_signal(2)`); a process that is over already is
/// no error.
///
/// # Errors
/// What the kernel says: EPERM, EINVAL.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, a null siginfo asks for the default, and no memory is touched.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<nix::libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

/// Mark every descriptor from this number on to be closed on exec (`close_range(2)`), so that nothing the manager was
/// started with by accident reaches a worker. A kernel before 5.11 cannot; there is nothing then that must be undone.
pub fn close_on_exec_from(first: u32) {
    // SAFETY: the flag only marks descriptors, closes none, and no memory is touched.
    let _ = unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC) };
}

/// Have a descriptor closed on exec, or keep it open across it.
///
/// # Errors
/// EBADF if it is not open.
pub fn set_close_on_exec(number: RawFd, close: bool) -> io::Result<()> {
    let flag = if close { nix::libc::FD_CLOEXEC } else { 0 };
    // SAFETY: fcntl does not touch memory, and F_SETFD changes nothing but this flag of a descriptor of ours.
    let result = unsafe { nix::libc::fcntl(number, nix::libc::F_SETFD, flag) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that is not closed when this is dropped, but handed to whoever does that.
pub struct Entrusted {
    fd: ManuallyDrop<OwnedFd>,
    to: Box<dyn Fn(OwnedFd)>,
}

impl Entrusted {
    /// Let `to` have it in the end.
    pub fn new(fd: OwnedFd, to: impl Fn(OwnedFd) + 'static) -> Self {
        Self { fd: ManuallyDrop::new(fd), to: Box::new(to) }
    }
}

impl AsFd for Entrusted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Entrusted {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl std::fmt::Debug for Entrusted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.fd.fmt(f)
    }
}

impl Drop for Entrusted {
    fn drop(&mut self) {
        // SAFETY: it is taken here only, once, and nobody sees it afterwards.
        (self.to)(unsafe { ManuallyDrop::take(&mut self.fd) });
    }
}
