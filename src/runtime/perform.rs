//! Phase 3: do what the supervisor said. A flat list; nothing here waits and nothing here decides.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use crate::isolation::Fence;
use crate::supervisor::action::{Action, ServiceState, Start};
use crate::supervisor::event::Event;
use crate::supervisor::id::WorkerId;
use crate::supervisor::note::{Level, Note};
use crate::worker::files::Files;

use super::clock;
use super::launch::{self, Common};
use super::manager::Manager;
use super::origin;
use super::watch;
use super::worker::Worker;

/// What is done first: the world, then what is said about it, then the end. "Said done" is never before done. Within the
/// world, starts come before the sweeping of what the dead left: people wait for the one, nobody for the other.
const fn rank(action: &Action) -> u8 {
    match action {
        Action::Start(_)
        | Action::Signal { .. }
        | Action::Kill { .. }
        | Action::Pulse { .. }
        | Action::ArmMemory { .. }
        | Action::SetLimits { .. }
        | Action::Forget { .. } => 0,
        Action::Sweep { .. } => 1,
        Action::Note(_) => 2,
        Action::Tell(_) => 3,
        Action::Reply { .. } => 4,
        Action::Exit { .. } => 5,
    }
}

/// The first pause before a fence that could not be removed is tried again, and the longest.
const SWEEP_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Nothing may be left of a worker for good, whatever was in the way: no bus, no descriptor.
async fn sweep_at_last(fence: Rc<dyn Fence>) {
    let (mut pause, longest) = SWEEP_AGAIN;
    loop {
        tokio::time::sleep(pause).await;
        match fence.sweep().await {
            Ok(()) => return,
            Err(error) => tracing::debug!("removing {} again: {error}", fence.describe()),
        }
        pause = longest.min(pause * 2);
    }
}

impl Manager {
    /// Perform and forget.
    pub(super) fn perform(&mut self, actions: &mut Vec<Action>) {
        actions.sort_by_key(rank);
        for action in actions.drain(..) {
            self.perform_one(action);
        }
    }

    fn perform_one(&mut self, action: Action) {
        match action {
            Action::Start(start) => {
                if let Some(start) = self.hold_back(start) {
                    self.start(start);
                }
            }
            Action::Signal { worker, .. } | Action::Kill { worker } if self.give_up_held(worker) => {}
            Action::Signal { worker, signal } => {
                self.with_worker(worker, "signalling it", |worker| worker.signal(signal));
            }
            Action::Kill { worker } => self.with_worker(worker, "killing it", Worker::kill),
            Action::Sweep { worker } => self.sweep(worker),
            Action::Pulse { worker } => {
                if let Some(worker) = self.workers.get(&worker) {
                    worker.pressure.pulse();
                }
            }
            Action::ArmMemory { worker, edge } => self.arm(worker, edge),
            Action::SetLimits { worker, config } => {
                let Some(prepared) = self.configs.get(&config).map(Rc::clone) else { return };
                self.with_fence(worker, "changing its limits", move |fence| {
                    Box::pin(async move { fence.set_limits(&prepared.limits).await })
                });
            }
            Action::Forget { config } => {
                self.configs.remove(&config);
            }
            Action::Reply { request, response } => {
                if let Some(reply) = self.replies.remove(&request) {
                    // A client that left asked for nothing to be cancelled.
                    let _ = reply.send(response.into());
                }
            }
            Action::Tell(state) => {
                if state == ServiceState::Ready {
                    self.dismiss_strays();
                }
                if let Some(Err(error)) = self.notifier.as_mut().map(|notifier| notifier.tell(&state)) {
                    self.log.say(Level::Warning, &format!("telling systemd: {error}"));
                }
            }
            Action::Note(note) => self.note(&note),
            Action::Exit { code } => self.exit = Some(code),
        }
    }

    fn note(&self, note: &Note) {
        let fence = note
            .worker
            .and_then(|worker| self.workers.get(&worker))
            .and_then(|worker| worker.fence.borrow().as_ref().map(|fence| fence.describe()));
        self.log.note(note, fence.as_deref());
        if let Some(server) = &self.server {
            server.progress(&note.message);
        }
        if let Some(event) = self.listener.as_ref().and_then(|listener| listener(note)) {
            let _ = self.events.send(event);
        }
    }

