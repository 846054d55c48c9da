//! The reference model: what one worker and one slot should look like, predicted from events and actions alone.

use std::rc::Rc;
use std::time::Duration;

use paddock::config::model::Ready;
use paddock::supervisor::event::{Death, Ended};
use paddock::supervisor::id::{ConfigId, Generation, SlotId};
use paddock::supervisor::policy::Policy;
use paddock::supervisor::snapshot::WorkerState;
use paddock::supervisor::time::Time;
use paddock::supervisor::verdict::Verdict;

/// Where a worker should stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Asked,
    Starting,
    Ready,
    Draining,
    Aborting,
    Killing,
    Leftover,
}

impl Phase {
    pub(crate) fn state(self) -> WorkerState {
        match self {
            Self::Asked | Self::Starting => WorkerState::Starting,
            Self::Ready => WorkerState::Ready,
            Self::Draining => WorkerState::Draining,
            Self::Aborting | Self::Killing | Self::Leftover => WorkerState::Killing,
        }
    }

    pub(crate) fn alive(self) -> bool {
        self < Self::Leftover
    }

    pub(crate) fn starting(self) -> bool {
        self <= Self::Starting
    }
}

/// The watch on a worker's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    First,
    Second,
    Lifted,
}

/// One worker.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) slot: SlotId,
    pub(crate) generation: Generation,
    pub(crate) config: ConfigId,
    pub(crate) policy: Rc<Policy>,
    pub(crate) quota: Option<u64>,
    pub(crate) lifetime: Option<Duration>,
    pub(crate) phase: Phase,
    pub(crate) since: Time,
    pub(crate) ready_at: Option<Time>,
    pub(crate) early_ready: bool,
    pub(crate) early_gone: bool,
    /// The one deadline of its state.
    pub(crate) deadline: Option<Time>,
    pub(crate) watchdog: Option<Time>,
    pub(crate) last_ping: Time,
    pub(crate) repeats: u32,
    /// The core's drain signal is out.
    pub(crate) signalled: bool,
    /// It said `STOPPING=1` unasked.
    pub(crate) stopping: bool,
    /// Its end was asked for by whoever stops its fence, before the core wanted it.
    pub(crate) outside: bool,
    pub(crate) kill: Option<Verdict>,
    pub(crate) requests: Option<u64>,
    pub(crate) asked: bool,
    pub(crate) edge: Edge,
    pub(crate) recycle_at: Option<u64>,
    pub(crate) memory_max: Option<u64>,
    /// When a masked edge must come back.
    pub(crate) mask: Option<Time>,
    /// It may have said READY while there was no manager.
    pub(crate) unheard: bool,
}

impl Life {
    pub(crate) fn new(slot: SlotId, generation: Generation, config: ConfigId, policy: Rc<Policy>, now: Time) -> Self {
        Self {
            slot,
            generation,
            config,
            quota: None,
            lifetime: None,
            phase: Phase::Asked,
            since: now,
            ready_at: None,
            early_ready: false,
            early_gone: false,
            deadline: finite(now, Duration::from_mins(1)),
            watchdog: None,
            last_ping: now,
            repeats: 0,
            signalled: false,
            stopping: false,
            outside: false,
            kill: None,
            requests: None,
            asked: false,
            edge: Edge::First,
            recycle_at: policy.recycle_at,
            memory_max: policy.memory_max,
            mask: None,
            unheard: false,
            policy,
        }
    }

    /// Moves on; the deadline of the new state replaces that of the old one.
    pub(crate) fn enter(&mut self, phase: Phase, now: Time) {
        self.phase = phase;
        self.since = now;
        let span = match phase {
            Phase::Asked => Some(Duration::from_mins(1)),
            Phase::Starting if self.policy.ready == Ready::Settle => Some(self.policy.settle),
            Phase::Starting => Some(self.policy.start),
            Phase::Ready => None,
            Phase::Draining => Some(self.policy.graceful),
            Phase::Aborting => Some(self.policy.abort),
            Phase::Killing | Phase::Leftover => Some(Duration::from_secs(5)),
        };
        self.deadline = span.and_then(|span| finite(now, span));
        if phase == Phase::Ready {
            self.ready_at = Some(now);
            self.last_ping = now;
            self.watchdog = self.policy.watchdog.and_then(|span| finite(now, span));
        } else {
            self.watchdog = None;
        }
        if phase > Phase::Ready {
            self.mask = None;
        }
    }

    pub(crate) fn ping(&mut self, now: Time) {
        if self.phase != Phase::Ready {
            return;
        }
        if let Some(span) = self.policy.watchdog {
            self.last_ping = now;
            self.watchdog = self.watchdog.max(finite(now, span));
        }
    }

    pub(crate) fn extend(&mut self, span: Duration, now: Time) {
        let (kept, from, configured) = match self.phase {
            Phase::Starting if self.policy.ready == Ready::Notify => {
                (&mut self.deadline, self.since, self.policy.start)
            }
            Phase::Draining => (&mut self.deadline, self.since, self.policy.graceful),
            Phase::Ready => {
                let Some(configured) = self.policy.watchdog else { return };
                (&mut self.watchdog, self.last_ping, configured)
            }
            _ => return,
        };
        let wanted = now.after(span).min(from.after(configured * 10));
        *kept = (*kept).max(Some(wanted));
    }

    /// The verdict that a death now must get.
    pub(crate) fn verdict(&self, death: &Death) -> Verdict {
        match (death.oom_killed, self.kill, self.signalled, death.ended) {
            (Some(true), ..) => Verdict::OomKill,
            (_, Some(ours), ..) => ours,
            (_, _, true, _) => Verdict::Drained,
            (_, _, _, Ended::Exit(_)) => Verdict::Exit,
            (_, _, _, Ended::Signal(_)) => Verdict::Signal,
            (_, _, _, Ended::Unknown) => Verdict::Unknown,
        }
    }

    /// The bytes at which its memory matters next.
    pub(crate) fn edge_bytes(&self) -> Option<u64> {
        match self.edge {
            Edge::First => self.recycle_at.or(self.memory_max),
            Edge::Second => self.second(),
            Edge::Lifted => None,
        }
    }

    pub(crate) fn second(&self) -> Option<u64> {
        let (low, high) = (self.recycle_at?, self.memory_max?);
        (high > low + 1).then(|| low + (high - low) / 2)
    }

    /// What the budget must count for it.
    pub(crate) fn weight(&self) -> u64 {
        self.memory_max.unwrap_or(0)
    }
}

/// A point in time, unless it is never.
pub(crate) fn finite(from: Time, span: Duration) -> Option<Time> {
    let at = from.after(span);
    (at.since_boot() < Duration::MAX).then_some(at)
}

/// One slot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub(crate) had_outcome: bool,
    /// The newest generation that was ready here.
    pub(crate) spread: Option<Generation>,
    pub(crate) strikes: u32,
    /// None: not known, after a roll.
    pub(crate) last_delay: Option<Duration>,
    /// Failed starts in a row since the canary held, or since the roll was stopped.
    pub(crate) failures: u32,
}
