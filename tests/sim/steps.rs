//! Laws about the state after each step.

use std::time::Duration;

use paddock::supervisor::action::Action;
use paddock::supervisor::event::{Event, Message};
use paddock::supervisor::id::WorkerId;
use paddock::supervisor::note::NoteKind;
use paddock::supervisor::recycle::Cause;
use paddock::supervisor::snapshot::RollStage;

use super::deeds::rank;
use super::judge::{Judge, Law, Step};
use super::model::{Edge, Life, Phase};
use crate::law;

impl Judge {
    /// What the loss of a worker must lead to.
    pub(crate) fn follow_loss(&mut self, lost: Option<&(WorkerId, Life)>, step: &Step<'_>) -> Law {
        if let (Some(Event::Message { worker, message: Message::Stopping } | Event::StopRequested { worker }), None) =
            (step.event, lost)
        {
            return self.follow_stopping(*worker, step);
        }
        let Some((id, life)) = lost else { return Ok(()) };
        self.check_verdict(*id, life, step)?;
        let died_waiting = step.before.stopping;
        let Some(view) = step.before.slots.iter().find(|view| view.slot == life.slot && view.wanted) else {
            return Ok(());
        };
        let was_current = view.worker == Some(*id);
        if !was_current && view.replacement != Some(*id) || died_waiting {
            return Ok(());
        }
        if !was_current && !life.signalled {
            let mut waiting = self.recycles.iter().filter(|(request, _)| self.open.contains(request));
            let forgotten = waiting.find(|(_, (slot, _))| *slot == life.slot);
            law!(forgotten.is_none(), "the replacement {id} failed and {forgotten:?} is not answered");
        }
        let canary = self.roll_lost(*id, step);
        if !canary {
            self.count_failure(life, step);
        }
        if step.after.stopping {
            return Ok(());
        }
        let covered = was_current && view.replacement.is_some();
        let itself = life.stopping && life.ready_at.is_some();
        let planned = if life.outside { life.ready_at.is_some() } else { life.signalled || itself } && !canary;
        if self.system_stops.is_some() || covered || planned || (canary && !was_current) {
            return Ok(());
        }
        self.strike(life, was_current, step)
    }

    fn roll_lost(&self, id: WorkerId, step: &Step<'_>) -> bool {
        let trying = step.before.roll.as_ref().is_some_and(|roll| roll.stage == RollStage::Canary);
        let generation = step.before.roll.as_ref().map(|roll| roll.to);
        trying && step.before.workers.iter().any(|view| view.worker == id && Some(view.generation) == generation)
    }

    /// A worker that stops by itself, or is stopped from outside, counts as a restart.
    fn follow_stopping(&mut self, id: WorkerId, step: &Step<'_>) -> Law {
        let Some(life) = self.lives.get(&id).cloned() else { return Ok(()) };
        let asked = matches!(step.event, Some(Event::StopRequested { .. }));
        law!(!asked || !life.outside || life.signalled, "{id} is to end and gets no drain signal");
        let fresh = life.phase == Phase::Draining
            && life.since == step.now
            && if asked { life.outside && step.drained(id) } else { life.stopping && !life.signalled };
        let view = step.before.slots.iter().find(|view| view.slot == life.slot && view.wanted);
        let was = step
            .before
            .workers
            .iter()
            .any(|view| view.worker == id && view.state == paddock::supervisor::snapshot::WorkerState::Ready);
        let alone = view.is_some_and(|view| view.worker == Some(id) && view.replacement.is_none());
        if fresh && was && alone && !step.before.stopping && self.system_stops.is_none() && life.ready_at.is_some() {
            return self.strike(&life, true, step);
        }
        Ok(())
    }

    /// One more restart: at once, then with growing delays.
    fn strike(&mut self, life: &Life, was_current: bool, step: &Step<'_>) -> Law {
        let Some(view) = step.after.slots.iter().find(|view| view.slot == life.slot && view.wanted) else {
            return Ok(());
        };
        let config = self.generations[&step.after.generation];
        let policy = self.policies[&config].clone();
        let place = self.places.entry(life.slot).or_default();
        let ready_for = life.ready_at.map(|at| step.now - at).filter(|_| was_current);
        let probation = Duration::from_secs(10);
        let doubtful = probation..=policy.backoff_max;
        if place.last_delay.is_none() && ready_for.is_some_and(|span| doubtful.contains(&span)) {
            place.strikes = view.restarts_in_a_row;
            return Ok(());
        }
        if ready_for.is_some_and(|span| span >= place.last_delay.unwrap_or_default().max(probation)) {
            place.strikes = 0;
        }
        if step.before.roll.is_some() || step.after.roll.is_some() || hot(step) {
            return Ok(());
        }
        let delay = view.backoff_until.map_or(Duration::ZERO, |at| at - step.now);
        let (low, high) = match place.strikes {
            0 => (Duration::ZERO, Duration::ZERO),
            n => {
                let base = policy.backoff.saturating_mul(3_u32.saturating_pow(n - 1)).min(policy.backoff_max);
                (base * 899 / 1000, (base * 1101 / 1000).min(policy.backoff_max))
            }
        };
        law!(
            (low..=high).contains(&delay),
            "restart {} of slot {} waits {delay:?}, not {low:?} to {high:?}",
            place.strikes,
            life.slot
        );
        place.strikes += 1;
        place.last_delay = Some(delay);
        law!(
            view.restarts_in_a_row == place.strikes,
            "slot {} counts {} restarts, not {}",
            life.slot,
            view.restarts_in_a_row,
            place.strikes
        );
        Ok(())
    }

