//! How a manager goes on where another ended, and leaves things for the next one.

use std::os::fd::AsFd;
use std::rc::Rc;

use crate::supervisor::action::Action;
use crate::supervisor::note::Level;
use crate::supervisor::time::Time;

use super::adopt::{self, Found};
use super::manager::Manager;
use super::signals::Asked;
use super::state::State;
use super::upgrade::take::Taken;
use super::watch;

impl Manager {
    /// Go on where an earlier image of this process handed over: nothing was lost, nobody has noticed.
    pub(super) fn take_over(&mut self, taken: Taken, patient: bool, now: Time, actions: &mut Vec<Action>) {
        let Taken { state, workers, events, replies, started } = taken;
        let State { supervisor, pending, configs, last_config, last_request, paddock, .. } = *state;
        self.supervisor = supervisor;
        self.supervisor.be_patient(patient);
        self.configs = configs.into_iter().map(|(id, prepared)| (id, Rc::new(prepared))).collect();
        self.last_config = last_config;
        self.last_request = last_request;
        self.replies = replies.into_iter().collect();
        self.started = started;
        self.workers = workers;
        for worker in self.workers.values() {
            watch::listen(worker, &self.log, self.readable.clone());
            if worker.process.borrow().is_some() {
                watch::life(worker, &self.isolation, &self.log, self.events.clone(), &self.deeds);
            } else {
                // It goes on being swept.
                worker.swept.set(false);
            }
        }
        self.log.say(
            Level::Info,
            &format!(
                "replaced in place: paddock {} took over from {paddock}, {} workers untouched",
                env!("CARGO_PKG_VERSION"),
                self.workers.len()
            ),
        );
        actions.extend(pending);
        self.perform(actions);
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            self.hear(worker, now, actions);
        }
        for event in events {
            self.step(event, now, actions);
        }
        self.supervisor.go_on(now, actions);
        self.carry_out(actions);
        // Those that ended while nobody was told.
        self.signalled(Asked::Children, now, actions);
    }

    /// Go on where an earlier manager ended.
    pub(super) fn resume(&mut self, state: State, found: Found, patient: bool, now: Time, actions: &mut Vec<Action>) {
        let State { supervisor, pending, configs, last_config, last_request, .. } = state;
        self.supervisor = supervisor;
        self.supervisor.be_patient(patient);
        self.configs = configs.into_iter().map(|(id, prepared)| (id, Rc::new(prepared))).collect();
        self.last_config = last_config;
        self.last_request = last_request;
        self.workers = found.workers;
        let adopted = self.workers.len();
        for worker in self.workers.values() {
            watch::listen(worker, &self.log, self.readable.clone());
            if worker.process.borrow().is_some() {
                watch::life(worker, &self.isolation, &self.log, self.events.clone(), &self.deeds);
            }
        }
        self.log.say(
            Level::Info,
            &format!("took over from a manager that ended: {adopted} workers adopted, {} gone", found.events.len()),
        );
        // A start that was about to be done is among those that were found or are to be done again.
        actions.extend(found.again.into_iter().map(Action::Start));
        actions.extend(pending.into_iter().filter(|action| !matches!(action, Action::Start(_))));
        self.carry_out(actions);
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            self.hear(worker, now, actions);
        }
        for event in found.events {
            self.step(event, now, actions);
        }
        self.supervisor.resume(&found.unheard, now, actions);
        self.carry_out(actions);
        self.strays.extend(found.strays);
    }

    /// Nobody else holds these for the next manager.
    pub(super) fn keep_own_listeners_safe(&mut self) {
        let listeners = Rc::clone(&self.listeners);
        for socket in listeners.own() {
            self.keep_safe("listen", socket.fd.as_fd());
        }
    }

    /// Our own workers serve: what an earlier manager left and nobody knows is not needed any more. A manager that took
    /// over is ready from the beginning, which says nothing about workers that died or were forgotten meanwhile.
    pub(super) fn dismiss_strays(&mut self) {
        if self.resumed && !self.supervisor.is_whole() {
            return;
        }
        let strays = std::mem::take(&mut self.strays);
        if let Some(prepared) = self.configs.values().next_back() {
            adopt::drain_strays(strays, prepared.policy.drain_signal, prepared.policy.graceful, &self.log, &self.deeds);
        }
    }
}
