//! How things stand: what `paddock status` shows, apart from what the runtime adds (names, memory figures).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::id::{Generation, SlotId, WorkerId};
use super::recycle::Cause;
use super::rollout::Stage;
use super::time::Time;
use super::timers::{Clock, clock_name};
use super::verdict::Verdict;
use super::worker::{Drain, Phase, Worker};

/// The whole app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What restarts are made from.
    pub generation: Generation,
    /// How many workers are wanted.
    pub wanted: u32,
    /// Wanted slots with a ready worker.
    pub ready: u32,
    /// Whether workers of an undone generation serve beside those of the active one.
    pub mixed: bool,
    /// Whether the app stops.
    pub stopping: bool,
    /// Whether `READY=1` was said: every slot had its first outcome and one got ready.
    pub started: bool,
    /// The roll under way.
    pub roll: Option<RollView>,
    /// Whether a further roll follows it.
    pub roll_queued: bool,
    /// Every slot, lowest first, with its workers.
    pub slots: Vec<SlotView>,
    /// Every worker of which something is left, oldest first.
    pub workers: Vec<WorkerView>,
    /// Deaths since the manager began, by verdict.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// Planned replacements since the manager began, by cause.
    pub recycles: BTreeMap<Cause, u64>,
    /// The next deadline of all and its name.
    pub next_deadline: Option<(Time, String)>,
}

/// A roll under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollView {
    /// From which generation.
    pub from: Generation,
    /// To which.
    pub to: Generation,
    /// How far it is.
    pub stage: RollStage,
    /// The canary's slot, once it is chosen.
    pub canary: Option<SlotId>,
    /// Until when the canary must hold.
    pub holds_until: Option<Time>,
}

/// How far a roll is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RollStage {
    /// The canary is tried.
    Canary,
    /// The others follow.
    Rest,
    /// Back to the old configuration.
    Undoing,
}

/// A slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotView {
    /// Which.
    pub slot: SlotId,
    /// Whether a worker is to stand here; otherwise it is being given up.
    pub wanted: bool,
    /// Whose place it is; none: it is empty.
    pub worker: Option<WorkerId>,
    /// Who is about to take it over.
    pub replacement: Option<WorkerId>,
    /// No start before this: the backoff of an empty slot, or of the next try at a replacement.
    pub backoff_until: Option<Time>,
    /// Restarts in a row.
    pub restarts_in_a_row: u32,
    /// Deaths, by verdict.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// Planned replacements, by cause.
    pub recycles: BTreeMap<Cause, u64>,
    /// The last death: its verdict with the number that belongs to it.
    pub last_death: Option<String>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Which.
    pub worker: WorkerId,
    /// Its slot.
    pub slot: SlotId,
    /// Its generation.
    pub generation: Generation,
    /// Its first process, once it is exec'd.
    pub pid: Option<u32>,
    /// Its state.
    pub state: WorkerState,
    /// The first process is over; what it left is being removed.
    pub dead: bool,
    /// When the state began.
    pub since: Time,
    /// When it got ready.
    pub ready_at: Option<Time>,
    /// Requests that it counted.
    pub requests: Option<u64>,
    /// This life's quota.
    pub quota: Option<u64>,
    /// Requests beyond the quota.
    pub overrun: u64,
    /// This life's greatest age.
    pub lifetime: Option<Duration>,
    /// Why it is to be replaced.
    pub due: Option<Cause>,
    /// Why it drains or is killed: a cause, `stop`, or the verdict to come.
    pub reason: Option<String>,
    /// Its `STATUS=`.
    pub status: String,
    /// Bytes that the kernel could not reclaim, when they were last reported.
    pub unreclaimable: Option<u64>,
    /// Its soft limit in bytes.
    pub recycle_at: Option<u64>,
    /// Its hard limit in bytes.
    pub memory_max: Option<u64>,
    /// Its next deadline and what that is called.
    pub deadline: Option<(Time, String)>,
}

/// The states of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Not ready yet.
    Starting,
    /// Serving.
    Ready,
    /// Ending.
    Draining,
    /// Being ended.
    Killing,
}

impl WorkerState {
    /// The vocabulary's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Killing => "killing",
        }
    }
}

impl Supervisor {
    /// How things stand.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            generation: self.active.generation,
            wanted: self.wanted,
            ready: self.counts.serving,
            mixed: self.is_mixed(),
            stopping: self.stop.is_some(),
            started: self.told_ready,
            roll: self.roll.as_ref().map(|roll| RollView {
                from: roll.previous.generation,
                to: roll.target.generation,
                stage: match roll.stage {
                    Stage::Canary => RollStage::Canary,
                    Stage::Rest => RollStage::Rest,
                    Stage::Undoing => RollStage::Undoing,
                },
                canary: roll.slot,
                holds_until: roll.holds_until,
            }),
            roll_queued: self.next_roll.is_some(),
            slots: self
                .slots
                .iter()
                .map(|(id, slot)| SlotView {
                    slot: *id,
                    wanted: slot.wanted,
                    worker: slot.current,
                    replacement: slot.replacement,
                    backoff_until: slot.wait,
                    restarts_in_a_row: slot.strikes,
                    verdicts: slot.verdicts.clone(),
                    recycles: slot.recycles.clone(),
                    last_death: slot.last_death.clone(),
                })
                .collect(),
            workers: self.workers.iter().map(|(id, worker)| view(*id, worker)).collect(),
            verdicts: self.verdicts.clone(),
            recycles: self.recycles.clone(),
            next_deadline: self.next_deadline().map(|(at, name)| (at, name.to_owned())),
        }
    }
}

fn view(id: WorkerId, worker: &Worker) -> WorkerView {
    let deadline = Clock::ALL
        .into_iter()
        .filter_map(|clock| worker.clock(clock).map(|at| (at, clock_name(worker, clock))))
        .min()
        .map(|(at, name)| (at, name.to_owned()));
    let requests = worker.requests.unwrap_or(0);
    WorkerView {
        worker: id,
        slot: worker.slot,
        generation: worker.generation(),
        pid: worker.pid,
        state: match worker.phase {
            Phase::Asked | Phase::Starting => WorkerState::Starting,
            Phase::Ready => WorkerState::Ready,
            Phase::Draining => WorkerState::Draining,
            Phase::Aborting | Phase::Killing | Phase::Leftover => WorkerState::Killing,
        },
        dead: !worker.phase.is_alive(),
        since: worker.since,
        ready_at: worker.ready_at,
        requests: worker.requests,
        quota: worker.quota,
        overrun: worker.quota.map_or(0, |quota| requests.saturating_sub(quota)),
        lifetime: worker.lifetime,
        due: worker.due.map(|(cause, _)| cause),
        reason: worker.kill.map(Verdict::name).or_else(|| worker.drain.map(Drain::name)).map(str::to_owned),
        status: worker.status.clone(),
        unreclaimable: worker.unreclaimable,
        recycle_at: worker.recycle_at,
        memory_max: worker.memory_max,
        deadline,
    }
}
