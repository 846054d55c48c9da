//! What to do about it.

use serde::{Deserialize, Serialize};

use super::id::{ConfigId, Generation, RequestId, SlotId, WorkerId};
use super::note::Note;
use crate::config::model::Signal;

/// A deed for the runtime. Deeds are performed in order; every deed that can fail is answered by an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Make a worker. Answered by `Started` or `StartFailed`.
    Start(Start),
    /// Send a signal to the worker's first process. A worker that is not yet exec'd is ended instead
    /// (`StartFailed`). Not answered.
    Signal {
        /// Whom.
        worker: WorkerId,
        /// What.
        signal: Signal,
    },
    /// SIGKILL to every process of the worker, in every state, also while its start is under way. Not answered:
    /// `Exited` or `StartFailed` follows.
    Kill {
        /// Whom.
        worker: WorkerId,
    },
    /// The first process is over: kill what it left, wait until nothing is there, remove the fence. Answered by `Gone`.
    Sweep {
        /// Whose.
        worker: WorkerId,
    },
    /// One byte to each of the worker's pressure connections: shed caches now.
    Pulse {
        /// Whom.
        worker: WorkerId,
    },
    /// Watch for this much unreclaimable memory and report it once, as `Memory`; none: lift the edge. Arming an edge
    /// that has already been passed reports at once.
    ArmMemory {
        /// Whom.
        worker: WorkerId,
        /// Bytes.
        edge: Option<u64>,
    },
    /// Apply the limits of another configuration to a living worker, as far as the kernel allows.
    SetLimits {
        /// Whom.
        worker: WorkerId,
        /// From which configuration.
        config: ConfigId,
    },
    /// No worker and no roll uses this configuration any more.
    Forget {
        /// Which.
        config: ConfigId,
    },
    /// Answer a client.
    Reply {
        /// Whom.
        request: RequestId,
        /// What.
        response: Response,
    },
    /// Tell systemd.
    Tell(ServiceState),
    /// Say what happened: the log line and its fields.
    Note(Note),
    /// Leave with this exit code; no worker is left.
    Exit {
        /// 0 or 1.
        code: u8,
    },
}

/// How to make a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Its number.
    pub worker: WorkerId,
    /// Its place.
    pub slot: SlotId,
    /// Its generation.
    pub generation: Generation,
    /// The configuration to use.
    pub config: ConfigId,
    /// `PADDOCK_MAX_REQUESTS`: this life's quota, spread and jitter included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}

/// An answer to an operator's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done.
    Done {
        /// A sentence.
        message: String,
    },
    /// It is not done, or was undone.
    Failed {
        /// A sentence that says why.
        reason: String,
        /// Last lines of the worker that is to blame, oldest first.
        last_words: Vec<String>,
    },
    /// The request itself is wrong (exit code 2 for the client).
    Invalid {
        /// A sentence that says why.
        reason: String,
    },
}

/// What systemd is told: `sd_notify(3)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceState {
    /// `READY=1`
    Ready,
    /// `RELOADING=1` with `MONOTONIC_USEC=`; `Ready` follows.
    Reloading,
    /// `STOPPING=1`
    Stopping,
    /// `STATUS=`
    Status(String),
    /// `EXTEND_TIMEOUT_USEC=`
    ExtendTimeout(std::time::Duration),
}
