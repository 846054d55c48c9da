//! Deadlines as data: what is to happen when nothing happens.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::id::{SlotId, WorkerId};
use super::time::Time;
use super::worker::{Phase, Worker};
use crate::config::model::Ready;

/// What one worker can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Clock {
    /// The one deadline of its state.
    State,
    /// The longest silence between pings.
    Watchdog,
    /// Its age.
    Lifetime,
    /// Its memory edge comes back.
    Mask,
    /// It should have counted a request by now.
    Count,
}

impl Clock {
    /// How many there are.
    pub(super) const COUNT: usize = 5;
    /// All of them.
    pub(super) const ALL: [Self; Self::COUNT] = [Self::State, Self::Watchdog, Self::Lifetime, Self::Mask, Self::Count];
}

/// Whose deadline it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Timer {
    /// A worker's.
    Worker(WorkerId, Clock),
    /// An empty slot's backoff, or the wait before another try at a replacement.
    Slot(SlotId),
    /// The canary has held.
    Hold,
}

/// All deadlines in order.
pub(super) type Timers = BTreeSet<(Time, Timer)>;

/// A point in time, unless it is the end of time, which means never.
pub(super) fn deadline(from: Time, span: Duration) -> Option<Time> {
    let at = from.after(span);
    (at.since_boot() < Duration::MAX).then_some(at)
}

impl Supervisor {
    /// Sets or clears one clock of one worker.
    pub(super) fn set_clock(&mut self, id: WorkerId, clock: Clock, at: Option<Time>) {
        let Some(kept) = self.workers.get_mut(&id).and_then(|worker| worker.clock_mut(clock)) else {
            return;
        };
        let timer = Timer::Worker(id, clock);
        if let Some(old) = std::mem::replace(kept, at) {
            self.timers.remove(&(old, timer));
        }
        if let Some(at) = at {
            self.timers.insert((at, timer));
        }
    }

    /// Stops every clock of one worker.
    pub(super) fn clear_clocks(&mut self, id: WorkerId) {
        for clock in Clock::ALL {
            self.set_clock(id, clock, None);
        }
    }

    /// Sets or clears the wait of a slot.
    pub(super) fn set_wait(&mut self, id: SlotId, at: Option<Time>) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut slot.wait, at) {
            self.timers.remove(&(old, Timer::Slot(id)));
        }
        if let Some(at) = at {
            self.timers.insert((at, Timer::Slot(id)));
        }
    }

    /// Sets or clears the canary's.
    pub(super) fn set_hold(&mut self, at: Option<Time>) {
        let Some(roll) = self.roll.as_mut() else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut roll.holds_until, at) {
            self.timers.remove(&(old, Timer::Hold));
        }
        if let Some(at) = at {
            self.timers.insert((at, Timer::Hold));
        }
    }

    /// What a deadline is called.
    pub(super) fn timer_name(&self, timer: Timer) -> &'static str {
        match timer {
            Timer::Worker(id, clock) => self.workers.get(&id).map_or("none", |worker| clock_name(worker, clock)),
            Timer::Slot(_) => "backoff",
            Timer::Hold => "hold",
        }
    }
}

/// What a worker's clock is called.
pub(super) fn clock_name(worker: &Worker, clock: Clock) -> &'static str {
    match clock {
        Clock::State => match worker.phase {
            Phase::Asked => "fence",
            Phase::Starting if worker.policy().ready == Ready::Settle => "settle",
            Phase::Starting | Phase::Ready => "start",
            Phase::Draining => "graceful",
            Phase::Aborting => "abort",
            Phase::Killing => "kill",
            Phase::Leftover => "sweep",
        },
        Clock::Watchdog => "watchdog",
        Clock::Lifetime => "lifetime",
        Clock::Mask => "memory",
        Clock::Count => "request-count",
    }
}
