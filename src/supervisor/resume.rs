//! Another process takes over where a manager ended.

use std::collections::BTreeSet;

use super::action::{Action, ServiceState};
use super::id::WorkerId;
use super::note::{Level, NoteKind};
use super::time::Time;
use super::timers::{Clock, deadline};
use super::worker::{Drain, Phase};
use super::{Cx, FENCE, Supervisor};
use crate::config::model::Ready;

impl Supervisor {
    /// Goes on in a new process. What happened to workers meanwhile comes first, as events; then this, once.
    ///
    /// `unheard` are workers whose messages were lost while nobody listened. One of them that is still starting may have
    /// said READY in vain: it may serve already, so it is drained, not shot at its start deadline, and replaced.
    pub fn resume(&mut self, unheard: &BTreeSet<WorkerId>, now: Time, actions: &mut Vec<Action>) {
        let mut cx = Cx { now, out: actions };
        if self.over {
            return;
        }
        self.begin_watch(now);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            let Some(worker) = self.workers.get(&id) else { continue };
            match worker.phase {
                Phase::Ready => {
                    // Nobody heard its pings: the silence begins anew.
                    let silence = worker.policy().watchdog;
                    self.set_clock(id, Clock::Watchdog, silence.and_then(|silence| deadline(now, silence)));
                    self.arm(id, &mut cx);
                }
                Phase::Starting if unheard.contains(&id) && worker.policy().ready == Ready::Notify => {
                    let text = "it may have said READY while there was no manager; drained and replaced";
                    self.say(id, Level::Warning, NoteKind::Notice, None, text, &mut cx);
                    self.drain(id, Drain::Unheard, &mut cx);
                }
                // Begun anew: the gate ended with whoever had asked for it.
                Phase::Asked => self.set_clock(id, Clock::State, deadline(now, FENCE)),
                // Whoever did it may not have come to the end.
                Phase::Leftover => cx.act(Action::Sweep { worker: id }),
                Phase::Starting | Phase::Draining | Phase::Aborting | Phase::Killing => {}
            }
        }
        if self.told_ready && self.stop.is_none() {
            self.tell_turn(ServiceState::Ready, &mut cx);
        }
        self.told_status = None;
        self.begin_patience();
        self.settle(&mut cx);
        self.sort_timers();
    }

    /// Whether every slot that is wanted has a ready worker.
    pub fn is_whole(&self) -> bool {
        let is_ready = |id| self.workers.get(&id).is_some_and(|worker| worker.phase == Phase::Ready);
        self.slots.values().filter(|slot| slot.wanted).all(|slot| slot.current.is_some_and(is_ready))
    }

    /// Goes on in another image of the same process: nothing was lost, but no fence watches an edge any more.
    pub fn go_on(&mut self, now: Time, actions: &mut Vec<Action>) {
        let mut cx = Cx { now, out: actions };
        if self.over {
            return;
        }
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            if self.workers.get(&id).is_some_and(|worker| worker.phase == Phase::Ready) {
                self.arm(id, &mut cx);
            }
        }
        self.changed = true;
        self.settle(&mut cx);
        self.sort_timers();
    }

    /// Whether a worker's first process is known to be over.
    pub fn has_ended(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_none_or(|worker| !worker.phase.is_alive())
    }

    /// Every worker of which something may be left, for whoever has to look after them.
    pub fn worker_ids(&self) -> impl Iterator<Item = (WorkerId, bool)> + '_ {
        self.workers.iter().map(|(id, worker)| (*id, worker.phase == Phase::Asked))
    }
}