    /// Every worker is where the model has it, with its deadline.
    pub(crate) fn check_workers(&mut self, step: &Step<'_>) -> Law {
        // A roll forgives and a storm punishes; what they leave behind is where the count goes on.
        if hot(step) || step.before.roll.is_some() || step.after.roll.is_some() {
            for view in &step.after.slots {
                let place = self.places.entry(view.slot).or_default();
                if place.strikes != view.restarts_in_a_row {
                    place.strikes = view.restarts_in_a_row;
                    place.last_delay = None;
                }
            }
        }
        let (ours, theirs) = (self.lives.len(), step.after.workers.len());
        law!(ours == theirs, "{ours} workers should be there, {theirs} are");
        for view in &step.after.workers {
            let Some(life) = self.lives.get(&view.worker) else {
                return Err(format!("{view:?} should not be there"));
            };
            law!(view.state == life.phase.state(), "{} should be {:?}: {view:?}", view.worker, life.phase);
            law!(view.dead != life.phase.alive(), "{} is dead or not: {view:?}", view.worker);
            law!(view.slot == life.slot && view.generation == life.generation, "{view:?} differs from {life:?}");
            law!(view.requests == life.requests, "{} has counted {:?}", view.worker, life.requests);
            let deadlines = [life.deadline, life.watchdog];
            for at in deadlines.into_iter().flatten() {
                law!(!step.is_tick() || at > step.now, "the deadline {at} of {} has passed: {life:?}", view.worker);
                law!(view.deadline.as_ref().is_some_and(|(next, _)| *next <= at), "{view:?} lacks the deadline {at}");
            }
            law!(view.due.is_none() || life.phase == Phase::Ready, "{view:?} is due");
            if life.phase == Phase::Ready && !step.after.stopping {
                self.check_due(view.worker, life, view.due, step)?;
            }
        }
        Ok(())
    }

    /// A ready worker whose time has come is due, for the most pressing of its reasons or a more pressing one.
    fn check_due(&self, id: WorkerId, life: &Life, due: Option<Cause>, step: &Step<'_>) -> Law {
        let full = life.quota.is_some_and(|quota| life.requests >= Some(quota));
        let age = life.lifetime.zip(life.ready_at);
        let old = step.is_tick() && age.is_some_and(|(span, at)| at.after(span) <= step.now);
        let fat = life.edge != Edge::First;
        let reasons =
            [(full, Cause::Quota), (old, Cause::Lifetime), (life.asked, Cause::Operator), (fat, Cause::Memory)];
        for (holds, cause) in reasons {
            let enough = due.is_some_and(|due| rank(due) <= rank(cause));
            law!(!holds || enough || self.dropped(id, step), "{id} is due for {due:?} instead of {cause}: {life:?}");
        }
        Ok(())
    }

    /// A worker whose slot is given up is drained for that, and one that was kept stays.
    fn dropped(&self, id: WorkerId, step: &Step<'_>) -> bool {
        let Some(life) = self.lives.get(&id) else { return true };
        step.after.mixed
            || self.roll.is_some()
            || step.after.slots.iter().all(|view| view.slot != life.slot || !view.wanted)
    }

