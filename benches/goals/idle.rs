//! What a manager costs while nothing happens.

use std::time::Duration;

use crate::figure::Figure;
use crate::fleet::{Fleet, modes};
use crate::usage::{mebibytes, voluntary_switches};

/// Idle workers.
const WORKERS: usize = 64;

/// How long it is looked at.
const MINUTE: Duration = Duration::from_mins(1);

/// Before that: helper threads of the start end ten seconds after their last work.
const CALM: Duration = Duration::from_secs(15);

/// In every mode that this machine has, all at the same time.
pub(crate) fn measure() -> Vec<Figure> {
    let fleets: Vec<_> = modes().into_iter().map(|mode| (mode, Fleet::start(mode, WORKERS))).collect();
    std::thread::sleep(CALM);
    let before: Vec<u64> = fleets.iter().map(|(_, fleet)| voluntary_switches(fleet.manager.pid())).collect();
    std::thread::sleep(MINUTE);
    let mut figures = Vec::new();
    for ((mode, fleet), before) in fleets.into_iter().zip(before) {
        let (key, pid) = (mode.key(), fleet.manager.pid());
        let switches = voluntary_switches(pid) - before;
        let name = |what: &str| format!("{key}: idle manager, {WORKERS} workers, {what}");
        figures.push(Figure::at_most(name("voluntary switches in 60 s"), switches as f64, 2.0));
        figures.push(Figure::at_most(name("resident MiB (VmRSS)"), mebibytes(pid, "VmRSS"), 6.0));
        figures.push(Figure::plain(name("of that its own MiB (RssAnon)"), mebibytes(pid, "RssAnon")));
        figures.push(Figure::plain(name("of that files MiB (RssFile)"), mebibytes(pid, "RssFile")));
        fleet.manager.stop();
    }
    figures
}
