//! What `/proc` says about processes: `proc_pid_cgroup(5)`, `proc_pid_stat(5)`, `proc_pid_environ(5)`.
//!
//! Every process can choose its own name, its environment and, with enough rights, its cgroup's name: nothing here
//! trusts a separator that a process could have written itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::process::Pid;

/// No file that is read here is longer than this, unless somebody wants to fill our memory.
const LONGEST: u64 = 1 << 20;

/// The ends of so many processes are awaited at a time, whatever a tree's size: each costs a file descriptor.
pub(super) const MOST_AWAITED: usize = 64;

/// Read a whole small file; what is beyond a mebibyte is cut off.
///
/// # Errors
/// What `open(2)` and `read(2)` say.
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Most are smaller, and every read of a file of the kernel's makes it write the text again.
    let mut text = Vec::with_capacity(4096);
    File::open(path)?.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// A process's place in one hierarchy of cgroups: a line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The hierarchy's controllers; empty for cgroup v2.
    pub controllers: Vec<String>,
    /// The group, as seen from the reader's cgroup namespace.
    pub path: String,
}

/// The lines of a `/proc/PID/cgroup`; malformed ones are left out.
pub fn parse_memberships(text: &str) -> Vec<Membership> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            Some(Membership {
                controllers: controllers.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect(),
                path: path.to_owned(),
            })
        })
        .collect()
}

/// Where a process is, in every hierarchy.
///
/// # Errors
/// What reading `/proc/PID/cgroup` says; ENOENT or ESRCH when the process is gone.
pub fn memberships(pid: Pid) -> io::Result<Vec<Membership>> {
    let text = read_bounded(Path::new(&format!("/proc/{}/cgroup", pid.as_raw_pid())))?;
    Ok(parse_memberships(&String::from_utf8_lossy(&text)))
}

/// What of `/proc/PID/stat` is used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Field 3; `Z` is a zombie.
    pub state: char,
    /// Field 4: the parent's pid; 0 if it is outside our pid namespace.
    pub parent: i32,
    /// Field 6: the pid of the session's leader.
    pub session: i32,
    /// Field 22: clock ticks since boot; with the pid it names one process and no other.
    pub start_time: u64,
}

