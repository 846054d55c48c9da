//! cgroup v1: a group in the memory hierarchy, and a twin in a mounted v2 tree for killing and for knowing when it is
//! empty. The twin needs no controllers.
//!
//! The count of OOM kills is the group's own: groups that a privileged worker makes below it keep theirs. An OOM kill by
//! the whole machine's killer is counted but not announced: it is seen when the first process dies, not before.
//!
//! Sources: the kernel's `admin-guide/cgroup-v1/memory.rst` and `mm/memcontrol-v1.c`.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::name;
use super::super::{
    DeathFacts, Fence, FenceError, FenceEvent, FenceLimits, FenceName, Handed, Leftover, Leftovers, LocalFuture,
    MemoryReading, Place, proc,
};
use super::comb::Comb;
use super::eventfd::Eventfd;
use super::files::{self, failed};
use super::group::{self, Group};
use super::hierarchy::{Home, Homes};
use super::leftovers;
use super::limits::{Places, Version};
use crate::sys::Birthplace;

const MEMORY: Option<&str> = Some("memory");

/// A look that the kernel asked for is repeated once after this: the counters lag a little behind the charge.
const AGAIN: Duration = Duration::from_millis(20);

/// How often to look where thresholds cannot be had.
const SAMPLE: Duration = Duration::from_secs(1);

/// The kernel announces an OOM kill before it counts it, and may write a long report in between.
const OOM_PATIENCE: Duration = Duration::from_secs(5);

/// The hierarchies in which workers get groups.
#[derive(Debug)]
pub(super) struct V1 {
    memory: Home,
    pids: Option<Home>,
    cpu: Option<Home>,
    unified: Option<Home>,
}

impl V1 {
    /// Use the hierarchies where this process may make groups below its own.
    ///
    /// # Errors
    /// Why memory cannot be limited.
    pub(super) fn probe(homes: &Homes) -> Result<Self, String> {
        let memory =
            homes.memory.clone().ok_or("no mounted hierarchy has the memory controller and shows our group")?;
        try_home(&memory).map_err(|error| format!("no groups can be made in {}: {error}", memory.dir.display()))?;
        let usable = |home: &Option<Home>| home.clone().filter(|home| try_home(home).is_ok());
        Ok(Self { memory, pids: usable(&homes.pids), cpu: usable(&homes.cpu), unified: usable(&homes.unified) })
    }

    /// One line about what is used.
    pub(super) fn describe(&self) -> String {
        let or_not = |home: &Option<Home>, what: &str| match home {
            Some(_) => format!(", with {what}"),
            None => format!(", without {what}"),
        };
        format!(
            "cgroup v1 below {}{}{}{}",
            self.memory.dir.display(),
            or_not(&self.unified, "cgroup.kill"),
            or_not(&self.pids, "pids"),
            or_not(&self.cpu, "cpu"),
        )
    }

    /// The fences of groups with somebody inside; empty ones are removed.
    pub(super) fn leftovers(&self, app: &str) -> Result<Leftovers, FenceError> {
        let homes = [Some(&self.memory), self.unified.as_ref(), self.pids.as_ref(), self.cpu.as_ref()];
        let mut found = Leftovers::default();
        for name in leftovers::of(homes.into_iter().flatten(), app) {
            let groups = self.groups(&name);
            if groups.all().all(|group| group.processes().is_empty()) {
                found.dead.push((name, facts(&groups.memory.dir)));
                for group in groups.all() {
                    group.remove().map_err(|error| failed(format!("removing {}", group.dir.display()), error))?;
                }
            } else {
                found.living.push(Leftover { name, fence: Rc::new(V1Fence::over(groups)?) });
            }
        }
        Ok(found)
    }

    /// See [`super::super::Isolation::take_back`]: the name says where its groups are.
    pub(super) fn take_back(&self, name: &FenceName) -> Result<Rc<dyn Fence>, FenceError> {
        Ok(Rc::new(V1Fence::over(self.groups(name))?))
    }

    fn groups(&self, name: &FenceName) -> Groups {
        let directory = name::of(name);
        let existing = |home: &Option<Home>| {
            home.as_ref().map(|home| Group::below(home, &directory)).filter(|group| group.dir.exists())
        };
        Groups {
            memory: Group::below(&self.memory, &directory),
            pids: existing(&self.pids),
            cpu: existing(&self.cpu),
            twin: existing(&self.unified),
        }
    }

