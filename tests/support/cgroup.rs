//! A cgroup around each manager under test: where its workers' groups appear, and what is cleaned up after it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;

use super::proc::Process;

/// Directories below which groups may be made: that of memory first, then that of `cgroup.kill`.
#[derive(Debug)]
struct Parents(Vec<PathBuf>);

/// A group for one manager; removed with everything in it.
pub(crate) struct Group {
    dirs: Vec<PathBuf>,
}

impl Group {
    /// Makes it; an error says why this machine has none.
    pub(crate) fn create(name: &str) -> Result<Self, String> {
        let parents = parents()?;
        let group = Self { dirs: parents.0.iter().map(|parent| parent.join(name)).collect() };
        for dir in &group.dirs {
            fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        Ok(group)
    }

    /// What a process joins to be inside.
    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The group in the hierarchy that counts memory.
    pub(crate) fn memory_dir(&self) -> &Path {
        &self.dirs[0]
    }

    /// Every process inside.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        self.dirs.iter().flat_map(|dir| processes_below(dir)).collect()
    }

    /// Limits everything inside together.
    pub(crate) fn limit_memory(&self, bytes: u64) {
        let v1 = self.memory_dir().join("memory.limit_in_bytes");
        let file = if v1.exists() { v1 } else { self.memory_dir().join("memory.max") };
        fs::write(&file, bytes.to_string()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// OOM kills of the group itself and, on v2, below it.
    pub(crate) fn oom_kills(&self) -> u64 {
        let v1 = self.memory_dir().join("memory.oom_control");
        let text = fs::read_to_string(&v1)
            .or_else(|_| fs::read_to_string(self.memory_dir().join("memory.events")))
            .expect("the group's OOM count");
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).expect("an oom_kill count")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..50 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for process in left.into_iter().filter_map(Process::open) {
                process.signal(Signal::KILL);
                process.wait_gone(Duration::from_secs(2));
            }
        }
        for dir in &self.dirs {
            remove(dir);
        }
    }
}

/// Processes of a group and of all groups below it.
pub(crate) fn processes_below(dir: &Path) -> BTreeSet<u32> {
    let mut found = processes_in(dir);
    for below in groups_in(dir) {
        found.extend(processes_below(&below));
    }
    found
}

/// Processes of exactly this group.
pub(crate) fn processes_in(dir: &Path) -> BTreeSet<u32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn groups_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove(dir: &Path) {
    for below in groups_in(dir) {
        remove(&below);
    }
    let _ = fs::remove_dir(dir);
}

/// The directory of the group that holds a process, in the hierarchy that counts memory.
pub(crate) fn memory_group_of(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    if let Some(mount) = mount_of("cgroup", Some("memory")) {
        let path = text.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|each| each == "memory").then_some(path)
        })?;
        return Some(mount.join(path.trim_start_matches('/')));
    }
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(mount_of("cgroup2", None)?.join(path.trim_start_matches('/')))
}

fn mount_of(kind: &str, option: Option<&str>) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, path, found, options, ..] = fields.as_slice() else { return None };
        let fits = *found == kind && option.is_none_or(|option| options.split(',').any(|each| each == option));
        fits.then(|| PathBuf::from(path))
    })
}

fn parents() -> Result<&'static Parents, String> {
    static PARENTS: OnceLock<Result<Parents, String>> = OnceLock::new();
    PARENTS.get_or_init(find_parents).as_ref().map_err(Clone::clone)
}

fn find_parents() -> Result<Parents, String> {
    let own = memory_group_of(std::process::id()).ok_or("no cgroup hierarchy with memory is mounted")?;
    let v1 = own.join("memory.limit_in_bytes").exists();
    let mut parents = vec![own.clone()];
    if v1 {
        parents.extend(mount_of("cgroup2", None));
    } else {
        leave_and_delegate(&own)?;
    }
    let probe = format!("pt-{}-probe", std::process::id());
    parents.retain(|parent| {
        let dir = parent.join(&probe);
        fs::create_dir(&dir).and_then(|()| fs::remove_dir(&dir)).is_ok()
    });
    if parents.first() == Some(&own) {
        Ok(Parents(parents))
    } else {
        Err(format!("cannot make groups in {}", own.display()))
    }
}

/// On v2 a group with processes cannot have controllers for groups below it: go to a leaf, if nobody else is here.
fn leave_and_delegate(own: &Path) -> Result<(), String> {
    let said = |what: &str, error: std::io::Error| format!("{what} in {}: {error}", own.display());
    let leaf = own.join(format!("pt-{}-suite", std::process::id()));
    fs::create_dir(&leaf).map_err(|error| said("cannot make a group", error))?;
    fs::write(leaf.join("cgroup.procs"), std::process::id().to_string())
        .map_err(|error| said("cannot leave the group", error))?;
    fs::write(own.join("cgroup.subtree_control"), "+memory +pids")
        .map_err(|error| said("cannot hand memory down, others live", error))
}
