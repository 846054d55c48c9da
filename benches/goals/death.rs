//! From a worker's death to its replacement's first act, with few and with many other workers.

use std::time::Duration;

use rustix::process::Signal;

use crate::figure::{Figure, median, quantile};
use crate::fleet::{Fleet, modes};
use crate::support::proc::Process;
use crate::support::suite::Mode;
use crate::worker::now;

/// Kills for each manager.
const KILLS: usize = 100;

/// Workers beside the one that is killed.
const FEW: usize = 4;
const MANY: usize = 200;

/// Between two kills: the kernel is to be as idle as it is when a death comes out of the blue. What it does lazily after
/// one start (RCU, the lock of the cgroup hierarchy) would make the next one cheaper than it is in life.
const PAUSE: Duration = Duration::from_millis(150);

/// In every mode that this machine has.
pub(crate) fn measure() -> Vec<Figure> {
    modes().into_iter().flat_map(in_mode).collect()
}

fn in_mode(mode: Mode) -> Vec<Figure> {
    let mut many = idle_fleet(mode, MANY + 1);
    let (mut with_few, mut with_many) = (Vec::new(), Vec::new());
    // No slot is killed twice: the second time in ten seconds waits for `restart.backoff`.
    for round in 0..KILLS / (FEW + 1) {
        let mut few = idle_fleet(mode, FEW + 1);
        for slot in 0..=FEW {
            with_few.push(kill(&mut few, slot));
            with_many.push(kill(&mut many, round * (FEW + 1) + slot));
        }
        few.manager.stop();
    }
    let (few_median, many_median) = (median(with_few.clone()), median(with_many.clone()));
    many.manager.stop();
    let key = mode.key();
    vec![
        Figure::at_most(format!("{key}: death to exec, {FEW} others, median ms"), few_median, 10.0),
        Figure::plain(format!("{key}: death to exec, {FEW} others, 90 % within ms"), quantile(with_few, 0.9)),
        Figure::at_most(format!("{key}: death to exec, {MANY} others, median ms"), many_median, 10.0),
        Figure::plain(format!("{key}: death to exec, {MANY} others, 90 % within ms"), quantile(with_many, 0.9)),
        Figure::at_most(format!("{key}: {MANY} others against {FEW}, ratio of medians"), many_median / few_median, 1.3),
    ]
}

/// Milliseconds from right before the kill to the first instruction of the replacement's `main`.
fn kill(fleet: &mut Fleet, slot: usize) -> f64 {
    let victim = Process::open(fleet.pid(slot)).expect("a living worker");
    std::thread::sleep(PAUSE);
    let began = now();
    victim.signal(Signal::KILL);
    let tick = fleet.next();
    assert_eq!(tick.slot, slot, "a replacement in the victim's place");
    (tick.at - began) as f64 / 1e6
}

/// What follows a start in the background (thresholds of many groups) is no part of a death.
fn idle_fleet(mode: Mode, workers: usize) -> Fleet {
    let fleet = Fleet::start(mode, workers);
    wait_until_idle(fleet.manager.pid());
    fleet
}

/// Until the process has not run for half a second.
fn wait_until_idle(pid: u32) {
    let mut before = crate::usage::processor_time(pid);
    for _ in 0..240 {
        std::thread::sleep(Duration::from_millis(500));
        let after = crate::usage::processor_time(pid);
        if after == before {
            return;
        }
        before = after;
    }
    crate::say(&format!("manager {pid} is not idle after two minutes"));
}
