//! The app as a whole: when it is ready, when it failed to start, how it stops.

use serde::{Deserialize, Serialize};

use super::action::Response;
use super::action::{Action, ServiceState};
use super::death::Lost;
use super::id::{RequestId, SlotId, WorkerId};
use super::note::{Level, NoteKind};
use super::request::failed;
use super::rollout::Stage;
use super::verdict::Verdict;
use super::worker::{Drain, Phase};
use super::{Cx, Supervisor, say};

/// A stop under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stop {
    pub(super) fast: bool,
    code: u8,
    pub(super) requests: Vec<RequestId>,
}

impl Supervisor {
    /// A slot's first worker got ready, or its start failed.
    pub(super) fn outcome(&mut self, id: SlotId, failure: Option<&Lost>, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if self.stop.is_some() || std::mem::replace(&mut slot.had_outcome, true) {
            return;
        }
        self.outcomes_missing -= 1;
        self.changed = true;
        match failure {
            None => {
                self.had_ready = true;
                self.parked = false;
            }
            Some(lost) if !self.had_ready && self.outcomes_missing == 0 && !self.told_ready => {
                let outlook = if self.parked { "; waiting for a change" } else { "" };
                let text = format!(
                    "every worker failed to start; slot {id}: {}{}{outlook}",
                    lost.reason,
                    say::last_words(&lost.last_words)
                );
                cx.act(Action::Note(say::general(Level::Error, NoteKind::Notice, text)));
                if !self.parked {
                    self.begin_stop(false, 1, cx);
                }
            }
            Some(_) => {}
        }
    }

    /// Whether an app of which no worker has ever got ready waits for a reload and tries again then, instead of ending
    /// with 1: for people at work on it. To be called before [`Supervisor::start`] or [`Supervisor::resume`].
    pub fn be_patient(&mut self, patient: bool) {
        self.patient = patient;
        self.parked &= patient;
    }

    /// A start failed: whether the slot is to wait for a reload, not for the end of a delay.
    pub(super) fn parks(&mut self, lost: &Lost) -> bool {
        self.parked |= self.patient && !self.had_ready && !self.told_ready && lost.ready_for.is_none();
        self.parked
    }

    /// Whether every slot of the start-up has had its first outcome.
    pub(super) fn outcomes_known(&self) -> bool {
        self.told_ready || self.outcomes_missing == 0
    }

    /// Says READY once every slot had its first outcome and one is ready.
    pub(super) fn check_ready(&mut self, cx: &mut Cx<'_>) {
        if self.told_ready || self.stop.is_some() || self.outcomes_missing > 0 || self.counts.serving == 0 {
            return;
        }
        self.told_ready = true;
        self.tell_turn(ServiceState::Ready, cx);
        let text = format!("ready: {} of {} ready", self.counts.serving, say::workers(self.wanted));
        cx.act(Action::Note(say::general(Level::Info, NoteKind::ServiceReady, text)));
    }

    /// The state of the service in a line.
    pub(super) fn tell_status(&mut self, cx: &mut Cx<'_>) {
        let told = (
            self.counts.serving,
            self.wanted,
            self.roll.as_ref().map(|roll| roll.target.generation),
            self.active.generation,
            self.stop.is_some(),
        );
        if self.told_status == Some(told) {
            return;
        }
        self.told_status = Some(told);
        let mut status =
            format!("{} of {} ready, generation {}", self.counts.serving, self.wanted, self.active.generation);
        if self.stop.is_some() {
            status += ", stopping";
        } else if let Some(roll) = &self.roll {
            let (what, generation) = match roll.stage {
                Stage::Canary => (", canary of generation ", roll.target.generation),
                Stage::Rest => (", rolling from generation ", roll.previous.generation),
                Stage::Undoing => (", leaving generation ", roll.target.generation),
            };
            status += what;
            status += &generation.to_string();
        }
        cx.act(Action::Tell(ServiceState::Status(status)));
    }

    /// Begins to stop, or makes a stop under way fast.
    pub(super) fn begin_stop(&mut self, fast: bool, code: u8, cx: &mut Cx<'_>) {
        let first = self.stop.is_none();
        if !first && (!fast || self.stop.as_ref().is_some_and(|stop| stop.fast)) {
            return;
        }
        self.changed = true;
        let how = if fast { "fast stop" } else { "stop, draining all workers" };
        cx.act(Action::Note(say::general(Level::Info, NoteKind::ServiceStopping, how.to_owned())));
        if let Some(stop) = self.stop.as_mut() {
            stop.fast = fast;
        } else {
            self.stop = Some(Stop { fast, code, requests: Vec::new() });
            self.tell_turn(ServiceState::Stopping, cx);
            let refusal = failed("the app is stopping");
            self.give_up_rolls(&refusal, cx);
            self.set_system_stops(None);
            let slots: Vec<SlotId> = self.slots.keys().copied().collect();
            for id in slots {
                self.set_wait(id, None);
                if let Some(slot) = self.slots.get_mut(&id) {
                    cx.answer_all(slot.asked.drain(..).map(|(id, _)| id), &refusal);
                }
                self.refresh(id);
            }
        }
        let alive: Vec<WorkerId> =
            self.workers.iter().filter(|(_, worker)| worker.phase < Phase::Killing).map(|(id, _)| *id).collect();
        for id in alive {
            if fast {
                self.kill_fast(id, cx);
            } else {
                self.drain(id, Drain::Stop, cx);
            }
        }
    }

    fn kill_fast(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        self.kill(id, Verdict::FastStop, "the app stops at once", cx);
    }

    /// Leaves once nothing is left.
    pub(super) fn check_over(&mut self, cx: &mut Cx<'_>) {
        if self.over || !self.workers.is_empty() {
            return;
        }
        let Some(stop) = self.stop.as_mut() else {
            return;
        };
        let (code, requests) = (stop.code, std::mem::take(&mut stop.requests));
        self.over = true;
        self.timers.clear();
        self.ask_again = None;
        cx.answer_all(requests, &Response::Done { message: "stopped".to_owned() });
        cx.act(Action::Note(say::general(
            Level::Info,
            NoteKind::ServiceStopped,
            "stopped, no worker is left".to_owned(),
        )));
        cx.act(Action::Exit { code });
    }
}
