//! How long systemd waits for us: `EXTEND_TIMEOUT_USEC=` of `sd_notify(3)`.
//!
//! Each of its waits (start-up, reload, stop) begins with a patience of its own that we do not know. So we ask at once for
//! the longest wait that is ahead, and again before that is used up, for as long as it waits.

use std::time::Duration;

use super::action::{Action, ServiceState};
use super::policy::Policy;
use super::time::Time;
use super::timers::{Clock, Timer};
use super::worker::{Phase, Worker};
use super::{Cx, FENCE, Supervisor};
use crate::config::model::Ready;

/// What systemd is asked for beyond the longest wait that is ahead.
const MARGIN: Duration = Duration::from_secs(30);
/// It is asked again this long before its patience is over: half of the least that it is ever asked for, so a manager
/// that stands still for less is not given up.
const LEAD: Duration = Duration::from_secs(15);
/// The most that systemd is asked for at a time, for deadlines that are infinite.
const EXTEND_MOST: Duration = Duration::from_hours(24);
/// Systemd is not asked for more of the same patience more often than this.
const EXTEND_PAUSE: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Tells systemd about a turn after which it waits anew, or no more: what it was asked for before is void.
    pub(super) fn tell_turn(&mut self, turn: ServiceState, cx: &mut Cx<'_>) {
        cx.act(Action::Tell(turn));
        self.begin_patience();
    }

    /// Whatever systemd was asked for does not count any more.
    pub(super) fn begin_patience(&mut self) {
        self.set_ask_again(None);
        self.changed = true;
    }

    /// Asks systemd for patience while it waits for us.
    pub(super) fn ask_patience(&mut self, cx: &mut Cx<'_>) {
        if !self.is_waited_for() {
            self.set_ask_again(None);
            return;
        }
        if self.ask_again.is_some() && self.told_extend.is_some_and(|at| cx.now - at < EXTEND_PAUSE) {
            return;
        }
        self.told_extend = Some(cx.now);
        let span = self.longest_wait(cx.now).saturating_add(MARGIN).min(EXTEND_MOST);
        cx.act(Action::Tell(ServiceState::ExtendTimeout(span)));
        // Asking for less than it grants already takes nothing back.
        self.set_ask_again(self.ask_again.max(Some(cx.now.after(span.saturating_sub(LEAD)))));
    }

    /// Whether systemd waits, and is to go on waiting.
    fn is_waited_for(&self) -> bool {
        if self.stop.is_some() {
            // What SIGKILL does not end is systemd's to give up.
            return self.workers.values().any(|worker| worker.repeats == 0);
        }
        // One that waits for a change waits for people: nothing is ahead that could be asked for.
        self.roll.is_some() || (!self.told_ready && !self.parked)
    }

    /// How long it can take until something happens by itself.
    fn longest_wait(&self, now: Time) -> Duration {
        let workers = self.workers.values().filter(|worker| worker.repeats == 0);
        if self.stop.is_some() {
            return workers.map(|worker| time_left(worker, now)).max().unwrap_or_default();
        }
        // A worker has the times of its own generation, which may be longer than those of the next.
        let living = workers.map(|worker| time_left(worker, now).max(longest_state(worker.policy())));
        let policy = self.roll.as_ref().map_or(&self.active.policy, |roll| &roll.target.policy);
        let next = longest_state(policy).max(policy.hold).max(policy.backoff_max);
        living.max().unwrap_or_default().max(next).saturating_add(FENCE)
    }

    fn set_ask_again(&mut self, at: Option<Time>) {
        if let Some(old) = std::mem::replace(&mut self.ask_again, at) {
            self.timers.remove(&(old, Timer::Patience));
        }
        if let Some(at) = at {
            self.timers.insert((at, Timer::Patience));
        }
    }
}

/// Until the one deadline of a worker's state.
fn time_left(worker: &Worker, now: Time) -> Duration {
    if worker.phase == Phase::Ready {
        return Duration::ZERO;
    }
    worker.clock(Clock::State).map_or(Duration::MAX, |at| at - now)
}

