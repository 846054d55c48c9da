//! What operators ask for.

use super::action::{Action, Response};
use super::death::Lost;
use super::event::Request;
use super::id::{RequestId, SlotId, WorkerId};
use super::note::{Level, NoteKind};
use super::recycle::Cause;
use super::rollout::Stage;
use super::worker::{Drain, Phase};
use super::{Cx, Supervisor, say};
use crate::config::model::{Signal, WORKERS_MAX};

impl Supervisor {
    /// Does what an operator asks, or says why not.
    pub(super) fn request(&mut self, id: Option<RequestId>, request: Request, cx: &mut Cx<'_>) {
        let stopping = self.stop.is_some();
        let system_stops = self.system_stops.is_some();
        match request {
            Request::Stop { fast } => self.ask_stop(fast, id, cx),
            Request::Terminate => self.ask_stop(stopping, id, cx),
            Request::Signal { signal, slot } => {
                let response = self.forward(signal, slot, cx);
                cx.answer(id, response);
            }
            Request::Reload { config, .. } if stopping => {
                cx.answer(id, failed("the app is stopping"));
                cx.act(Action::Forget { config });
            }
            _ if stopping => cx.answer(id, failed("the app is stopping")),
            Request::Reload { config, .. } if system_stops => {
                cx.answer(id, failed("the system is stopping"));
                cx.act(Action::Forget { config });
            }
            _ if system_stops => cx.answer(id, failed("the system is stopping")),
            Request::Reload { config, policy } => self.ask_reload(config, *policy, id, cx),
            Request::Recycle { slot } => self.ask_recycle(slot, id, cx),
            Request::Scale { workers } => {
                let response = self.scale(workers, cx);
                cx.answer(id, response);
            }
            Request::ScaleBy { by } => {
                let workers = self.wanted.saturating_add_signed(by).max(1);
                let response = self.scale(workers, cx);
                if let Response::Failed { reason, .. } = &response {
                    cx.act(Action::Note(say::general(
                        Level::Warning,
                        NoteKind::Notice,
                        format!("not scaled: {reason}"),
                    )));
                }
                cx.answer(id, response);
            }
        }
    }

    fn ask_recycle(&mut self, slot_id: SlotId, id: Option<RequestId>, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get_mut(&slot_id).filter(|slot| slot.wanted) else {
            cx.answer(id, failed(&format!("there is no slot {slot_id}")));
            return;
        };
        let current = slot.current;
        // A worker that is starting is as new as can be.
        let old = current.filter(|id| self.workers.get(id).is_some_and(|worker| !worker.phase.is_starting()));
        slot.asked.extend(id.map(|id| (id, old)));
        match current {
            // An empty slot does not wait for its backoff when somebody asks.
            None => {
                self.set_wait(slot_id, None);
                self.refresh(slot_id);
            }
            Some(current) => self.mark_due(current, Cause::Operator, " (asked by an operator)", cx),
        }
    }

    /// Answers the clients whose recycle of this slot is over.
    pub(super) fn answer_recycles(&mut self, slot_id: SlotId, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get_mut(&slot_id) else {
            return;
        };
        if slot.asked.is_empty() {
            return;
        }
        let Some((new, worker)) = slot.current.and_then(|id| Some((id, self.workers.get(&id)?))) else {
            return;
        };
        if worker.phase != Phase::Ready {
            return;
        }
        let message = format!("{} is ready in place of the old worker", worker.title());
        let alive = |id: &WorkerId| self.workers.get(id).is_some_and(|worker| worker.phase.is_alive());
        let over = |old: &Option<WorkerId>| old.is_none_or(|old| old != new && !alive(&old));
        let mut answered = Vec::new();
        slot.asked.retain(|(id, old)| {
            let over = over(old);
            if over {
                answered.push(*id);
            }
            !over
        });
        cx.answer_all(answered, &Response::Done { message });
    }

    /// A replacement did not start: tells the clients, and gives up unless the worker itself wants to be replaced.
    pub(super) fn fail_recycles(&mut self, lost: &Lost, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get_mut(&lost.slot) else {
            return;
        };
        if slot.asked.is_empty() {
            return;
        }
        let response = Response::Failed {
            reason: format!("the replacement in slot {} failed: {}", lost.slot, lost.reason),
            last_words: lost.last_words.clone(),
        };
        let current = slot.current;
        cx.answer_all(slot.asked.drain(..).map(|(id, _)| id), &response);
        if let Some(current) = current
            && self.workers.get(&current).is_some_and(|worker| !worker.asked)
        {
            self.clear_due(current, Cause::Operator, cx);
            self.mark_outdated(lost.slot, cx);
        }
    }

