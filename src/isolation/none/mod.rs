//! Mode `none`: no fence. A worker is its first process, what descends from it, and what shares its session.
//!
//! What has left both, by forking twice and starting a session of its own, comes back to the manager as an orphan
//! (`PR_SET_CHILD_SUBREAPER`, prctl(2)) and is recognised if it was seen before it left, or by the variable
//! [`MARKER`] in the environment that it was started with. A daemon that was never seen and has overwritten its
//! environment, or runs as somebody whose environment we may not read, is not found: that takes a real fence.

mod census;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::census::{Census, Table};
use super::proc::{self, Stat};
use super::{
    DeathFacts, Fence, FenceError, FenceEvent, FenceLimits, FenceName, Handed, Isolation, Leftover, Leftovers,
    LocalFuture, MemoryReading, Mode,
};
use crate::aside::aside;
use crate::sys;

/// The environment variable that marks every process of a worker; its value is [`marker`].
pub const MARKER: &str = "PADDOCK_WORKER";

/// How often memory is looked at while an edge is armed.
const SAMPLE: Duration = Duration::from_secs(1);

/// How long ago who is inside may have been seen, for knowing what they hold.
const SEEN: Duration = Duration::from_millis(500);

/// The same for killing them; nobody escapes by being younger, for what they leave is swept.
const JUST_SEEN: Duration = Duration::from_millis(50);

/// Of so many senders it is remembered that they were inside; a look at the whole tree forgets those that are gone.
const MOST_KNOWN: usize = 1024;

/// The value of [`MARKER`] for a worker: no other life of any worker has the same.
pub fn marker(name: &FenceName) -> String {
    format!("{}-{}-{}", name.app, name.slot, name.unique)
}

/// Whose marker it is; an app's name may have dashes, the rest has none.
pub(crate) fn parse_marker(marker: &str) -> Option<FenceName> {
    let mut parts = marker.rsplitn(3, '-');
    let (unique, slot, app) = (parts.next()?, parts.next()?, parts.next()?);
    Some(FenceName { app: app.to_owned(), slot: slot.parse().ok()?, unique: unique.to_owned() })
}

/// No fences.
pub struct NoneIsolation {
    /// First processes of the workers that have not been swept.
    leaders: Rc<RefCell<HashSet<Pid>>>,
    census: Rc<Census>,
}

impl NoneIsolation {
    /// Make orphans come back to this process.
    ///
    /// # Errors
    /// What `prctl(2)` says.
    pub fn new() -> io::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Self { leaders: Rc::default(), census: Rc::default() })
    }
}

impl Isolation for NoneIsolation {
    fn mode(&self) -> Mode {
        Mode::None
    }

    fn leftovers<'a>(&'a self, app: &'a str) -> LocalFuture<'a, Result<Leftovers, FenceError>> {
        Box::pin(async move {
            let failed =
                |error: io::Error| FenceError { what: "looking at processes".to_owned(), source: error.into() };
            // The oldest process with a marker is the worker's first: every other one inherited it later.
            let mut first: HashMap<String, (u64, Pid)> = HashMap::new();
            for pid in proc::all().map_err(failed)? {
                let Some(marker) = proc::variable(pid, MARKER) else { continue };
                let Ok(stat) = proc::stat(pid) else { continue };
                let found = (stat.start_time, pid);
                let oldest = first.entry(marker).or_insert(found);
                if found.0 < oldest.0 {
                    *oldest = found;
                }
            }
            let leftovers = first.into_iter().filter_map(|(marker, (started, leader))| {
                let name = parse_marker(&marker).filter(|name| name.app == app)?;
                Some(Leftover { name, fence: self.fence(leader, started, marker, None) })
            });
            Ok(Leftovers { living: leftovers.collect(), dead: Vec::new() })
        })
    }

    fn enclose<'a>(
        &'a self,
        name: &'a FenceName,
        gate: Pid,
        limits: &'a FenceLimits,
    ) -> LocalFuture<'a, Result<Rc<dyn Fence>, FenceError>> {
        Box::pin(async move {
            let first = proc::stat(gate).map_err(|error| FenceError {
                what: format!("looking at process {}", gate.as_raw_pid()),
                source: error.into(),
            })?;
            Ok(self.fence(gate, first.start_time, marker(name), limits.memory_max))
        })
    }

    fn take_back(
        &self,
        name: &FenceName,
        data: &serde_json::Value,
        _fd: Option<OwnedFd>,
    ) -> Result<Rc<dyn Fence>, FenceError> {
        let handed: HandedTree = HandedTree::deserialize(data)
            .map_err(|error| FenceError { what: "taking up a worker's processes".to_owned(), source: error.into() })?;
        let leader = Pid::from_raw(handed.leader).ok_or_else(|| FenceError {
            what: "taking up a worker's processes".to_owned(),
            source: "its first process has no number".into(),
        })?;
        let known = handed.known.into_iter().filter_map(|(pid, started)| Some((Pid::from_raw(pid)?, started)));
        Ok(self.watched(leader, handed.started, marker(name), handed.limit, known.collect()))
    }
}

