//! Laws about rolls, scaling and the start-up.

use std::time::Duration;

use paddock::supervisor::action::{Action, Response, ServiceState};
use paddock::supervisor::event::{Event, Request};
use paddock::supervisor::id::{Generation, RequestId, SlotId, WorkerId};
use paddock::supervisor::note::{Note, NoteKind};
use paddock::supervisor::snapshot::{RollStage, Snapshot, WorkerState};
use paddock::supervisor::verdict::Verdict;

use super::judge::{Judge, Law, RollModel, Step};
use super::model::{Life, Phase, Place};
use crate::law;

impl Judge {
    pub(crate) fn roll_started(&mut self, note: &Note, step: &Step<'_>) -> Law {
        law!(self.roll.is_none(), "two rolls at once: {note:?}");
        let generation = Generation(self.next_generation);
        law!(note.generation == Some(generation), "expected generation {generation}: {note:?}");
        law!(self.told_ready || self.missing(step.after).is_empty(), "a roll before the start-up is over");
        self.next_generation += 1;
        let view = step.after.roll.as_ref();
        let config =
            self.policies.keys().next_back().copied().filter(|_| view.is_none_or(|view| view.to == generation));
        // A waiting reload is always the latest configuration.
        if let Some(config) = config {
            self.generations.insert(generation, config);
        }
        let told = step.actions.contains(&Action::Tell(ServiceState::Reloading));
        law!(told == self.told_ready, "a roll begins, RELOADING said: {told}");
        for place in self.places.values_mut() {
            place.failures = 0;
        }
        self.roll = Some(RollModel {
            generation,
            requests: std::mem::take(&mut self.next_rolls),
            canary: None,
            held: false,
            undoing: false,
        });
        Ok(())
    }

    pub(crate) fn roll_done(&mut self, step: &Step<'_>) -> Law {
        let Some(roll) = self.roll.take() else {
            return Err("a roll is done that never began".to_owned());
        };
        law!(
            roll.held || step.is_tick() || self.canary_hold(&roll).is_some_and(|hold| hold.is_zero()),
            "done before the canary held"
        );
        let old: Vec<_> =
            self.lives.iter().filter(|(_, life)| life.generation != roll.generation && life.phase.alive()).collect();
        law!(old.is_empty(), "the roll is done, {old:?} live");
        self.roll_over(&roll, true, step)
    }

    pub(crate) fn roll_undone(&mut self, note: &Note, step: &Step<'_>) -> Law {
        let Some(roll) = self.roll.take() else {
            law!(note.message.starts_with("reload refused"), "a roll is undone that never began");
            self.next_rolls.clear();
            return Ok(());
        };
        if !roll.held {
            let lost = matches!(step.event, Some(Event::StartFailed { .. } | Event::Exited { .. }));
            law!(lost && step.worker() == roll.canary, "the canary {:?} is not lost, the roll is undone", roll.canary);
        }
        self.roll_over(&roll, false, step)
    }

    fn canary_hold(&self, roll: &RollModel) -> Option<Duration> {
        Some(self.policies[self.generations.get(&roll.generation)?].hold)
    }

    /// Every client of the roll is answered now, after READY.
    fn roll_over(&self, roll: &RollModel, done: bool, step: &Step<'_>) -> Law {
        let mut ready = !self.told_ready;
        let mut answered = Vec::new();
        for action in step.actions {
            match action {
                Action::Tell(ServiceState::Ready) => ready = true,
                Action::Reply { request, response } if roll.requests.contains(request) => {
                    law!(ready, "{request} is answered before READY");
                    law!(matches!(response, Response::Done { .. }) == done, "{request}: {response:?}");
                    answered.push(*request);
                }
                _ => {}
            }
        }
        let expected: Vec<RequestId> = roll.requests.iter().copied().collect();
        law!(answered == expected, "{answered:?} are answered instead of {expected:?}");
        Ok(())
    }

