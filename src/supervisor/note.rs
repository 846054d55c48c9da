//! What the core has to say: one note for each change worth a log line.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::{Generation, SlotId, WorkerId};

/// A sentence and the facts in it. The journal gets both; a terminal gets the sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How loud.
    pub level: Level,
    /// What kind of thing happened.
    pub kind: NoteKind,
    /// Where.
    pub slot: Option<SlotId>,
    /// To whom.
    pub worker: Option<WorkerId>,
    /// Its generation.
    pub generation: Option<Generation>,
    /// Its first process.
    pub pid: Option<u32>,
    /// Cause of a recycle or verdict of a death.
    pub reason: Option<String>,
    /// Unreclaimable bytes at the time, or the peak at a death.
    pub memory: Option<u64>,
    /// `memory.max` in bytes.
    pub limit: Option<u64>,
    /// The sentence, with the vocabulary's words, slot, pid, limit and peak in it.
    pub message: String,
}

/// journald's priorities, as far as paddock uses them (`syslog(3)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Worth waking someone.
    Error,
    /// Worth reading tomorrow.
    Warning,
    /// What happened.
    Info,
    /// How it happened.
    Debug,
}

/// Kinds of notes; each has a stable name (`PADDOCK_EVENT`) and, in the journal, a `MESSAGE_ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NoteKind {
    /// A worker's start was asked for.
    WorkerStarting,
    /// A worker is ready.
    WorkerReady,
    /// A worker is to be replaced; `reason` is the cause.
    RecycleDue,
    /// The drain signal went out; `reason` is the cause.
    DrainStarted,
    /// The soft limit's second edge: drained before its replacement was ready.
    DrainFirst,
    /// A planned replacement is done stop-first because there is no room to overlap.
    StopFirst,
    /// A worker is being killed; `reason` is the verdict to come.
    WorkerKilling,
    /// A worker is dead; `reason` is the verdict.
    WorkerDied,
    /// A worker could not be started; there was no death, so there is no verdict.
    StartFailed,
    /// A slot waits before its next start.
    Backoff,
    /// A roll began.
    ReloadStarted,
    /// A roll is over.
    ReloadDone,
    /// A roll was undone.
    ReloadUndone,
    /// The number of workers wanted has changed.
    Scaled,
    /// Every slot had its first outcome.
    ServiceReady,
    /// A stop began.
    ServiceStopping,
    /// Everything is over.
    ServiceStopped,
    /// A quota is set and nobody counts.
    NoRequestCount,
    /// Something else worth saying.
    Notice,
}

impl NoteKind {
    /// The stable name, as in `PADDOCK_EVENT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WorkerStarting => "worker-starting",
            Self::WorkerReady => "worker-ready",
            Self::RecycleDue => "recycle-due",
            Self::DrainStarted => "drain-started",
            Self::DrainFirst => "drain-first",
            Self::StopFirst => "stop-first",
            Self::WorkerKilling => "worker-killing",
            Self::WorkerDied => "worker-died",
            Self::StartFailed => "start-failed",
            Self::Backoff => "backoff",
            Self::ReloadStarted => "reload-started",
            Self::ReloadDone => "reload-done",
            Self::ReloadUndone => "reload-undone",
            Self::Scaled => "scaled",
            Self::ServiceReady => "service-ready",
            Self::ServiceStopping => "service-stopping",
            Self::ServiceStopped => "service-stopped",
            Self::NoRequestCount => "no-request-count",
            Self::Notice => "notice",
        }
    }
}

impl fmt::Display for NoteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
