//! What `paddock status` knows: the answer to `Status` and, unchanged, the output of `paddock status --json`.
//!
//! Fields are only ever added. A client takes a report of another version: what it does not know it ignores, what is
//! missing has its default.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// One app.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// Its name.
    pub app: String,
    /// The manager's version.
    pub version: String,
    /// The manager's process.
    pub pid: u32,
    /// When this manager started, in seconds after 1970.
    pub since: u64,
    /// Seconds since then.
    pub uptime: f64,
    /// The newest generation that took over.
    pub generation: u64,
    /// `scope`, `cgroup` or `none`.
    pub isolation: String,
    /// Whether the app is being stopped.
    pub stopping: bool,
    /// Whether a failed roll left workers of several generations.
    pub mixed: bool,
    /// The roll under way.
    pub roll: Option<RollReport>,
    /// How many workers there shall be.
    pub workers_wanted: u32,
    /// How many are ready.
    pub ready: u32,
    /// Every worker and every empty slot, by slot, the older worker of a slot first.
    pub workers: Vec<WorkerReport>,
    /// The sockets that the workers accept on.
    pub listeners: Vec<ListenerReport>,
    /// Recycles since this manager started, by cause.
    pub recycles: BTreeMap<String, u64>,
    /// Restarts since this manager started, by verdict.
    pub restarts: BTreeMap<String, u64>,
}

impl StatusReport {
    /// Whether as many slots as wanted have a ready worker and none waits for its next start.
    pub fn every_slot_is_ready(&self) -> bool {
        let ready: BTreeSet<u32> =
            self.workers.iter().filter(|worker| worker.state == "ready").map(|worker| worker.slot).collect();
        let waiting = self.workers.iter().any(|worker| worker.state == "backoff" && !ready.contains(&worker.slot));
        !self.stopping
            && !waiting
            && self.workers_wanted > 0
            && u32::try_from(ready.len()).is_ok_and(|ready| ready >= self.workers_wanted)
    }
}

/// A roll under way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RollReport {
    /// What it is doing: `canary`, `hold`, `rolling`…
    pub phase: String,
    /// The generation that it brings.
    pub generation: u64,
}

/// One worker, or one empty slot.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// Its place.
    pub slot: u32,
    /// Its first process; none: the slot is empty.
    pub pid: Option<u32>,
    /// Its generation; none: the slot is empty.
    pub generation: Option<u64>,
    /// `starting`, `ready`, `draining`, `killing`, or `backoff` of an empty slot.
    pub state: String,
    /// Seconds since its start; none: the slot is empty.
    pub age: Option<f64>,
    /// Requests served in this life; none: the worker has not said.
    pub requests: Option<u64>,
    /// This life's quota, spread and jitter included; none: there is none.
    pub quota: Option<u64>,
    /// Requests served beyond the quota.
    pub overrun: u64,
    /// What it holds.
    pub memory: MemoryReport,
    /// Restarts of this slot since this manager started, by verdict.
    pub restarts: BTreeMap<String, u64>,
    /// How the slot's last worker ended.
    pub last_verdict: Option<String>,
    /// What happens next if nothing else does.
    pub next_deadline: Option<DeadlineReport>,
    /// Why it is being replaced, or is to be.
    pub cause: Option<String>,
    /// What the worker says of itself (`STATUS=`).
    pub status_text: Option<String>,
    /// The scope's unit, the cgroup, or the process group.
    pub fence: Option<String>,
}

/// Memory of one worker, in bytes; none: not known, or no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryReport {
    /// All that is charged to it.
    pub current: Option<u64>,
    /// What the kernel cannot reclaim: anon + shmem + kernel.
    pub unreclaimable: Option<u64>,
    /// The most that ever was charged to it.
    pub peak: Option<u64>,
    /// `memory.max`.
    pub limit: Option<u64>,
    /// The soft limit.
    pub recycle_at: Option<u64>,
    /// `limit - recycle_at`: what requests in flight may still allocate when the soft limit strikes.
    pub headroom: Option<u64>,
}

/// Something that a clock will bring.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeadlineReport {
    /// `start`, `settle`, `watchdog`, `graceful`, `abort`, `lifetime`, `backoff`, `hold`…
    pub name: String,
    /// When.
    pub in_seconds: f64,
}

/// A socket that the workers accept on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerReport {
    /// Its name in `LISTEN_FDNAMES`.
    pub name: String,
    /// `HOST:PORT`, `unix:PATH`, or what else it is.
    pub address: String,
}