    /// See [`super::super::Isolation::prepare`].
    pub(super) fn prepare(&self, name: &FenceName, limits: &FenceLimits) -> Result<V1Place<'_>, FenceError> {
        let directory = name::of(name);
        let mut made = Made::default();
        let mut create = |home| made.create(home, &directory);
        let pids = self.pids.as_ref().filter(|_| limits.tasks_max.is_some()).map(&mut create).transpose()?;
        let cpu = self.cpu.as_ref().filter(|_| limits.cpu_weight.is_some()).map(&mut create).transpose()?;
        let twin = self.unified.as_ref().map(&mut create).transpose()?;
        let memory = create(&self.memory)?;
        let groups = Groups { memory, pids, cpu, twin };
        groups.places().apply_new(limits)?;
        // Inherited from the parent; then a worker over its limit would hang for ever instead of dying.
        if oom_control(&groups.memory.dir, "oom_kill_disable").is_ok_and(|disabled| disabled != 0) {
            files::write(&groups.memory.dir, "memory.oom_control", "0")
                .map_err(|error| failed("enabling the OOM killer", error))?;
        }
        let birthplace = groups.birthplace();
        Ok(V1Place { fence: V1Fence::over(groups)?, birthplace, made })
    }
}

/// A worker's groups, with nobody inside.
pub(super) struct V1Place<'a> {
    fence: V1Fence,
    birthplace: Birthplace,
    made: Made<'a>,
}

impl Place for V1Place<'_> {
    fn birthplace(&self) -> &Birthplace {
        &self.birthplace
    }

    fn enclose(self: Box<Self>, gate: Pid) -> Result<Rc<dyn Fence>, FenceError> {
        let Self { fence, mut made, .. } = *self;
        made.gate = Some(gate);
        let elsewhere = fence.groups.without(gate)?;
        for group in &elsewhere {
            group.join(gate).map_err(|error| {
                failed(format!("moving process {} into {}", gate.as_raw_pid(), group.dir.display()), error)
            })?;
        }
        if !elsewhere.is_empty() && !fence.groups.without(gate)?.is_empty() {
            let what = format!("finding process {} in its groups", gate.as_raw_pid());
            return Err(failed(what, "it is elsewhere; is it over?"));
        }
        made.groups.clear();
        Ok(Rc::new(fence))
    }
}

/// New groups, which are removed again unless they are taken out.
#[derive(Default)]
struct Made<'a> {
    groups: Vec<(&'a Home, Group)>,
    /// Who may be inside.
    gate: Option<Pid>,
}

impl<'a> Made<'a> {
    fn create(&mut self, home: &'a Home, directory: &str) -> Result<Group, FenceError> {
        let group = Group::create(home, directory)
            .map_err(|error| failed(format!("making {}", home.dir.join(directory).display()), error))?;
        self.groups.push((home, group.clone()));
        Ok(group)
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for (home, group) in &self.groups {
            if let Some(gate) = self.gate {
                // It goes back to where it was; without that the group could not be removed.
                let _ = files::write(&home.dir, "cgroup.procs", &gate.as_raw_pid().to_string());
            }
            let _ = group.remove();
        }
    }
}

/// See that a group can be made and removed below a home.
fn try_home(home: &Home) -> io::Result<()> {
    Group::try_below(home)?.remove()
}

/// A worker's groups, one for each hierarchy that is used.
struct Groups {
    memory: Group,
    pids: Option<Group>,
    cpu: Option<Group>,
    twin: Option<Group>,
}

impl Groups {
    fn all(&self) -> impl Iterator<Item = &Group> {
        [Some(&self.memory), self.pids.as_ref(), self.cpu.as_ref(), self.twin.as_ref()].into_iter().flatten()
    }

    fn places(&self) -> Places {
        let dir = |group: &Option<Group>| group.as_ref().map(|group| group.dir.clone());
        Places { version: Version::V1, memory: self.memory.dir.clone(), pids: dir(&self.pids), cpu: dir(&self.cpu) }
    }

