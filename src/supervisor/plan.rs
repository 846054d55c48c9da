//! Who may start now: restarts of empty slots first, then cover for workers that stopped accepting by themselves, then
//! planned replacements, all within `surge`, the memory budget and the number of starts at a time.

use std::sync::Arc;

use super::action::{Action, Start};
use super::id::{SlotId, WorkerId};
use super::note::{Level, NoteKind};
use super::recycle::{self, Cause};
use super::rollout::Stage;
use super::timers::{Clock, deadline};
use super::worker::{Drain, Phase, Release, Worker};
use super::{Cx, FENCE, Supervisor, say};

impl Supervisor {
    /// Starts and drains all that may be started and drained now.
    pub(super) fn plan(&mut self, cx: &mut Cx<'_>) {
        if self.stop.is_some() || self.system_stops.is_some() {
            return;
        }
        self.place_canary(cx);
        while self.fill(cx) || self.cover(cx) || self.replace(cx) {}
    }

    /// How many replacements may overlap what they replace. During a roll both configurations must agree to it.
    pub(super) fn surge(&self) -> u32 {
        let surge = self.active.policy.surge;
        self.roll.as_ref().map_or(surge, |roll| surge.min(roll.target.policy.surge).min(roll.previous.policy.surge))
    }

    /// Workers alive beyond those that stand in a wanted slot.
    pub(super) fn extra(&self) -> u32 {
        self.counts.alive.saturating_sub(self.counts.occupied)
    }

    /// What the next start in this slot is made from.
    pub(super) fn policy_for(&self, slot: SlotId) -> &Arc<Release> {
        match &self.roll {
            Some(roll) if self.canary_slot() == Some(slot) => &roll.target,
            _ => &self.active,
        }
    }

    /// The slot whose next worker is the canary.
    fn canary_slot(&self) -> Option<SlotId> {
        let roll = self.roll.as_ref()?;
        roll.slot.filter(|_| roll.stage == Stage::Canary && roll.worker.is_none())
    }

    /// Whether one more start may be under way.
    fn may_start(&self) -> bool {
        self.counts.starting < self.active.policy.parallel_starts.max(1)
    }

    /// Restarts the lowest empty slot; says whether it did.
    fn fill(&mut self, cx: &mut Cx<'_>) -> bool {
        let surge = self.surge();
        if !self.may_start() || self.counts.alive >= self.wanted.saturating_add(surge) {
            return false;
        }
        let canary = self.canary_slot();
        let ready = |id: &&SlotId| {
            self.slots.get(id).is_some_and(|slot| {
                (surge > 0 || slot.members == 0) && (!self.parked || !slot.had_outcome || canary == Some(**id))
            })
        };
        // The canary goes first: the room that was made for it must not go to somebody else.
        let canary = self.vacant.iter().find(|(_, slot)| Some(*slot) == canary);
        let Some(slot) = canary.into_iter().chain(&self.vacant).map(|(_, slot)| slot).find(ready).copied() else {
            return false;
        };
        let release = Arc::clone(self.policy_for(slot));
        if !self.fits(&release, 0, false) && !self.make_room(slot, cx) {
            return false;
        }
        self.launch(slot, &release, false, cx);
        true
    }

    /// An empty slot's worker does not fit into the budget: waits for those that are leaving, else asks one of another
    /// generation to leave. Says whether the start can go ahead all the same.
    fn make_room(&mut self, slot: SlotId, cx: &mut Cx<'_>) -> bool {
        let trying = self.roll.as_ref().is_some_and(|roll| roll.stage == Stage::Canary);
        if self.counts.leaving > 0 || self.extra() > 0 || trying && self.canary_slot() != Some(slot) {
            return false;
        }
        let release = Arc::clone(self.policy_for(slot));
        let other = self.slots.values().rev().filter_map(|slot| slot.current).find(|id| {
            self.workers
                .get(id)
                .is_some_and(|worker| worker.phase == Phase::Ready && worker.generation() != release.generation)
        });
        let Some(other) = other else {
            // Workers of one generation fit together: the configuration was checked for it. If they do not, better a
            // worker too many than a slot that stays empty for ever.
            return self.in_use.iter().all(|(used, users)| *used == release.generation || users.alive == 0);
        };
        self.stop_first(other, Cause::Reload, &release, cx);
        false
    }

