//! The core's own time.

use std::fmt;
use std::ops::Sub;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on the clock that the runtime hands in: `CLOCK_MONOTONIC` (`clock_gettime(2)`), which is the same for every
/// process of a boot and stands still while the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "Written", from = "Written")]
pub struct Time(Duration);

/// How it is written down: as nanoseconds, since a state has many of them. Older versions wrote all in parts.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Nanoseconds(u64),
    Parts(Duration),
}

impl From<Time> for Written {
    fn from(Time(since): Time) -> Self {
        u64::try_from(since.as_nanos()).map_or(Self::Parts(since), Self::Nanoseconds)
    }
}

impl From<Written> for Time {
    fn from(written: Written) -> Self {
        Self(match written {
            Written::Nanoseconds(since) => Duration::from_nanos(since),
            Written::Parts(since) => since,
        })
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_nanoseconds_and_read_in_parts_too() {
        let some = Time::from_boot(Duration::new(36_588, 944_367_296));
        assert_eq!(serde_json::to_string(&some).unwrap(), "36588944367296");
        let never = Time::from_boot(Duration::MAX);
        for time in [some, never] {
            let text = serde_json::to_string(&time).unwrap();
            assert_eq!(serde_json::from_str::<Time>(&text).unwrap(), time);
        }
        let parts = r#"{"secs":36588,"nanos":944367296}"#;
        assert_eq!(serde_json::from_str::<Time>(parts).unwrap(), some);
        // More nanoseconds than a second has must not make a sum that does not fit.
        assert!(serde_json::from_str::<Time>(&format!(r#"{{"secs":{},"nanos":1000000000}}"#, u64::MAX)).is_err());
    }
}