    /// Those that a process is not in.
    fn without(&self, gate: Pid) -> Result<Vec<&Group>, FenceError> {
        let found = proc::memberships(gate)
            .map_err(|error| failed(format!("finding process {} in its groups", gate.as_raw_pid()), error))?;
        let groups = [
            (Some(&self.memory), MEMORY),
            (self.pids.as_ref(), Some("pids")),
            (self.cpu.as_ref(), Some("cpu")),
            (self.twin.as_ref(), None),
        ];
        let without =
            |(group, controller): (Option<_>, _)| group.filter(|group: &&Group| !group.holds(&found, controller));
        Ok(groups.into_iter().filter_map(without).collect())
    }

    /// What cannot be opened is for whoever verifies.
    fn birthplace(&self) -> Birthplace {
        let tasks = [Some(&self.memory), self.pids.as_ref(), self.cpu.as_ref()].into_iter().flatten();
        Birthplace {
            cgroup: self.twin.as_ref().and_then(|twin| files::directory(&twin.dir).ok()),
            tasks: tasks.filter_map(|group| files::writable(&group.dir, "tasks").ok()).collect(),
        }
    }
}

fn oom_control(dir: &Path, key: &str) -> io::Result<u64> {
    files::value_of(&files::read(dir, "memory.oom_control")?, key).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What a group of the memory hierarchy holds.
fn reading(dir: &Path) -> io::Result<MemoryReading> {
    let stat = files::read(dir, "memory.stat")?;
    let value = |key| files::value_of(&stat, key).ok_or_else(|| io::Error::other(format!("memory.stat has no {key}")));
    // Absent where the kernel's own memory is not charged to groups.
    let kernel = match files::number(dir, "memory.kmem.usage_in_bytes") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        other => other?,
    };
    let limit = value("hierarchical_memory_limit")?;
    Ok(MemoryReading {
        current: files::number(dir, "memory.usage_in_bytes")?,
        unreclaimable: value("total_rss")?.saturating_add(value("total_shmem")?).saturating_add(kernel),
        peak: files::number(dir, "memory.max_usage_in_bytes").ok(),
        limit: (!files::is_in_force(u64::MAX, limit, true)).then_some(limit),
    })
}

/// A worker's fence.
struct V1Fence {
    groups: Groups,
    oom: Eventfd,
    state: RefCell<State>,
    /// The armed edge is another one.
    changed: Notify,
}

#[derive(Default)]
struct State {
    armed: Option<Armed>,
    /// Where the kernel lets us know; outlives an edge, for the next one is mostly higher.
    comb: Option<Rc<Comb>>,
    /// To be reported.
    reached: Option<MemoryReading>,
    /// Counted and reported.
    oom_kills: u64,
    /// An OOM was announced: when to look at the count, and when to give up.
    announced: Option<Announced>,
}

struct Armed {
    edge: u64,
    /// When to look.
    due: Option<Instant>,
    /// It is not the last look.
    again: bool,
}

#[derive(Clone, Copy)]
struct Announced {
    look_at: Instant,
    wait: Duration,
    until: Instant,
}

/// What a group's files tell of a death.
fn facts(dir: &Path) -> DeathFacts {
    DeathFacts {
        // Counted before the signal is sent (mm/oom_kill.c), so it is there when the death is.
        oom_killed: oom_control(dir, "oom_kill").ok().map(|count| count > 0),
        peak: files::number(dir, "memory.max_usage_in_bytes").ok(),
    }
}

impl V1Fence {
    fn over(groups: Groups) -> Result<Self, FenceError> {
        let what = "watching memory.oom_control";
        let oom = Eventfd::new().map_err(|error| failed(what, error))?;
        oom.register(&groups.memory.dir, "memory.oom_control", "").map_err(|error| failed(what, error))?;
        Ok(Self { groups, oom, state: RefCell::default(), changed: Notify::new() })
    }

    fn dir(&self) -> &Path {
        &self.groups.memory.dir
    }