impl Stat {
    /// Whether the process is over and only waits for its parent to notice.
    pub fn is_over(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Understand a `/proc/PID/stat`. The name in field 2 may hold anything, parentheses and newlines too, so the fields
/// are counted from the last closing parenthesis.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start_time = fields.nth(15)?.parse().ok()?;
    Some(Stat { state, parent, session, start_time })
}

/// Read a process's `/proc/PID/stat`.
///
/// # Errors
/// What reading says; ENOENT or ESRCH when the process is gone; `InvalidData` if it is not understood.
pub fn stat(pid: Pid) -> io::Result<Stat> {
    let text = read_bounded(Path::new(&format!("/proc/{}/stat", pid.as_raw_pid())))?;
    parse_stat(&String::from_utf8_lossy(&text)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Every process that `/proc` shows.
///
/// # Errors
/// What reading the directory says.
pub fn all() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        pids.extend(pid);
    }
    Ok(pids)
}

/// The value of a variable in the environment that a process was started with; none also when we may not look, or it is
/// no text.
pub fn variable(pid: Pid, name: &str) -> Option<String> {
    let text = read_bounded(Path::new(&format!("/proc/{}/environ", pid.as_raw_pid()))).ok()?;
    let value = text
        .split(|&byte| byte == 0)
        .find_map(|variable| variable.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")))?;
    String::from_utf8(value.to_vec()).ok()
}

/// Whether a process was started with this variable in its environment, and has not overwritten it since. False also
/// when we may not look.
pub fn started_with(pid: Pid, name: &str, value: &str) -> bool {
    read_bounded(Path::new(&format!("/proc/{}/environ", pid.as_raw_pid())))
        .is_ok_and(|text| has_variable(&text, name, value))
}

pub(crate) fn has_variable(environment: &[u8], name: &str, value: &str) -> bool {
    environment.split(|&byte| byte == 0).any(|variable| {
        variable.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")) == Some(value.as_bytes())
    })
}

/// What a process holds in bytes, all of it and what the kernel cannot reclaim; none if it is gone.
///
/// Shared pages count whole in each process (`proc_pid_status(5)`). Takes no lock of that process.
pub fn resident(pid: Pid) -> Option<(u64, u64)> {
    memory_in(&read_of(pid, "status")?, "status")
}

/// The same with shared pages in proportion (`smaps_rollup`, proc_pid_smaps(5)), or as [`resident`] where we may not
/// see that. Walks the whole address space under that process's own lock: not for the loop's thread.
pub fn proportional(pid: Pid) -> Option<(u64, u64)> {
    read_of(pid, "smaps_rollup").and_then(|text| memory_in(&text, "smaps_rollup")).or_else(|| resident(pid))
}

/// The two sums, out of `smaps_rollup` or `status`.
pub(crate) fn memory_in(text: &str, file: &str) -> Option<(u64, u64)> {
    match file {
        "smaps_rollup" => sum(text, "Pss:", ["Pss_Anon:", "Pss_Shmem:"]),
        _ => sum(text, "VmRSS:", ["RssAnon:", "RssShmem:"]),
    }
}

fn read_of(pid: Pid, file: &str) -> Option<String> {
    let path = format!("/proc/{}/{file}", pid.as_raw_pid());
    Some(String::from_utf8_lossy(&read_bounded(Path::new(&path)).ok()?).into_owned())
}

fn sum(text: &str, all: &str, unreclaimable: [&str; 2]) -> Option<(u64, u64)> {
    let bytes = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kibibytes: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    let [anon, shmem] = unreclaimable;
    Some((bytes(all)?, bytes(anon)?.checked_add(bytes(shmem)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_all_hierarchies_are_understood() {
        let found = parse_memberships("4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/x\n0::/u:v\nrubbish\n");
        let place = |controllers: &[&str], path: &str| Membership {
            controllers: controllers.iter().map(ToString::to_string).collect(),
            path: path.to_owned(),
        };
        assert_eq!(
            found,
            [
                place(&["memory"], "/a/b"),
                place(&["cpu", "cpuacct"], "/"),
                place(&["name=systemd"], "/x"),
                place(&[], "/u:v"),
            ]
        );
    }

    #[test]
    fn a_process_cannot_forge_its_stat_with_its_name() {
        let text = "42 (a) S 1 1 1 (\n) Z 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 0\n";
        assert_eq!(parse_stat(text), Some(Stat { state: 'Z', parent: 7, session: 9, start_time: 12345 }));
        assert_eq!(parse_stat("42 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn own_stat_is_read() {
        let own = stat(rustix::process::getpid()).unwrap();
        assert_eq!(Some(own.parent), rustix::process::getppid().map(Pid::as_raw_pid));
        assert!(!own.is_over());
        assert!(all().unwrap().contains(&rustix::process::getpid()));
    }

    #[test]
    fn a_variable_counts_only_whole() {
        let environment = b"A=1\0PADDOCK_WORKER=my-1-x\0B=PADDOCK_WORKER=my-2-x\0";
        assert!(has_variable(environment, "PADDOCK_WORKER", "my-1-x"));
        assert!(!has_variable(environment, "PADDOCK_WORKER", "my-1-"));
        assert!(!has_variable(environment, "PADDOCK_WORKER", "my-2-x"));
        assert!(!has_variable(b"", "A", ""));
    }

    #[test]
    fn memory_is_read_in_either_way() {
        let rollup = "55d-7ff ---p 00000000 00:00 0 [rollup]\nRss: 99 kB\nPss:   10 kB\nPss_Dirty: 1 kB\nPss_Anon:  4 kB\n\
                      Pss_File: 5 kB\nPss_Shmem: 1 kB\n";
        assert_eq!(sum(rollup, "Pss:", ["Pss_Anon:", "Pss_Shmem:"]), Some((10_240, 5_120)));
        let status = "Name:\tRssAnon: 1 kB\nVmRSS:\t     8 kB\nRssAnon:\t 2 kB\nRssShmem:\t 1 kB\n";
        assert_eq!(sum(status, "VmRSS:", ["RssAnon:", "RssShmem:"]), Some((8_192, 3_072)));
        assert_eq!(sum("Pss: x kB\n", "Pss:", ["Pss_Anon:", "Pss_Shmem:"]), None);
        for read in [resident, proportional] {
            let (current, unreclaimable) = read(rustix::process::getpid()).unwrap();
            assert!(current >= unreclaimable && unreclaimable > 0);
        }
    }
}
