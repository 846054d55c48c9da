//! Random policies that a configuration could really have produced.

use std::time::Duration;

use paddock::config::model::{Ready, Signal};
use paddock::supervisor::policy::Policy;

use super::dice::Dice;

/// The defaults, with four workers.
pub(crate) fn plain() -> Policy {
    Policy {
        workers: 4,
        ready: Ready::Notify,
        drain_signal: Signal(15),
        memory_max: None,
        memory_budget: None,
        recycle_at: None,
        max_requests: 0,
        max_requests_jitter: 0,
        spread: true,
        max_lifetime: None,
        surge: 1,
        start: Duration::from_mins(1),
        settle: Duration::from_secs(1),
        watchdog: None,
        graceful: Duration::from_secs(30),
        abort: Duration::from_secs(2),
        backoff: Duration::from_millis(100),
        backoff_max: Duration::from_secs(30),
        hold: Duration::from_secs(1),
        parallel_starts: 4,
    }
}

/// Any policy.
pub(crate) fn any(dice: &mut Dice) -> Policy {
    let workers = dice.small(1, 6);
    let surge = dice.small(0, 2);
    let ready = if dice.percent(85) { Ready::Notify } else { Ready::Settle };
    let mut policy = Policy {
        workers,
        ready,
        drain_signal: Signal(if dice.percent(70) { 15 } else { 3 }),
        memory_max: None,
        memory_budget: None,
        recycle_at: None,
        max_requests: if dice.percent(50) { dice.between(5, 60) } else { 0 },
        max_requests_jitter: if dice.percent(50) { dice.between(1, 20) } else { 0 },
        spread: dice.percent(60),
        max_lifetime: dice.maybe(30, |dice| dice.millis(4000, 40_000)),
        surge,
        start: dice.millis(1000, 8000),
        settle: dice.millis(0, 1500),
        watchdog: None,
        graceful: dice.millis(500, 8000),
        abort: if dice.percent(80) { dice.millis(100, 2000) } else { Duration::ZERO },
        backoff: dice.millis(10, 800),
        backoff_max: dice.millis(1000, 20_000),
        hold: if dice.percent(80) { dice.millis(100, 3000) } else { Duration::ZERO },
        parallel_starts: dice.small(1, 6),
    };
    if ready == Ready::Notify && dice.percent(60) {
        policy.watchdog = Some(dice.millis(1000, 6000));
    }
    if dice.percent(60) {
        memory(&mut policy, dice);
    }
    policy
}

fn memory(policy: &mut Policy, dice: &mut Dice) {
    let max = dice.between(500, 1500);
    policy.memory_max = Some(max);
    policy.recycle_at = dice.maybe(80, |dice| max * dice.between(50, 95) / 100);
    policy.memory_budget = dice.maybe(60, |dice| {
        let room = match dice.between(0, 3) {
            0 => 0,
            1 => max / 2,
            2 => max,
            _ => max * (u64::from(policy.surge) + 1),
        };
        u64::from(policy.workers) * max + room
    });
}

/// Another version of a policy, as an operator's edit makes it.
pub(crate) fn edited(old: &Policy, dice: &mut Dice) -> Policy {
    let other = any(dice);
    let mut new = old.clone();
    if dice.percent(30) {
        new.workers = other.workers;
    }
    if dice.percent(20) {
        new.surge = other.surge;
    }
    if dice.percent(30) {
        (new.max_requests, new.max_requests_jitter, new.spread) =
            (other.max_requests, other.max_requests_jitter, other.spread);
    }
    if dice.percent(30) {
        (new.start, new.graceful, new.hold) = (other.start, other.graceful, other.hold);
    }
    if dice.percent(20) {
        new.drain_signal = other.drain_signal;
    }
    if dice.percent(40) || new.workers != old.workers {
        (new.memory_max, new.recycle_at, new.memory_budget) = (None, None, None);
        if dice.percent(70) {
            memory(&mut new, dice);
        }
    }
    new
}
