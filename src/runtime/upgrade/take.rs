//! The other side: this image takes up what the one before it handed over.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::process::Pid;
use tokio::sync::mpsc;

use crate::control::directory::{Lock, RuntimeDirectory};
use crate::control::server::{Call, HandedClient, Server, Waiting};
use crate::isolation::{FenceName, Isolation};
use crate::observe::log::Log;
use crate::supervisor::event::{Death, Ended, Event};
use crate::supervisor::id::WorkerId;
use crate::supervisor::note::Level;
use crate::supervisor::time::Time;
use crate::worker::files::Files;
use crate::worker::notify::NotifySocket;
use crate::worker::output::Output;
use crate::worker::pressure::PressureSocket;
use crate::worker::process::Process;

use super::super::listeners::Listeners;
use super::super::setup::Refusal;
use super::super::state::{Record, State};
use super::super::worker::Worker;
use super::handover::{Descriptors, HandedFence, HandedWorker, Handover, HandoverError};

/// What was handed over, with its descriptors in hand.
#[derive(Debug)]
pub struct Baton {
    handover: Handover,
    state: Box<State>,
    lock: OwnedFd,
    control: OwnedFd,
    sockets: Vec<(String, OwnedFd)>,
    clients: Vec<(HandedClient, OwnedFd)>,
    workers: Vec<(HandedWorker, WorkerDescriptors)>,
}

#[derive(Debug)]
struct WorkerDescriptors {
    pidfd: Option<OwnedFd>,
    notify: OwnedFd,
    pressure: OwnedFd,
    connections: Vec<OwnedFd>,
    output: OwnedFd,
    fence: Option<OwnedFd>,
}

/// What the manager goes on with.
pub struct Taken {
    /// The decisions, and what was about to be done.
    pub state: Box<State>,
    /// The workers.
    pub workers: BTreeMap<WorkerId, Rc<Worker>>,
    /// What could not be taken up is lost.
    pub events: Vec<Event>,
    /// Who waits for answers.
    pub replies: Waiting,
    /// When the first image began.
    pub started: Time,
}

/// Everything that a manager is made of, apart from what a fresh one has as well.
pub struct Parts {
    /// The app's lock, never let go of.
    pub lock: Lock,
    /// The app's sockets.
    pub listeners: Listeners,
    /// The control socket.
    pub control: (Server, mpsc::Receiver<Call>),
    /// The rest.
    pub taken: Taken,
}