    /// Starts a worker beside one that no longer accepts; says whether it did.
    fn cover(&mut self, cx: &mut Cx<'_>) -> bool {
        if !self.may_start() || self.extra() >= self.surge() || !self.vacant.is_empty() {
            return false;
        }
        let Some(slot) = self.uncovered.first().copied() else {
            return false;
        };
        let release = Arc::clone(self.policy_for(slot));
        if !self.fits(&release, self.empty_slots(), false) {
            return false;
        }
        self.launch(slot, &release, true, cx);
        true
    }

    /// Begins the planned replacement that is first in line; says whether it did.
    fn replace(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some((cause, _, id)) = self.queue.first().copied() else {
            return false;
        };
        let Some(slot) = self.workers.get(&id).map(|worker| worker.slot) else {
            return false;
        };
        let release = Arc::clone(self.policy_for(slot));
        let surge = self.surge();
        if surge > 0 {
            if self.extra() >= surge || !self.may_start() || !self.vacant.is_empty() {
                return false;
            }
            if self.fits(&release, self.empty_slots(), false) {
                self.launch(slot, &release, true, cx);
                return true;
            }
            // Room that is about to be freed is worth waiting for.
            if self.counts.leaving > 0 && self.fits(&release, self.empty_slots(), true) {
                return false;
            }
        }
        // Stop-first costs a ready worker: never while too many slots are without one already.
        if self.wanted - self.counts.serving.min(self.wanted) >= surge.max(1) {
            return false;
        }
        if surge == 0 {
            self.drain(id, Drain::Recycle(cause), cx);
        } else {
            self.stop_first(id, cause, &release, cx);
        }
        true
    }

    fn stop_first(&mut self, id: WorkerId, cause: Cause, release: &Release, cx: &mut Cx<'_>) {
        let budget = release.policy.memory_budget.unwrap_or(0);
        self.say(
            id,
            Level::Warning,
            NoteKind::StopFirst,
            Some(cause.name()),
            &format!(
                "stop-first: the budget of {} has no room for its replacement beside it, recycle cause {cause}",
                say::size(budget)
            ),
            cx,
        );
        self.drain(id, Drain::Recycle(cause), cx);
    }

    /// Wanted slots without a worker.
    pub(super) fn empty_slots(&self) -> u32 {
        self.wanted.saturating_sub(self.counts.occupied)
    }

    /// Asks for a worker.
    fn launch(&mut self, slot_id: SlotId, release: &Arc<Release>, beside: bool, cx: &mut Cx<'_>) {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let policy = &release.policy;
        let first = self.first_life(slot_id, policy, release.generation);
        let quota = recycle::quota(policy, first, &mut self.rng);
        let lifetime = recycle::lifetime(policy, first);
        let worker = Worker::new(slot_id, Arc::clone(release), quota, lifetime, cx.now);
        let Some(slot) = self.slots.get_mut(&slot_id) else {
            return;
        };
        slot.members += 1;
        if beside {
            slot.replacement = Some(id);
        } else {
            slot.current = Some(id);
        }
        self.counts.alive += 1;
        self.counts.starting += 1;
        self.counts.committed += u128::from(worker.memory_max.unwrap_or(0));
        let users = self.in_use.entry(release.generation).or_default();
        users.config = Some(release.config);
        users.alive += 1;
        users.members += 1;
        self.workers.insert(id, Box::new(worker));
        self.set_clock(id, Clock::State, deadline(cx.now, FENCE));
        if self.canary_slot() == Some(slot_id)
            && let Some(roll) = self.roll.as_mut()
        {
            roll.worker = Some(id);
        }
        cx.act(Action::Start(Start {
            worker: id,
            slot: slot_id,
            generation: release.generation,
            config: release.config,
            quota,
        }));
        let place = if beside { ", beside the worker that it replaces" } else { "" };
        let text = format!("starting, generation {}{place}", release.generation);
        self.say(id, Level::Debug, NoteKind::WorkerStarting, None, &text, cx);
        self.refresh(slot_id);
    }
}
