//! Taking up what an earlier manager of the app left: its workers serve on.
//!
//! Fences are the register of what lives; the state file says what each of them is. What lives and is not in the state
//! is a stray: it serves until our own workers are ready, then it is drained.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Pid;

use crate::config::model::Signal;
use crate::isolation::{DeathFacts, Fence, FenceError, Isolation, Leftover, Mode, proc};
use crate::observe::log::Log;
use crate::supervisor::action::Start;
use crate::supervisor::event::{Death, Ended, Event};
use crate::supervisor::id::WorkerId;
use crate::supervisor::note::Level;
use crate::worker::files::Files;
use crate::worker::gate;
use crate::worker::process::Process;

use super::deeds::Deeds;
use super::origin;
use super::state::{Record, State};
use super::worker::Worker;

/// What was found.
#[derive(Default)]
pub struct Found {
    /// Workers that live, or left something that does.
    pub workers: BTreeMap<WorkerId, Rc<Worker>>,
    /// What happened to the others meanwhile.
    pub events: Vec<Event>,
    /// Starts that came to nothing, through no fault of the worker: to be done again.
    pub again: Vec<Start>,
    /// Workers whose messages were lost meanwhile.
    pub unheard: BTreeSet<WorkerId>,
    /// What lives without being known.
    pub strays: Vec<Leftover>,
}

/// Look for everything that an earlier manager left. `stored` are notify sockets that were kept for us, by worker.
///
/// # Errors
/// The fences cannot be listed: then it is not known what lives, and starting anew would be wrong.
pub async fn find(
    app: &str,
    state: Option<&State>,
    isolation: &dyn Isolation,
    directory: &Path,
    mut stored: BTreeMap<WorkerId, OwnedFd>,
    log: &Log,
) -> Result<Found, FenceError> {
    let left = isolation.leftovers(app).await?;
    let by_name = |unique: &str| origin::asked_for(unique).to_owned();
    let dead: BTreeMap<String, DeathFacts> =
        left.dead.into_iter().map(|(name, facts)| (by_name(&name.unique), facts)).collect();
    let mut leftovers: BTreeMap<String, Leftover> = left
        .living
        .into_iter()
        .filter(|leftover| origin::is_of(directory, leftover))
        .map(|leftover| (by_name(&leftover.name.unique), leftover))
        .collect();
    let mut found = Found::default();
    let Some(state) = state else {
        found.strays = leftovers.into_values().collect();
        return Ok(found);
    };
    let records: BTreeMap<WorkerId, &Record> =
        state.workers.iter().map(|record| (record.start.worker, record)).collect();
    for (id, asked) in state.supervisor.worker_ids() {
        let record = records.get(&id).copied();
        let leftover = record.and_then(|record| leftovers.remove(&record.unique));
        let facts = record.and_then(|record| dead.get(&record.unique)).copied().unwrap_or_default();
        let Some((record, leftover)) = record.zip(leftover) else {
            found.lost(id, asked, record, facts);
            continue;
        };
        let owner = state
            .configs
            .get(&record.start.config)
            .and_then(|prepared| prepared.account.as_ref())
            .map(|account| (account.uid, account.gid));
        let first = first_process(record, &*leftover.fence);
        if asked && first.is_none() {
            // A gate that was never released goes away by itself; make sure before it is started again.
            leftover.fence.sweep().await?;
            found.lost(id, asked, Some(record), facts);
            continue;
        }
        let kept = stored.remove(&id);
        if kept.is_none() {
            found.unheard.insert(id);
        }
        let pid = first.as_ref().map(|process| process.id());
        let fence = Rc::clone(&leftover.fence);
        if isolation.mode() == Mode::None
            && let Some(prepared) = state.configs.get(&record.start.config)
        {
            // What no kernel keeps; it is only compared with.
            let _ = fence.set_limits(&prepared.limits).await;
        }
        match Worker::take_up(record, Files::new(directory, id), owner, kept, first, Rc::clone(&fence)) {
            Ok(worker) => {
                found.workers.insert(id, Rc::new(worker));
            }
            Err(error) => {
                log.say(Level::Error, &format!("slot {}: {error}; it is drained as a stray", record.start.slot));
                found.lost(id, asked, None, facts);
                found.strays.push(leftover);
                continue;
            }
        }
        match pid {
            Some(pid) if asked => found.events.push(Event::Started { worker: id, pid }),
            Some(_) => {}
            None => found.events.push(Event::Exited { worker: id, death: death(fence.death_facts().await) }),
        }
    }
    found.strays.extend(leftovers.into_values());
    Ok(found)
}

impl Found {
    /// Nothing is left of it but what its fence told.
    fn lost(&mut self, worker: WorkerId, asked: bool, record: Option<&Record>, facts: DeathFacts) {
        match record {
            Some(record) if asked => self.again.push(record.start.clone()),
            None if asked => {
                let error = "the manager ended while it was being started".to_owned();
                self.events.push(Event::StartFailed { worker, error });
            }
            _ => {
                self.events.push(Event::Exited { worker, death: death(facts) });
                self.events.push(Event::Gone { worker });
            }
        }
    }
}

/// A death that nobody saw: only the fence could tell something.
fn death(facts: DeathFacts) -> Death {
    Death { ended: Ended::Unknown, oom_killed: facts.oom_killed, peak: facts.peak, last_words: Vec::new() }
}

/// The worker's first process: the one that is written down, else the oldest inside; none if it is over, or a gate that
/// has not become a worker.
fn first_process(record: &Record, fence: &dyn Fence) -> Option<Rc<Process>> {
    let pid = match record.pid {
        Some(pid) => i32::try_from(pid).ok().and_then(Pid::from_raw)?,
        None => oldest(fence)?,
    };
    let process = Process::open(pid).ok()?;
    // Only now that it is held can its number not pass to another process while we look.
    let stat = proc::stat(pid).ok()?;
    let is_worker = fence.contains(pid) && !stat.is_over() && !gate::is_gate(pid);
    is_worker.then(|| Rc::new(process))
}

fn oldest(fence: &dyn Fence) -> Option<Pid> {
    let inside = proc::all().ok()?.into_iter().filter(|pid| fence.contains(*pid));
    inside
        .filter_map(|pid| Some((proc::stat(pid).ok()?.start_time, pid)))
        .min_by_key(|(start, _)| *start)
        .map(|(_, pid)| pid)
}

/// Drain what lives without being known, and remove it.
pub fn drain_strays(strays: Vec<Leftover>, signal: Signal, graceful: Duration, log: &Log, deeds: &Deeds) {
    for stray in strays {
        let (log, deed) = (log.clone(), deeds.begin());
        tokio::task::spawn_local(async move {
            let name = stray.fence.describe();
            log.say(Level::Warning, &format!("{name} is of an earlier manager and not known: drained"));
            let first =
                oldest(&*stray.fence).and_then(|pid| Process::open(pid).ok().filter(|_| stray.fence.contains(pid)));
            if let Some(first) = first
                && first.signal(signal).is_ok()
            {
                // Either way the rest is killed.
                let _ = tokio::time::timeout(graceful, first.ended()).await;
            }
            if let Err(error) = stray.fence.sweep().await {
                log.say(Level::Error, &format!("removing {name}: {error}"));
            }
            drop(deed);
        });
    }
}