    /// Arm, or report at once.
    fn place(&self, edge: u64) -> Result<(), FenceError> {
        let now = self.memory()?;
        let mut state = self.state.borrow_mut();
        if now.unreclaimable >= edge {
            state.reached = Some(now);
            return Ok(());
        }
        if !state.comb.as_ref().is_some_and(|comb| comb.serves(edge, now.limit)) {
            let comb =
                Comb::begin(self.dir(), edge, &now).map_err(|error| failed("watching memory.usage_in_bytes", error))?;
            state.comb = Some(Rc::new(comb));
        }
        // What was crossed meanwhile does not fire.
        state.armed = Some(Armed { edge, due: Some(Instant::now()), again: false });
        Ok(())
    }

    /// Look whether the edge was reached.
    fn look_at_memory(&self, now: Instant) -> Option<MemoryReading> {
        let mut state = self.state.borrow_mut();
        let blind = state.comb.as_ref().is_none_or(|comb| comb.has_failed());
        let armed = state.armed.as_mut().filter(|armed| armed.due.is_some_and(|due| due <= now))?;
        match self.memory() {
            Ok(reading) if reading.unreclaimable < armed.edge => {
                armed.due = if armed.again { Some(now + AGAIN) } else { blind.then(|| now + SAMPLE) };
                armed.again = false;
                None
            }
            Ok(reading) => {
                state.armed = None;
                Some(reading)
            }
            Err(_) => {
                // The group is gone.
                state.armed = None;
                None
            }
        }
    }

    /// Whether an OOM kill was counted that has not been reported.
    fn oom_kill_counted(&self) -> bool {
        let Ok(count) = oom_control(self.dir(), "oom_kill") else {
            return false;
        };
        let mut state = self.state.borrow_mut();
        if count > state.oom_kills {
            state.oom_kills = count;
            state.announced = None;
            true
        } else {
            false
        }
    }

    /// What the clock has brought; some: to be reported.
    fn look(&self, now: Instant) -> Option<FenceEvent> {
        let announced = self.state.borrow().announced;
        if let Some(announced) = announced.filter(|announced| announced.look_at <= now) {
            if self.oom_kill_counted() {
                // Here the kernel takes only one process; the rest of a worker is of no use to anybody.
                let _ = self.kill();
                return Some(FenceEvent::OomKill);
            }
            let wait = (announced.wait * 2).min(Duration::from_millis(250));
            self.state.borrow_mut().announced =
                (now < announced.until).then_some(Announced { look_at: now + wait, wait, until: announced.until });
        }
        let reached = self.state.borrow_mut().reached.take();
        reached.or_else(|| self.look_at_memory(now)).map(FenceEvent::Memory)
    }
}

