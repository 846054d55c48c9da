//! What the core needs to know of a generation's configuration: numbers only.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::model::{Ready, Signal};

/// A configuration resolved on this machine. Sizes in bytes; `Duration::MAX` means never.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How many workers, at least 1.
    pub workers: u32,
    /// What makes a worker ready.
    pub ready: Ready,
    /// What asks a worker to drain.
    pub drain_signal: Signal,
    /// `memory.max` of each worker.
    pub memory_max: Option<u64>,
    /// What the workers alive may hold together: each counts with its `memory_max`.
    pub memory_budget: Option<u64>,
    /// The soft limit, below `memory_max`.
    pub recycle_at: Option<u64>,
    /// Quota of requests; 0 is off.
    pub max_requests: u64,
    /// The most that jitter adds to a quota.
    pub max_requests_jitter: u64,
    /// Whether first lives of a generation end at staggered quotas and ages.
    pub spread: bool,
    /// Age at which a worker is replaced.
    pub max_lifetime: Option<Duration>,
    /// How many replacements may overlap the workers they replace.
    pub surge: u32,
    /// From exec to READY.
    pub start: Duration,
    /// Alive this long is ready.
    pub settle: Duration,
    /// Longest silence between pings.
    pub watchdog: Option<Duration>,
    /// A drain's bound.
    pub graceful: Duration,
    /// From SIGABRT to SIGKILL.
    pub abort: Duration,
    /// The second restart's delay; each further one is three times longer.
    pub backoff: Duration,
    /// The longest delay.
    pub backoff_max: Duration,
    /// How long a canary must stay up.
    pub hold: Duration,
    /// How many starts may be under way at a time, at least 1.
    pub parallel_starts: u32,
}
