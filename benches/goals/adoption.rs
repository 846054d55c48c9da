//! From a manager's exec to `READY=1`, when it finds workers that an earlier one left.

use std::time::{Duration, Instant};

use crate::figure::{Figure, median};
use crate::fleet::{Fleet, modes};
use crate::support::suite::Mode;

/// How many workers are found.
const FLEETS: [usize; 4] = [8, 16, 32, 64];

/// Crashes for each.
const CRASHES: usize = 7;

/// Eight times the workers may take eight times as long, and no more.
const LINEAR: f64 = 8.0;

/// In every mode that this machine has.
pub(crate) fn measure() -> Vec<Figure> {
    modes().into_iter().flat_map(in_mode).collect()
}

fn in_mode(mode: Mode) -> Vec<Figure> {
    let key = mode.key();
    let medians = FLEETS.map(|workers| of_fleet(mode, workers));
    let mut figures: Vec<Figure> = FLEETS
        .iter()
        .zip(medians)
        .map(|(workers, milliseconds)| {
            let measure = format!("{key}: exec to READY=1, {workers} workers adopted, median ms");
            Figure::at_most(measure, milliseconds, 1000.0)
        })
        .collect();
    let ratio = medians[FLEETS.len() - 1] / medians[0];
    figures.push(Figure::at_most(format!("{key}: adoption of 64 against 8, ratio of medians"), ratio, LINEAR));
    figures
}

/// Milliseconds from right before the exec to `READY=1`; nobody may be missing or new by then.
fn of_fleet(mode: Mode, workers: usize) -> f64 {
    let mut fleet = Fleet::start(mode, workers);
    let manager = &mut fleet.manager;
    let before = manager.status().ready_by_slot();
    let times: Vec<f64> = (0..CRASHES)
        .map(|_| {
            manager.crash();
            let said = manager.notify.count("READY=1");
            let began = Instant::now();
            manager.start_again();
            let ready = manager.notify.try_wait("READY=1", said + 1, Duration::from_mins(1)).expect("READY=1");
            assert_eq!(manager.status().ready_by_slot(), before, "the same workers");
            (ready - began).as_secs_f64() * 1e3
        })
        .collect();
    fleet.manager.stop();
    median(times)
}