impl NoneIsolation {
    fn fence(&self, leader: Pid, started: u64, marker: String, limit: Option<u64>) -> Rc<dyn Fence> {
        self.watched(leader, started, marker, limit, HashMap::from([(leader, started)]))
    }

    fn watched(
        &self,
        leader: Pid,
        started: u64,
        marker: String,
        limit: Option<u64>,
        known: HashMap<Pid, u64>,
    ) -> Rc<dyn Fence> {
        self.leaders.borrow_mut().insert(leader);
        Rc::new(NoFence {
            leader,
            started,
            marker,
            limit: Cell::new(limit),
            known: RefCell::new(known),
            leaders: Rc::clone(&self.leaders),
            census: Rc::clone(&self.census),
            own: rustix::process::getpid(),
            edge: Cell::new(None),
            changed: Notify::new(),
            last: Cell::new(None),
        })
    }
}

/// What the next image of this process is told.
#[derive(Serialize, Deserialize)]
struct HandedTree {
    leader: i32,
    started: u64,
    limit: Option<u64>,
    known: Vec<(i32, u64)>,
}

/// Processes, and what is known of them.
type Members = Vec<(Pid, Stat)>;

struct NoFence {
    leader: Pid,
    /// Start time of the first process.
    started: u64,
    marker: String,
    limit: Cell<Option<u64>>,
    /// Processes that were seen inside, with their start times: they stay inside whatever they do.
    known: RefCell<HashMap<Pid, u64>>,
    leaders: Rc<RefCell<HashSet<Pid>>>,
    census: Rc<Census>,
    /// This process.
    own: Pid,
    /// The armed edge, and when to look next.
    edge: Cell<Option<(u64, Instant)>>,
    changed: Notify,
    /// The last sample, and when it was taken.
    last: Cell<Option<(MemoryReading, Instant)>>,
}

impl NoFence {
    fn is_first(&self, pid: Pid, stat: &Stat) -> bool {
        pid == self.leader && stat.start_time == self.started
    }

    /// Whether this process is inside, going by itself and its ancestors.
    fn is_member(&self, pid: Pid, stat: &Stat, all: &dyn Fn(Pid) -> Option<Stat>) -> bool {
        let (mut pid, mut stat) = (pid, *stat);
        // The chain of parents has no loops, but it is read while it changes.
        for _ in 0..1024 {
            if pid == self.own {
                return false;
            }
            if self.is_inside_by_itself(pid, &stat, all) {
                return true;
            }
            let Some(parent) = Pid::from_raw(stat.parent) else {
                return false;
            };
            let Some(found) = all(parent) else {
                return false;
            };
            (pid, stat) = (parent, found);
        }
        false
    }

    fn is_inside_by_itself(&self, pid: Pid, stat: &Stat, all: &dyn Fn(Pid) -> Option<Stat>) -> bool {
        if self.known.borrow().get(&pid) == Some(&stat.start_time) {
            return true;
        }
        // A worker's first process is never part of another worker.
        if self.leaders.borrow().contains(&pid) && pid != self.leader {
            return false;
        }
        // The number of a session stays taken while anybody is in it, so it can only be a stranger's if a stranger
        // with the first process's number leads it.
        if stat.session == self.leader.as_raw_pid()
            && all(self.leader).is_none_or(|leader| leader.start_time == self.started)
        {
            return true;
        }
        // Only of orphans that came back: reading an environment takes a lock of its process, so not of everybody.
        stat.parent == self.own.as_raw_pid() && proc::started_with(pid, MARKER, &self.marker)
    }

    /// Everybody inside, zombies too; what is seen is remembered.
    async fn members(&self) -> io::Result<Members> {
        Ok(self.members_among(&*self.census.look().await?))
    }

