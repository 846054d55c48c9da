//! What can happen.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{ConfigId, RequestId, SlotId, WorkerId};
use super::policy::Policy;
use crate::config::model::Signal;

/// Something that happened outside, or the passing of time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A deadline has come.
    Tick,
    /// [`super::action::Action::Start`] went well: the worker's program has been exec'd inside its fence.
    Started {
        /// Which.
        worker: WorkerId,
        /// Its first process, for messages only.
        pid: u32,
    },
    /// [`super::action::Action::Start`] failed; nothing is left of the worker, and neither `Exited` nor `Gone` follows.
    StartFailed {
        /// Which.
        worker: WorkerId,
        /// Why, as a fragment that reads after "could not start: ".
        error: String,
    },
    /// The worker's first process is over. Processes that it left are alive until `Gone`.
    Exited {
        /// Which.
        worker: WorkerId,
        /// All that is known about it.
        death: Death,
    },
    /// Nothing is left of the worker: its fence is empty and removed. Always after `Exited`.
    Gone {
        /// Which.
        worker: WorkerId,
    },
    /// The worker said something on its notify socket; the sender has been checked.
    Message {
        /// Which.
        worker: WorkerId,
        /// What.
        message: Message,
    },
    /// The armed memory edge was reached, or (without a fence) a sample was taken.
    Memory {
        /// Which.
        worker: WorkerId,
        /// Bytes that the kernel cannot reclaim: anon + shmem + kernel.
        unreclaimable: u64,
    },
    /// Somebody else has this worker's fence stopped, and asks for its end in place of a signal (systemd's `RequestStop`).
    StopRequested {
        /// Which.
        worker: WorkerId,
    },
    /// The system is shutting down (or the user's session manager is): what is started now would be stopped at once.
    SystemStopping,
    /// An operator asks, by signal (no `id`) or by control socket.
    Request {
        /// Whom to answer.
        id: Option<RequestId>,
        /// What.
        request: Request,
    },
}

/// What is known about a death, read before anything about it can vanish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// How the first process ended.
    pub ended: Ended,
    /// Whether an OOM killer took a process of this worker; none: it could not be read.
    pub oom_killed: Option<bool>,
    /// The most memory that it ever held, in bytes.
    pub peak: Option<u64>,
    /// Its last lines of output, oldest first, control characters escaped.
    pub last_words: Vec<String>,
}

/// How a process ended, as `waitid(2)` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It called exit with this status.
    Exit(i32),
    /// A signal ended it.
    Signal(Signal),
    /// It was not our child, and nobody could say.
    Unknown,
}

/// A worker's message: `sd_notify(3)` and paddock's extensions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// `READY=1`
    Ready,
    /// `STOPPING=1`
    Stopping,
    /// `STATUS=`, control characters escaped, bounded.
    Status(String),
    /// `WATCHDOG=1`
    Watchdog,
    /// `WATCHDOG=trigger`
    WatchdogTrigger,
    /// `EXTEND_TIMEOUT_USEC=`
    ExtendTimeout(Duration),
    /// `X_PADDOCK_REQUESTS=`: requests served in this life so far.
    Requests(u64),
    /// `X_PADDOCK_RECYCLE=1`: the worker asks for its replacement.
    Recycle,
}

/// What an operator can ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Replace every worker, under a new configuration.
    Reload {
        /// The runtime's number for it.
        config: ConfigId,
        /// What it says.
        policy: Box<Policy>,
    },
    /// Replace one worker.
    Recycle {
        /// Which.
        slot: SlotId,
    },
    /// Have so many workers.
    Scale {
        /// How many; 0 is refused.
        workers: u32,
    },
    /// TTIN, TTOU: one worker more or less, never below 1.
    ScaleBy {
        /// +1 or -1.
        by: i32,
    },
    /// Send a signal to the first process of one worker or of all.
    Signal {
        /// Which signal.
        signal: Signal,
        /// To whom; none: all.
        slot: Option<SlotId>,
    },
    /// Stop: drain, or at once.
    Stop {
        /// At once.
        fast: bool,
    },
    /// TERM: as `Stop { fast: false }`, and at once if already stopping.
    Terminate,
}