    fn scale(&mut self, workers: u32, cx: &mut Cx<'_>) -> Response {
        if workers == 0 {
            return Response::Invalid {
                reason: "there must be at least 1 worker; to have none, stop the app".to_owned(),
            };
        }
        if workers > WORKERS_MAX {
            return Response::Invalid {
                reason: format!("{workers} workers are more than the {WORKERS_MAX} that an app may have"),
            };
        }
        // A roll can end either way.
        let rolling = self.roll.iter().flat_map(|roll| [&roll.target, &roll.previous]);
        let mut tight = false;
        for policy in rolling.chain([&self.active]).map(|release| &release.policy) {
            let (Some(budget), Some(max)) = (policy.memory_budget, policy.memory_max) else {
                continue;
            };
            let need = |count: u32| u128::from(max) * u128::from(count);
            if need(workers) > u128::from(budget) {
                return failed(&format!(
                    "{} of {} each do not fit into the budget of {}",
                    say::workers(workers),
                    say::size(max),
                    say::size(budget)
                ));
            }
            tight |= policy.surge > 0 && need(workers.saturating_add(policy.surge)) > u128::from(budget);
        }
        let old = self.wanted;
        if workers == old {
            return Response::Done { message: format!("there are {old} already") };
        }
        let how = if tight { "; the budget leaves no room for surge, so replacements are stop-first" } else { "" };
        let what = if workers > old {
            format!("from {old} to {}{how}", say::workers(workers))
        } else {
            format!("from {old} to {}, the oldest drained{how}", say::workers(workers))
        };
        cx.act(Action::Note(say::general(Level::Info, NoteKind::Scaled, format!("scale {what}"))));
        self.set_wanted(workers, cx);
        Response::Done { message: format!("scaling {what}") }
    }

    /// Wants so many workers: fills the lowest holes, or gives up empty slots and then those of the oldest workers.
    pub(super) fn set_wanted(&mut self, workers: u32, cx: &mut Cx<'_>) {
        self.changed = true;
        let mut free = 0..;
        while self.wanted < workers {
            let Some(id) = free.next().map(SlotId) else {
                return;
            };
            let slot = self.slots.entry(id).or_default();
            if !slot.wanted {
                slot.wanted = true;
                (slot.had_outcome, slot.kept, slot.failures, slot.hot) = (false, false, 0, 0);
                self.wanted += 1;
                self.outcomes_missing += 1;
                self.pardon(id);
                self.refresh(id);
            }
        }
        while self.wanted > workers {
            let Some(id) = self.least_needed() else {
                return;
            };
            self.wanted -= 1;
            self.give_up(id, cx);
        }
    }

    /// The slot to give up next: an empty one, the highest first; else one whose worker is not ready; else that of the
    /// oldest worker, of those that a roll replaces anyway if there are such. Never the canary's.
    fn least_needed(&self) -> Option<SlotId> {
        let canary = self.roll.as_ref().filter(|roll| roll.stage == Stage::Canary).and_then(|roll| roll.slot);
        let candidates = || self.slots.iter().filter(move |(id, slot)| slot.wanted && Some(**id) != canary);
        candidates()
            .rev()
            .find(|(_, slot)| slot.current.is_none())
            .or_else(|| {
                candidates().min_by_key(|(_, slot)| {
                    let worker = slot.current.and_then(|id| self.workers.get(&id));
                    let ready = worker.is_some_and(|worker| worker.phase == Phase::Ready);
                    let active = worker.is_some_and(|worker| worker.generation() == self.active.generation);
                    (ready, active, slot.current)
                })
            })
            .map(|(id, _)| *id)
    }

    fn give_up(&mut self, id: SlotId, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.wanted = false;
        let (current, replacement) = (slot.current, slot.replacement);
        let asked: Vec<RequestId> = slot.asked.drain(..).map(|(id, _)| id).collect();
        if !std::mem::replace(&mut slot.had_outcome, true) {
            self.outcomes_missing -= 1;
        }
        cx.answer_all(asked, &failed(&format!("slot {id} is given up")));
        self.set_wait(id, None);
        if let Some(replacement) = replacement {
            self.drain(replacement, Drain::Undone, cx);
        }
        if let Some(current) = current {
            self.drain(current, Drain::Recycle(Cause::Scale), cx);
        }
        self.refresh(id);
    }

    fn forward(&mut self, signal: Signal, slot: Option<SlotId>, cx: &mut Cx<'_>) -> Response {
        let hears = |phase: Phase| phase.is_alive() && phase != Phase::Asked;
        let targets: Vec<WorkerId> = match slot {
            None => self.workers.iter().filter(|(_, worker)| hears(worker.phase)).map(|(id, _)| *id).collect(),
            Some(id) => {
                let Some(slot) = self.slots.get(&id).filter(|slot| slot.wanted || slot.current.is_some()) else {
                    return failed(&format!("there is no slot {id}"));
                };
                let current = slot.current.filter(|id| self.workers.get(id).is_some_and(|worker| hears(worker.phase)));
                current.into_iter().collect()
            }
        };
        if targets.is_empty() {
            return failed(&slot.map_or_else(
                || "there is no worker to signal".to_owned(),
                |slot| format!("slot {slot} has no worker to signal"),
            ));
        }
        let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        for worker in targets {
            cx.act(Action::Signal { worker, signal });
        }
        Response::Done { message: format!("signal {} sent to {}", signal.0, say::workers(count)) }
    }

    fn ask_stop(&mut self, fast: bool, id: Option<RequestId>, cx: &mut Cx<'_>) {
        self.begin_stop(fast, 0, cx);
        if let Some(stop) = self.stop.as_mut() {
            stop.requests.extend(id);
        }
    }

    /// What remains to be said to a client once everything is over.
    pub(super) fn request_after_end(request: &Request, id: Option<RequestId>, cx: &mut Cx<'_>) {
        if let Request::Reload { config, .. } = request {
            cx.act(Action::Forget { config: *config });
        }
        let response = if matches!(request, Request::Stop { .. } | Request::Terminate) {
            Response::Done { message: "stopped".to_owned() }
        } else {
            failed("the app is stopped")
        };
        cx.answer(id, response);
    }
}

/// A refusal or a failure without last words.
pub(super) fn failed(reason: &str) -> Response {
    Response::Failed { reason: reason.to_owned(), last_words: Vec::new() }
}
