//! Hearing what workers say on their notify sockets, each for a while, so that none can keep the others waiting.

use std::rc::Rc;

use crate::supervisor::action::Action;
use crate::supervisor::event::Event;
use crate::supervisor::id::WorkerId;
use crate::supervisor::note::Level;
use crate::supervisor::time::Time;

use super::manager::Manager;
use super::watch;
use super::worker::Worker;

/// How many datagrams of one worker are read in one go.
const DATAGRAMS: usize = 64;

impl Manager {
    /// Hear a worker that stood in the queue.
    pub(super) fn hear_in_turn(&mut self, id: WorkerId, now: Time, actions: &mut Vec<Action>) {
        if let Some(worker) = self.workers.get(&id) {
            worker.queued.set(false);
        }
        self.hear(id, now, actions);
    }

    /// Read what a worker has sent, up to a bound; what remains is heard in the next turn.
    pub(super) fn hear(&mut self, id: WorkerId, now: Time, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(&id).map(Rc::clone) else { return };
        for _ in 0..DATAGRAMS {
            if worker.notify.closing().is_behind() {
                return watch::closing(&worker, self.readable.clone());
            }
            let Some(received) = worker.notify.try_receive() else { return };
            if !received.sender.is_some_and(|sender| watch::belongs(&worker, sender)) {
                self.ignore_stranger(&worker, received.sender.map(|pid| pid.as_raw_nonzero().get()));
                worker.notify.closing().received(received.descriptors);
                continue;
            }
            for message in received.datagram.messages {
                self.step(Event::Message { worker: id, message }, now, actions);
            }
            // Only now: closing its descriptor tells the sender of a barrier that all before it has been acted upon.
            worker.notify.closing().received(received.descriptors);
        }
        if !worker.queued.replace(true) {
            let _ = self.readable.send(id);
        }
    }

    fn ignore_stranger(&self, worker: &Worker, sender: Option<i32>) {
        let own = worker.process.borrow().as_ref().map(|process| process.pid().as_raw_nonzero().get());
        if sender == own {
            // The worker's own farewell, read after its end: an ordinary thing, nobody has to do anything about it.
            return;
        }
        if worker.stranger_logged.replace(true) {
            return;
        }
        let who = sender.map_or_else(|| "a process that is already gone".to_owned(), |pid| format!("process {pid}"));
        self.log.say(
            Level::Warning,
            &format!(
                "slot {}: ignored a notify message from {who}, which is not inside this worker; if the worker sends \
                 through a short-lived helper, let that wait until its message has been read (sd_notify_barrier(3), \
                 systemd-notify does)",
                worker.start.slot
            ),
        );
    }
}