    /// The edges: pulse and replacement at the first, drain at the second, a rest after a false alarm.
    pub(crate) fn check_memory(&mut self, step: &Step<'_>) -> Law {
        for (id, life) in &self.lives {
            let fresh = life.ready_at == Some(step.now) && life.phase == Phase::Ready;
            let became = fresh && step.before.workers.iter().all(|view| view.worker != *id || view.ready_at.is_none());
            if became && life.recycle_at.is_some() {
                law!(armed(step, *id) == Some(life.recycle_at), "{id} is ready and its edge is not armed");
            }
        }
        let ids: Vec<WorkerId> = self.lives.keys().copied().collect();
        for id in ids {
            let Some(life) = self.lives.get_mut(&id) else { continue };
            if let Some(at) = life.mask
                && step.is_tick()
                && at <= step.now
            {
                life.mask = None;
                let edge = life.edge_bytes();
                law!(armed(step, id) == Some(edge), "the edge of {id} did not come back after its rest");
            }
        }
        let Some(Event::Memory { worker, unreclaimable }) = step.event else { return Ok(()) };
        let was_ready = step
            .before
            .workers
            .iter()
            .any(|view| view.worker == *worker && view.state == paddock::supervisor::snapshot::WorkerState::Ready);
        let (id, drained) = (*worker, step.drained(*worker));
        let pulsed = step.actions.contains(&Action::Pulse { worker: id });
        let (least, most) = self.surge(step);
        let wanted_busy = step.before.slots.iter().filter(|view| view.wanted && view.worker.is_some()).count();
        let alive = step.before.workers.iter().filter(|view| !view.dead).count();
        let slot = step.before.slots.iter().find(|view| view.worker == Some(id));
        let lone = slot.is_some_and(|view| view.replacement.is_none() && view.wanted);
        let taken = least > 0 && alive >= wanted_busy + most as usize;
        let Some(life) = self.lives.get_mut(&id) else { return Ok(()) };
        if !was_ready {
            law!(!pulsed && !drained, "{id} is not ready and heard of");
            return Ok(());
        }
        let edge = if drained { before_drain(life, step, id) } else { life.edge_bytes() };
        let Some(edge) = edge else { return Ok(()) };
        if *unreclaimable < edge {
            law!(!pulsed && !drained, "{id} is below its edge of {edge}");
            life.mask = life.recycle_at.map(|_| step.now.after(Duration::from_secs(1)));
            return Ok(());
        }
        life.mask = None;
        if pulsed {
            law!(life.edge == Edge::First || drained, "{id} is pulsed at its second edge");
            let told = step.said(NoteKind::RecycleDue, id)
                || step.before.workers.iter().any(|view| view.worker == id && view.due.is_some());
            law!(told, "{id} passed its soft limit and is not due");
            if lone && taken {
                law!(drained, "{id} is not drained although surge is taken");
            }
            if !drained {
                life.edge = if life.second().is_some() { Edge::Second } else { Edge::Lifted };
                let next = life.edge_bytes();
                law!(
                    life.recycle_at.is_none() || armed(step, id) == Some(next),
                    "{id} watches {:?} instead of {next:?}",
                    armed(step, id)
                );
            }
        } else {
            law!(drained, "{id} passed {edge} and nothing follows");
        }
        Ok(())
    }

    /// Systemd is never left to wait beyond what it was asked for, and start-up ends as it must.
    pub(crate) fn check_service(&mut self, step: &Step<'_>) -> Law {
        if !self.told_ready && !step.after.stopping {
            law!(self.lasts(step), "systemd's patience is over at {:?}", self.patience);
            let known = self.missing(step.after).is_empty();
            law!(!known || step.after.ready == 0, "the start-up is over and READY was not said");
            let first = |id: WorkerId| {
                let slot = step.before.workers.iter().find(|view| view.worker == id).map(|view| view.slot);
                step.before.slots.iter().any(|view| view.wanted && Some(view.slot) == slot)
            };
            let lost = self.first_failed && step.worker().is_some_and(first);
            let failed = lost && known && !self.had_ready && step.after.ready == 0;
            law!(!failed, "every first start failed and it goes on");
        }
        // What SIGKILL does not end is systemd's to give up at a stop, once it is all that is left.
        let killable = self.lives.values().any(|life| life.phase < Phase::Killing || life.repeats == 0);
        let waited_for = step.after.roll.is_some() || (step.after.stopping && killable);
        law!(
            !waited_for || self.over || self.lasts(step),
            "systemd waits, its patience is over at {:?}",
            self.patience
        );
        if step.after.stopping && !step.before.stopping {
            for (id, life) in &self.lives {
                law!(!life.phase.starting() && life.phase != Phase::Ready, "{id} is {:?} while it stops", life.phase);
            }
            law!(self.open.iter().all(|id| self.stops(*id, step)), "{:?} are open while it stops", self.open);
        }
        if self.stop == Some(true) && step.request().is_some() {
            let spared = self.lives.iter().find(|(_, life)| life.phase < Phase::Killing);
            law!(spared.is_none(), "{spared:?} is spared by the fast stop");
        }
        law!(self.stop.is_none() || step.after.stopping, "it does not stop");
        law!(!step.after.stopping || !self.lives.is_empty() || self.over, "nothing is left and it does not leave");
        Ok(())
    }

