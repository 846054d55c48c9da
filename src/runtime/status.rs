//! How things stand, for people and programs: the supervisor's snapshot with what only the runtime knows.

use std::collections::BTreeMap;

use crate::command::status::table;
use crate::command::terminal::Look;
use crate::control::status::{DeadlineReport, ListenerReport, MemoryReport, RollReport, StatusReport, WorkerReport};
use crate::supervisor::note::Level;
use crate::supervisor::snapshot::{RollStage, RollView, SlotView, Snapshot, WorkerView};
use crate::supervisor::time::Time;
use crate::supervisor::verdict::Verdict;

use super::manager::Manager;

impl Manager {
    /// The whole report.
    pub(super) fn status(&self, now: Time) -> StatusReport {
        let snapshot = self.supervisor.snapshot();
        let mut workers: Vec<WorkerReport> =
            snapshot.workers.iter().map(|view| self.worker_report(view, &snapshot, now)).collect();
        let empty =
            snapshot.slots.iter().filter(|slot| slot.wanted && slot.worker.is_none() && slot.replacement.is_none());
        workers.extend(empty.map(|slot| empty_slot(slot, now)));
        workers.sort_by_key(|worker| (worker.slot, worker.pid.is_none(), worker.generation));
        let uptime = now - self.started;
        StatusReport {
            app: self.name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: super::clock::unix_seconds().saturating_sub(uptime.as_secs()),
            uptime: uptime.as_secs_f64(),
            generation: snapshot.generation.0,
            isolation: self.isolation.mode().to_string(),
            stopping: snapshot.stopping,
            mixed: snapshot.mixed,
            roll: snapshot.roll.as_ref().map(roll),
            workers_wanted: snapshot.wanted,
            ready: snapshot.ready,
            workers,
            listeners: self
                .listeners
                .describe()
                .into_iter()
                .map(|(name, address)| ListenerReport { name, address })
                .collect(),
            recycles: counts(&snapshot.recycles),
            restarts: restarts(&snapshot.verdicts),
        }
    }

    /// USR1: the table, a line at a time.
    pub(super) fn log_status(&self, now: Time) {
        for line in table(&self.status(now), Look::default()).lines() {
            self.log.say(Level::Info, line);
        }
    }

    fn worker_report(&self, view: &WorkerView, snapshot: &Snapshot, now: Time) -> WorkerReport {
        let held = self.workers.get(&view.worker);
        let fence = held.and_then(|worker| worker.fence.borrow().clone());
        let reading = fence.as_ref().filter(|_| !view.dead).and_then(|fence| fence.memory().ok());
        let slot = snapshot.slots.iter().find(|slot| slot.slot == view.slot);
        let limit = view.memory_max;
        WorkerReport {
            slot: view.slot.0,
            pid: view.pid,
            generation: Some(view.generation.0),
            state: view.state.name().to_owned(),
            age: held.map(|worker| (now - worker.begun).as_secs_f64()),
            requests: view.requests,
            quota: view.quota,
            overrun: view.overrun,
            memory: MemoryReport {
                current: reading.map(|reading| reading.current),
                unreclaimable: reading.map(|reading| reading.unreclaimable),
                peak: reading.and_then(|reading| reading.peak),
                limit,
                recycle_at: view.recycle_at,
                headroom: limit.zip(view.recycle_at).map(|(limit, edge)| limit.saturating_sub(edge)),
            },
            restarts: slot.map(|slot| restarts(&slot.verdicts)).unwrap_or_default(),
            last_verdict: slot.and_then(|slot| slot.last_death.clone()),
            next_deadline: view.deadline.as_ref().map(|(at, name)| deadline(*at, name, now)),
            cause: view.due.map(|cause| cause.to_string()).or_else(|| view.reason.clone()),
            status_text: Some(view.status.clone()).filter(|text| !text.is_empty()),
            fence: fence.map(|fence| fence.describe()),
        }
    }
}

fn empty_slot(slot: &SlotView, now: Time) -> WorkerReport {
    WorkerReport {
        slot: slot.slot.0,
        state: "backoff".to_owned(),
        restarts: restarts(&slot.verdicts),
        last_verdict: slot.last_death.clone(),
        next_deadline: slot.backoff_until.map(|at| deadline(at, "backoff", now)),
        ..WorkerReport::default()
    }
}

fn roll(view: &RollView) -> RollReport {
    let phase = match (view.stage, view.holds_until) {
        (RollStage::Canary, None) => "canary",
        (RollStage::Canary, Some(_)) => "hold",
        (RollStage::Rest, _) => "rolling",
        (RollStage::Undoing, _) => "undoing",
    };
    RollReport { phase: phase.to_owned(), generation: view.to.0 }
}

fn deadline(at: Time, name: &str, now: Time) -> DeadlineReport {
    DeadlineReport { name: name.to_owned(), in_seconds: (at - now).as_secs_f64() }
}

fn counts<K: ToString>(of: &BTreeMap<K, u64>) -> BTreeMap<String, u64> {
    of.iter().map(|(key, count)| (key.to_string(), *count)).collect()
}

/// Deaths by verdict, without those that were asked for: a worker that drained in time was recycled, not restarted.
fn restarts(of: &BTreeMap<Verdict, u64>) -> BTreeMap<String, u64> {
    let mut counts = counts(of);
    for planned in [Verdict::Drained, Verdict::FastStop] {
        counts.remove(&planned.to_string());
    }
    counts
}
