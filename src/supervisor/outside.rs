//! What systemd does to the app besides asking it to stop: it stops a single worker's fence, or everything.

use std::time::Duration;

use super::action::Action;
use super::id::WorkerId;
use super::note::{Level, NoteKind};
use super::timers::deadline;
use super::worker::{Drain, Phase};
use super::{Cx, Supervisor, say};

/// After this long without news of it a system that was to stop may have been kept from it, and a start is tried.
const SYSTEM_STOPS: Duration = Duration::from_mins(1);

impl Supervisor {
    /// Somebody else has its fence stopped, and leaves the drain to us.
    pub(super) fn stop_requested(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let first = worker.phase < Phase::Draining;
        let (slot_id, ready_for) = (worker.slot, worker.ready_for(cx.now));
        self.drain(id, Drain::Outside, cx);
        if first {
            self.unasked(id, slot_id, ready_for, cx);
        }
    }

    /// The system is shutting down: workers that end are not replaced, and nothing new begins. Whoever serves goes on until
    /// it is asked to end, for services that stop before this one may still need it.
    pub(super) fn system_stopping(&mut self, cx: &mut Cx<'_>) {
        if self.stop.is_some() {
            return;
        }
        self.changed = true;
        if self.system_stops.is_none() {
            let text = "the system stops: no worker is started any more".to_owned();
            cx.act(Action::Note(say::general(Level::Info, NoteKind::Notice, text)));
        }
        self.set_system_stops(deadline(cx.now, SYSTEM_STOPS));
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{Ended, Event, Message, Request};
    use super::super::fixture::{Bench, policy};
    use super::super::id::{RequestId, SlotId};
    use super::super::verdict::Verdict;
    use super::*;
    use crate::config::model::Signal;

    const TERM: Ended = Ended::Signal(Signal(15));

    fn outcome(bench: &Bench) -> String {
        bench.notes(NoteKind::WorkerDied).first().expect("a death").message.clone()
    }

    #[test]
    fn a_worker_whose_scope_somebody_stops_is_drained_and_replaced_meanwhile() {
        let mut bench = Bench::ready(policy());
        bench.pass(Duration::from_secs(20));
        let old = bench.current(0);
        bench.step(Event::StopRequested { worker: old });
        assert_eq!(bench.signals(), [(old, 15)]);
        let note = bench.notes(NoteKind::DrainStarted).pop().expect("a note");
        assert_eq!(note.reason.as_deref(), Some("from outside"));
        let new = bench.newest();
        assert_eq!((new.slot, new.worker == old), (SlotId(0), false), "beside the one that no longer accepts");
        // Asked twice: one signal.
        bench.step(Event::StopRequested { worker: old });
        assert_eq!(bench.signals().len(), 1);
        bench.up(new.worker);
        bench.ends(old, TERM);
        assert_eq!(bench.core.snapshot().verdicts.get(&Verdict::Drained), Some(&1));
        assert_eq!(bench.current(0), new.worker);
    }

    #[test]
    fn one_that_is_stopped_again_and_again_is_a_restart_like_any_other() {
        let mut bench = Bench::ready(policy());
        for restarts in 1..=3 {
            let old = bench.current(0);
            let before = bench.starts.len();
            bench.step(Event::StopRequested { worker: old });
            bench.ends(old, TERM);
            assert_eq!(bench.core.slots[&SlotId(0)].strikes, restarts);
            assert_eq!(bench.starts.len() > before, restarts == 1, "the first at once, the others after a delay");
            bench.pass(Duration::from_secs(2));
            let new = bench.newest().worker;
            bench.up(new);
        }
    }

    #[test]
    fn while_the_system_stops_nobody_is_replaced_and_drains_keep_their_deadlines() {
        let mut bench = Bench::ready(policy());
        let (first, second) = (bench.current(0), bench.current(1));
        let started = bench.starts.len();
        bench.step(Event::SystemStopping);
        bench.step(Event::StopRequested { worker: first });
        assert_eq!(bench.signals(), [(first, 15)]);
        bench.pass(Duration::from_secs(29));
        assert!(bench.kills().is_empty(), "its time is not over");
        bench.pass(Duration::from_secs(1));
        assert_eq!(bench.kills(), [first]);
        bench.take();
        bench.ends(first, Ended::Signal(Signal(9)));
        assert!(outcome(&bench).contains("not replaced, the system stops"), "{}", outcome(&bench));
        // One that systemd signalled itself.
        bench.take();
        bench.ends(second, TERM);
        assert!(outcome(&bench).contains("signal 15") && outcome(&bench).contains("not replaced"));
        assert_eq!(bench.starts.len(), started);
        assert_eq!(bench.exit(), None, "the stop itself is still to come");
        bench.step(Event::Request { id: None, request: Request::Terminate });
        assert_eq!(bench.exit(), Some(0));
    }

    #[test]
    fn the_term_that_follows_is_the_first_and_not_a_fast_stop() {
        let mut bench = Bench::ready(policy());
        let (first, second) = (bench.current(0), bench.current(1));
        bench.step(Event::SystemStopping);
        bench.step(Event::StopRequested { worker: first });
        bench.step(Event::Request { id: None, request: Request::Terminate });
        assert!(bench.kills().is_empty());
        assert_eq!(bench.signals(), [(first, 15), (second, 15)]);
        bench.step(Event::StopRequested { worker: second });
        assert_eq!(bench.signals().len(), 2, "each of them once");
        bench.ends(first, TERM);
        bench.ends(second, TERM);
        assert_eq!(bench.exit(), Some(0));
    }

    #[test]
    fn a_start_that_systemd_refuses_because_it_stops_is_no_failure() {
        let mut bench = Bench::ready(policy());
        let old = bench.current(0);
        // Signalled by systemd, and faster than the news of why.
        bench.say(old, Message::Stopping);
        let new = bench.newest().worker;
        bench.take();
        bench.step(Event::SystemStopping);
        bench.step(Event::StartFailed { worker: new, error: "refused".to_owned() });
        let note = bench.notes(NoteKind::StartFailed).pop().expect("a note");
        assert_eq!(note.level, Level::Debug, "{}", note.message);
        bench.ends(old, Ended::Exit(0));
        assert!(outcome(&bench).contains("not replaced, the system stops"));
        assert_eq!(bench.newest().worker, new);
    }

    #[test]
    fn nothing_new_is_begun_while_the_system_stops() {
        let mut bench = Bench::ready(policy());
        bench.step(Event::SystemStopping);
        let started = bench.starts.len();
        bench.reload(7, policy());
        bench.ask(8, Request::Recycle { slot: SlotId(0) });
        bench.ask(9, Request::Scale { workers: 5 });
        assert_eq!(bench.replies().len(), 3);
        for (_, response) in bench.replies() {
            assert!(format!("{response:?}").contains("the system is stopping"), "{response:?}");
        }
        assert!(bench.take().iter().any(|action| matches!(action, Action::Forget { .. })), "the refused configuration");
        assert_eq!(bench.starts.len(), started);
        bench.step(Event::Request { id: Some(RequestId(10)), request: Request::Stop { fast: false } });
        assert_eq!(bench.signals().len(), 2);
    }

    #[test]
    fn a_system_that_was_kept_from_stopping_gets_its_workers_back() {
        let mut bench = Bench::ready(policy());
        bench.step(Event::SystemStopping);
        let (first, started) = (bench.current(0), bench.starts.len());
        bench.ends(first, TERM);
        bench.pass(Duration::from_secs(30));
        // Said again: counted from here.
        bench.step(Event::SystemStopping);
        bench.pass(Duration::from_secs(59));
        assert_eq!(bench.starts.len(), started);
        bench.pass(Duration::from_secs(1));
        assert_eq!(bench.starts.len(), started + 1);
        let new = bench.newest().worker;
        bench.up(new);
        assert_eq!(bench.core.snapshot().ready, 2);
    }
}
