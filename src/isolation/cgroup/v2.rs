//! cgroup v2, delegated: the manager in a leaf of its own, a group for each worker beside it.
//!
//! Source: the kernel's `admin-guide/cgroup-v2.rst`; who may do what is its section "Delegation".

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::name;
use super::super::{
    DeathFacts, Fence, FenceError, FenceEvent, FenceLimits, FenceName, Handed, Leftover, Leftovers, LocalFuture,
    MemoryReading, Place, proc,
};
use super::files::{self, failed};
use super::group::{self, Group};
use super::hierarchy::Home;
use super::leftovers;
use super::limits::{Places, Version};
use crate::sys::Birthplace;

/// The leaf that the manager lives in: processes and controllers for groups below exclude each other.
const LEAF: &str = "manager";

/// An event that page cache had caused: how long none is looked at.
const QUIET: Duration = Duration::from_secs(1);

/// A part of the v2 hierarchy that is ours.
#[derive(Debug)]
pub(super) struct V2 {
    /// The group that the workers' groups are made in.
    base: Home,
    /// The manager's own.
    leaf: PathBuf,
    pids: bool,
    cpu: bool,
}

impl V2 {
    /// Take possession of this process's own group: move into a leaf, hand controllers down.
    ///
    /// # Errors
    /// Why it cannot be done; then this process is where it was.
    pub(super) fn probe(own: &Home) -> Result<Self, String> {
        let base = base_of(own);
        let shown = base.dir.display();
        let list =
            |file: &str| files::read(&base.dir, file).map_err(|error| format!("reading {shown}/{file}: {error}"));
        if !has_word(&list("cgroup.controllers")?, "memory") {
            return Err(format!("the memory controller is not available in {shown}"));
        }
        for file in ["cgroup.procs", "cgroup.subtree_control"] {
            rustix::fs::access(base.dir.join(file), rustix::fs::Access::WRITE_OK)
                .map_err(|error| format!("{shown}/{file} is not ours to write: {error}"))?;
        }
        let me = rustix::process::getpid();
        // Only the real root may hold processes and hand controllers down at once, and only it has no type.
        let leaf = if base.dir.join("cgroup.type").exists() {
            if let Some(pid) = stranger(&list("cgroup.procs")?, me) {
                return Err(format!(
                    "other processes share {shown}, process {pid} is one, and they are not ours to move"
                ));
            }
            let leaf = base.dir.join(LEAF);
            enter(&leaf, me).map_err(|error| format!("moving into {}: {error}", leaf.display()))?;
            leaf
        } else {
            own.dir.clone()
        };
        let enable = |controller: &str| {
            let available = list("cgroup.controllers").is_ok_and(|text| has_word(&text, controller));
            if !available {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            files::write(&base.dir, "cgroup.subtree_control", &format!("+{controller}"))
        };
        if let Err(error) = enable("memory") {
            if own.dir != leaf {
                // Back to where we were; the leaf stays only if somebody else got into it.
                let _ = files::write(&own.dir, "cgroup.procs", &me.as_raw_pid().to_string());
                let _ = std::fs::remove_dir(&leaf);
            }
            let busy = error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error());
            let why = if busy { ": other processes share it" } else { "" };
            return Err(format!("{shown} cannot hand down the memory controller ({error}){why}"));
        }
        let (pids, cpu) = (enable("pids").is_ok(), enable("cpu").is_ok());
        let v2 = Self { base, leaf, pids, cpu };
        v2.try_out().map_err(|error| {
            format!("no group with a memory limit can be made in {}: {error}", v2.base.dir.display())
        })?;
        Ok(v2)
    }

    fn try_out(&self) -> io::Result<()> {
        let group = Group::try_below(&self.base)?;
        let limited = files::read(&group.dir, "memory.max");
        group.remove()?;
        limited.map(drop)
    }

    /// One line about what is used.
    pub(super) fn describe(&self) -> String {
        let or_not = |has: bool, what: &str| format!(", {} {what}", if has { "with" } else { "without" });
        format!("cgroup v2 below {}{}{}", self.base.dir.display(), or_not(self.pids, "pids"), or_not(self.cpu, "cpu"))
    }

