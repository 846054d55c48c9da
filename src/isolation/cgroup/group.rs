//! One group made for a worker: its directory, who is inside, how it empties and goes.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::super::proc::{self, Membership};
use super::files;
use super::hierarchy::Home;
use crate::sys;

/// A worker may make groups of its own below, but we do not follow it for ever.
const MOST_SUBGROUPS: usize = 10_000;

/// How long to wait for the kernel to drop the last of a dead process where it announces nothing.
const DYING: Duration = Duration::from_millis(2);

/// A group below one of the manager's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// What `/proc/PID/cgroup` calls it.
    pub(super) path: String,
}

impl Group {
    /// The group of this name below `home`, whether it exists or not.
    pub(super) fn below(home: &Home, name: &str) -> Self {
        Self { dir: home.dir.join(name), path: format!("{}/{name}", home.path) }
    }

    /// Make it.
    ///
    /// # Errors
    /// What `mkdir(2)` says; EEXIST too, for no name is used twice.
    pub(super) fn create(home: &Home, name: &str) -> io::Result<Self> {
        let group = Self::below(home, name);
        std::fs::create_dir(&group.dir)?;
        Ok(group)
    }

    /// Make one only to see that it can be made.
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub(super) fn try_below(home: &Home) -> io::Result<Self> {
        let name = format!("paddock.probe.{}", std::process::id());
        // A process of this number may have died in the middle of this.
        let _ = std::fs::remove_dir(home.dir.join(&name));
        Self::create(home, &name)
    }

    /// Put a process inside.
    pub(super) fn join(&self, pid: Pid) -> io::Result<()> {
        files::write(&self.dir, "cgroup.procs", &pid.as_raw_pid().to_string())
    }

    /// Whether a process with these memberships is inside, or in a group that the worker made below.
    pub(super) fn holds(&self, memberships: &[Membership], controller: Option<&str>) -> bool {
        memberships
            .iter()
            .filter(|member| match controller {
                Some(controller) => member.controllers.iter().any(|name| name == controller),
                None => member.controllers.is_empty(),
            })
            .any(|member| {
                member.path.strip_prefix(&self.path).is_some_and(|below| below.is_empty() || below.starts_with('/'))
            })
    }