    pub(crate) fn check_roll(&mut self, step: &Step<'_>) -> Law {
        let view = step.after.roll.as_ref();
        law!(view.is_some() == self.roll.is_some() || step.after.stopping, "the roll is {view:?}");
        let Some(roll) = self.roll.clone() else { return Ok(()) };
        let Some(view) = view else {
            self.roll = None;
            return Ok(());
        };
        law!(view.to == roll.generation, "it rolls to {} instead of {}", view.to, roll.generation);
        match view.stage {
            RollStage::Canary => self.check_canary(&roll, step),
            RollStage::Rest => {
                if !roll.held {
                    self.check_held(&roll, step)?;
                }
                let broken = self.places.values().any(|place| place.failures >= 3);
                law!(!broken, "three starts failed and the roll goes on");
                // With stop-first the next replacement may begin in the step in which the roll is complete.
                let serves = |id: WorkerId, life: &Life| {
                    let until_now = life.phase == Phase::Draining && life.ready_at.is_some() && step.drained(id);
                    life.generation == roll.generation && (life.phase == Phase::Ready || until_now)
                };
                let whole = step
                    .after
                    .slots
                    .iter()
                    .filter(|view| view.wanted)
                    .all(|view| self.lives.iter().any(|(id, life)| life.slot == view.slot && serves(*id, life)));
                let old = self.lives.values().any(|life| life.phase.alive() && life.generation != roll.generation);
                law!(!whole || old, "the roll is complete and goes on");
                Ok(())
            }
            RollStage::Undoing => {
                if !roll.undoing {
                    let broken = self.places.values().any(|place| place.failures >= 3);
                    law!(broken, "the roll is stopped although no slot failed three starts: {:?}", self.places);
                    for place in self.places.values_mut() {
                        place.failures = 0;
                    }
                    let starting =
                        self.lives.iter().find(|(_, life)| life.phase.starting() && life.generation == roll.generation);
                    law!(starting.is_none(), "the roll is stopped and {starting:?} goes on starting");
                    if let Some(roll) = self.roll.as_mut() {
                        roll.undoing = true;
                    }
                }
                law!(step.after.generation == view.from, "it goes back to {}", step.after.generation);
                Ok(())
            }
        }
    }

    fn check_canary(&self, roll: &RollModel, step: &Step<'_>) -> Law {
        law!(!roll.held, "the canary is tried again after it held");
        law!(
            step.after.generation < roll.generation,
            "generation {} is active before its canary held",
            roll.generation
        );
        let new: Vec<WorkerId> =
            self.lives.iter().filter(|(_, life)| life.generation == roll.generation).map(|(id, _)| *id).collect();
        law!(new.len() <= 1, "{new:?} are canaries at once");
        if let Some(canary) = roll.canary {
            law!(self.lives.contains_key(&canary), "the canary {canary} is gone and the roll is not undone");
            if let Some(life) = self.lives.get(&canary).filter(|life| life.phase == Phase::Ready) {
                let hold = self.canary_hold(roll).unwrap_or_default();
                let held = life.ready_at.is_some_and(|at| at.after(hold) <= step.now);
                law!(!held || !step.is_tick(), "the canary {canary} has held and nothing follows");
            }
        }
        // The old worker of the canary's slot serves until the canary has held.
        for (id, life) in &self.lives {
            if life.phase == Phase::Draining && life.signalled && life.since == step.now && step.drained(*id) {
                let reload = step
                    .notes(NoteKind::DrainStarted)
                    .any(|note| note.worker == Some(*id) && note.reason.as_deref() == Some("reload"));
                let alone = roll.canary.is_none();
                law!(!reload || alone, "{id} is drained for the reload before the canary held");
            }
        }
        Ok(())
    }

    /// The step in which the canary held.
    fn check_held(&mut self, roll: &RollModel, step: &Step<'_>) -> Law {
        let Some((id, canary)) = roll.canary.and_then(|id| Some((id, self.lives.get(&id)?))) else {
            return Err("the roll goes on without a canary".to_owned());
        };
        let hold = self.canary_hold(roll).unwrap_or_default();
        // It may have been due at that very moment, and its drain over at once if it has no time.
        let over_at_once = canary.policy.graceful.is_zero() && canary.kill == Some(Verdict::DrainDeadline);
        let leaves = canary.phase == Phase::Draining || canary.phase == Phase::Killing && over_at_once;
        // Or, when deadlines are judged late, it held at its time, and its silence lasted too long only after that.
        let silent = canary.kill == Some(Verdict::Watchdog)
            && canary.policy.watchdog.map(|span| canary.last_ping.after(span))
                >= canary.ready_at.map(|at| at.after(hold));
        let serves = canary.phase == Phase::Ready || (leaves || silent) && canary.since == step.now;
        let held = serves && canary.ready_at.is_some_and(|at| at.after(hold) <= step.now);
        law!(held, "the roll goes on although {canary:?} did not hold");
        let (old, new) = (self.policy_of(step.before.generation), self.policy_of(step.after.generation));
        let expected = if old.0 == new.0 { step.before.wanted } else { new.0 };
        law!(step.after.wanted == expected, "{} are wanted instead of {expected}", step.after.wanted);
        let config = self.generations[&roll.generation];
        for (other, life) in &self.lives {
            let concerned = matches!(life.phase, Phase::Starting | Phase::Ready) && life.generation < roll.generation;
            let given = step.actions.contains(&Action::SetLimits { worker: *other, config });
            law!(!concerned || given, "{other} did not get the limits of the new configuration");
        }
        law!(self.lives.contains_key(&id), "the canary is gone");
        for place in self.places.values_mut() {
            place.failures = 0;
        }
        if let Some(roll) = self.roll.as_mut() {
            roll.held = true;
        }
        Ok(())
    }

