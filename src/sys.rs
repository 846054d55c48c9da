//! Every `unsafe` of the project, each with its reason; everything else calls these.
#![expect(unsafe_code, reason = "the one place for what the type system cannot see")]

use std::ffi::{CStr, c_char};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::Pid;
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

/// Where a child begins its life, before it runs the first instruction of its program.
#[derive(Debug, Default)]
pub struct Birthplace {
    /// A cgroup v2 directory.
    pub cgroup: Option<OwnedFd>,
    /// The `tasks` files of cgroup v1 groups, open for writing.
    pub tasks: Vec<OwnedFd>,
}

/// A program to be started by [`spawn_at`].
#[derive(Debug)]
pub struct Program<'a> {
    /// Its file.
    pub path: &'a CStr,
    /// What it is called, and its arguments.
    pub arguments: &'a [&'a CStr],
    /// Its whole environment, each `NAME=value`.
    pub environment: &'a [&'a CStr],
    /// Its standard input.
    pub input: BorrowedFd<'a>,
    /// Its standard output and error.
    pub output: BorrowedFd<'a>,
}

/// Start a child that is in these cgroups from its birth on: `CLONE_INTO_CGROUP` (clone(2), Linux 5.7), and for v1 a
/// write of its own. Moving another process waits for all processors (`cgroup_threadgroup_rwsem`,
/// `kernel/cgroup/cgroup.c`); a thread that moves itself through `tasks`, and a birth, do not.
///
/// A child that could not join a v1 group is started all the same: whoever needs it there looks where it is.
///
/// # Errors
/// What `clone3(2)` or `execve(2)` say; then there is no child.
pub fn spawn_at(birthplace: &Birthplace, program: &Program<'_>) -> io::Result<Pid> {
    const CLEAR_SIGHAND: u64 = 1 << 32;
    const INTO_CGROUP: u64 = 1 << 33;
    // All that allocates is done before there is a child: it may not, for another thread may hold the allocator's lock.
    let pointers = |texts: &[&CStr]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(program.arguments), pointers(program.environment));
    let (failure, failure_of_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let cgroup = birthplace.cgroup.as_ref().map_or(Ok(0), |fd| u64::try_from(fd.as_raw_fd())).unwrap_or(0);
    // SAFETY: zero is a valid value of every field, and means "not used".
    let mut how: nix::libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = CLEAR_SIGHAND | if birthplace.cgroup.is_some() { INTO_CGROUP } else { 0 };
    how.exit_signal = u64::from(nix::libc::SIGCHLD.unsigned_abs());
    how.cgroup = cgroup;
    // A handler of ours must not run in the child: it would write into what both share.
    let mut before = SigSet::empty();
    SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map(|mask| before = mask)?;
    // SAFETY: without CLONE_VM the child has a copy of everything, as after fork(2); the structure outlives the call.
    let pid = unsafe { nix::libc::syscall(nix::libc::SYS_clone3, &raw const how, size_of_val(&how)) };
    if pid == 0 {
        // SAFETY: only system calls from here to the end, on memory and descriptors that were made before.
        unsafe {
            for tasks in &birthplace.tasks {
                let _ = nix::libc::write(tasks.as_raw_fd(), c"0".as_ptr().cast(), 1);
            }
            let placed = nix::libc::dup2(program.input.as_raw_fd(), 0) >= 0
                && nix::libc::dup2(program.output.as_raw_fd(), 1) >= 0
                && nix::libc::dup2(program.output.as_raw_fd(), 2) >= 0
                && nix::libc::pthread_sigmask(nix::libc::SIG_SETMASK, SigSet::empty().as_ref(), std::ptr::null_mut())
                    == 0;
            if placed {
                nix::libc::execve(program.path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            }
            let errno = *nix::libc::__errno_location();
            nix::libc::write(failure_of_child.as_raw_fd(), (&raw const errno).cast(), size_of_val(&errno));
            nix::libc::_exit(127)
        }
    }
    let failed = io::Error::last_os_error();
    before.thread_set_mask()?;
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw) else {
        return Err(failed);
    };
    drop(failure_of_child);
    // execve closes the pipe.
    let mut said = Vec::new();
    let _ = io::Read::read_to_end(&mut std::fs::File::from(failure), &mut said);
    let Ok(errno) = <[u8; size_of::<i32>()]>::try_from(said) else { return Ok(pid) };
    let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
}

/// Have all threads allocate from one place. Ours are many and short, and each would leave a heap of its own behind
/// (`M_ARENA_MAX`, mallopt(3)).
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number, and is called before there is a second thread.
    let _ = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
}

/// Give back memory that only the start needed: what was freed of the heap (malloc_trim(3)), and this program's own pages,
/// which the kernel takes from its page cache again where they are used (`MADV_DONTNEED`, madvise(2)).
pub fn give_back() {
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let page = rustix::param::page_size();
    let first = (&raw const __executable_start).addr().next_multiple_of(page);
    let end = (&raw const etext).addr() / page * page;
    let start = std::ptr::with_exposed_provenance_mut(first);
    // SAFETY: between these two lie pages of the program's file that nobody ever writes to; read again they are the same.
    let _ = unsafe { nix::libc::madvise(start, end.saturating_sub(first), nix::libc::MADV_DONTNEED) };
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but the allocator's own free memory, under its lock.
    let _ = unsafe { nix::libc::malloc_trim(0) };
}
