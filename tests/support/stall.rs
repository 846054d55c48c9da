//! How long this machine itself stood still: what an upper bound on a shared machine must allow for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::pace;

/// A sleeper of 5 ms naps that remembers the worst oversleeping.
pub(crate) struct Sleeper {
    worst: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Sleeper {
    /// Begins to watch.
    pub(crate) fn start() -> Self {
        let sleeper = Self { worst: Arc::default(), stop: Arc::default() };
        let (worst, stop) = (Arc::clone(&sleeper.worst), Arc::clone(&sleeper.stop));
        std::thread::spawn(move || {
            let nap = Duration::from_millis(5);
            while !stop.load(SeqCst) {
                let before = Instant::now();
                std::thread::sleep(nap);
                let stall = before.elapsed().saturating_sub(nap);
                worst.fetch_max(u64::try_from(stall.as_micros()).unwrap_or(u64::MAX), SeqCst);
            }
        });
        sleeper
    }

    /// The worst so far.
    pub(crate) fn worst(&self) -> Duration {
        Duration::from_micros(self.worst.load(SeqCst))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// Takes three measurements, each less the worst stall meanwhile, and checks their median. On an emulated processor it
/// is done once, for what else is asserted on the way.
#[track_caller]
pub(crate) fn assert_median_of_three(what: &str, at_most: Duration, mut measure: impl FnMut() -> Duration) {
    if pace::is_emulated() {
        measure();
        return;
    }
    let mut taken: Vec<Duration> = (0..3)
        .map(|_| {
            let sleeper = Sleeper::start();
            measure().saturating_sub(sleeper.worst())
        })
        .collect();
    taken.sort_unstable();
    assert!(taken[1] <= at_most, "{what}: median {:?} of {taken:?} is over {at_most:?}", taken[1]);
}