    /// Whether systemd's patience lasts until we do something, whoever else is silent.
    fn lasts(&self, step: &Step<'_>) -> bool {
        let next = step.after.next_deadline.as_ref().map(|(at, _)| *at);
        self.patience.is_some_and(|until| until > step.now && next.is_some_and(|at| at < until))
    }

    /// Only the clients of stops wait for the end.
    fn stops(&self, id: paddock::supervisor::id::RequestId, step: &Step<'_>) -> bool {
        matches!(step.event, Some(Event::Request { id: Some(asked), .. }) if *asked == id)
    }

    /// What can be started is started: nothing waits without a reason.
    pub(crate) fn check_progress(&mut self, step: &Step<'_>) -> Law {
        self.check_order(step)?;
        if step.after.stopping || self.system_stops.is_some() {
            return Ok(());
        }
        let policies = self.policies_of(step.after);
        let active = &self.policies[&self.generations[&step.after.generation]];
        let starting = self.lives.values().filter(|life| life.phase.starting()).count();
        if starting >= active.parallel_starts as usize {
            return Ok(());
        }
        let surge = policies.iter().map(|policy| policy.surge).min().unwrap_or(0);
        let held: u64 = self.lives.values().map(Life::weight).sum();
        let views = || step.after.slots.iter().filter(|view| view.wanted);
        let empty = views().filter(|view| view.worker.is_none()).count() as u64;
        let fits = |reserve: u64| {
            policies.iter().all(|policy| {
                let (max, budget) = (policy.memory_max.unwrap_or(0), policy.memory_budget.unwrap_or(u64::MAX));
                held + max * (reserve + 1) <= budget
            })
        };
        let alive = self.alive();
        for view in views().filter(|view| view.worker.is_none() && view.backoff_until.is_none()) {
            let left = self.lives.values().any(|life| life.slot == view.slot);
            let free = alive < step.after.wanted + surge && fits(0) && (surge > 0 || !left);
            law!(!free, "slot {} is empty for no reason", view.slot);
        }
        let occupied = u32::try_from(views().filter(|view| view.worker.is_some()).count()).unwrap();
        if surge == 0 || alive >= occupied + surge || !fits(empty) {
            return self.check_turn(surge, step);
        }
        for view in views().filter(|view| view.replacement.is_none() && view.backoff_until.is_none()) {
            let Some(worker) = view.worker.and_then(|id| step.after.workers.iter().find(|view| view.worker == id))
            else {
                continue;
            };
            let tried = self.trying(step) && self.roll.as_ref().and_then(|roll| roll.canary) == view.worker;
            law!(worker.due.is_none() || tried, "{worker:?} waits for no reason");
            let life = &self.lives[&worker.worker];
            let uncovered = life.phase == Phase::Draining && life.ready_at.is_some();
            law!(!uncovered, "{worker:?} no longer accepts and nobody takes its place");
        }
        Ok(())
    }

    /// Without room to overlap, a due worker is stopped first as soon as all others serve.
    fn check_turn(&self, surge: u32, step: &Step<'_>) -> Law {
        let canary = self.roll.as_ref().and_then(|roll| roll.canary).filter(|_| self.trying(step));
        let all = step.after.ready == step.after.wanted;
        let due = step.after.slots.iter().filter(|view| view.wanted && view.backoff_until.is_none()).find(|view| {
            view.replacement.is_none()
                && (view.worker != canary || canary.is_none())
                && step.after.workers.iter().any(|worker| Some(worker.worker) == view.worker && worker.due.is_some())
        });
        let extra = self.lives.len() > step.after.wanted as usize;
        let quiet = !extra && self.lives.values().all(|life| life.phase == Phase::Ready);
        law!(surge > 0 || !all || !quiet || due.is_none(), "{due:?} waits for no reason");
        law!(!(all && quiet) || due.is_none(), "{due:?} waits although nothing else goes on");
        Ok(())
    }
}

/// Whether workers of a slot are over their soft limit as soon as they are ready.
fn hot(step: &Step<'_>) -> bool {
    step.notes(NoteKind::Notice).any(|note| note.message.contains("recycle_at"))
}

/// The edge that this step armed for a worker, if it armed one.
fn armed(step: &Step<'_>, id: WorkerId) -> Option<Option<u64>> {
    step.actions.iter().rev().find_map(|action| match action {
        Action::ArmMemory { worker, edge } if *worker == id => Some(*edge),
        _ => None,
    })
}

/// The edge that was watched before this step drained the worker and lifted it.
fn before_drain(life: &Life, step: &Step<'_>, id: WorkerId) -> Option<u64> {
    let first = step.actions.contains(&Action::Pulse { worker: id });
    if first { life.recycle_at.or(life.memory_max) } else { life.second() }
}