    /// See [`super::super::Isolation::leftovers`].
    pub(super) fn leftovers(&self, app: &str) -> Result<Leftovers, FenceError> {
        let mut found = Leftovers::default();
        for name in leftovers::of(std::iter::once(&self.base), app) {
            let group = Group::below(&self.base, &name::of(&name));
            if group.processes().is_empty() {
                found.dead.push((name, facts(&group.dir)));
                group.remove().map_err(|error| failed(format!("removing {}", group.dir.display()), error))?;
            } else {
                found.living.push(Leftover { name, fence: Rc::new(self.over(group)?) });
            }
        }
        Ok(found)
    }

    /// See [`super::super::Isolation::take_back`]: the name says where it is.
    pub(super) fn take_back(&self, name: &FenceName) -> Result<Rc<dyn Fence>, FenceError> {
        Ok(Rc::new(self.over(Group::below(&self.base, &name::of(name)))?))
    }

    /// See [`super::super::Isolation::prepare`].
    pub(super) fn prepare(&self, name: &FenceName, limits: &FenceLimits) -> Result<V2Place<'_>, FenceError> {
        let directory = name::of(name);
        let group = Group::create(&self.base, &directory)
            .map_err(|error| failed(format!("making {}", self.base.dir.join(&directory).display()), error))?;
        let made = Made { leaf: &self.leaf, group: Some(group.clone()), gate: None };
        let fence = self.over(group.clone())?;
        fence.places.apply_new(limits)?;
        // A worker is one thing: the kernel is to take all of it or nothing.
        files::write(&group.dir, "memory.oom.group", "1")
            .map_err(|error| failed(format!("writing memory.oom.group of {}", group.dir.display()), error))?;
        files::verify(&group.dir, "memory.oom.group", 1, false)?;
        // What cannot be opened is for whoever verifies.
        let birthplace = Birthplace { cgroup: files::directory(&group.dir).ok(), tasks: Vec::new() };
        Ok(V2Place { fence, birthplace, made })
    }

    fn over(&self, group: Group) -> Result<V2Fence, FenceError> {
        let events = group::watch_events(&group.dir, "memory.events")
            .map_err(|error| failed(format!("watching memory.events of {}", group.dir.display()), error))?;
        let places = Places {
            version: Version::V2,
            memory: group.dir.clone(),
            pids: self.pids.then(|| group.dir.clone()),
            cpu: self.cpu.then(|| group.dir.clone()),
        };
        Ok(V2Fence { group, places, events, state: RefCell::default(), changed: Notify::new() })
    }
}

/// A worker's group, with nobody inside.
pub(super) struct V2Place<'a> {
    fence: V2Fence,
    birthplace: Birthplace,
    made: Made<'a>,
}

impl Place for V2Place<'_> {
    fn birthplace(&self) -> &Birthplace {
        &self.birthplace
    }

    fn enclose(self: Box<Self>, gate: Pid) -> Result<Rc<dyn Fence>, FenceError> {
        let Self { fence, mut made, .. } = *self;
        made.gate = Some(gate);
        if !fence.contains(gate) {
            let moving = || format!("moving process {} into {}", gate.as_raw_pid(), fence.group.dir.display());
            fence.group.join(gate).map_err(|error| failed(moving(), error))?;
            if !fence.contains(gate) {
                return Err(failed(moving(), "it is elsewhere; is it over?"));
            }
        }
        made.group = None;
        Ok(Rc::new(fence))
    }
}

/// A new group, which is removed again unless it is taken out.
struct Made<'a> {
    leaf: &'a Path,
    group: Option<Group>,
    /// Who may be inside.
    gate: Option<Pid>,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let Some(group) = &self.group else { return };
        if let Some(gate) = self.gate {
            // It goes back to where it was; without that the group could not be removed.
            let _ = files::write(self.leaf, "cgroup.procs", &gate.as_raw_pid().to_string());
        }
        let _ = group.remove();
    }
}

