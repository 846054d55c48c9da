//! The scope's cgroup: read by us, written by systemd. We write `cgroup.kill`, which holds no setting, and lift
//! `memory.high` ourselves only when systemd cannot be reached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::super::{FenceLimits, MemoryReading};
use crate::sys;

/// No control file that is read here is longer.
const LONGEST: usize = 16 * 1024;
/// Memory limits are whole pages; none is larger than this on Linux.
const LARGEST_PAGE: u64 = 64 << 10;

/// `cpu.weight` of a group that nobody gave one (cgroup-v2.rst).
const DEFAULT_WEIGHT: u64 = 100;

/// Where the kernel's files are.
#[derive(Debug, Clone)]
pub(super) struct Mounts {
    pub(super) proc: PathBuf,
    pub(super) cgroup: PathBuf,
}

impl Default for Mounts {
    fn default() -> Self {
        Self { proc: "/proc".into(), cgroup: "/sys/fs/cgroup".into() }
    }
}

impl Mounts {
    /// A process's cgroup in the v2 hierarchy (`proc_pid_cgroup(5)`), as an absolute path below the mount point.
    pub(super) fn cgroup_of(&self, pid: Pid) -> io::Result<String> {
        let text = read(CWD, self.proc.join(pid.as_raw_pid().to_string()).join("cgroup"))?;
        text.lines()
            .find_map(|line| line.strip_prefix("0::"))
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other("the process is in no cgroup of version 2"))
    }

    /// The directory of a cgroup.
    pub(super) fn directory(&self, path: &str) -> PathBuf {
        self.cgroup.join(path.trim_start_matches('/'))
    }

    /// The cgroup that is at this path now.
    pub(super) fn group(&self, path: &str) -> io::Result<Group> {
        let dir = self.directory(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = Rc::new(rustix::fs::open(&dir, flags, Mode::empty())?);
        Ok(Group { path: path.to_owned(), dir, fd })
    }

    /// A cgroup that was opened before, by [`Group::descriptor`]; it may be gone.
    pub(super) fn group_again(&self, path: &str, fd: OwnedFd) -> Group {
        Group { path: path.to_owned(), dir: self.directory(path), fd: Rc::new(fd) }
    }
}

/// One cgroup, never another one that has taken its path: a change of properties that reaches systemd just after it
/// removed a scope's cgroup makes it anew, with all counters at zero (seen on 252).
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// As in `/proc/PID/cgroup`.
    pub(super) path: String,
    pub(super) dir: PathBuf,
    /// Every file is opened from here: `NotFound` once this very directory is gone.
    fd: Rc<OwnedFd>,
}

impl Group {
    /// Whether a process with this `/proc/PID/cgroup` is inside, or in a group that the worker made below.
    pub(super) fn holds(&self, path: &str) -> bool {
        path.strip_prefix(&self.path).is_some_and(|below| below.is_empty() || below.starts_with('/'))
    }