    /// This directory and those below it, deepest last.
    fn directories(&self) -> Vec<PathBuf> {
        let mut found = vec![self.dir.clone()];
        let mut next = 0;
        while let Some(dir) = found.get(next).cloned() {
            next += 1;
            let Ok(entries) = std::fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries.flatten() {
                if found.len() < MOST_SUBGROUPS && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path());
                }
            }
        }
        found
    }

    /// Every process inside that is not over.
    pub(super) fn processes(&self) -> Vec<Pid> {
        self.directories()
            .iter()
            .filter_map(|dir| files::read(dir, "cgroup.procs").ok())
            .flat_map(|text| {
                text.lines()
                    // 0 is a process outside our pid namespace.
                    .filter_map(|line| line.trim().parse().ok().and_then(Pid::from_raw))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Whether `cgroup.kill` is there: cgroup v2 since Linux 5.14.
    pub(super) fn can_kill(&self) -> bool {
        self.dir.join("cgroup.kill").exists()
    }

    /// SIGKILL to all inside and below, forks under way included (cgroup-v2.rst, `cgroup.kill`).
    pub(super) fn kill(&self) -> io::Result<()> {
        files::write(&self.dir, "cgroup.kill", "1")
    }

    /// SIGKILL to each that is listed, until nobody new appears. `inside` looks again once a pidfd is held, so that a
    /// number that meanwhile belongs to somebody else is left alone. Returns pidfds of some that were signalled.
    pub(super) fn kill_each(&self, inside: impl Fn(Pid) -> bool) -> Vec<OwnedFd> {
        let mut signalled = Vec::new();
        let mut seen = HashSet::new();
        loop {
            let mut new: Vec<Pid> = self.processes().into_iter().filter(|&pid| seen.insert(pid)).collect();
            // Mostly parents first, or the first process may see its child die and end by itself.
            new.sort_unstable_by_key(|pid| pid.as_raw_pid());
            if new.is_empty() {
                return signalled;
            }
            for pid in new {
                let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                    continue;
                };
                if inside(pid)
                    && rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
                    && signalled.len() < proc::MOST_AWAITED
                {
                    signalled.push(pidfd);
                }
            }
        }
    }

    /// Remove it and what the worker made below it.
    ///
    /// # Errors
    /// What `rmdir(2)` says: EBUSY while somebody is inside. That it is gone already is no error.
    pub(super) fn remove(&self) -> io::Result<()> {
        for dir in self.directories().iter().rev() {
            match std::fs::remove_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The `populated` line of a v2 group's `cgroup.events`, watched.
pub(super) struct Populated {
    dir: PathBuf,
    file: AsyncFd<OwnedFd>,
}

impl Populated {
    /// Watch a v2 group; call inside a tokio runtime.
    pub(super) fn watch(group: &Group) -> io::Result<Self> {
        Ok(Self { dir: group.dir.clone(), file: watch_events(&group.dir, "cgroup.events")? })
    }

    /// Wait until nobody is inside. A zombie is not inside.
    pub(super) async fn empty(&self) -> io::Result<()> {
        loop {
            let text = read_again(&self.file)?;
            match files::value_of(&text, "populated") {
                Some(0) => return Ok(()),
                Some(_) => {}
                None => {
                    return Err(io::Error::other(format!("no populated line in {}/cgroup.events", self.dir.display())));
                }
            }
            self.file.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}

/// Open an events file and watch it: every change is POLLPRI, and reading re-arms it (`fs/kernfs/file.c`).
pub(super) fn watch_events(dir: &Path, file: &str) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = rustix::fs::open(
        dir.join(file),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    sys::watch(fd, Interest::PRIORITY)
}

/// Read a watched events file from its beginning.
pub(super) fn read_again(file: &AsyncFd<OwnedFd>) -> io::Result<String> {
    let mut buffer = [0; 1024];
    let read = rustix::io::pread(file.get_ref(), &mut buffer, 0)?;
    Ok(String::from_utf8_lossy(buffer.get(..read).unwrap_or_default()).into_owned())
}

/// Kill what is in `tree`, wait until nobody is left, and remove `tree` and `others`, which hold the same processes.
///
/// `tree` decides who is inside; `killer` is its v2 group where there is one: itself, or a twin.
pub(super) async fn sweep(
    tree: &Group,
    controller: Option<&str>,
    killer: Option<&Group>,
    others: &[&Group],
) -> io::Result<()> {
    let inside = |pid| proc::memberships(pid).is_ok_and(|found| tree.holds(&found, controller));
    if let Some(killer) = killer.filter(|group| group.dir.exists()) {
        let populated = Populated::watch(killer)?;
        if killer.can_kill() {
            killer.kill()?;
            populated.empty().await?;
        } else {
            killer.kill_each(|pid| proc::memberships(pid).is_ok_and(|found| killer.holds(&found, None)));
            populated.empty().await?;
        }
    }
    // Without a twin, or when a privileged worker left it: one by one.
    let mut wait = DYING;
    loop {
        for pidfd in tree.kill_each(inside) {
            sys::watch(pidfd, Interest::READABLE)?.readable().await?.retain_ready();
        }
        match remove_all(tree, killer, others) {
            // Since Linux 6.19 a dead process leaves its group a little after its pidfd tells.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_millis(250));
            }
            result => return result,
        }
    }
}

fn remove_all(tree: &Group, killer: Option<&Group>, others: &[&Group]) -> io::Result<()> {
    tree.remove()?;
    for group in others {
        group.remove()?;
    }
    killer.map_or(Ok(()), Group::remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(path: &str) -> Group {
        Group { dir: PathBuf::from("/nowhere"), path: path.to_owned() }
    }

    #[test]
    fn inside_is_the_group_and_below_in_the_right_hierarchy_only() {
        let worker = group("/app/paddock-my-1-x");
        let at = |controllers: &str, path: &str| proc::parse_memberships(&format!("4:{controllers}:{path}\n"));
        assert!(worker.holds(&at("memory", "/app/paddock-my-1-x"), Some("memory")));
        assert!(worker.holds(&at("memory", "/app/paddock-my-1-x/own"), Some("memory")));
        assert!(!worker.holds(&at("memory", "/app/paddock-my-1-xy"), Some("memory")));
        assert!(!worker.holds(&at("memory", "/app"), Some("memory")));
        assert!(!worker.holds(&at("cpu", "/app/paddock-my-1-x"), Some("memory")));
        assert!(!worker.holds(&at("memory", "/app/paddock-my-1-x"), None));
        assert!(worker.holds(&at("", "/app/paddock-my-1-x"), None));
        assert!(!worker.holds(&at("memory", "/app/paddock-my-1-x (deleted)"), Some("memory")));
    }

    #[test]
    fn a_tree_of_groups_is_listed_and_removed_from_below() {
        let base = std::env::temp_dir().join(format!("paddock-group-{}", std::process::id()));
        let dir = base.join("g");
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        let tree = Group { dir: dir.clone(), path: "/g".to_owned() };
        assert_eq!(tree.directories().len(), 3);
        tree.remove().unwrap();
        assert!(!dir.exists());
        tree.remove().unwrap();
        std::fs::remove_dir_all(base).unwrap();
    }
}
