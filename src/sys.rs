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

/// A child that is to become another program. It reads this while it shares our memory and our descriptors, and allocates
/// nothing: another thread may hold the allocator's lock.
#[derive(Debug)]
pub struct Newborn<'a> {
    /// A cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The `tasks` files of cgroup v1 groups to join.
    pub tasks: Vec<RawFd>,
    /// Standard input, output and error to be.
    pub standard: [RawFd; 3],
    /// Where it writes the number of the error if there is no program to become.
    pub failure: RawFd,
    /// All descriptors named here but the directory are below this number.
    pub needs_below: RawFd,
    /// The program's file.
    pub path: &'a CStr,
    /// Pointers to what it is called and its arguments, and a null.
    pub arguments: Pointers<'a>,
    /// Its whole environment, likewise, each `NAME=value`.
    pub environment: Pointers<'a>,
}

/// An array as `execve(2)` takes it.
#[derive(Debug)]
pub struct Pointers<'a> {
    list: Vec<*const c_char>,
    texts: std::marker::PhantomData<&'a CStr>,
}

impl<'a> Pointers<'a> {
    /// To these.
    pub fn to(texts: &[&'a CStr]) -> Self {
        let list = texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Self { list, texts: std::marker::PhantomData }
    }
}

/// The child's whole life before its program: system calls only, on memory and descriptors that were made before.
///
/// # Safety
/// For a child that [`clone_with`] made, with the [`Newborn`] that was given to it.
unsafe extern "C" fn become_program(newborn: *const Newborn<'_>) -> ! {
    // SAFETY: see above; the parent keeps it until the child has its program or is over. A table of its own comes first:
    // before that every descriptor is the parent's too.
    unsafe {
        let newborn = &*newborn;
        for tasks in &newborn.tasks {
            let _ = nix::libc::write(*tasks, c"0".as_ptr().cast(), 1);
        }
        let unshare = nix::libc::CLOSE_RANGE_UNSHARE;
        let mut able =
            nix::libc::syscall(nix::libc::SYS_close_range, newborn.needs_below, nix::libc::c_uint::MAX, unshare) == 0;
        for (number, fd) in (0..).zip(newborn.standard) {
            able = able && nix::libc::dup2(fd, number) >= 0;
        }
        able = able
            && nix::libc::pthread_sigmask(nix::libc::SIG_SETMASK, SigSet::empty().as_ref(), std::ptr::null_mut()) == 0;
        if able {
            nix::libc::execve(
                newborn.path.as_ptr(),
                newborn.arguments.list.as_ptr(),
                newborn.environment.list.as_ptr(),
            );
        }
        let errno = *nix::libc::__errno_location();
        nix::libc::write(newborn.failure, (&raw const errno).cast(), size_of_val(&errno));
        nix::libc::_exit(127)
    }
}

/// clone3(2); the child calls [`become_program`]. It borrows our memory, and we wait until it has its program: a copy would
/// take the longer the more workers we have, and every page that we write afterwards once more.
///
/// # Safety
/// All signals are blocked; `how` asks for neither a stack nor a thread.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_with(how: &mut nix::libc::clone_args, newborn: &Newborn<'_>) -> io::Result<i32> {
    /// In bytes; what the child calls needs a few hundred.
    const STACK: usize = 32 * 1024;
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
    how.flags |= u64::from((nix::libc::CLONE_VM | nix::libc::CLONE_VFORK).unsigned_abs());
    how.stack = stack.as_mut_ptr().expose_provenance() as u64;
    how.stack_size = STACK as u64;
    let result: i64;
    // SAFETY: the child has a stack of its own, aligned as the ABI wants it before a call, and never comes back; for us
    // this is a system call like any other, which keeps all registers but these three. `how`, `newborn` and the stack
    // outlive the child's use of them, for we go on only when it has let go of our memory (CLONE_VFORK).
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") nix::libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_mut(how),
            in("rsi") size_of_val(how),
            in("r12") std::ptr::from_ref(newborn),
            in("r13") become_program as unsafe extern "C" fn(*const Newborn<'_>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    i32::try_from(result).ok().filter(|pid| *pid > 0).ok_or_else(|| {
        io::Error::from_raw_os_error(result.checked_neg().and_then(|errno| errno.try_into().ok()).unwrap_or_default())
    })
}

/// The same where the child gets a copy of our memory, as after fork(2). We wait likewise: it has our descriptors for a while.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone_with(how: &mut nix::libc::clone_args, newborn: &Newborn<'_>) -> io::Result<i32> {
    how.flags |= u64::from(nix::libc::CLONE_VFORK.unsigned_abs());
    // SAFETY: without CLONE_VM no memory is shared; the structure outlives the call.
    let pid = unsafe { nix::libc::syscall(nix::libc::SYS_clone3, std::ptr::from_mut(how), size_of_val(how)) };
    if pid == 0 {
        // SAFETY: this is that child.
        unsafe { become_program(newborn) }
    }
    i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or_else(io::Error::last_os_error)
}

/// Start a child that is in these cgroups from its birth on: `CLONE_INTO_CGROUP` (clone(2), Linux 5.7), and for v1 a
/// write of its own. Of our descriptors it gets a copy only below `needs_below` (`CLOSE_RANGE_UNSHARE`, close_range(2), Linux
/// 5.9): copying and closing all takes the longer the more workers we have.
///
/// A child that could not join a v1 group is started all the same: whoever needs it there looks where it is.
///
/// # Errors
/// What `clone3(2)` says; then there is no child. What goes wrong later is written into `failure`.
pub fn clone_into(newborn: &Newborn<'_>) -> io::Result<Pid> {
    const CLEAR_SIGHAND: u64 = 1 << 32;
    const INTO_CGROUP: u64 = 1 << 33;
    // SAFETY: zero is a valid value of every field, and means "not used".
    let mut how: nix::libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = CLEAR_SIGHAND | u64::from(nix::libc::CLONE_FILES.unsigned_abs());
    how.exit_signal = u64::from(nix::libc::SIGCHLD.unsigned_abs());
    if let Some(cgroup) = newborn.cgroup {
        how.flags |= INTO_CGROUP;
        how.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // A handler of ours must not run in the child: it would write into what both share.
    let mut before = SigSet::empty();
    SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map(|mask| before = mask)?;
    // SAFETY: all signals are blocked, and the flags are these.
    let cloned = unsafe { clone_with(&mut how, newborn) };
    before.thread_set_mask()?;
    Pid::from_raw(cloned?).ok_or_else(|| io::Error::other("a child without a pid"))
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
