//! The soft limit's two edges, and the budget.

use std::time::Duration;

use super::action::Action;
use super::id::WorkerId;
use super::note::{Level, NoteKind};
use super::recycle::Cause;
use super::timers::{Clock, deadline};
use super::worker::{Drain, Edge, Phase, Release};
use super::{Cx, Supervisor, say};

/// How long an edge rests after an alarm that was only page cache.
const MASK: Duration = Duration::from_secs(1);
/// An edge that has been passed already is reported at once, so this soon after READY it was passed before.
const AT_ONCE: Duration = Duration::from_millis(100);
/// A worker over its soft limit this soon after READY, and before it counted a request: replacing it does not help.
const HOT: Duration = Duration::from_secs(1);
/// So many such lives in a row are replaced at once, further ones with backoff.
const HOT_FREE: u32 = 3;

impl Supervisor {
    /// Watches the edge that is next, if the worker has a soft limit.
    pub(super) fn arm(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        self.set_clock(id, Clock::Mask, None);
        if let Some(worker) = self.workers.get(&id)
            && worker.recycle_at.is_some()
        {
            cx.act(Action::ArmMemory { worker: id, edge: worker.edge_bytes() });
        }
    }

    /// Lifts the edge, so that what is in flight runs at full speed.
    pub(super) fn lift(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        self.set_clock(id, Clock::Mask, None);
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.edge != Edge::Lifted
        {
            worker.edge = Edge::Lifted;
            if worker.recycle_at.is_some() && worker.ready_at.is_some() {
                cx.act(Action::ArmMemory { worker: id, edge: None });
            }
        }
    }

    /// An edge was reached, or a sample was taken.
    pub(super) fn memory(&mut self, id: WorkerId, unreclaimable: u64, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.unreclaimable = Some(unreclaimable);
        if worker.phase != Phase::Ready {
            return;
        }
        let Some(edge) = worker.edge_bytes() else {
            return;
        };
        if unreclaimable < edge {
            let rest = worker.recycle_at.and_then(|_| deadline(cx.now, MASK));
            self.set_clock(id, Clock::Mask, rest);
        } else if worker.edge == Edge::First {
            self.first_edge(id, unreclaimable, edge, cx);
        } else {
            self.drain_first(id, "second edge reached", cx);
        }
    }

    fn first_edge(&mut self, id: WorkerId, unreclaimable: u64, edge: u64, cx: &mut Cx<'_>) {
        cx.act(Action::Pulse { worker: id });
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.edge = if worker.second_edge().is_some() { Edge::Second } else { Edge::Lifted };
        let slot_id = worker.slot;
        let ready_for = worker.ready_for(cx.now);
        let at_once = ready_for.is_some_and(|span| span < AT_ONCE);
        // What counts requests and has counted some filled up with them: a leak that is merely fast, and that a
        // replacement does help against.
        let idle = worker.requests.is_none_or(|requests| requests == 0);
        let hot = at_once || idle && ready_for.is_some_and(|span| span < HOT);
        let limit = worker.memory_max.map_or_else(String::new, |max| format!(", limit {}", say::size(max)));
        self.arm(id, cx);
        let text = format!(" ({} unreclaimable, soft limit {}{limit})", say::size(unreclaimable), say::size(edge));
        let surge = self.surge();
        let taken = surge > 0 && self.extra() >= surge;
        let Some(slot) = self.slots.get_mut(&slot_id) else {
            return;
        };
        let own = slot.current == Some(id);
        let covered = slot.replacement.is_some();
        slot.hot = if hot { slot.hot.saturating_add(1) } else { 0 };
        let storm = slot.hot > HOT_FREE;
        if storm && slot.wait.is_none() && own && !covered {
            let when = if at_once { "as soon as they are ready" } else { "within a second of being ready" };
            let text = format!(
                "its workers are over recycle_at {when}; replacing them does not help, raise memory.max or recycle_at"
            );
            cx.act(Action::Note(say::place(Level::Warning, NoteKind::Notice, slot_id, &text)));
            self.strike(slot_id, None, cx);
        }
        self.mark_due(id, Cause::Memory, &text, cx);
        if own && !covered && taken {
            self.drain_first(id, "surge is taken", cx);
        }
    }

    /// Drains a worker before its replacement is ready: what does not accept loses nothing, what the kernel kills loses
    /// all that it holds.
    fn drain_first(&mut self, id: WorkerId, why: &str, cx: &mut Cx<'_>) {
        let memory = self.workers.get(&id).and_then(|worker| worker.unreclaimable).unwrap_or(0);
        self.say(
            id,
            Level::Warning,
            NoteKind::DrainFirst,
            Some(Cause::Memory.name()),
            &format!("drain-first at {}: {why}", say::size(memory)),
            cx,
        );
        self.drain(id, Drain::Recycle(Cause::Memory), cx);
    }

    /// The limits of another configuration hold for a living worker from now on.
    pub(super) fn relimit(&mut self, id: WorkerId, release: &Release, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        cx.act(Action::SetLimits { worker: id, config: release.config });
        // The kernel may not be able to lower the limit it began with: the budget counts the higher one.
        let old = worker.memory_max;
        let max = worker.policy().memory_max.max(release.policy.memory_max);
        worker.memory_max = max;
        let leaving = worker.phase.is_leaving();
        let (old, new) = (u128::from(old.unwrap_or(0)), u128::from(max.unwrap_or(0)));
        self.counts.committed = self.counts.committed + new - old;
        if leaving {
            self.counts.leaving_memory = self.counts.leaving_memory + new - old;
        }
        if worker.edge != Edge::First || worker.phase.is_leaving() {
            return;
        }
        let soft = std::mem::replace(&mut worker.recycle_at, release.policy.recycle_at);
        if worker.phase == Phase::Ready {
            if soft.is_some() && worker.recycle_at.is_none() {
                cx.act(Action::ArmMemory { worker: id, edge: None });
            }
            self.arm(id, cx);
        }
    }

    /// Whether one more worker of this release fits into its budget beside `reserved` further ones.
    pub(super) fn fits(&self, release: &Release, reserved: u32, without_leaving: bool) -> bool {
        let (Some(budget), Some(max)) = (release.policy.memory_budget, release.policy.memory_max) else {
            return true;
        };
        let mut held = self.counts.committed;
        if without_leaving {
            held -= self.counts.leaving_memory.min(held);
        }
        held + u128::from(max) * (u128::from(reserved) + 1) <= u128::from(budget)
    }
}
