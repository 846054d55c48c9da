//! A roll: one canary, then the rest; undone if the canary does not hold, stopped if a later worker does not start.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::action::{Action, Response, ServiceState};
use super::death::Lost;
use super::id::{ConfigId, Generation, RequestId, SlotId, WorkerId};
use super::note::{Level, Note, NoteKind};
use super::policy::Policy;
use super::recycle::Cause;
use super::time::Time;
use super::timers::deadline;
use super::worker::{Drain, Phase, Release};
use super::{Cx, Supervisor, say};

/// So many failed starts in a row in one slot stop a roll.
const ATTEMPTS: u32 = 3;

/// How far a roll has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// One worker of the new generation is tried.
    Canary,
    /// It held; the others follow.
    Rest,
    /// A later worker did not start; back to the old configuration.
    Undoing,
}

/// A roll under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Roll {
    pub(super) target: Arc<Release>,
    pub(super) previous: Arc<Release>,
    pub(super) stage: Stage,
    /// The canary's slot, once it is chosen.
    pub(super) slot: Option<SlotId>,
    /// The canary, once it is asked for.
    pub(super) worker: Option<WorkerId>,
    /// When the canary has held.
    pub(super) holds_until: Option<Time>,
    /// How many workers were wanted before the roll changed it.
    wanted_before: Option<u32>,
    /// Why it was stopped, and the last words of the worker that is to blame.
    undone: Option<(String, Vec<String>)>,
    requests: Vec<RequestId>,
    began: Time,
}

/// A reload that waits for its turn; a later one takes its place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NextRoll {
    config: ConfigId,
    policy: Policy,
    requests: Vec<RequestId>,
}

impl Supervisor {
    /// An operator asks for a reload: it begins as soon as no roll is under way.
    pub(super) fn ask_reload(&mut self, config: ConfigId, policy: Policy, id: Option<RequestId>, cx: &mut Cx<'_>) {
        let mut requests: Vec<RequestId> = id.into_iter().collect();
        if self.roll.is_some() {
            cx.act(Action::Note(say::general(
                Level::Info,
                NoteKind::Notice,
                "reload during a roll: one further roll follows it".to_owned(),
            )));
        }
        if let Some(mut earlier) = self.next_roll.take() {
            if earlier.config != config {
                cx.act(Action::Forget { config: earlier.config });
            }
            requests.splice(0..0, earlier.requests.drain(..));
        }
        self.next_roll = Some(NextRoll { config, policy, requests });
        self.changed = true;
    }

    /// Begins the roll that waits, if its time has come.
    pub(super) fn begin_next(&mut self, cx: &mut Cx<'_>) {
        if self.roll.is_some() || self.stop.is_some() || !self.outcomes_known() {
            return;
        }
        let Some(next) = self.next_roll.take() else {
            return;
        };
        self.changed = true;
        let old = &self.active.policy;
        let wanted = if next.policy.workers == old.workers { self.wanted } else { next.policy.workers };
        if let (Some(budget), Some(max)) = (next.policy.memory_budget, next.policy.memory_max)
            && u128::from(max) * u128::from(wanted) > u128::from(budget)
        {
            let reason = format!(
                "{} of {} each do not fit into the budget of {}; the old configuration stays active",
                say::workers(wanted),
                say::size(max),
                say::size(budget)
            );
            cx.act(Action::Note(say::general(
                Level::Error,
                NoteKind::ReloadUndone,
                format!("reload refused: {reason}"),
            )));
            cx.answer_all(next.requests, &Response::Failed { reason, last_words: Vec::new() });
            cx.act(Action::Forget { config: next.config });
            return;
        }
        let generation = Generation(self.next_generation);
        self.next_generation += 1;
        let target = Arc::new(Release { generation, config: next.config, policy: next.policy });
        self.in_use.entry(generation).or_default().config = Some(next.config);
        for slot in self.slots.values_mut() {
            slot.kept = false;
            slot.failures = 0;
        }
        self.roll = Some(Roll {
            target,
            previous: Arc::clone(&self.active),
            stage: Stage::Canary,
            slot: None,
            worker: None,
            holds_until: None,
            wanted_before: None,
            undone: None,
            requests: next.requests,
            began: cx.now,
        });
        if self.told_ready {
            self.tell_turn(ServiceState::Reloading, cx);
        }
        let text = format!("reload: roll from generation {} to {generation}, one canary first", self.active.generation);
        cx.act(Action::Note(Note {
            generation: Some(generation),
            ..say::general(Level::Info, NoteKind::ReloadStarted, text)
        }));
    }

