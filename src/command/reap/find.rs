//! Finding a dead manager's workers.
//!
//! A process is one of them if its environment or an open file says so by a path in the app's runtime directory, which
//! only that app's workers have, or if it is in the app's own slice. So is whatever shares a worker's fence or session
//! with it, or descends from it: a program that overwrites its environment does not get away.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::control::directory::Surroundings;
use crate::isolation::proc;
use crate::worker::files::is_worker_file;

/// What tells an app's workers from all other processes.
#[derive(Debug)]
pub struct Marks {
    /// The runtime directory, as the manager wrote it into environments, and as the kernel names it.
    directories: BTreeSet<PathBuf>,
    /// How the names of the app's fences begin: `paddock-shop-`.
    fence: String,
    /// The app's slice, if the runtime directory is the usual one: `/paddock.slice/paddock-shop.slice/`.
    slice: Option<String>,
    /// Whose systemd the slice belongs to; none: the system's.
    user: Option<u32>,
}

impl Marks {
    /// Those of the app that uses this runtime directory.
    pub fn of(app: &str, directory: &Path, surroundings: &Surroundings) -> Self {
        // In an app's name only the hyphen has a meaning to systemd, and to us.
        let escaped = app.replace('-', "\\x2d");
        let usual = Surroundings { flag: None, runtime_directory: None, ..surroundings.clone() };
        let is_usual = usual.of_manager(app).is_ok_and(|usual| usual == directory);
        let canonical = std::fs::canonicalize(directory).ok();
        Self {
            directories: [directory.to_path_buf()].into_iter().chain(canonical).collect(),
            fence: format!("paddock-{escaped}-"),
            slice: is_usual.then(|| format!("/paddock.slice/paddock-{escaped}.slice/")),
            user: (!surroundings.root).then(|| rustix::process::geteuid().as_raw()),
        }
    }

    /// Whether this is a worker's file in the runtime directory.
    fn has(&self, path: &Path) -> bool {
        path.file_name().and_then(|name| name.to_str()).is_some_and(is_worker_file)
            && path.parent().is_some_and(|parent| self.directories.contains(parent))
    }

    fn is_slice(&self, group: &str) -> bool {
        let Some((above, _)) = self.slice.as_ref().and_then(|slice| group.split_once(slice.as_str())) else {
            return false;
        };
        match self.user {
            Some(user) => above.contains(&format!("/user@{user}.service")),
            None => !above.contains("/user@"),
        }
    }

    /// The part of a group's path up to the worker's own fence; none if it is not in one.
    fn fence_in<'a>(&self, group: &'a str) -> Option<&'a str> {
        let mut end = 0;
        for part in group.split('/') {
            end += part.len();
            if part.starts_with(&self.fence) {
                return group.get(..end);
            }
            end += 1;
        }
        None
    }
}

/// A process that bears the marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Clock ticks since boot; with the number it names this process and no other.
    pub start_time: u64,
    /// Its parent's number.
    pub parent: i32,
    session: i32,
}

impl Process {
    /// What no other process has.
    fn name(&self) -> (i32, u64) {
        (self.pid, self.start_time)
    }
}

/// Every living process that bears the marks, but for this one. Those in `known` count, and all that are found are added
/// to it: whoever was found because of its parent is still to be found when the parent is dead.
///
/// # Errors
/// What reading `/proc` says. A process that ends meanwhile is no error.
pub fn marked(marks: &Marks, known: &mut BTreeSet<(i32, u64)>) -> io::Result<Vec<Process>> {
    let own = rustix::process::getpid();
    let mut others = Vec::new();
    let mut found = Vec::new();
    let mut fences = BTreeSet::new();
    for pid in proc::all()? {
        let Ok(stat) = proc::stat(pid) else { continue };
        if stat.is_over() || pid == own {
            continue;
        }
        let process =
            Process { pid: pid.as_raw_pid(), start_time: stat.start_time, parent: stat.parent, session: stat.session };
        let groups: Vec<String> = proc::memberships(pid).unwrap_or_default().into_iter().map(|at| at.path).collect();
        if known.contains(&process.name())
            || groups.iter().any(|group| marks.is_slice(group))
            || environment_says(pid, marks)
            || files_say(pid, marks)
        {
            fences.extend(groups.iter().filter_map(|group| marks.fence_in(group)).map(str::to_owned));
            found.push(process);
        } else {
            others.push((process, groups));
        }
    }
    // Descendants of descendants, and so on: until a pass finds no more.
    loop {
        let (more, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(|(process, groups)| {
            groups.iter().any(|group| marks.fence_in(group).is_some_and(|fence| fences.contains(fence)))
                || found.iter().any(|one: &Process| one.pid == process.parent || one.pid == process.session)
        });
        if more.is_empty() {
            break;
        }
        found.extend(more.into_iter().map(|(process, _)| process));
        others = rest;
    }
    found.sort();
    known.extend(found.iter().map(Process::name));
    Ok(found)
}

/// Variables that hold a path in the runtime directory.
const VARIABLES: [&[u8]; 2] = [b"NOTIFY_SOCKET=", b"MEMORY_PRESSURE_WATCH="];

fn environment_says(pid: Pid, marks: &Marks) -> bool {
    let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| {
        VARIABLES.iter().any(|name| {
            variable.strip_prefix(*name).is_some_and(|path| marks.has(Path::new(std::ffi::OsStr::from_bytes(path))))
        })
    })
}

fn files_say(pid: Pid, marks: &Marks) -> bool {
    let directory = format!("/proc/{}/fd", pid.as_raw_pid());
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|path| marks.has(&path)))
}