    fn members_among(&self, table: &Table) -> Members {
        let look = |pid: Pid| table.get(pid);
        let mut found: HashMap<Pid, Stat> = HashMap::new();
        // Whoever may be inside by itself, and what descends from those that are.
        let mut to_see: Vec<Pid> = self.known.borrow().keys().copied().collect();
        to_see.extend(table.session(self.leader).iter().chain(table.children(self.own)));
        to_see.retain(|&pid| look(pid).is_some_and(|stat| self.is_inside_by_itself(pid, &stat, &look)));
        while let Some(pid) = to_see.pop() {
            if let Some(stat) = look(pid).filter(|_| pid != self.own)
                && found.insert(pid, stat).is_none()
            {
                to_see.extend(table.children(pid));
            }
        }
        let mut known = self.known.borrow_mut();
        known.retain(|&pid, &mut started| table.may_live(pid, started));
        known.extend(found.iter().map(|(&pid, stat)| (pid, stat.start_time)));
        found.into_iter().collect()
    }

    /// SIGKILL to everybody inside. Who was not seen, because it is that young, is killed when what is left is swept.
    fn kill_all(&self) -> io::Result<()> {
        let mut members = self.members_among(&*self.census.recent_now(JUST_SEEN)?);
        if let Ok(first) = proc::stat(self.leader)
            && first.start_time == self.started
            && members.iter().all(|(pid, _)| *pid != self.leader)
        {
            members.push((self.leader, first));
        }
        Hunt::default().kill(&members);
        Ok(())
    }

    async fn empty(&self) -> io::Result<()> {
        loop {
            let mut hunt = Hunt::default();
            let mut members = self.members().await?;
            while hunt.kill(&members) {
                members = self.members().await?;
            }
            if !hunt.signalled.is_empty() {
                for pidfd in hunt.signalled {
                    sys::watch(pidfd, Interest::READABLE)?.readable().await?.retain_ready();
                }
                members = self.members().await?;
            }
            let own = self.own.as_raw_pid();
            let mut waiting = false;
            let inside: HashSet<i32> = members.iter().map(|(pid, _)| pid.as_raw_pid()).collect();
            for (pid, stat) in members {
                if stat.is_over()
                    && (self.is_first(pid, &stat) || (stat.parent != own && !inside.contains(&stat.parent)))
                {
                    // Whoever started it reaps it, or whoever it came to.
                } else if stat.is_over() && stat.parent == own {
                    // An orphan that came back to us.
                    let _ = rustix::process::waitid(
                        rustix::process::WaitId::Pid(pid),
                        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
                    );
                } else {
                    waiting = true;
                }
            }
            if !waiting {
                return Ok(());
            }
            // Somebody is on the way from its dead parent to us, which nothing announces.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What its processes hold together; who is gone by now holds nothing.
    fn total(&self, held: impl IntoIterator<Item = Option<(u64, u64)>>) -> MemoryReading {
        let mut sum = MemoryReading { limit: self.limit.get(), ..MemoryReading::default() };
        for (current, unreclaimable) in held.into_iter().flatten() {
            sum.current = sum.current.saturating_add(current);
            sum.unreclaimable = sum.unreclaimable.saturating_add(unreclaimable);
        }
        sum
    }

    fn living(&self, table: &Table) -> Vec<Pid> {
        let members = self.members_among(table).into_iter();
        members.filter(|(_, stat)| !stat.is_over()).map(|(pid, _)| pid).collect()
    }

    async fn sample(&self) -> io::Result<MemoryReading> {
        let pids = self.living(&*self.census.recent(SEEN).await?);
        let reading = if pids.len() > 1 {
            // What a tree shares would be counted many times over; the exact way may block, so not on this thread.
            let look = move || pids.into_iter().map(proc::proportional).collect::<Vec<_>>();
            self.total(aside(look).await?)
        } else {
            self.total(pids.into_iter().map(proc::resident))
        };
        self.last.set(Some((reading, Instant::now())));
        Ok(reading)
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> FenceError {
        let what = format!("{what} {}", self.describe());
        move |error| FenceError { what, source: error.into() }
    }
}

/// Killing a tree, look by look.
#[derive(Default)]
struct Hunt {
    seen: HashSet<(Pid, u64)>,
    /// Pidfds of some that were signalled.
    signalled: Vec<OwnedFd>,
}

impl Hunt {
    /// SIGKILL to those that were not seen before; whether there were any.
    fn kill(&mut self, members: &Members) -> bool {
        let mut new: Members = members
            .iter()
            .filter(|(pid, stat)| !stat.is_over() && self.seen.insert((*pid, stat.start_time)))
            .copied()
            .collect();
        // Parents first, or the first process may see its child die and end by itself.
        new.sort_unstable_by_key(|&(pid, stat)| (stat.start_time, pid.as_raw_pid()));
        for (pid, stat) in &new {
            let Ok(pidfd) = rustix::process::pidfd_open(*pid, PidfdFlags::empty()) else {
                continue;
            };
            // Between the look and the pidfd the number may have gone to somebody else.
            let same = proc::stat(*pid).is_ok_and(|now| now.start_time == stat.start_time);
            if same
                && rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
                && self.signalled.len() < proc::MOST_AWAITED
            {
                self.signalled.push(pidfd);
            }
        }
        !new.is_empty()
    }
}

impl Fence for NoFence {
    fn describe(&self) -> String {
        format!("session {}", self.leader.as_raw_pid())
    }

    fn contains(&self, pid: Pid) -> bool {
        let look = |pid| proc::stat(pid).ok();
        let Some(stat) = look(pid) else { return false };
        let inside = self.is_member(pid, &stat, &look);
        if inside {
            let mut known = self.known.borrow_mut();
            if known.len() < MOST_KNOWN {
                known.insert(pid, stat.start_time);
            }
        }
        inside
    }

    fn memory(&self) -> Result<MemoryReading, FenceError> {
        if let Some((reading, _)) = self.last.get().filter(|(_, taken)| taken.elapsed() < 2 * SAMPLE) {
            return Ok(reading);
        }
        let table = self.census.recent_now(SEEN).map_err(self.failed("reading the memory of"))?;
        let pids = self.living(&table);
        Ok(self.total(pids.into_iter().map(proc::resident)))
    }

    fn arm(&self, edge: Option<u64>) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            self.edge.set(edge.map(|edge| (edge, Instant::now())));
            self.changed.notify_one();
            Ok(())
        })
    }