    pub(super) fn start(&mut self, start: Start) {
        let id = start.worker;
        let failed = move |error: String| Event::StartFailed { worker: id, error };
        let Some(prepared) = self.configs.get(&start.config).map(Rc::clone) else {
            let _ = self.events.send(failed(format!("configuration {} is not here any more", start.config)));
            return;
        };
        let unique = origin::unique(&self.directory, self.started, id);
        let owner = prepared.account.as_ref().map(|account| (account.uid, account.gid));
        let worker = match Worker::prepare(start, clock::now(), unique, Files::new(&self.directory, id), owner) {
            Ok(worker) => Rc::new(worker),
            Err(error) => {
                let _ = self.events.send(failed(error));
                return;
            }
        };
        watch::listen(&worker, &self.log, self.readable.clone());
        // While there is no manager, messages wait in it.
        self.keep_safe(&format!("notify.{id}"), worker.notify.descriptor());
        self.workers.insert(id, Rc::clone(&worker));
        let isolation = Rc::clone(&self.isolation);
        let (events, log) = (self.events.clone(), self.log.clone());
        let common = Common {
            listeners: Rc::clone(&self.listeners),
            to_journal: self.log.is_journald() && rustix::process::geteuid().is_root(),
            open_files: self.open_files,
            nursery: Rc::clone(&self.nursery),
        };
        // Not one of the worker's own tasks: it must come to its end also when the worker is given up.
        let deeds = self.deeds.clone();
        let deed = deeds.begin();
        tokio::task::spawn_local(async move {
            match launch::launch(&worker, &prepared, &*isolation, &common).await {
                Ok(pid) => {
                    let _ = events.send(Event::Started { worker: id, pid });
                    watch::life(&worker, &isolation, &log, events, &deeds);
                }
                Err(error) => {
                    watch::tell_of_system(&*isolation, &events).await;
                    let _ = events.send(failed(error));
                }
            }
            drop(deed);
        });
    }

    /// Leave a descriptor with systemd for the next manager.
    pub(super) fn keep_safe(&mut self, name: &str, fd: BorrowedFd<'_>) {
        if let Some(Err(error)) = self.notifier.as_mut().map(|notifier| notifier.store(name, fd)) {
            self.log.say(Level::Warning, &format!("leaving {name} with systemd: {error}"));
        }
    }

    fn sweep(&self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id).map(Rc::clone) else { return };
        if worker.swept.replace(true) {
            // Asked for again because it takes long: what came to life since then dies now.
            self.with_worker(id, "killing what it left", Worker::kill);
            return;
        }
        worker.release_tasks();
        let (events, log) = (self.events.clone(), self.log.clone());
        tokio::task::spawn_local(async move {
            let fence = worker.fence.borrow().clone();
            if let Some(fence) = fence
                && let Err(error) = fence.sweep().await
            {
                let slot = worker.start.slot;
                log.say(Level::Warning, &format!("slot {slot}: removing {}: {error}; tried again", fence.describe()));
                tokio::task::spawn_local(sweep_at_last(fence));
            }
            let _ = events.send(Event::Gone { worker: id });
        });
    }

    fn arm(&self, worker: WorkerId, edge: Option<u64>) {
        self.with_fence(worker, "watching its memory", move |fence| {
            Box::pin(async move { fence.arm(edge).await.map(|()| Vec::new()) })
        });
    }

    fn with_worker<E: std::fmt::Display>(
        &self,
        worker: WorkerId,
        what: &str,
        deed: impl FnOnce(&Worker) -> Result<(), E>,
    ) {
        let Some(worker) = self.workers.get(&worker) else { return };
        if let Err(error) = deed(worker) {
            self.log.say(Level::Error, &format!("slot {}: {what}: {error}", worker.start.slot));
        }
    }

    fn with_fence<F>(&self, worker: WorkerId, what: &'static str, deed: F)
    where
        F: FnOnce(
                Rc<dyn Fence>,
            )
                -> crate::isolation::LocalFuture<'static, Result<Vec<String>, crate::isolation::FenceError>>
            + 'static,
    {
        let Some(worker) = self.workers.get(&worker) else { return };
        let Some(fence) = worker.fence.borrow().clone() else { return };
        let (log, slot) = (self.log.clone(), worker.start.slot);
        let under_way = self.deeds.begin();
        tokio::task::spawn_local(async move {
            match deed(fence).await {
                Ok(not_applied) => {
                    for what in not_applied {
                        log.say(Level::Warning, &format!("slot {slot}: {what}"));
                    }
                }
                Err(error) => log.say(Level::Warning, &format!("slot {slot}: {what}: {error}")),
            }
            drop(under_way);
        });
    }
}
