//! The log read as a history: how many workers lived and were ready at each moment.

use std::collections::BTreeSet;

use super::log::Line;

/// Extremes over a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timeline {
    /// The fewest ready workers once `workers` had been ready for the first time.
    pub(crate) least_ready: usize,
    /// The most workers alive or starting at the same time.
    pub(crate) most_alive: usize,
    /// The most drains at the same time.
    pub(crate) most_draining: usize,
}

/// Reads a history of an app with that many workers, up to the beginning of its stop.
pub(crate) fn timeline(lines: &[Line], workers: usize) -> Timeline {
    let (mut alive, mut ready, mut draining) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut extremes = Timeline { least_ready: workers, most_alive: 0, most_draining: 0 };
    let mut complete = false;
    for line in lines.iter().take_while(|line| !line.is("service-stopping")) {
        let Some(worker) = line.number("worker") else { continue };
        match line.event() {
            "worker-starting" => {
                alive.insert(worker);
            }
            "worker-ready" => {
                ready.insert(worker);
            }
            "drain-started" => {
                ready.remove(&worker);
                draining.insert(worker);
            }
            "worker-killing" => {
                ready.remove(&worker);
            }
            "worker-died" | "start-failed" => {
                alive.remove(&worker);
                ready.remove(&worker);
                draining.remove(&worker);
            }
            _ => continue,
        }
        complete |= ready.len() >= workers;
        if complete {
            extremes.least_ready = extremes.least_ready.min(ready.len());
        }
        extremes.most_alive = extremes.most_alive.max(alive.len());
        extremes.most_draining = extremes.most_draining.max(draining.len());
    }
    assert!(complete, "{workers} workers were never ready at the same time, says the log");
    extremes
}