async fn fired(watch: &Eventfd) {
    if watch.fired().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn combed(comb: Option<&Comb>) {
    match comb {
        Some(comb) => fired(comb.watch()).await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Fence for V1Fence {
    fn describe(&self) -> String {
        self.groups.memory.path.clone()
    }

    fn contains(&self, pid: Pid) -> bool {
        proc::memberships(pid).is_ok_and(|found| self.groups.memory.holds(&found, MEMORY))
    }

    fn memory(&self) -> Result<MemoryReading, FenceError> {
        reading(self.dir()).map_err(|error| failed(format!("reading the memory of {}", self.groups.memory.path), error))
    }

    fn arm(&self, edge: Option<u64>) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            {
                let mut state = self.state.borrow_mut();
                state.armed = None;
                state.reached = None;
            }
            let result = if let Some(edge) = edge {
                self.place(edge)
            } else {
                self.state.borrow_mut().comb = None;
                Ok(())
            };
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
                let (comb, due, look_at) = {
                    let state = self.state.borrow();
                    let due = state.armed.as_ref().and_then(|armed| armed.due);
                    // Nothing is to be heard while a look is due anyway.
                    let comb = state
                        .comb
                        .clone()
                        .filter(|_| state.armed.is_some() && due.is_none_or(|due| due > Instant::now() + AGAIN));
                    (comb, due, state.announced.map(|announced| announced.look_at))
                };
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = at(due) => {}
                    () = at(look_at) => {}
                    () = fired(&self.oom) => {
                        let now = Instant::now();
                        self.state.borrow_mut().announced =
                            Some(Announced { look_at: now, wait: Duration::from_millis(1), until: now + OOM_PATIENCE });
                    }
                    () = combed(comb.as_deref()) => {
                        if let Some(armed) = self.state.borrow_mut().armed.as_mut() {
                            armed.due = Some(Instant::now());
                            armed.again = true;
                        }
                    }
                }
            }
        })
    }

    fn set_limits<'a>(&'a self, limits: &'a FenceLimits) -> LocalFuture<'a, Result<Vec<String>, FenceError>> {
        Box::pin(async move { Ok(self.groups.places().apply_living(limits, self.memory()?.unreclaimable)) })
    }

    fn kill(&self) -> Result<(), FenceError> {
        let twin = match &self.groups.twin {
            Some(twin) if twin.can_kill() => twin.kill(),
            _ => Ok(()),
        };
        // Also those that only a privileged worker can have moved out of the twin.
        self.groups.memory.kill_each(|pid| self.contains(pid));
        twin.map_err(|error| failed(format!("killing {}", self.groups.memory.path), error))
    }

    fn death_facts(&self) -> LocalFuture<'_, DeathFacts> {
        Box::pin(async move { facts(self.dir()) })
    }

    fn sweep(&self) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            *self.state.borrow_mut() = State::default();
            let others: Vec<&Group> = self.groups.pids.iter().chain(&self.groups.cpu).collect();
            group::sweep(&self.groups.memory, MEMORY, self.groups.twin.as_ref(), &others)
                .await
                .map_err(|error| failed(format!("emptying {}", self.groups.memory.path), error))
        })
    }

    fn hand_over(&self) -> Handed<'_> {
        Handed::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_counts_what_cannot_be_reclaimed() {
        let dir = std::env::temp_dir().join(format!("paddock-v1-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        file(
            "memory.stat",
            "cache 900\nrss 1\ntotal_cache 900\ntotal_rss 500\ntotal_shmem 30\nhierarchical_memory_limit 4096\n",
        );
        file("memory.usage_in_bytes", "1500\n");
        file("memory.max_usage_in_bytes", "1600\n");
        let expected = MemoryReading { current: 1500, unreclaimable: 530, peak: Some(1600), limit: Some(4096) };
        assert_eq!(reading(&dir).unwrap(), expected);
        file("memory.kmem.usage_in_bytes", "7\n");
        assert_eq!(reading(&dir).unwrap().unreclaimable, 537);
        file("memory.stat", "cache 900\n");
        assert!(reading(&dir).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    /// The v1 hierarchy of this machine, without its v2 tree; none where groups cannot be made.
    fn without_twin(test: &str) -> Option<V1> {
        let found =
            super::super::hierarchy::own().map_err(|error| error.to_string()).and_then(|homes| V1::probe(&homes));
        match found {
            Ok(v1) => Some(V1 { unified: None, ..v1 }),
            Err(reason) => {
                let line = format!("SKIPPED {test}: no cgroup v1 here: {reason}\n");
                io::Write::write_all(&mut io::stderr(), line.as_bytes()).unwrap();
                None
            }
        }
    }

    #[test]
    fn without_a_twin_a_tree_is_killed_one_by_one() {
        let Some(v1) = without_twin("one by one") else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let script = "read go; for i in $(seq 90); do (setsid sleep 30 &); done; echo up; sleep 30";
            let mut child = std::process::Command::new("sh")
                .args(["-c", script])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let name = FenceName { app: format!("twinless-{}", std::process::id()), slot: 1, unique: "1".to_owned() };
            let fence =
                Box::new(v1.prepare(&name, &FenceLimits::default()).unwrap()).enclose(Pid::from_child(&child)).unwrap();
            let group = Group::below(&v1.memory, &name::of(&name));
            drop(child.stdin.take());
            // The shell and its output are inside until everybody is started.
            let mut output = child.stdout.take().unwrap();
            io::Read::read_exact(&mut output, &mut [0; 3]).unwrap();
            assert!(group.processes().len() > 90);
            let swept = tokio::time::timeout(Duration::from_secs(30), fence.sweep()).await;
            swept.unwrap().unwrap();
            assert!(!group.dir.exists());
            // Whoever lived would hold the pipe open.
            io::Read::read_to_end(&mut output, &mut Vec::new()).unwrap();
            assert!(!child.wait().unwrap().success());
        });
    }
}