    fn policy_of(&self, generation: Generation) -> (u32, Duration) {
        let policy = &self.policies[&self.generations[&generation]];
        (policy.workers, policy.hold)
    }

    /// A loss counts in a roll if it was a start that failed, of the generation that the roll is going to.
    pub(crate) fn count_failure(&mut self, life: &Life, step: &Step<'_>) {
        let Some(roll) = &self.roll else { return };
        let Some(view) = &step.before.roll else { return };
        let counts = match view.stage {
            RollStage::Canary => false,
            RollStage::Rest => life.generation == roll.generation,
            RollStage::Undoing => life.generation == view.from,
        };
        let unasked = !life.signalled || life.outside;
        if counts && life.ready_at.is_none() && unasked && self.system_stops.is_none() {
            self.places.entry(life.slot).or_default().failures += 1;
        }
    }

    /// Fewer: an empty slot or the oldest worker's; more: the lowest holes.
    pub(crate) fn check_scale(&mut self, step: &Step<'_>) -> Law {
        let wanted = |snapshot: &Snapshot| -> Vec<SlotId> {
            snapshot.slots.iter().filter(|view| view.wanted).map(|view| view.slot).collect()
        };
        let (before, after) = (wanted(step.before), wanted(step.after));
        law!(after.len() == step.after.wanted as usize, "{after:?} are wanted, {} in number", step.after.wanted);
        law!(!after.is_empty(), "no worker is wanted");
        if before == after {
            return Ok(());
        }
        for slot in after.iter().filter(|slot| !before.contains(slot)) {
            let lower = (0..slot.0).map(SlotId).find(|lower| !after.contains(lower));
            law!(lower.is_none(), "{slot} is filled, {lower:?} is lower");
            // A slot of which nothing was left begins anew.
            let known = step.before.slots.iter().any(|view| view.slot == *slot);
            let spread = self.places.get(slot).and_then(|place| place.spread).filter(|_| known);
            self.places.insert(*slot, Place { spread, ..Place::default() });
        }
        let canary =
            step.before.roll.as_ref().filter(|roll| roll.stage == RollStage::Canary).and_then(|roll| roll.canary);
        let by_request = matches!(step.request(), Some(Request::Scale { .. } | Request::ScaleBy { .. }));
        if by_request {
            let given_up: Vec<SlotId> = before.iter().copied().filter(|slot| !after.contains(slot)).collect();
            for slot in &given_up {
                law!(Some(*slot) != canary || before.len() == 1, "the canary's slot is given up");
                let worker = |slot: &SlotId| step.before.slots.iter().find(|view| view.slot == *slot)?.worker;
                let Some(mine) = worker(slot) else { continue };
                let rank = |id: WorkerId| {
                    let view = step.before.workers.iter().find(|view| view.worker == id);
                    let ready = view.is_some_and(|view| view.state == WorkerState::Ready);
                    (ready, view.is_some_and(|view| view.generation == step.before.generation), id)
                };
                for kept in after.iter().filter(|kept| before.contains(kept) && Some(**kept) != canary) {
                    let theirs = worker(kept);
                    law!(
                        theirs.is_some_and(|theirs| rank(theirs) > rank(mine)),
                        "{slot} is given up, {kept} is older, empty or not ready"
                    );
                }
            }
        }
        Ok(())
    }
}