impl Baton {
    /// Take all descriptors that are named, before anything else can open one.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn grasp((mut handover, state): (Handover, State)) -> Result<Self, HandoverError> {
        let mut descriptors = Descriptors::default();
        let lock = descriptors.take(handover.lock)?;
        let control = descriptors.take(handover.control)?;
        let sockets = std::mem::take(&mut handover.listeners.sockets);
        let sockets = sockets.into_iter().map(|(name, fd)| Ok((name, descriptors.take(fd)?)));
        let sockets = sockets.collect::<Result<Vec<_>, HandoverError>>()?;
        let clients = std::mem::take(&mut handover.clients);
        let clients = clients.into_iter().map(|client| Ok((client.clone(), descriptors.take(client.fd)?)));
        let clients = clients.collect::<Result<Vec<_>, HandoverError>>()?;
        let workers = std::mem::take(&mut handover.workers);
        let workers = workers.into_iter().map(|worker| {
            let held = WorkerDescriptors {
                pidfd: worker.process.map(|(_, pidfd)| descriptors.take(pidfd)).transpose()?,
                notify: descriptors.take(worker.notify)?,
                pressure: descriptors.take(worker.pressure)?,
                connections: worker.connections.iter().map(|fd| descriptors.take(*fd)).collect::<Result<_, _>>()?,
                output: descriptors.take(worker.output)?,
                fence: worker.fence.fd.map(|fd| descriptors.take(fd)).transpose()?,
            };
            Ok((worker, held))
        });
        let workers = workers.collect::<Result<Vec<_>, HandoverError>>()?;
        Ok(Self { handover, state: Box::new(state), lock, control, sockets, clients, workers })
    }

    /// How things stood.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The page itself.
    pub fn handover(&self) -> &Handover {
        &self.handover
    }

    /// Make it work again; call on the loop.
    ///
    /// # Errors
    /// What a single worker's loss does not explain: no lock, no control socket.
    pub fn raise(
        self,
        directory: &RuntimeDirectory,
        isolation: &dyn Isolation,
        control_group: Option<&str>,
        log: &Log,
    ) -> Result<Parts, Refusal> {
        let Self { handover, state, lock, control, sockets, clients, workers } = self;
        let app = state.configs.values().next_back().map(|prepared| prepared.config.name.clone()).unwrap_or_default();
        let lock = Lock::keep(lock).map_err(Refusal::of_machine)?;
        let listeners = handover.listeners;
        let listeners = Listeners::continued(sockets, listeners.passed_in, listeners.own_paths);
        let (server, calls, replies) =
            Server::resume(control, directory, &app, control_group, clients).map_err(Refusal::of_machine)?;
        let records: BTreeMap<WorkerId, &Record> =
            state.workers.iter().map(|record| (record.start.worker, record)).collect();
        let mut taken = BTreeMap::new();
        let mut events = Vec::new();
        for (handed, held) in workers {
            let (id, swept) = (handed.worker, handed.swept);
            let Some(record) = records.get(&id).copied() else { continue };
            let process = handed.process.and_then(|(pid, _)| Pid::from_raw(pid)).zip(held.pidfd.as_ref());
            // Kept for the case that the worker cannot be taken up.
            let drain = process.and_then(|(_, pidfd)| pidfd.try_clone().ok());
            match take_up(handed, held, record.clone(), &state, directory, isolation) {
                Ok(worker) => {
                    taken.insert(id, Rc::new(worker));
                }
                // The sweep had come to its end just before.
                Err(_) if swept => events.push(Event::Gone { worker: id }),
                Err(error) => {
                    log.say(Level::Error, &format!("slot {}: {error}; it is replaced", record.start.slot));
                    if let Some(pidfd) = drain {
                        // It serves unwatched otherwise; over already is as good.
                        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::TERM);
                    }
                    let death = Death { ended: Ended::Unknown, oom_killed: None, peak: None, last_words: Vec::new() };
                    events.push(Event::Exited { worker: id, death });
                    events.push(Event::Gone { worker: id });
                }
            }
        }
        drop(records);
        let taken = Taken { state, workers: taken, events, replies, started: handover.started };
        Ok(Parts { lock, listeners, control: (server, calls), taken })
    }
}

fn take_up(
    handed: HandedWorker,
    held: WorkerDescriptors,
    record: Record,
    state: &State,
    directory: &RuntimeDirectory,
    isolation: &dyn Isolation,
) -> Result<Worker, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("taking up {what}: {error}");
    let files = Files::new(directory.path(), handed.worker);
    let app = state.configs.get(&record.start.config).map(|prepared| prepared.group.clone());
    let app = app.ok_or_else(|| "its configuration is not in the state".to_owned())?;
    let name = FenceName { app, slot: record.start.slot.0, unique: record.unique.clone() };
    let HandedFence { data, .. } = handed.fence;
    let fence = isolation.take_back(&name, &data, held.fence).map_err(|error| failed("its fence", &error))?;
    let process = match (handed.process.and_then(|(pid, _)| Pid::from_raw(pid)), held.pidfd) {
        (Some(pid), Some(pidfd)) => {
            Some(Rc::new(Process::keep(pid, pidfd).map_err(|error| failed("its process", &error))?))
        }
        _ => None,
    };
    let notify = NotifySocket::keep(held.notify, files.notify).map_err(|error| failed("its notify socket", &error))?;
    let pressure = PressureSocket::keep(held.pressure, held.connections, files.pressure)
        .map_err(|error| failed("its pressure socket", &error))?;
    let output = Output::keep(held.output, handed.heard, files.output).map_err(|error| failed("its output", &error))?;
    let worker = Worker::continued(record, notify, pressure, output, handed.journal, process, fence);
    worker.swept.set(handed.swept);
    worker.stranger_logged.set(handed.stranger_logged);
    Ok(worker)
}
