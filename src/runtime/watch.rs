//! The tasks that listen to one living worker and turn what they hear into events.

use std::rc::Rc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::sync::mpsc::UnboundedSender;

use crate::isolation::{FenceEvent, Isolation};
use crate::observe::log::{Log, OutputSource};
use crate::supervisor::event::{Death, Event};
use crate::supervisor::id::WorkerId;
use crate::systemd::journal;

use super::clock;
use super::deeds::{Deed, Deeds};
use super::worker::Worker;

/// How many lines are read back from the journal.
const LAST_WORDS: u32 = 20;

/// The longest that a death waits for them.
const JOURNAL_BOUND: Duration = Duration::from_secs(5);

/// Start listening to the worker's sockets and output, from before its command runs.
pub fn listen(worker: &Rc<Worker>, log: &Log, readable: UnboundedSender<WorkerId>) {
    let id = worker.start.worker;
    let listened = Rc::clone(worker);
    worker.owns(
        tokio::task::spawn_local(async move {
            while listened.notify.readable().await.is_ok()
                && (listened.queued.replace(true) || readable.send(id).is_ok())
            {}
        })
        .abort_handle(),
    );
    let served = Rc::clone(worker);
    worker.owns(
        tokio::task::spawn_local(async move {
            // Only a broken listener ends it; the worker goes without pulses then.
            let _ = served.pressure.serve(|pid| belongs(&served, pid)).await;
        })
        .abort_handle(),
    );
    let written = Rc::clone(worker);
    let log = log.clone();
    worker.owns(
        tokio::task::spawn_local(async move {
            written.output.forward(|line| log.output(&source(&written), line), async || log.pace().await).await;
        })
        .abort_handle(),
    );
}

/// Hear the worker again when what it sent along has been closed.
pub fn closing(worker: &Rc<Worker>, readable: UnboundedSender<WorkerId>) {
    if worker.held_back.replace(true) {
        return;
    }
    let held = Rc::clone(worker);
    let wait = async move {
        held.notify.closing().caught_up().await;
        held.held_back.set(false);
        if !held.queued.replace(true) {
            let _ = readable.send(held.start.worker);
        }
    };
    worker.owns(tokio::task::spawn_local(wait).abort_handle());
}

/// Watch the worker's fence and its first process, until that is over.
/// From its end on, what is gathered about it is a deed.
pub fn life(
    worker: &Rc<Worker>,
    isolation: &Rc<dyn Isolation>,
    log: &Log,
    events: UnboundedSender<Event>,
    deeds: &Deeds,
) {
    let lived = Rc::clone(worker);
    let (isolation, log, deeds) = (Rc::clone(isolation), log.clone(), deeds.clone());
    worker.owns(
        tokio::task::spawn_local(async move {
            let (death, deed) = until_death(&lived, &*isolation, &log, &events, &deeds).await;
            let _ = events.send(Event::Exited { worker: lived.start.worker, death });
            drop(deed);
        })
        .abort_handle(),
    );
}

/// Before anything is made of an end that the system's own may have brought about.
pub async fn tell_of_system(isolation: &dyn Isolation, events: &UnboundedSender<Event>) {
    if isolation.system_stops().await {
        let _ = events.send(Event::SystemStopping);
    }
}

async fn until_death(
    worker: &Worker,
    isolation: &dyn Isolation,
    log: &Log,
    events: &UnboundedSender<Event>,
    deeds: &Deeds,
) -> (Death, Deed) {
    let process = worker.process.borrow().clone();
    let fence = worker.fence.borrow().clone();
    let (Some(process), Some(fence)) = (process, fence) else {
        let death = Death {
            ended: crate::supervisor::event::Ended::Unknown,
            oom_killed: None,
            peak: None,
            last_words: Vec::new(),
        };
        return (death, deeds.begin());
    };
    let ended = loop {
        tokio::select! {
            biased;
            ended = process.ended() => break ended,
            event = fence.next_event() => match event {
                FenceEvent::Memory(reading) => {
                    let _ = events.send(Event::Memory {
                        worker: worker.start.worker,
                        unreclaimable: reading.unreclaimable,
                    });
                }
                // One inside a worker whose first process lives is the fence's to finish; the death follows.
                FenceEvent::OomKill => {}
                FenceEvent::StopRequested => {
                    let _deed = deeds.begin();
                    tell_of_system(isolation, events).await;
                    let _ = events.send(Event::StopRequested { worker: worker.start.worker });
                }
            }
        }
    };
    // It is reaped: nobody else can learn how it ended.
    let deed = deeds.begin();
    let (facts, ()) = tokio::join!(fence.death_facts(), tell_of_system(isolation, events));
    worker.output.drain(|line| log.output(&source(worker), line));
    let death = Death { ended, oom_killed: facts.oom_killed, peak: facts.peak, last_words: last_words(worker).await };
    (death, deed)
}

/// The worker's last lines, oldest first.
async fn last_words(worker: &Worker) -> Vec<String> {
    let journal = worker.journal.borrow().clone();
    match journal {
        None => worker.output.last_words(),
        Some(journal) if clock::now() <= journal.words_until => {
            journal::last_lines(&journal.unit, LAST_WORDS, JOURNAL_BOUND).await
        }
        Some(_) => Vec::new(),
    }
}

/// Whether a process is inside the worker's fence now.
pub fn belongs(worker: &Worker, pid: Pid) -> bool {
    // The first process was seen inside before it was let go. While it lives its number is its own, which the pidfd tells
    // even when no file can be opened to look.
    if worker.process.borrow().as_ref().is_some_and(|first| first.pid() == pid && first.is_running()) {
        return true;
    }
    let fence = worker.fence.borrow().clone();
    fence.is_some_and(|fence| fence.contains(pid))
}

/// Who writes, for the log.
pub fn source(worker: &Worker) -> OutputSource {
    let pid = worker.process.borrow().as_ref().map_or(0, |process| process.id());
    OutputSource {
        slot: worker.start.slot.0,
        worker: worker.start.worker.0,
        generation: worker.start.generation.0,
        pid,
    }
}