    fn next_event(&self) -> LocalFuture<'_, FenceEvent> {
        Box::pin(async move {
            loop {
                let wait = async {
                    match self.edge.get() {
                        Some((_, look_at)) => tokio::time::sleep_until(look_at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = self.changed.notified() => continue,
                    () = wait => {}
                }
                let Some((edge, look_at)) = self.edge.get() else {
                    continue;
                };
                let sample = self.sample().await;
                if self.edge.get() != Some((edge, look_at)) {
                    // Another edge was armed, or this one lifted, meanwhile.
                    continue;
                }
                match sample {
                    Ok(reading) if reading.unreclaimable >= edge => {
                        self.edge.set(None);
                        return FenceEvent::Memory(reading);
                    }
                    _ => self.edge.set(Some((edge, Instant::now() + SAMPLE))),
                }
            }
        })
    }

    fn set_limits<'a>(&'a self, limits: &'a FenceLimits) -> LocalFuture<'a, Result<Vec<String>, FenceError>> {
        Box::pin(async move {
            self.limit.set(limits.memory_max);
            Ok(not_enforced(limits))
        })
    }

    fn kill(&self) -> Result<(), FenceError> {
        self.kill_all().map_err(self.failed("killing"))
    }

    fn death_facts(&self) -> LocalFuture<'_, DeathFacts> {
        // Whom the kernel's OOM killer took is not counted anywhere for a process alone.
        Box::pin(async { DeathFacts::default() })
    }

    fn sweep(&self) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            self.edge.set(None);
            self.empty().await.map_err(self.failed("emptying"))?;
            self.leaders.borrow_mut().remove(&self.leader);
            Ok(())
        })
    }

    fn hand_over(&self) -> Handed<'_> {
        let known = self.known.borrow().iter().map(|(pid, started)| (pid.as_raw_pid(), *started)).collect();
        let tree =
            HandedTree { leader: self.leader.as_raw_pid(), started: self.started, limit: self.limit.get(), known };
        // Numbers always have a form.
        Handed { data: serde_json::to_value(tree).unwrap_or_default(), fd: None }
    }
}

impl Drop for NoFence {
    fn drop(&mut self) {
        self.leaders.borrow_mut().remove(&self.leader);
    }
}

/// What of these limits has no effect without a fence.
pub fn not_enforced(limits: &FenceLimits) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(max) = limits.memory_max {
        found.push(format!(
            "memory.max {max} is not enforced without a fence: memory is looked at every second, and a worker that \
             holds too much is recycled"
        ));
    }
    if let Some(max) = limits.swap_max.filter(|&max| max > 0 && max != u64::MAX) {
        found.push(format!("memory.swap_max {max} is not enforced without a fence"));
    }
    if let Some(max) = limits.tasks_max.filter(|&max| max != u64::MAX) {
        found.push(format!("limits.tasks_max {max} is not enforced without a fence"));
    }
    if let Some(weight) = limits.cpu_weight {
        found.push(format!("limits.cpu_weight {weight} has no effect without a fence"));
    }
    found
}
