//! Deadlines as data: what is to happen when nothing happens.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::id::{SlotId, WorkerId};
use super::shelf::is_default;
use super::time::Time;
use super::worker::{Phase, Worker};
use crate::config::model::Ready;

/// What one worker can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Clock {
    /// The longest silence between pings.
    Watchdog,
    /// The one deadline of its state.
    State,
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
    pub(super) const ALL: [Self; Self::COUNT] = [Self::Watchdog, Self::State, Self::Lifetime, Self::Mask, Self::Count];
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
    /// Systemd does not wait much longer.
    Patience,
    /// It is time to see whether the system still stops.
    System,
}

/// All deadlines in order.
pub(super) type Timers = BTreeSet<(Time, Timer)>;

/// A point in time, unless it is the end of time, which means never.
pub(super) fn deadline(from: Time, span: Duration) -> Option<Time> {
    let at = from.after(span);
    (at.since_boot() < Duration::MAX).then_some(at)
}

/// One clock of one worker. Pings move a deadline away again and again, long before it is near; so its entry among all
/// deadlines stays where it is, too early, and is put right once it is the first.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Alarm {
    /// When it rings.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) at: Option<Time>,
    /// Where it stands among all deadlines: never later than `at`.
    #[serde(skip_serializing_if = "is_default")]
    listed: Option<Time>,
}

impl Supervisor {
    /// Sets or clears one clock of one worker.
    pub(super) fn set_clock(&mut self, id: WorkerId, clock: Clock, at: Option<Time>) {
        let Some(alarm) = self.workers.get_mut(&id).and_then(|worker| worker.alarms.get_mut(clock as usize)) else {
            return;
        };
        alarm.at = at;
        let timer = Timer::Worker(id, clock);
        match (alarm.listed, at) {
            (Some(listed), Some(at)) if listed <= at => self.first_moved |= self.first == Some((listed, timer)),
            (listed, at) => {
                alarm.listed = at;
                if let Some(listed) = listed {
                    self.timers.remove(&(listed, timer));
                }
                if let Some(at) = at {
                    self.timers.insert((at, timer));
                }
            }
        }
    }

    /// Stops every clock of one worker.
    pub(super) fn clear_clocks(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        for (alarm, clock) in worker.alarms.iter_mut().zip(Clock::ALL) {
            if let Some(listed) = std::mem::take(alarm).listed {
                self.timers.remove(&(listed, Timer::Worker(id, clock)));
            }
        }
    }

    /// Puts the first of all deadlines right.
    pub(super) fn sort_timers(&mut self) {
        if self.timers.first() == self.first.as_ref() && !self.first_moved {
            return;
        }
        self.first_moved = false;
        while let Some((listed, timer)) = self.timers.first().copied() {
            self.first = Some((listed, timer));
            let Timer::Worker(id, clock) = timer else {
                return;
            };
            let Some(alarm) = self.workers.get_mut(&id).and_then(|worker| worker.alarms.get_mut(clock as usize)) else {
                return;
            };
            if alarm.at == Some(listed) {
                return;
            }
            self.timers.remove(&(listed, timer));
            alarm.listed = alarm.at;
            if let Some(at) = alarm.at {
                self.timers.insert((at, timer));
            }
        }
        self.first = None;
    }

    /// The next deadline that has come, if one has; it is taken off the list.
    pub(super) fn take_due(&mut self, now: Time) -> Option<Timer> {
        self.sort_timers();
        let (at, timer) = self.timers.first().copied().filter(|(at, _)| *at <= now)?;
        self.timers.remove(&(at, timer));
        match timer {
            Timer::Worker(id, clock) => {
                if let Some(alarm) = self.workers.get_mut(&id).and_then(|worker| worker.alarms.get_mut(clock as usize))
                {
                    *alarm = Alarm::default();
                }
            }
            Timer::Slot(id) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.wait = None;
                }
            }
            Timer::Hold => {
                if let Some(roll) = self.roll.as_mut() {
                    roll.holds_until = None;
                }
            }
            Timer::Patience => self.ask_again = None,
            Timer::System => self.system_stops = None,
        }
        Some(timer)
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

    /// Sets or clears the time until which nothing is started because the system stops.
    pub(super) fn set_system_stops(&mut self, at: Option<Time>) {
        if let Some(old) = std::mem::replace(&mut self.system_stops, at) {
            self.timers.remove(&(old, Timer::System));
        }
        if let Some(at) = at {
            self.timers.insert((at, Timer::System));
        }
    }

    /// What a deadline is called.
    pub(super) fn timer_name(&self, timer: Timer) -> &'static str {
        match timer {
            Timer::Worker(id, clock) => self.workers.get(&id).map_or("none", |worker| clock_name(worker, clock)),
            Timer::Slot(_) => "backoff",
            Timer::Hold => "hold",
            Timer::Patience => "patience",
            Timer::System => "system",
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
