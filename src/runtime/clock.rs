//! The only clock: `CLOCK_MONOTONIC`, read once for each turn of the loop.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::supervisor::time::Time;
use crate::sys;

/// What time it is.
pub fn now() -> Time {
    let time = rustix::time::clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Time::from_boot(Duration::new(seconds, nanoseconds))
}

/// Seconds after 1970, for people only: this clock can be set.
pub fn unix_seconds() -> u64 {
    u64::try_from(rustix::time::clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0)
}

/// A kernel timer (`timerfd_create(2)`) for one absolute point in time. It wakes the loop then and at no other time,
/// however far away the point is.
#[derive(Debug)]
pub struct Timer {
    timer: AsyncFd<OwnedFd>,
    set_to: Option<Time>,
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What `timerfd_create(2)` says.
    pub fn new() -> io::Result<Self> {
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { timer: sys::watch(timer, Interest::READABLE)?, set_to: None })
    }

    /// Go off at this time, or never.
    ///
    /// # Errors
    /// What `timerfd_settime(2)` says.
    pub fn set(&mut self, at: Option<Time>) -> io::Result<()> {
        if self.set_to == at {
            return Ok(());
        }
        // All zero would disarm: a point that early is long past anyway.
        let since = at.map_or(Duration::ZERO, |at| at.since_boot().max(Duration::from_nanos(1)));
        // What does not fit is never.
        let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
        let value = Timespec { tv_sec: seconds, tv_nsec: i64::from(since.subsec_nanos()) };
        let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let never = at.is_none() || i64::try_from(since.as_secs()).is_err();
        let value = if never { interval } else { value };
        rustix::time::timerfd_settime(
            self.timer.get_ref(),
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec { it_interval: interval, it_value: value },
        )?;
        self.set_to = at;
        Ok(())
    }

    /// Wait until it goes off. Cancel-safe.
    pub async fn expired(&mut self) {
        loop {
            let Ok(mut guard) = self.timer.readable().await else { return std::future::pending().await };
            guard.clear_ready();
            let mut count = [0_u8; 8];
            if rustix::io::read(self.timer.get_ref(), &mut count).is_ok() {
                self.set_to = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_goes_off_at_its_time_and_when_that_is_past() {
        let mut timer = Timer::new().unwrap();
        let at = now().after(Duration::from_millis(20));
        timer.set(Some(at)).unwrap();
        timer.expired().await;
        assert!(now() >= at);
        timer.set(Some(Time::from_boot(Duration::ZERO))).unwrap();
        timer.expired().await;
    }

    #[tokio::test]
    async fn never_is_never() {
        let mut timer = Timer::new().unwrap();
        timer.set(Some(now())).unwrap();
        timer.set(Some(Time::from_boot(Duration::MAX))).unwrap();
        timer.set(None).unwrap();
        assert!(rustix::io::read(timer.timer.get_ref(), &mut [0_u8; 8]).is_err());
    }
}
