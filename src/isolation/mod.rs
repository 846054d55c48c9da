//! Fences: one trait, one file for each mode.

pub mod cgroup;
pub mod fake;
pub(crate) mod name;
pub mod none;
pub mod proc;
pub mod scope;
pub mod select;

use std::future::Future;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::config::model::Signal;
use crate::sys::Birthplace;

/// A future that stays on the loop's thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The fence that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A transient systemd scope for each worker.
    Scope,
    /// A cgroup below the manager's own for each worker.
    Cgroup,
    /// No fence.
    None,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scope => "scope",
            Self::Cgroup => "cgroup",
            Self::None => "none",
        })
    }
}

/// Limits of one worker; unset: the system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FenceLimits {
    /// `memory.max`, bytes.
    pub memory_max: Option<u64>,
    /// `memory.swap.max`, bytes.
    pub swap_max: Option<u64>,
    /// `pids.max`; `u64::MAX` is infinity.
    pub tasks_max: Option<u64>,
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: Option<u64>,
}

/// How a worker is to be asked to end, for somebody else who stops its fence (systemd, at shutdown).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// The drain signal.
    pub signal: Signal,
    /// How long a drain may take.
    pub graceful: Duration,
}

/// Whose fence it is; unique within the machine's boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceName {
    /// The app.
    pub app: String,
    /// The slot.
    pub slot: u32,
    /// Never used before by this app in this boot.
    pub unique: String,
}

/// What memory a worker holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryReading {
    /// All that is charged to it.
    pub current: u64,
    /// What the kernel cannot reclaim: anon + shmem + kernel.
    pub unreclaimable: u64,
    /// The most that was ever charged to it, where the kernel says.
    pub peak: Option<u64>,
    /// The limit in force.
    pub limit: Option<u64>,
}

/// What a fence knows of a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeathFacts {
    /// Whether an OOM killer took a process of this worker; none: it could not be read.
    pub oom_killed: Option<bool>,
    /// The most memory that it ever held.
    pub peak: Option<u64>,
}

/// What a living worker's fence reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceEvent {
    /// The armed edge was reached (or, without a fence, a sample was taken). The edge is disarmed.
    Memory(MemoryReading),
    /// An OOM killer took a process of the worker.
    OomKill,
    /// Somebody else has the fence stopped, and leaves it to us to end the worker.
    StopRequested,
}

/// Why a fence could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct FenceError {
    /// What was tried, on which object.
    pub what: String,
    /// What the kernel or systemd said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// A fence that an earlier manager of the app left, with somebody inside.
pub struct Leftover {
    /// Whose it is.
    pub name: FenceName,
    /// The fence itself: it can be watched, killed and swept as if this manager had made it.
    pub fence: Rc<dyn Fence>,
}

/// What dead managers of an app left.
#[derive(Default)]
pub struct Leftovers {
    /// Fences with somebody inside.
    pub living: Vec<Leftover>,
    /// Workers that died while nobody watched, as far as their fences outlived them and say how. These fences are
    /// removed.
    pub dead: Vec<(FenceName, DeathFacts)>,
}

/// A fence on its way into the next image of this process.
#[derive(Debug, Default)]
pub struct Handed<'a> {
    /// What only its own mode understands.
    pub data: serde_json::Value,
    /// An open file that goes along.
    pub fd: Option<BorrowedFd<'a>>,
}

/// A way to put workers into fences of their own.
pub trait Isolation {
    /// Which mode this is.
    fn mode(&self) -> Mode;

    /// Make a new fence for a gate that is not started yet, where a process can be born in one; none: it can only be
    /// moved into one, with [`Isolation::enclose`]. Its limits are in force. On an error nothing is left of it.
    ///
    /// # Errors
    /// It could not be made.
    fn prepare<'a>(
        &'a self,
        _name: &'a FenceName,
        _limits: &'a FenceLimits,
    ) -> Result<Option<Box<dyn Place + 'a>>, FenceError> {
        Ok(None)
    }

    /// Put the blocked gate process `gate`, an unreaped child of ours, into a new fence and verify that it is inside
    /// with its limits in force. On an error nothing is left of the fence; the gate is still alive.
    fn enclose<'a>(
        &'a self,
        name: &'a FenceName,
        gate: Pid,
        limits: &'a FenceLimits,
    ) -> LocalFuture<'a, Result<Rc<dyn Fence>, FenceError>>;

    /// Fences that dead managers of this app left; empty ones are removed on the way.
    fn leftovers<'a>(&'a self, app: &'a str) -> LocalFuture<'a, Result<Leftovers, FenceError>>;

    /// How the workers of the next fences are to be asked to end; at first as it was said when this was made.
    fn set_drain(&self, _drain: Drain) {}

    /// Whether the system that makes the fences is shutting down, so that it will make no more; if that cannot be known, it
    /// is not.
    fn system_stops(&self) -> LocalFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }

    /// Go on with a fence that an earlier image of this process handed over with [`Fence::hand_over`], whether or not
    /// anybody is inside.
    ///
    /// # Errors
    /// It is not there any more, or what was handed over makes no sense.
    fn take_back(
        &self,
        name: &FenceName,
        data: &serde_json::Value,
        fd: Option<OwnedFd>,
    ) -> Result<Rc<dyn Fence>, FenceError>;
}

/// A fence that nobody is in yet. Dropping it removes it.
pub trait Place {
    /// Where to start the gate. To start it elsewhere is allowed, and slower.
    fn birthplace(&self) -> &Birthplace;

    /// Verify that the gate, an unreaped child of ours, is inside, or else move it there and verify that. On an error
    /// nothing is left of the fence; the gate is still alive.
    ///
    /// # Errors
    /// It is not inside.
    fn enclose(self: Box<Self>, gate: Pid) -> Result<Rc<dyn Fence>, FenceError>;
}

/// One worker's fence.
pub trait Fence {
    /// The scope's unit name, the cgroup's path, or the process group, for people and logs.
    fn describe(&self) -> String;

    /// Whether this process is inside now.
    fn contains(&self, pid: Pid) -> bool;

    /// What the worker holds now.
    fn memory(&self) -> Result<MemoryReading, FenceError>;

    /// Watch for this much unreclaimable memory (bytes), once; none: lift the edge. An edge that has been passed
    /// already is reported at once.
    fn arm(&self, edge: Option<u64>) -> LocalFuture<'_, Result<(), FenceError>>;

    /// The next thing to report; pending for ever when there is nothing to watch. Cancel-safe. One caller at a time.
    fn next_event(&self) -> LocalFuture<'_, FenceEvent>;

    /// Apply other limits to the living worker, as far as the kernel allows without killing it; returns what was not
    /// applied and why, for the log.
    fn set_limits<'a>(&'a self, limits: &'a FenceLimits) -> LocalFuture<'a, Result<Vec<String>, FenceError>>;

    /// SIGKILL to every process inside.
    fn kill(&self) -> Result<(), FenceError>;

    /// What there is to know about the death of the worker's first process; to be asked right after it, before
    /// [`Fence::sweep`].
    fn death_facts(&self) -> LocalFuture<'_, DeathFacts>;

    /// Kill what is left, wait until the fence is empty, remove it.
    fn sweep(&self) -> LocalFuture<'_, Result<(), FenceError>>;

    /// What the next image of this process needs to go on with it.
    fn hand_over(&self) -> Handed<'_>;
}
