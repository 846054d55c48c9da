//! After a standstill: whoever could not be heard is not judged at once.

use std::time::Duration;

use super::note::{Level, NoteKind};
use super::time::Time;
use super::{Action, Cx, Supervisor, say};

/// Being this late for a deadline is a standstill: the manager was stopped, or the whole machine was.
const STALL: Duration = Duration::from_secs(1);
/// The longest time that deadlines wait after one.
const GRACE_MOST: Duration = Duration::from_secs(5);

impl Supervisor {
    /// From here on a process looks after deadlines; those that came before are no standstill of its own.
    pub(super) fn begin_watch(&mut self, now: Time) {
        self.watched_since = Some(now);
        self.held_until = None;
    }

    /// Whether a deadline has come that may be judged. After a standstill it may not at once: workers that were stopped
    /// along with us could not ping, and get the time for it that was lost, once, up to a bound.
    pub(super) fn may_judge(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(due) = self.timers.first().map(|(at, _)| *at).filter(|at| *at <= cx.now) else {
            return false;
        };
        if let Some(until) = self.held_until {
            if cx.now < until {
                return false;
            }
            self.held_until = None;
            if due <= until {
                // It waited once; a manager that is always late must not hold it back for ever.
                return true;
            }
        }
        let late = cx.now - self.watched_since.map_or(due, |since| since.max(due));
        if late < STALL {
            return true;
        }
        let grace = late.min(GRACE_MOST);
        self.held_until = Some(cx.now.after(grace));
        let text = format!(
            "stalled: {:.1} s late for a deadline; nobody is judged for the next {:.1} s",
            late.as_secs_f64(),
            grace.as_secs_f64()
        );
        cx.act(Action::Note(say::general(Level::Warning, NoteKind::Notice, text)));
        // Systemd has waited all the time, and has heard nothing.
        self.begin_patience();
        false
    }

    /// When something that is due at this time is judged.
    pub(super) fn judged_at(&self, due: Time) -> Time {
        self.held_until.map_or(due, |until| until.max(due))
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{Event, Message};
    use super::super::fixture::{Bench, policy};
    use super::super::id::WorkerId;
    use super::super::policy::Policy;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Two ready workers that have to ping every two seconds, and an instant ago both did.
    fn pinging() -> (Bench, WorkerId, WorkerId) {
        let mut bench = Bench::ready(Policy { watchdog: Some(2 * SECOND), ..policy() });
        let (first, second) = (bench.current(0), bench.current(1));
        bench.say(first, Message::Watchdog);
        bench.say(second, Message::Watchdog);
        (bench, first, second)
    }

    /// Nothing happens for so long; then it goes on.
    fn stands_still(bench: &mut Bench, span: Duration) {
        bench.now = bench.now.after(span);
        bench.step(Event::Tick);
    }

    fn stalls(bench: &Bench) -> Vec<String> {
        let notes = bench.notes(NoteKind::Notice).into_iter();
        notes.map(|note| note.message).filter(|message| message.starts_with("stalled")).collect()
    }

    #[test]
    fn after_a_standstill_workers_get_the_lost_time_to_ping_and_no_more() {
        let (mut bench, first, second) = pinging();
        stands_still(&mut bench, 5 * SECOND);
        assert_eq!(bench.signals(), []);
        assert_eq!(stalls(&bench), ["stalled: 3.0 s late for a deadline; nobody is judged for the next 3.0 s"]);
        assert_eq!(bench.core.next_deadline(), Some((bench.now.after(3 * SECOND), "watchdog")));
        bench.pass_ms(2900);
        bench.say(second, Message::Watchdog);
        assert_eq!(bench.signals(), []);
        bench.pass_ms(100);
        assert_eq!(bench.signals(), [(first, 6)]);
    }

    #[test]
    fn the_time_after_a_standstill_is_bounded_and_given_once() {
        let (mut bench, first, second) = pinging();
        stands_still(&mut bench, Duration::from_mins(10));
        assert_eq!(bench.core.next_deadline().map(|(at, _)| at - bench.now), Some(5 * SECOND));
        // It is late again, as on a machine that is always too slow.
        stands_still(&mut bench, 20 * SECOND);
        assert_eq!(bench.signals(), [(first, 6), (second, 6)]);
        assert_eq!(stalls(&bench).len(), 1);
    }

    #[test]
    fn being_a_little_late_is_no_standstill() {
        let (mut bench, first, second) = pinging();
        stands_still(&mut bench, Duration::from_millis(2999));
        assert_eq!(bench.signals(), [(first, 6), (second, 6)]);
    }

    #[test]
    fn time_that_nobody_needed_is_not_missing_at_the_next_standstill() {
        let (mut bench, first, second) = pinging();
        for _ in 0..3 {
            stands_still(&mut bench, 5 * SECOND);
            for _ in 0..4 {
                bench.say(first, Message::Watchdog);
                bench.say(second, Message::Watchdog);
                bench.pass_ms(1000);
            }
        }
        assert_eq!((bench.signals(), stalls(&bench).len()), (Vec::new(), 3));
    }

    #[test]
    fn what_was_due_before_a_manager_began_is_no_standstill_of_its_own() {
        let mut bench = Bench::new(policy());
        let first = bench.starts[0].worker;
        bench.started(first);
        bench.now = bench.now.after(Duration::from_hours(1));
        let now = bench.now;
        bench.core.resume(&std::collections::BTreeSet::new(), now, &mut Vec::new());
        bench.step(Event::Tick);
        assert_eq!(bench.kills(), [first]);
        assert_eq!(stalls(&bench), Vec::<String>::new());
    }
}