    /// Its open directory.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// SIGKILL to all inside and below, forks under way included (cgroup-v2.rst). `NotFound`: nobody is inside.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", b"1")
    }

    /// Whether the cgroup is still there.
    pub(super) fn is_there(&self) -> bool {
        read(&self.fd, "cgroup.procs").is_ok()
    }

    /// Take the soft limit away.
    pub(super) fn lift_high(&self) -> io::Result<()> {
        self.write("memory.high", b"max")
    }

    /// What is held now (cgroup-v2.rst).
    pub(super) fn memory(&self) -> io::Result<MemoryReading> {
        let stat = read(&self.fd, "memory.stat")?;
        let of = |key| value_of(&stat, key).unwrap_or(0);
        // `kernel` (Linux 5.18) is the sum of these and what has no line of its own.
        let kernel = value_of(&stat, "kernel")
            .unwrap_or_else(|| of("kernel_stack") + of("pagetables") + of("percpu") + of("sock") + of("slab"));
        Ok(MemoryReading {
            current: self.number("memory.current")?,
            unreclaimable: of("anon").saturating_add(of("shmem")).saturating_add(kernel),
            peak: self.peak(),
            limit: self.number("memory.max").ok().filter(|&limit| limit != u64::MAX),
        })
    }

    /// The most that was ever held, where the kernel says (Linux 5.19).
    pub(super) fn peak(&self) -> Option<u64> {
        self.number("memory.peak").ok()
    }

    /// The counters that matter.
    pub(super) fn events(&self) -> io::Result<Events> {
        Ok(Events::parse(&read(&self.fd, "memory.events")?))
    }

    /// The limits in force, as far as they are any.
    pub(super) fn limits(&self) -> FenceLimits {
        let limit = |file| self.number(file).ok().filter(|&limit| limit != u64::MAX);
        FenceLimits {
            memory_max: limit("memory.max"),
            swap_max: limit("memory.swap.max"),
            tasks_max: limit("pids.max"),
            cpu_weight: limit("cpu.weight").filter(|&weight| weight != DEFAULT_WEIGHT),
        }
    }

    /// The first limit that is not in force, as a sentence. systemd writes them before the process joins.
    pub(super) fn missing_limit(&self, limits: &FenceLimits, group_kill: bool) -> Option<String> {
        let wanted = [
            ("memory.max", limits.memory_max),
            ("memory.swap.max", limits.swap_max),
            ("pids.max", limits.tasks_max),
            ("cpu.weight", limits.cpu_weight),
            ("memory.oom.group", group_kill.then_some(1)),
        ];
        wanted.into_iter().find_map(|(file, wanted)| {
            let wanted = wanted?;
            match self.number(file) {
                Ok(found) if in_force(wanted, found) => None,
                Ok(found) => Some(format!("{file} is {found}, not {wanted}")),
                // A kernel without swap has no such limit to set.
                Err(error) if file == "memory.swap.max" && error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(format!("{file} cannot be read: {error}")),
            }
        })
    }

    /// Watch a file of events; call inside a tokio runtime.
    pub(super) fn watch(&self, file: &str) -> io::Result<EventFile> {
        let fd = rustix::fs::openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(EventFile { fd: sys::watch(fd, Interest::PRIORITY)? })
    }

    fn write(&self, file: &str, value: &[u8]) -> io::Result<()> {
        let file = rustix::fs::openat(&self.fd, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, value)?;
        Ok(())
    }

    fn number(&self, file: &str) -> io::Result<u64> {
        match read(&self.fd, file)?.trim() {
            "max" => Ok(u64::MAX),
            number => number.parse().map_err(|_| io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Counters of `memory.events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Events {
    /// How often usage went over `memory.high`.
    pub(super) high: u64,
    /// How many processes any OOM killer took.
    pub(super) oom_kill: u64,
}

impl Events {
    fn parse(text: &str) -> Self {
        let of = |key| value_of(text, key).unwrap_or(0);
        Self { high: of("high"), oom_kill: of("oom_kill") }
    }
}

/// An open `memory.events` or `cgroup.events`: the kernel raises POLLPRI at every change, and reading re-arms it
/// (`fs/kernfs/file.c`).
pub(super) struct EventFile {
    fd: AsyncFd<OwnedFd>,
}

impl EventFile {
    /// Read it. `ENODEV` when the cgroup is gone.
    pub(super) fn read(&self) -> io::Result<String> {
        let mut buffer = [0; 1024];
        let length = rustix::io::pread(self.fd.get_ref(), &mut buffer, 0)?;
        Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
    }

    /// The counters of a `memory.events`.
    pub(super) fn events(&self) -> io::Result<Events> {
        Ok(Events::parse(&self.read()?))
    }

    /// Wait for a change since the last [`Self::read`]; there may be none. Cancel-safe.
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.fd.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }

    /// For a `cgroup.events`: wait until nobody is inside. A zombie is not inside. A cgroup that is gone is empty.
    pub(super) async fn emptied(&self) -> io::Result<()> {
        loop {
            match self.read() {
                Ok(text) if value_of(&text, "populated") != Some(0) => self.changed().await?,
                Ok(_) => return Ok(()),
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether an error says that the cgroup, or the process, is not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    error.kind() == io::ErrorKind::NotFound
        || code == Some(rustix::io::Errno::NODEV.raw_os_error())
        || code == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn in_force(wanted: u64, found: u64) -> bool {
    wanted == found || (found < wanted && wanted - found < LARGEST_PAGE && wanted >= LARGEST_PAGE)
}

fn read(dir: impl AsFd, file: impl AsRef<Path>) -> io::Result<String> {
    let fd = rustix::fs::openat(dir, file.as_ref(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = vec![0; LONGEST];
    let mut length = 0;
    while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&fd, rest)? {
            0 => break,
            more => length += more,
        }
    }
    text.truncate(length);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_is_the_scope_and_below() {
        let fd = Rc::new(std::fs::File::open("/").unwrap().into());
        let path = "/paddock.slice/paddock-a.slice/paddock-a-0-1.scope".to_owned();
        let group = Group { path, dir: PathBuf::new(), fd };
        assert!(group.holds("/paddock.slice/paddock-a.slice/paddock-a-0-1.scope"));
        assert!(group.holds("/paddock.slice/paddock-a.slice/paddock-a-0-1.scope/own"));
        assert!(!group.holds("/paddock.slice/paddock-a.slice/paddock-a-0-1.scope2"));
        assert!(!group.holds("/paddock.slice/paddock-a.slice"));
    }

    #[test]
    fn limits_may_be_rounded_to_pages_but_no_more() {
        assert!(in_force(100 << 20, 100 << 20));
        assert!(in_force((100 << 20) + 5, 100 << 20));
        assert!(!in_force(100 << 20, 99 << 20));
        assert!(!in_force(100 << 20, u64::MAX));
        assert!(!in_force(9, 8));
        assert!(in_force(0, 0));
    }

    #[test]
    fn counters_are_told_apart() {
        let text = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n";
        assert_eq!(Events::parse(text), Events { high: 2, oom_kill: 5 });
        assert_eq!(Events::parse(""), Events::default());
    }
}
