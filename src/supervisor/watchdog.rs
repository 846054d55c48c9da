//! Silence, and the time that a worker asks for.

use std::time::Duration;

use super::Supervisor;
use super::action::Action;
use super::id::WorkerId;
use super::note::{Level, NoteKind};
use super::timers::{Clock, deadline};
use super::verdict::Verdict;
use super::worker::Phase;
use super::{Cx, say};
use crate::config::model::{Ready, Signal};

/// How many times its configured length a deadline can be stretched.
const STRETCH: u32 = 10;
/// `SIGABRT`: stack dump, core.
const SIGABRT: Signal = Signal(6);

impl Supervisor {
    /// A ping, or READY: the silence begins anew. Time that the worker was granted is not taken back.
    pub(super) fn ping(&mut self, id: WorkerId, cx: &Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.phase != Phase::Ready {
            return;
        }
        let Some(watchdog) = worker.policy().watchdog else {
            return;
        };
        worker.last_ping = cx.now;
        let at = deadline(cx.now, watchdog);
        let granted = worker.clock(Clock::Watchdog).filter(|granted| at.is_some_and(|at| *granted > at));
        self.set_clock(id, Clock::Watchdog, granted.or(at));
    }

    /// The worker hangs, by its own word or by its silence: SIGABRT, later SIGKILL.
    pub(super) fn hangs(&mut self, id: WorkerId, text: &str, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if !matches!(worker.phase, Phase::Starting | Phase::Ready) {
            return;
        }
        let abort = worker.policy().abort;
        if abort.is_zero() {
            self.kill(id, Verdict::Watchdog, text, cx);
            return;
        }
        worker.kill = Some(Verdict::Watchdog);
        let slot = worker.slot;
        self.enter(id, Phase::Aborting, cx.now);
        self.set_clock(id, Clock::State, deadline(cx.now, abort));
        cx.act(Action::Signal { worker: id, signal: SIGABRT });
        self.say(
            id,
            Level::Warning,
            NoteKind::WorkerKilling,
            Some(Verdict::Watchdog.name()),
            &format!("watchdog, {text}; SIGABRT, then SIGKILL after {}", say::span(abort)),
            cx,
        );
        self.refresh(slot);
    }

    /// The watchdog's deadline has come.
    pub(super) fn silent(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let text = format!("no WATCHDOG=1 for {}", say::span(cx.now - worker.last_ping));
        self.hangs(id, &text, cx);
    }

    /// `EXTEND_TIMEOUT_USEC=`: the current state's deadline moves to at least `span` from now, in total at most
    /// [`STRETCH`] times what is configured.
    pub(super) fn extend(&mut self, id: WorkerId, span: Duration, cx: &Cx<'_>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let policy = worker.policy();
        let (clock, from, configured) = match worker.phase {
            Phase::Starting if policy.ready == Ready::Notify => (Clock::State, worker.since, Some(policy.start)),
            Phase::Ready => (Clock::Watchdog, worker.last_ping, policy.watchdog),
            Phase::Draining => (Clock::State, worker.since, Some(policy.graceful)),
            Phase::Asked | Phase::Starting | Phase::Aborting | Phase::Killing | Phase::Leftover => {
                return;
            }
        };
        let (Some(configured), Some(old)) = (configured, worker.clock(clock)) else {
            return;
        };
        let most = from.after(configured.saturating_mul(STRETCH));
        let new = cx.now.after(span).min(most).max(old);
        self.set_clock(id, clock, deadline(new, Duration::ZERO));
    }
}