    /// Whether this worker is the canary of a roll that has not held yet.
    pub(super) fn is_canary(&self, id: WorkerId) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.stage == Stage::Canary && roll.worker == Some(id))
    }

    /// Chooses the canary's slot: an empty one if there is one, for nothing is lost there; else the lowest.
    pub(super) fn place_canary(&mut self, cx: &mut Cx<'_>) {
        let Some(roll) = &self.roll else {
            return;
        };
        if roll.stage != Stage::Canary || roll.worker.is_some() {
            return;
        }
        let placed = roll.slot.filter(|id| self.slots.get(id).is_some_and(|slot| slot.wanted));
        let serves = |id: SlotId| {
            self.slots
                .get(&id)
                .and_then(|slot| slot.current)
                .and_then(|id| self.workers.get(&id))
                .is_some_and(|worker| worker.phase == Phase::Ready)
        };
        let chosen = match placed {
            Some(id) if self.slots.get(&id).is_some_and(|slot| slot.current.is_none()) => Some(id),
            _ if self.empty_slots() > 0 => {
                self.slots.iter().find(|(_, slot)| slot.wanted && slot.current.is_none()).map(|(id, _)| *id)
            }
            Some(id) => Some(id),
            None => self
                .slots
                .iter()
                .find(|(id, slot)| slot.wanted && slot.replacement.is_none() && serves(**id))
                .map(|(id, _)| *id),
        };
        let Some(id) = chosen else {
            return;
        };
        if let Some(old) = placed.filter(|old| *old != id).and_then(|old| self.slots.get(&old)?.current) {
            self.clear_due(old, Cause::Reload, cx);
        }
        if let Some(roll) = self.roll.as_mut() {
            roll.slot = Some(id);
        }
        self.set_wait(id, None);
        self.refresh(id);
        if let Some(current) = self.slots.get(&id).and_then(|slot| slot.current) {
            self.mark_due(current, Cause::Reload, "", cx);
        }
    }

    /// The canary is ready: now it has to hold.
    pub(super) fn canary_ready(&mut self, cx: &mut Cx<'_>) {
        let Some(hold) = self.roll.as_ref().map(|roll| roll.target.policy.hold) else {
            return;
        };
        if hold.is_zero() {
            self.held(cx);
        } else {
            self.set_hold(deadline(cx.now, hold));
        }
    }

    /// A canary that is on its way out cannot hold any more; its death undoes the roll.
    pub(super) fn left_hold(&mut self, id: WorkerId) {
        if self.is_canary(id) {
            self.set_hold(None);
        }
    }

    /// The canary held: its generation is the active one from now on.
    pub(super) fn held(&mut self, cx: &mut Cx<'_>) {
        let Some(roll) = self.roll.as_mut() else {
            return;
        };
        roll.stage = Stage::Rest;
        self.parked = false;
        let (canary, slot) = (roll.worker, roll.slot);
        let (target, previous) = (Arc::clone(&roll.target), Arc::clone(&roll.previous));
        self.active = Arc::clone(&target);
        self.changed = true;
        if let Some(id) = canary {
            self.say(id, Level::Info, NoteKind::Notice, None, "the canary held, the others follow", cx);
        }
        if let Some(slot) = slot {
            if self.slots.get(&slot).is_some_and(|slot| slot.replacement.is_some() && slot.replacement == canary) {
                self.hand_over(slot, cx);
            }
            self.refresh(slot);
            self.answer_recycles(slot, cx);
        }
        // Only now, when the canary is the youngest in a slot of its own.
        if target.policy.workers != previous.policy.workers {
            if let Some(roll) = self.roll.as_mut() {
                roll.wanted_before = Some(self.wanted);
            }
            self.set_wanted(target.policy.workers, cx);
        }
        self.turn_to(&target, &target, cx);
    }

    /// The limits of `release` for all workers that are older than `target`, replacements for those of other
    /// generations.
    fn turn_to(&mut self, release: &Release, target: &Release, cx: &mut Cx<'_>) {
        let others: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| {
                matches!(worker.phase, Phase::Starting | Phase::Ready | Phase::Draining)
                    && worker.generation() < target.generation
            })
            .map(|(id, _)| *id)
            .collect();
        for id in others {
            self.relimit(id, release, cx);
        }
        for slot in self.wanted_slots() {
            self.mark_outdated(slot, cx);
        }
    }

    /// A ready worker of a generation that a roll is leaving is due.
    pub(super) fn mark_outdated(&mut self, id: SlotId, cx: &mut Cx<'_>) {
        if self.roll.as_ref().is_none_or(|roll| roll.stage == Stage::Canary) {
            return;
        }
        let Some(slot) = self.slots.get(&id).filter(|slot| slot.wanted && !slot.kept) else {
            return;
        };
        if let Some(current) = slot.current
            && self.workers.get(&current).is_some_and(|worker| worker.generation() != self.active.generation)
        {
            self.mark_due(current, Cause::Reload, "", cx);
        }
    }

    /// The canary is lost before it held: the roll is undone.
    pub(super) fn canary_lost(&mut self, lost: &Lost, cx: &mut Cx<'_>) {
        let Some(current) = self.slots.get(&lost.slot).map(|slot| slot.current) else {
            return;
        };
        if let Some(current) = current {
            self.clear_due(current, Cause::Reload, cx);
        }
        let reason = match lost.ready_for {
            None => format!("the canary in slot {} did not get ready: {}", lost.slot, lost.reason),
            Some(span) => {
                format!(
                    "the canary in slot {} did not hold: {} {} after READY",
                    lost.slot,
                    lost.reason,
                    say::span(span)
                )
            }
        };
        self.end_roll(Some((reason, lost.last_words.clone())), cx);
    }

    /// A start failed that counts in the roll.
    pub(super) fn start_lost(&mut self, lost: &Lost, cx: &mut Cx<'_>) {
        let Some(roll) = &self.roll else {
            return;
        };
        if roll.stage == Stage::Canary || lost.generation != self.active.generation {
            return;
        }
        let stage = roll.stage;
        let Some(slot) = self.slots.get_mut(&lost.slot) else {
            return;
        };
        slot.failures = slot.failures.saturating_add(1);
        if slot.failures < ATTEMPTS {
            return;
        }
        if stage == Stage::Rest {
            self.stop_roll(lost, cx);
        } else {
            self.keep_rest(cx);
        }
    }

    /// A later worker of the roll does not start: back to the old configuration.
    fn stop_roll(&mut self, lost: &Lost, cx: &mut Cx<'_>) {
        let Some(roll) = self.roll.as_mut() else {
            return;
        };
        let reason =
            format!("slot {} failed {ATTEMPTS} starts of generation {}: {}", lost.slot, lost.generation, lost.reason);
        let text = format!("roll stopped: {reason}; back to generation {}", roll.previous.generation);
        roll.stage = Stage::Undoing;
        roll.undone = Some((reason, lost.last_words.clone()));
        let (target, previous) = (Arc::clone(&roll.target), Arc::clone(&roll.previous));
        let wanted = roll.wanted_before.filter(|_| self.wanted == target.policy.workers);
        self.active = Arc::clone(&previous);
        self.changed = true;
        cx.act(Action::Note(say::general(Level::Error, NoteKind::Notice, text)));
        if let Some(wanted) = wanted {
            self.set_wanted(wanted, cx);
        }
        for id in self.wanted_slots() {
            self.pardon(id);
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.failures = 0;
            let (current, replacement) = (slot.current, slot.replacement);
            for id in [replacement, current].into_iter().flatten() {
                let Some(worker) = self.workers.get(&id) else {
                    continue;
                };
                if worker.generation() == target.generation && worker.phase.is_starting() {
                    self.drain(id, Drain::Undone, cx);
                } else if worker.generation() == previous.generation {
                    self.clear_due(id, Cause::Reload, cx);
                }
            }
            self.refresh(id);
        }
        self.turn_to(&previous, &target, cx);
    }

    /// The old configuration does not start either: what serves stays.
    fn keep_rest(&mut self, cx: &mut Cx<'_>) {
        for id in self.wanted_slots() {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            let Some(current) = slot.current else {
                continue;
            };
            if self
                .workers
                .get(&current)
                .is_some_and(|worker| worker.phase == Phase::Ready && worker.generation() != self.active.generation)
            {
                slot.kept = true;
                self.clear_due(current, Cause::Reload, cx);
            }
        }
        self.changed = true;
    }

    /// Ends the roll once it is complete or completely undone.
    pub(super) fn check_roll(&mut self, cx: &mut Cx<'_>) {
        let Some(roll) = self.roll.as_mut() else {
            return;
        };
        let target = roll.target.generation;
        match roll.stage {
            Stage::Canary => {}
            Stage::Rest => {
                let clean = self.in_use.iter().all(|(generation, users)| *generation == target || users.alive == 0);
                if clean && self.counts.serving == self.wanted {
                    self.end_roll(None, cx);
                }
            }
            Stage::Undoing => {
                let undone = roll.undone.clone();
                if self.settled(target) {
                    self.end_roll(undone, cx);
                }
            }
        }
    }

    /// Whether every slot is back under the active configuration, or cannot be brought there.
    fn settled(&self, target: Generation) -> bool {
        let mut kept = 0;
        for slot in self.slots.values().filter(|slot| slot.wanted) {
            let current = slot.current.and_then(|id| self.workers.get(&id));
            let ready = current.filter(|worker| worker.phase == Phase::Ready);
            match ready {
                Some(worker) if worker.generation() != target => {}
                Some(_) if slot.kept => kept += 1,
                _ if slot.failures >= ATTEMPTS => {}
                _ => return false,
            }
        }
        self.in_use.get(&target).is_none_or(|users| users.alive == kept)
    }

    fn end_roll(&mut self, undone: Option<(String, Vec<String>)>, cx: &mut Cx<'_>) {
        self.set_hold(None);
        let Some(roll) = self.roll.take() else {
            return;
        };
        self.changed = true;
        let took = say::span(cx.now - roll.began);
        let generation = Some(roll.target.generation);
        if self.told_ready {
            self.tell_turn(ServiceState::Ready, cx);
        }
        let (note, response) = if let Some((reason, last_words)) = undone {
            let mixed = if self.is_mixed() {
                "; the old configuration does not start either, its workers of the new generation are kept (mixed)"
            } else {
                ""
            };
            let serves = if self.parked {
                "nobody serves, waiting for a change".to_owned()
            } else {
                format!("generation {} serves on", self.active.generation)
            };
            let text = format!("reload undone after {took}: {reason}; {serves}{mixed}{}", say::last_words(&last_words));
            (say::general(Level::Error, NoteKind::ReloadUndone, text), Response::Failed { reason, last_words })
        } else {
            let message = format!(
                "generation {}: {} of {} ready after {took}",
                roll.target.generation, self.counts.serving, self.wanted
            );
            let text = format!("reload done, {message}");
            (say::general(Level::Info, NoteKind::ReloadDone, text), Response::Done { message })
        };
        cx.answer_all(roll.requests, &response);
        cx.act(Action::Note(Note { generation, ..note }));
        self.forget_releases(cx);
    }

    /// Whether workers of an undone generation serve beside those of the active one.
    pub(super) fn is_mixed(&self) -> bool {
        let other =
            |id: &WorkerId| self.workers.get(id).is_some_and(|worker| worker.generation() != self.active.generation);
        self.roll.is_none() && self.slots.values().any(|slot| slot.current.as_ref().is_some_and(other))
    }

    /// Answers the clients of rolls that a stop makes impossible.
    pub(super) fn give_up_rolls(&mut self, response: &Response, cx: &mut Cx<'_>) {
        self.set_hold(None);
        if let Some(roll) = self.roll.take() {
            cx.answer_all(roll.requests, response);
        }
        if let Some(next) = self.next_roll.take() {
            cx.answer_all(next.requests, response);
            cx.act(Action::Forget { config: next.config });
        }
    }

    /// Lets go of configurations that nobody uses any more.
    pub(super) fn forget_releases(&mut self, cx: &mut Cx<'_>) {
        let (active, roll) = (self.active.generation, &self.roll);
        self.in_use.retain(|generation, users| {
            let keep = users.members > 0
                || *generation == active
                || roll.as_ref().is_some_and(|roll| {
                    roll.target.generation == *generation || roll.previous.generation == *generation
                });
            if !keep && let Some(config) = users.config {
                cx.act(Action::Forget { config });
            }
            keep
        });
    }
}
