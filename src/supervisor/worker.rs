//! One life of the app's command, as the core sees it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{ConfigId, Generation, SlotId};
use super::policy::Policy;
use super::recycle::Cause;
use super::shelf::is_default;
use super::time::Time;
use super::timers::{Alarm, Clock};
use super::verdict::Verdict;

/// A generation: its number and what it is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Release {
    pub(super) generation: Generation,
    pub(super) config: ConfigId,
    pub(super) policy: Policy,
}

/// Where a worker stands. The way leads downwards only; every step may be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Asked for; not exec'd yet, or not heard of.
    Asked,
    /// Exec'd, not ready.
    Starting,
    /// Serving.
    Ready,
    /// Told to end, or ending by itself.
    Draining,
    /// SIGABRT is out.
    Aborting,
    /// SIGKILL is out.
    Killing,
    /// The first process is over; what it left is being removed.
    Leftover,
}

impl Phase {
    /// Whether its first process may be alive.
    pub(super) fn is_alive(self) -> bool {
        self != Self::Leftover
    }

    /// Whether it counts as a start under way.
    pub(super) fn is_starting(self) -> bool {
        matches!(self, Self::Asked | Self::Starting)
    }

    /// Whether it is on its way out.
    pub(super) fn is_leaving(self) -> bool {
        self >= Self::Draining
    }
}

/// Why a worker drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Drain {
    /// It is to be replaced, or its slot is given up.
    Recycle(Cause),
    /// Its generation was given up before it was ready.
    Undone,
    /// It may have got ready while nobody listened.
    Unheard,
    /// The app stops.
    Stop,
    /// It said `STOPPING=1` unasked.
    Itself,
    /// Somebody else has its fence stopped.
    Outside,
}

impl Drain {
    /// The word for notes.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Recycle(cause) => cause.name(),
            Self::Undone => "undone",
            Self::Unheard => "unheard",
            Self::Stop => "stop",
            Self::Itself => "by itself",
            Self::Outside => "from outside",
        }
    }
}

/// How far the watch on a worker's memory has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Edge {
    /// The soft limit itself.
    First,
    /// Halfway between the soft and the hard limit.
    Second,
    /// Nothing is watched any more.
    Lifted,
}

/// One worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Worker {
    /// Written down once for all workers of it (`shelf`).
    #[serde(skip_serializing)]
    pub(super) release: Arc<Release>,
    pub(super) phase: Phase,
    /// `READY=1` overtook the news of the exec.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) said_ready: bool,
    /// `Gone` overtook `Exited`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) gone: bool,
    /// Whether our drain signal is out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) signalled: bool,
    /// It asked for its replacement itself.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) asked: bool,
    pub(super) last_ping: Time,
    /// In the order of [`Clock`].
    pub(super) alarms: [Alarm; Clock::COUNT],
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) requests: Option<u64>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) quota: Option<u64>,
    /// It is to be replaced, and since which point in the line.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) due: Option<(Cause, u64)>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) ready_at: Option<Time>,
    pub(super) slot: SlotId,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) pid: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) lifetime: Option<Duration>,
    /// When the phase began.
    pub(super) since: Time,
    /// Why it drains, if it does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) drain: Option<Drain>,
    /// Our SIGABRT or SIGKILL is out; the verdict that it makes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) kill: Option<Verdict>,
    pub(super) edge: Edge,
    /// How often SIGKILL had to be repeated.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) repeats: u32,
    /// The soft limit in force.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) recycle_at: Option<u64>,
    /// The hard limit in force; what the budget counts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) memory_max: Option<u64>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) unreclaimable: Option<u64>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) status: String,
}

impl Worker {
    /// A worker that has just been asked for.
    pub(super) fn new(
        slot: SlotId,
        release: Arc<Release>,
        quota: Option<u64>,
        lifetime: Option<Duration>,
        now: Time,
    ) -> Self {
        Self {
            slot,
            pid: None,
            quota,
            lifetime,
            phase: Phase::Asked,
            since: now,
            ready_at: None,
            said_ready: false,
            gone: false,
            drain: None,
            signalled: false,
            kill: None,
            repeats: 0,
            due: None,
            asked: false,
            edge: Edge::First,
            recycle_at: release.policy.recycle_at,
            memory_max: release.policy.memory_max,
            unreclaimable: None,
            requests: None,
            status: String::new(),
            last_ping: now,
            alarms: [Alarm::default(); Clock::COUNT],
            release,
        }
    }

    /// Its generation's rules.
    pub(super) fn policy(&self) -> &Policy {
        &self.release.policy
    }

    /// Its generation.
    pub(super) fn generation(&self) -> Generation {
        self.release.generation
    }

    /// How long it has been ready, if it ever was.
    pub(super) fn ready_for(&self, now: Time) -> Option<Duration> {
        self.ready_at.map(|at| now - at)
    }

    /// When this clock rings.
    pub(super) fn clock(&self, clock: Clock) -> Option<Time> {
        self.alarms.get(clock as usize).and_then(|alarm| alarm.at)
    }

    /// Bytes at which its memory matters next.
    pub(super) fn edge_bytes(&self) -> Option<u64> {
        match self.edge {
            Edge::First => self.recycle_at.or(self.memory_max),
            Edge::Second => self.second_edge(),
            Edge::Lifted => None,
        }
    }

    /// Halfway between the soft and the hard limit.
    pub(super) fn second_edge(&self) -> Option<u64> {
        let (low, high) = (self.recycle_at?, self.memory_max?);
        let middle = low.checked_add(high.checked_sub(low)? / 2)?;
        (middle > low).then_some(middle)
    }

    /// `slot 2 pid 4711`, the start of every sentence about it.
    pub(super) fn title(&self) -> String {
        self.pid.map_or_else(|| format!("slot {}", self.slot), |pid| format!("slot {} pid {pid}", self.slot))
    }
}