/// The longest that a worker may take to get ready, or to drain.
fn longest_state(policy: &Policy) -> Duration {
    let start = match policy.ready {
        Ready::Notify => policy.start,
        Ready::Settle => policy.settle,
    };
    start.max(policy.graceful)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::wildcard_enum_match_arm, reason = "a filter wants one kind of action and no other")]

    use super::super::event::{Ended, Message, Request};
    use super::super::fixture::{Bench, policy};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DAY: Duration = Duration::from_hours(24);

    /// Systemd, as far as it waits: what it was told since it began to.
    struct Systemd {
        until: Option<Time>,
    }

    impl Systemd {
        fn hears(bench: &mut Bench) -> Self {
            let mut systemd = Self { until: None };
            systemd.hear(bench);
            systemd
        }

        fn hear(&mut self, bench: &mut Bench) {
            for action in bench.take() {
                match action {
                    Action::Tell(ServiceState::ExtendTimeout(span)) => {
                        self.until = self.until.max(Some(bench.now.after(span)));
                    }
                    Action::Tell(ServiceState::Ready | ServiceState::Reloading | ServiceState::Stopping) => {
                        self.until = None;
                    }
                    _ => {}
                }
            }
        }

        /// So much time passes, from one deadline to the next, and it never has to give up.
        fn waits(&mut self, bench: &mut Bench, span: Duration) {
            let end = bench.now.after(span);
            while bench.now < end {
                let next = bench.core.next_deadline().map_or(end, |(at, _)| at.min(end));
                assert!(self.until > Some(next), "it waits until {:?}, and nothing happens before {next}", self.until);
                bench.pass(next - bench.now);
                self.hear(bench);
            }
        }
    }

    #[test]
    fn a_worker_that_sigkill_does_not_end_costs_the_service_neither_its_start_nor_its_reload() {
        let mut bench = Bench::new(policy());
        let mut systemd = Systemd::hears(&mut bench);
        systemd.waits(&mut bench, Duration::from_mins(10));
    }

    #[test]
    fn a_reload_waits_for_a_start_that_may_take_longer_than_the_new_generations() {
        let mut slow = policy();
        slow.start = Duration::from_hours(1);
        let mut bench = Bench::ready(slow);
        let first = bench.starts[0].worker;
        bench.say(first, Message::Recycle);
        let replacement = bench.newest().worker;
        bench.started(replacement);
        bench.reload(1, Policy { start: SECOND, graceful: SECOND, backoff_max: SECOND, ..policy() });
        let mut systemd = Systemd::hears(&mut bench);
        assert_eq!(bench.newest().worker, replacement, "the canary waits for its turn");
        // Asked for at once, so that not even a manager that stands still meanwhile is given up.
        assert!(systemd.until > Some(bench.now.after(Duration::from_hours(1))), "{:?}", systemd.until);
        systemd.waits(&mut bench, Duration::from_mins(59));
        bench.up(replacement);
        bench.ends(first, Ended::Exit(0));
        assert_ne!(bench.newest().worker, replacement);
    }

    #[test]
    fn systemd_is_asked_again_before_the_most_that_it_is_asked_for_at_a_time() {
        let mut bench = Bench::new(Policy { start: 10 * DAY, ..policy() });
        let (first, second) = (bench.starts[0].worker, bench.starts[1].worker);
        bench.started(first);
        bench.started(second);
        let mut systemd = Systemd::hears(&mut bench);
        systemd.waits(&mut bench, 9 * DAY);
        bench.up(first);
        bench.up(second);
        assert_eq!(bench.core.next_deadline(), None, "nothing is waited for any more");
    }

    #[test]
    fn a_reload_right_after_another_asks_for_a_patience_of_its_own() {
        let quick = Policy { workers: 1, hold: Duration::ZERO, ..policy() };
        let mut bench = Bench::ready(quick.clone());
        let old = bench.current(0);
        bench.reload(1, quick);
        bench.reload(2, Policy { workers: 1, start: Duration::from_mins(10), ..policy() });
        let canary = bench.newest().worker;
        bench.up(canary);
        bench.take();
        bench.ends(old, Ended::Exit(0));
        assert!(
            bench.told(&ServiceState::Ready) && bench.told(&ServiceState::Reloading),
            "one roll ends, another begins"
        );
        let canary = bench.newest().worker;
        bench.started(canary);
        let mut systemd = Systemd::hears(&mut bench);
        systemd.waits(&mut bench, Duration::from_mins(9));
    }

    #[test]
    fn a_stop_waits_for_a_worker_that_asks_for_more_time_and_not_for_one_that_sigkill_does_not_end() {
        let mut bench = Bench::ready(policy());
        let first = bench.starts[0].worker;
        bench.ask(1, Request::Stop { fast: false });
        bench.say(first, Message::ExtendTimeout(Duration::from_mins(4)));
        let mut systemd = Systemd::hears(&mut bench);
        systemd.waits(&mut bench, Duration::from_mins(4));
        // It is killed now; the other one lies still since long.
        bench.pass(Duration::from_mins(1));
        bench.take();
        bench.pass(Duration::from_mins(10));
        assert!(!bench.take().iter().any(|action| matches!(action, Action::Tell(ServiceState::ExtendTimeout(_)))));
    }
}