/// The group to make workers' groups in: our own, or if we are in its leaf already (`DelegateSubgroup=manager`, or the
/// binary was replaced in place) the one above.
fn base_of(own: &Home) -> Home {
    let above = own.path.strip_suffix(LEAF).and_then(|path| path.strip_suffix('/'));
    match (above, own.dir.parent()) {
        (Some(path), Some(dir)) if dir.join("cgroup.procs").exists() => {
            Home { dir: dir.to_owned(), path: path.to_owned() }
        }
        _ => own.clone(),
    }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|found| found == word)
}

/// Somebody else in a `cgroup.procs`; 0 is a process outside our pid namespace.
fn stranger(procs: &str, me: Pid) -> Option<i32> {
    procs.lines().filter_map(|line| line.trim().parse().ok()).find(|&pid| pid != me.as_raw_pid())
}

fn enter(leaf: &Path, me: Pid) -> io::Result<()> {
    match std::fs::create_dir(leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    files::write(leaf, "cgroup.procs", &me.as_raw_pid().to_string())
}

/// What a group holds.
fn reading(dir: &Path) -> io::Result<MemoryReading> {
    let stat = files::read(dir, "memory.stat")?;
    let value = |key| files::value_of(&stat, key).ok_or_else(|| io::Error::other(format!("memory.stat has no {key}")));
    // All in one since Linux 5.18, in parts before.
    let kernel = files::value_of(&stat, "kernel").unwrap_or_else(|| {
        ["slab", "kernel_stack", "pagetables", "percpu"].iter().filter_map(|key| files::value_of(&stat, key)).sum()
    });
    let limit = files::number(dir, "memory.max")?;
    Ok(MemoryReading {
        current: files::number(dir, "memory.current")?,
        unreclaimable: value("anon")?.saturating_add(value("shmem")?).saturating_add(kernel),
        peak: files::number(dir, "memory.peak").ok(),
        limit: (limit != u64::MAX).then_some(limit),
    })
}

/// What is known about a death, from a group that is still there.
fn facts(dir: &Path) -> DeathFacts {
    let events = files::read(dir, "memory.events").unwrap_or_default();
    let count = |key| files::value_of(&events, key);
    // A worker that ran into its own limit had reached it; `memory.peak` came with Linux 5.19.
    let own_limit = || {
        let hit = count("oom_kill")? > 0 && count("oom")? > 0;
        files::number(dir, "memory.max").ok().filter(|&max| hit && max != u64::MAX)
    };
    DeathFacts {
        // Counted before the signal is sent (mm/oom_kill.c), so it is there when the death is.
        oom_killed: count("oom_kill").map(|count| count > 0),
        peak: files::number(dir, "memory.peak").ok().or_else(own_limit),
    }
}

/// A worker's fence.
struct V2Fence {
    group: Group,
    places: Places,
    events: AsyncFd<OwnedFd>,
    state: RefCell<State>,
    /// The armed edge is another one.
    changed: Notify,
}

#[derive(Default)]
struct State {
    armed: Option<u64>,
    /// To be reported.
    reached: Option<MemoryReading>,
    /// Counts of `memory.events` that have been dealt with.
    high: u64,
    oom_kills: u64,
    /// Page cache had caused an event: none is looked at before.
    quiet_until: Option<Instant>,
}

impl V2Fence {
    fn set_high(&self, high: u64) -> Result<(), FenceError> {
        files::write(&self.group.dir, "memory.high", &files::or_max(high))
            .map_err(|error| failed(format!("writing {high} to memory.high of {}", self.group.path), error))?;
        files::verify(&self.group.dir, "memory.high", high, true)
    }

    fn counts(&self) -> io::Result<(u64, u64)> {
        let text = group::read_again(&self.events)?;
        let count = |key| files::value_of(&text, key).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
        Ok((count("high")?, count("oom_kill")?))
    }

    /// What the counters say; some: to be reported.
    fn look(&self, now: Instant) -> Option<FenceEvent> {
        if let Some(reading) = self.state.borrow_mut().reached.take() {
            return Some(FenceEvent::Memory(reading));
        }
        // The group is gone: nothing will ever happen there.
        let (high, oom_kills) = self.counts().ok()?;
        let edge = {
            let mut state = self.state.borrow_mut();
            if oom_kills > state.oom_kills {
                state.oom_kills = oom_kills;
                // The kernel has taken the whole group (memory.oom.group), unless somebody in it was exempt.
                let _ = self.kill();
                return Some(FenceEvent::OomKill);
            }
            if state.quiet_until.is_some_and(|until| now < until) {
                return None;
            }
            state.quiet_until = None;
            let rose = high > state.high;
            state.high = high;
            state.armed.filter(|_| rose)?
        };
        match self.memory() {
            Ok(reading) if reading.unreclaimable >= edge => {
                // At once, so that requests in flight are not throttled.
                let _ = self.set_high(u64::MAX);
                self.state.borrow_mut().armed = None;
                Some(FenceEvent::Memory(reading))
            }
            _ => {
                self.state.borrow_mut().quiet_until = Some(now + QUIET);
                None
            }
        }
    }

    fn place(&self, edge: Option<u64>) -> Result<(), FenceError> {
        {
            let mut state = self.state.borrow_mut();
            *state = State { oom_kills: state.oom_kills, ..State::default() };
        }
        let Some(edge) = edge else {
            return self.set_high(u64::MAX);
        };
        let counted = |error| failed(format!("reading memory.events of {}", self.group.path), error);
        self.state.borrow_mut().high = self.counts().map_err(counted)?.0;
        if self.memory()?.unreclaimable < edge {
            self.set_high(edge)?;
            self.state.borrow_mut().armed = Some(edge);
        }
        let now = self.memory()?;
        if now.unreclaimable >= edge {
            self.set_high(u64::MAX)?;
            let mut state = self.state.borrow_mut();
            state.armed = None;
            state.reached = Some(now);
        }
        Ok(())
    }
}

impl Fence for V2Fence {
    fn describe(&self) -> String {
        self.group.path.clone()
    }

    fn contains(&self, pid: Pid) -> bool {
        proc::memberships(pid).is_ok_and(|found| self.group.holds(&found, None))
    }

    fn memory(&self) -> Result<MemoryReading, FenceError> {
        reading(&self.group.dir).map_err(|error| failed(format!("reading the memory of {}", self.group.path), error))
    }

    fn arm(&self, edge: Option<u64>) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            let result = self.place(edge);
            self.changed.notify_one();
            result
        })
    }

    fn next_event(&self) -> LocalFuture<'_, FenceEvent> {
        Box::pin(async move {
            loop {
                if let Some(event) = self.look(Instant::now()) {
                    return event;
                }
                let quiet_until = self.state.borrow().quiet_until;
                let risen = async {
                    match quiet_until {
                        // While events are masked the clock wakes us, and they are read then.
                        Some(until) => tokio::time::sleep_until(until).await,
                        None => match self.events.ready(Interest::PRIORITY).await {
                            Ok(mut guard) => guard.clear_ready(),
                            Err(_) => std::future::pending().await,
                        },
                    }
                };
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = risen => {}
                }
            }
        })
    }

    fn set_limits<'a>(&'a self, limits: &'a FenceLimits) -> LocalFuture<'a, Result<Vec<String>, FenceError>> {
        Box::pin(async move { Ok(self.places.apply_living(limits, self.memory()?.unreclaimable)) })
    }

    fn kill(&self) -> Result<(), FenceError> {
        if self.group.can_kill() {
            return self.group.kill().map_err(|error| failed(format!("killing {}", self.group.path), error));
        }
        self.group.kill_each(|pid| self.contains(pid));
        Ok(())
    }

    fn death_facts(&self) -> LocalFuture<'_, DeathFacts> {
        Box::pin(async move { facts(&self.group.dir) })
    }

    fn sweep(&self) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            self.state.borrow_mut().armed = None;
            group::sweep(&self.group, None, Some(&self.group), &[])
                .await
                .map_err(|error| failed(format!("emptying {}", self.group.path), error))
        })
    }

    fn hand_over(&self) -> Handed<'_> {
        Handed::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("paddock-v2-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn file(&self, name: &str, text: &str) {
            std::fs::write(self.0.join(name), text).unwrap();
        }

        fn home(&self) -> Home {
            Home { dir: self.0.clone(), path: "/svc".to_owned() }
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_group_without_the_memory_controller_is_refused() {
        let dir = Dir::new("controllers");
        dir.file("cgroup.controllers", "cpu pids memoryx\n");
        assert!(V2::probe(&dir.home()).unwrap_err().contains("memory controller is not available"));
    }

    #[test]
    fn strangers_in_our_group_are_named_and_not_moved() {
        let dir = Dir::new("strangers");
        let me = std::process::id();
        dir.file("cgroup.controllers", "memory pids\n");
        dir.file("cgroup.type", "domain\n");
        dir.file("cgroup.subtree_control", "");
        dir.file("cgroup.procs", &format!("{me}\n1\n"));
        let reason = V2::probe(&dir.home()).unwrap_err();
        assert!(reason.contains("process 1 is one"), "{reason}");
        assert!(!dir.0.join(LEAF).exists());
        assert_eq!(files::read(&dir.0, "cgroup.subtree_control").unwrap(), "");
    }

    #[test]
    fn the_managers_leaf_is_not_the_base() {
        let dir = Dir::new("leaf");
        dir.file("cgroup.procs", "");
        let own = Home { dir: dir.0.join(LEAF), path: format!("/svc/{LEAF}") };
        assert_eq!(base_of(&own), dir.home());
        let other = Home { dir: dir.0.join("mymanager"), path: "/svc/mymanager".to_owned() };
        assert_eq!(base_of(&other), other);
        assert_eq!(base_of(&dir.home()), dir.home());
    }

    #[test]
    fn a_reading_counts_what_cannot_be_reclaimed() {
        let dir = Dir::new("reading");
        dir.file("memory.stat", "anon 500\nfile 900\nkernel 70\nslab 40\nshmem 30\n");
        dir.file("memory.current", "1500\n");
        dir.file("memory.max", "4096\n");
        let expected = MemoryReading { current: 1500, unreclaimable: 600, peak: None, limit: Some(4096) };
        assert_eq!(reading(&dir.0).unwrap(), expected);
        dir.file("memory.stat", "anon 500\nslab 40\nkernel_stack 2\nshmem 30\n");
        dir.file("memory.peak", "1600\n");
        dir.file("memory.max", "max\n");
        let expected = MemoryReading { current: 1500, unreclaimable: 572, peak: Some(1600), limit: None };
        assert_eq!(reading(&dir.0).unwrap(), expected);
        dir.file("memory.stat", "file 900\n");
        assert!(reading(&dir.0).is_err());
    }

    #[test]
    fn facts_are_not_guessed() {
        let dir = Dir::new("facts");
        assert_eq!(facts(&dir.0), DeathFacts { oom_killed: None, peak: None });
        dir.file("memory.max", "4096\n");
        dir.file("memory.events", "low 0\nhigh 3\nmax 9\noom 0\noom_kill 0\n");
        assert_eq!(facts(&dir.0), DeathFacts { oom_killed: Some(false), peak: None });
        // Somebody else's limit.
        dir.file("memory.events", "oom 0\noom_kill 1\n");
        assert_eq!(facts(&dir.0), DeathFacts { oom_killed: Some(true), peak: None });
        dir.file("memory.events", "oom 1\noom_kill 1\n");
        assert_eq!(facts(&dir.0), DeathFacts { oom_killed: Some(true), peak: Some(4096) });
        dir.file("memory.peak", "4000\n");
        assert_eq!(facts(&dir.0).peak, Some(4000));
    }
}
