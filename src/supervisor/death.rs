//! The end of a worker, and what it means for its slot.

use std::time::Duration;

use super::action::Action;
use super::event::Death;
use super::id::{Generation, SlotId, WorkerId};
use super::life::REPEAT;
use super::note::{Level, Note, NoteKind};
use super::slot::Role;
use super::timers::{Clock, deadline};
use super::verdict::{self, Verdict};
use super::worker::{Drain, Phase};
use super::{Cx, Supervisor, say};

/// A worker that its slot has lost.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) id: WorkerId,
    pub(super) slot: SlotId,
    pub(super) generation: Generation,
    /// How long it was ready; none: never.
    pub(super) ready_for: Option<Duration>,
    pub(super) drain: Option<Drain>,
    /// What happened, as a fragment.
    pub(super) reason: String,
    pub(super) last_words: Vec<String>,
}

impl Supervisor {
    /// Its start failed; nothing is left of it.
    pub(super) fn start_failed(&mut self, id: WorkerId, error: &str, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        if worker.phase == Phase::Leftover {
            return;
        }
        let lost = Lost {
            id,
            slot: worker.slot,
            generation: worker.generation(),
            ready_for: worker.ready_for(cx.now),
            drain: worker.drain,
            reason: format!("could not start: {error}"),
            last_words: Vec::new(),
        };
        let ending = self.stop.is_some() || self.system_stops.is_some();
        let (level, text) = if worker.drain.is_some() || ending {
            (Level::Debug, "its start was given up".to_owned())
        } else {
            (Level::Warning, lost.reason.clone())
        };
        let note = say::about(id, worker, level, NoteKind::StartFailed, None, &text);
        self.enter(id, Phase::Leftover, cx.now);
        self.bury(id, &lost, note, cx);
        self.forget_worker(id, cx);
    }

    /// Its first process is over.
    pub(super) fn exited(&mut self, id: WorkerId, death: Death, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        if worker.phase == Phase::Leftover {
            return;
        }
        let verdict = verdict::judge(&death, worker.kill, worker.signalled);
        let words = verdict::describe(verdict, death.ended);
        let peak = death.peak.or(worker.memory_max.filter(|_| verdict == Verdict::OomKill));
        let figures = match (verdict, worker.memory_max, peak) {
            (Verdict::OomKill, Some(max), Some(peak)) => {
                format!(" at limit {} (peak {})", say::size(max), say::size(peak))
            }
            (_, _, Some(peak)) => format!(" (peak {})", say::size(peak)),
            _ => String::new(),
        };
        let calm = matches!(verdict, Verdict::Drained | Verdict::FastStop);
        let level = if calm { Level::Info } else { Level::Warning };
        let text = format!("{words}{figures}");
        let mut note = say::about(id, worker, level, NoteKind::WorkerDied, Some(verdict.name()), &text);
        note.memory = peak;
        let lost = Lost {
            id,
            slot: worker.slot,
            generation: worker.generation(),
            ready_for: worker.ready_for(cx.now),
            drain: worker.drain,
            reason: text,
            last_words: death.last_words,
        };
        let gone = worker.gone;
        if let Some(slot) = self.slots.get_mut(&lost.slot) {
            *slot.verdicts.entry(verdict).or_default() += 1;
            slot.last_death = Some(words);
        }
        *self.verdicts.entry(verdict).or_default() += 1;
        self.enter(id, Phase::Leftover, cx.now);
        if !gone {
            cx.act(Action::Sweep { worker: id });
            self.set_clock(id, Clock::State, deadline(cx.now, REPEAT));
        }
        self.bury(id, &lost, note, cx);
        if gone {
            self.forget_worker(id, cx);
        }
    }

    /// Nothing is left of it.
    pub(super) fn gone(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.phase == Phase::Leftover {
            self.forget_worker(id, cx);
        } else {
            worker.gone = true;
        }
    }

