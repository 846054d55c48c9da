//! A worker's way from its start to its last moment; `death` has what follows.

use std::time::Duration;

use super::action::Action;
use super::id::{SlotId, WorkerId};
use super::note::{Level, NoteKind};
use super::recycle::Cause;
use super::time::Time;
use super::timers::{Clock, deadline};
use super::verdict::Verdict;
use super::worker::{Drain, Phase};
use super::{Cx, Supervisor, say};
use crate::config::model::Ready;

/// SIGKILL is repeated after this long, and then after twice as long each time.
pub(super) const REPEAT: Duration = Duration::from_secs(5);
/// The longest pause between two repetitions.
const REPEAT_MOST: Duration = Duration::from_mins(1);

impl Supervisor {
    /// Moves a worker to another phase and keeps the counts.
    pub(super) fn enter(&mut self, id: WorkerId, phase: Phase, now: Time) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let old = std::mem::replace(&mut worker.phase, phase);
        worker.since = now;
        if phase.is_leaving() {
            worker.due = None;
        }
        let max = u128::from(worker.memory_max.unwrap_or(0));
        let generation = worker.generation();
        if old.is_starting() && !phase.is_starting() {
            self.counts.starting -= 1;
        }
        if !old.is_leaving() && phase.is_leaving() {
            self.counts.leaving += 1;
            self.counts.leaving_memory += max;
        }
        if old.is_alive() && !phase.is_alive() {
            self.counts.alive -= 1;
            if let Some(users) = self.in_use.get_mut(&generation) {
                users.alive -= 1;
            }
        }
        self.changed = true;
        if phase.is_leaving() {
            self.clear_clocks(id);
            self.left_hold(id);
        }
    }

    /// Its program has been exec'd.
    pub(super) fn started(&mut self, id: WorkerId, pid: u32, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.pid.get_or_insert(pid);
        if worker.phase != Phase::Asked {
            return;
        }
        let policy = worker.policy();
        let (notify, span) = match policy.ready {
            Ready::Notify => (true, policy.start),
            Ready::Settle => (false, policy.settle),
        };
        let said_ready = worker.said_ready;
        self.enter(id, Phase::Starting, cx.now);
        self.set_clock(id, Clock::State, deadline(cx.now, span));
        if notify && said_ready {
            self.ready(id, cx);
        }
    }

    /// It said `READY=1`.
    pub(super) fn says_ready(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.policy().ready != Ready::Notify {
            return;
        }
        match worker.phase {
            Phase::Asked => worker.said_ready = true,
            Phase::Starting => self.ready(id, cx),
            Phase::Ready | Phase::Draining | Phase::Aborting | Phase::Killing | Phase::Leftover => {}
        }
    }

    /// It serves.
    fn ready(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let took = cx.now - worker.since;
        worker.ready_at = Some(cx.now);
        worker.last_ping = cx.now;
        let (slot_id, generation) = (worker.slot, worker.generation());
        self.enter(id, Phase::Ready, cx.now);
        self.set_clock(id, Clock::State, None);
        self.ping(id, cx);
        self.begin_life(id, cx);
        self.arm(id, cx);
        let text = format!("ready after {}, generation {generation}", say::span(took));
        self.say(id, Level::Info, NoteKind::WorkerReady, None, &text, cx);
        self.outcome(slot_id, None, cx);
        let Some(slot) = self.slots.get_mut(&slot_id) else {
            return;
        };
        slot.spread = slot.spread.max(Some(generation));
        slot.failures = 0;
        let beside = slot.replacement == Some(id);
        self.refresh(slot_id);
        if self.is_canary(id) {
            self.canary_ready(cx);
        } else if beside {
            self.hand_over(slot_id, cx);
        }
        self.mark_outdated(slot_id, cx);
        self.answer_recycles(slot_id, cx);
    }

    /// The replacement takes its slot over, the old worker drains.
    pub(super) fn hand_over(&mut self, slot_id: SlotId, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get_mut(&slot_id) else {
            return;
        };
        let Some(new) = slot.replacement.take() else {
            return;
        };
        let old = slot.current.replace(new);
        self.refresh(slot_id);
        if let Some((old, worker)) = old.and_then(|old| Some((old, self.workers.get(&old)?)))
            && worker.phase == Phase::Ready
        {
            // One that was to be kept has no cause any more, but its place is taken.
            let cause = worker.due.map_or(Cause::Reload, |(cause, _)| cause);
            self.drain(old, Drain::Recycle(cause), cx);
        }
    }

    /// Sends the drain signal; a worker that is not exec'd yet is ended by it.
    pub(super) fn drain(&mut self, id: WorkerId, why: Drain, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let first = worker.phase < Phase::Draining;
        // One that drains by itself gets the signal once it is meant to; its deadline stays.
        if !first && (worker.phase != Phase::Draining || worker.signalled) {
            return;
        }
        worker.signalled = true;
        worker.drain = Some(why);
        let (slot_id, policy) = (worker.slot, worker.policy());
        let (signal, graceful) = (policy.drain_signal, policy.graceful);
        if first {
            self.lift(id, cx);
            self.enter(id, Phase::Draining, cx.now);
            self.set_clock(id, Clock::State, deadline(cx.now, graceful));
        }
        cx.act(Action::Signal { worker: id, signal });
        let text = format!("drain, {}; at most {}", why.name(), say::span(graceful));
        self.say(id, Level::Info, NoteKind::DrainStarted, Some(why.name()), &text, cx);
        if let Drain::Recycle(cause) = why
            && let Some(slot) = self.slots.get_mut(&slot_id)
        {
            *slot.recycles.entry(cause).or_default() += 1;
            *self.recycles.entry(cause).or_default() += 1;
        }
        self.refresh(slot_id);
    }

    /// It said `STOPPING=1` unasked: it no longer accepts.
    pub(super) fn says_stopping(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if !matches!(worker.phase, Phase::Starting | Phase::Ready) {
            return;
        }
        worker.drain = Some(Drain::Itself);
        let (slot_id, graceful) = (worker.slot, worker.policy().graceful);
        let ready_for = worker.ready_for(cx.now);
        self.lift(id, cx);
        self.enter(id, Phase::Draining, cx.now);
        self.set_clock(id, Clock::State, deadline(cx.now, graceful));
        let text = format!("stopping by itself; at most {}", say::span(graceful));
        self.say(id, Level::Info, NoteKind::DrainStarted, Some(Drain::Itself.name()), &text, cx);
        self.unasked(id, slot_id, ready_for, cx);
    }

    /// A worker that served leaves, and nobody here had wanted it to: a restart.
    pub(super) fn unasked(&mut self, id: WorkerId, slot_id: SlotId, ready_for: Option<Duration>, cx: &mut Cx<'_>) {
        let alone = self
            .slots
            .get(&slot_id)
            .is_some_and(|slot| slot.wanted && slot.current == Some(id) && slot.replacement.is_none());
        if alone && ready_for.is_some() && self.stop.is_none() && self.system_stops.is_none() {
            self.strike(slot_id, ready_for, cx);
        }
        self.refresh(slot_id);
    }

    /// SIGKILL to all of it.
    pub(super) fn kill(&mut self, id: WorkerId, reason: Verdict, text: &str, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.phase >= Phase::Killing {
            return;
        }
        let reason = *worker.kill.get_or_insert(reason);
        let slot_id = worker.slot;
        self.enter(id, Phase::Killing, cx.now);
        self.set_clock(id, Clock::State, deadline(cx.now, REPEAT));
        cx.act(Action::Kill { worker: id });
        let level = if reason == Verdict::FastStop { Level::Info } else { Level::Warning };
        let text = format!("{reason}, {text}; SIGKILL");
        self.say(id, level, NoteKind::WorkerKilling, Some(reason.name()), &text, cx);
        self.refresh(slot_id);
    }

    /// The deadline of a worker's state has come.
    pub(super) fn overdue(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let lasted = say::span(cx.now - worker.since);
        match worker.phase {
            Phase::Asked => {
                let text = format!("its program was not exec'd within {lasted}");
                self.kill(id, Verdict::StartTimeout, &text, cx);
            }
            Phase::Starting if worker.policy().ready == Ready::Settle => self.ready(id, cx),
            Phase::Starting => {
                let text = format!("no READY=1 within {lasted}; the program must send it, or set ready = \"settle\"");
                self.kill(id, Verdict::StartTimeout, &text, cx);
            }
            Phase::Ready => {}
            Phase::Draining => {
                let text = format!("still there {lasted} after its drain began");
                self.kill(id, Verdict::DrainDeadline, &text, cx);
            }
            Phase::Aborting => {
                let text = format!("still there {lasted} after SIGABRT");
                self.kill(id, Verdict::Watchdog, &text, cx);
            }
            Phase::Killing | Phase::Leftover => self.kill_again(id, &lasted, cx),
        }
    }

    fn kill_again(&mut self, id: WorkerId, lasted: &str, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.repeats = worker.repeats.saturating_add(1);
        let factor = 2_u32.saturating_pow(worker.repeats);
        let what = if worker.phase == Phase::Leftover { "what it left is" } else { "it is" };
        let pause = REPEAT.saturating_mul(factor).min(REPEAT_MOST);
        self.set_clock(id, Clock::State, deadline(cx.now, pause));
        cx.act(Action::Kill { worker: id });
        let text = format!("{what} still there after {lasted}; SIGKILL again");
        self.say(id, Level::Warning, NoteKind::Notice, None, &text, cx);
    }
}
