//! A worker's place, and the bookkeeping that follows from who stands in it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::id::{Generation, RequestId, SlotId, WorkerId};
use super::recycle::Cause;
use super::rollout::Stage;
use super::shelf::is_default;
use super::time::Time;
use super::verdict::Verdict;
use super::worker::Phase;

/// One slot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Slot {
    /// Whether a worker is to stand here; otherwise it is being given up.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) wanted: bool,
    /// Whose place it is now.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) current: Option<WorkerId>,
    /// Who is started beside `current`, to take its place.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) replacement: Option<WorkerId>,
    /// Workers of this slot of which something may be left, `current` and `replacement` included.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) members: u32,
    /// The newest generation that had a ready worker here: its first life is over or under way.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) spread: Option<Generation>,
    /// Whether its first worker has had its outcome.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) had_outcome: bool,
    /// Restarts in a row, and the last delay before one.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) strikes: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) last_delay: Duration,
    /// No start before this.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) wait: Option<Time>,
    /// Starts that failed in a row during this roll.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) failures: u32,
    /// Its worker of an undone generation stays because the old configuration does not start.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) kept: bool,
    /// Lives in a row that were over the soft limit as soon as they were ready.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) hot: u32,
    /// Deaths so far, by verdict.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) verdicts: BTreeMap<Verdict, u64>,
    /// Planned replacements so far, by cause.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) recycles: BTreeMap<Cause, u64>,
    /// The last death.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) last_death: Option<String>,
    /// Clients that wait for a recycle, and the worker they want to be rid of.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) asked: Vec<(RequestId, Option<WorkerId>)>,
    /// What the indices below hold for this slot.
    listed: Listed,
}

/// What `refresh` has entered into the indices, so that it can take it out again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Listed {
    #[serde(skip_serializing_if = "is_default")]
    occupied: bool,
    #[serde(skip_serializing_if = "is_default")]
    serving: bool,
    /// How many restarts in a row it had: who fails less goes first.
    #[serde(skip_serializing_if = "is_default")]
    vacant: Option<u32>,
    #[serde(skip_serializing_if = "is_default")]
    uncovered: bool,
    #[serde(skip_serializing_if = "is_default")]
    queued: Option<(Cause, u64, WorkerId)>,
}

/// What a worker was to its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The slot's own.
    Current,
    /// About to take its place.
    Replacement,
    /// Replaced already.
    Former,
}

impl Slot {
    /// Takes a worker out of its place; a replacement moves up.
    pub(super) fn detach(&mut self, id: WorkerId) -> Role {
        if self.current == Some(id) {
            self.current = self.replacement.take();
            Role::Current
        } else if self.replacement == Some(id) {
            self.replacement = None;
            Role::Replacement
        } else {
            Role::Former
        }
    }
}

impl Supervisor {
    /// Brings the counts and lists that follow from one slot up to date. To be called after every change to a slot or
    /// to the phase of its current worker.
    pub(super) fn refresh(&mut self, id: SlotId) {
        // A canary that is being tried is not replaced, whatever it is due for.
        let tried = self.roll.as_ref().filter(|roll| roll.stage == Stage::Canary).and_then(|roll| roll.worker);
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let current = slot.current.and_then(|id| self.workers.get(&id).map(|worker| (id, worker)));
        let free = slot.wanted && slot.wait.is_none();
        let alone = slot.replacement.is_none();
        let phase = current.map(|(_, worker)| worker.phase);
        let new = Listed {
            occupied: slot.wanted && current.is_some(),
            serving: slot.wanted && phase == Some(Phase::Ready),
            vacant: (free && current.is_none()).then_some(slot.strikes),
            uncovered: free
                && alone
                && phase == Some(Phase::Draining)
                && current.is_some_and(|(_, worker)| worker.ready_at.is_some()),
            queued: match current {
                Some((id, worker)) if free && alone && worker.phase == Phase::Ready && tried != Some(id) => {
                    worker.due.map(|(cause, place)| (cause, place, id))
                }
                _ => None,
            },
        };
        let old = std::mem::replace(&mut slot.listed, new);
        let over = !slot.wanted && slot.members == 0;
        if over {
            self.slots.remove(&id);
        }
        if old == new {
            return;
        }
        self.changed = true;
        self.counts.occupied = self.counts.occupied + u32::from(new.occupied) - u32::from(old.occupied);
        self.counts.serving = self.counts.serving + u32::from(new.serving) - u32::from(old.serving);
        if old.vacant != new.vacant {
            if let Some(strikes) = old.vacant {
                self.vacant.remove(&(strikes, id));
            }
            if let Some(strikes) = new.vacant {
                self.vacant.insert((strikes, id));
            }
        }
        if old.uncovered != new.uncovered {
            if new.uncovered {
                self.uncovered.insert(id);
            } else {
                self.uncovered.remove(&id);
            }
        }
        if old.queued != new.queued {
            if let Some(entry) = old.queued {
                self.queue.remove(&entry);
            }
            if let Some(entry) = new.queued {
                self.queue.insert(entry);
            }
        }
    }

    /// The slots that are to have a worker, lowest first.
    pub(super) fn wanted_slots(&self) -> Vec<SlotId> {
        self.slots.iter().filter(|(_, slot)| slot.wanted).map(|(id, _)| *id).collect()
    }
}