    fn forget_worker(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        self.clear_clocks(id);
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        let max = u128::from(worker.memory_max.unwrap_or(0));
        self.counts.leaving -= 1;
        self.counts.leaving_memory -= max;
        self.counts.committed -= max;
        if let Some(slot) = self.slots.get_mut(&worker.slot) {
            slot.members -= 1;
        }
        if let Some(users) = self.in_use.get_mut(&worker.generation()) {
            users.members -= 1;
        }
        self.changed = true;
        self.refresh(worker.slot);
        self.forget_releases(cx);
    }

    /// Draws the consequences of a loss for its slot, and says all of it in one note.
    fn bury(&mut self, id: WorkerId, lost: &Lost, mut note: Note, cx: &mut Cx<'_>) {
        let slot_id = lost.slot;
        let Some(slot) = self.slots.get_mut(&slot_id) else {
            return;
        };
        let role = slot.detach(id);
        let (wanted, covered) = (slot.wanted, slot.current.is_some());
        // How the start of one that nobody listened to came out will never be known; the next one tells.
        let failed = lost.ready_for.is_none() && lost.drain != Some(Drain::Unheard);
        // Notes of what follows come after the note of the death.
        let mut after = Vec::new();
        let mut later = Cx { now: cx.now, out: &mut after };
        let mut outlook = String::new();
        if self.stop.is_none() && wanted && (role != Role::Former || self.is_canary(id)) {
            outlook = self.consequences(lost, role, covered, &mut later);
        }
        if note.level == Level::Warning {
            outlook.push_str(&say::last_words(&lost.last_words));
        }
        note.message.push_str(&outlook);
        cx.act(Action::Note(note));
        cx.out.append(&mut after);
        if failed {
            self.outcome(slot_id, Some(lost), cx);
        }
        self.refresh(slot_id);
        self.answer_recycles(slot_id, cx);
    }

    /// What the loss of a slot's current worker or of its replacement leads to, in words.
    fn consequences(&mut self, lost: &Lost, role: Role, covered: bool, cx: &mut Cx<'_>) -> String {
        let failed = lost.ready_for.is_none();
        let canary = self.is_canary(lost.id);
        let unasked = matches!(lost.drain, Some(Drain::Itself | Drain::Outside));
        if canary {
            self.canary_lost(lost, cx);
        }
        if role == Role::Former {
            return String::new();
        }
        if role == Role::Replacement {
            if lost.drain.is_none() || unasked {
                self.fail_recycles(lost, cx);
                if !canary && self.system_stops.is_none() {
                    let delay = self.strike(lost.slot, None, cx);
                    self.start_lost(lost, cx);
                    return format!("; the worker it was to replace serves on, next try {}", when(delay));
                }
            }
            return "; the worker it was to replace serves on".to_owned();
        }
        if covered {
            return "; its replacement takes over".to_owned();
        }
        let planned = lost.drain.is_some() && (!unasked || !failed);
        if self.system_stops.is_some() {
            if failed {
                self.fail_recycles(lost, cx);
            }
            return "; not replaced, the system stops".to_owned();
        }
        let waiting = self.slots.get(&lost.slot).is_some_and(|slot| slot.wait.is_some());
        if planned && !canary {
            return if waiting { String::new() } else { "; replaced at once".to_owned() };
        }
        if failed {
            self.fail_recycles(lost, cx);
        }
        if self.parks(lost) {
            return "; waiting for a change".to_owned();
        }
        // A slot that is waiting to try a replacement again goes on waiting, unless the worker had been fine.
        let delay = self.strike(lost.slot, lost.ready_for, cx);
        if failed && !canary {
            self.start_lost(lost, cx);
        }
        if delay.is_zero() { "; replaced at once".to_owned() } else { format!("; next start {}", when(delay)) }
    }
}

/// `at once`, `in 300ms`.
fn when(delay: Duration) -> String {
    if delay.is_zero() { "at once".to_owned() } else { format!("in {}", say::span(delay)) }
}
