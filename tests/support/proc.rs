//! Questions to `proc(5)`, and signals that cannot hit the wrong process.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::pace;

/// Holds on to a process, whatever becomes of its number.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// The living process with that number.
    pub(crate) fn open(pid: u32) -> Option<Self> {
        let number = Pid::from_raw(i32::try_from(pid).ok()?)?;
        Some(Self { pid, pidfd: pidfd_open(number, PidfdFlags::empty()).ok()? })
    }

    /// Sends a signal; one that is gone does not mind.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Whether it was over within the bound.
    pub(crate) fn wait_gone(&self, bound: Duration) -> bool {
        let timeout = Timespec::try_from(pace::patient(bound)).expect("a bound");
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }
}

/// Sends a signal to a living process.
#[track_caller]
pub(crate) fn signal(pid: u32, signal: Signal) {
    Process::open(pid).unwrap_or_else(|| panic!("no process {pid}")).signal(signal);
}

/// Whether a process lives: it exists and is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    field(pid, "State").is_some_and(|state| !state.starts_with('Z') && !state.starts_with('X'))
}

/// A field of `/proc/PID/status`.
pub(crate) fn field(pid: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// The living processes whose environment carries this marker.
pub(crate) fn with_marker(marker: &str) -> BTreeSet<u32> {
    let wanted = marker.as_bytes();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|variable| variable == wanted))
        })
        .collect()
}

/// Asks again and again until the answer is yes; for conditions that nobody announces.
#[track_caller]
pub(crate) fn wait_until(bound: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let bound = pace::patient(bound);
    let until = Instant::now() + bound;
    while !holds() {
        assert!(Instant::now() < until, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
