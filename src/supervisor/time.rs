//! The core's own time.

use std::fmt;
use std::ops::Sub;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on the clock that the runtime hands in: `CLOCK_MONOTONIC` (`clock_gettime(2)`), which is the same for every
/// process of a boot and stands still while the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(Duration);

impl Time {
    /// A point so many seconds and nanoseconds after the clock's own zero.
    pub const fn from_boot(since: Duration) -> Self {
        Self(since)
    }

    /// How long after the clock's own zero.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// Later by `by`; an unreachable sum stays at the end of time, which means never.
    #[must_use]
    pub const fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl Sub for Time {
    type Output = Duration;

    /// How long from `earlier` to here; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s", self.0.as_secs_f64())
    }
}
