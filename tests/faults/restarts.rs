//! Many restarts leave nothing behind: no memory, no descriptor, no file, no group, no zombie.
//!
//! `PADDOCK_TEST_RESTARTS=10000` makes it ten thousand.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::time::Duration;

use crate::shortage::{groups, worker_files};
use crate::support::manager::{App, Manager, SOON};
use crate::support::proc;
use crate::support::suite::{Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("many_restarts_leave_nothing", &[Mode::None, Mode::Cgroup], many);
}

/// What one manager holds.
#[derive(Debug)]
struct Held {
    resident_kib: u64,
    descriptors: usize,
    threads: usize,
    children: usize,
    files: usize,
    groups: usize,
}

impl Held {
    fn of(manager: &Manager, mode: Mode) -> Self {
        let pid = manager.pid();
        let count = |directory: &str| fs::read_dir(format!("/proc/{pid}/{directory}")).expect("its files").count();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let resident = proc::field(pid, "VmRSS").expect("its memory");
        Self {
            resident_kib: resident.split(' ').next().unwrap().parse().unwrap(),
            descriptors: count("fd"),
            threads: count("task"),
            children: children.split_whitespace().count(),
            files: worker_files(manager).len(),
            groups: groups(manager, mode),
        }
    }
}

/// At rest: all ready and everything of the dead ones removed.
fn at_rest(manager: &Manager, mode: Mode) -> Held {
    manager.signal(rustix::process::Signal::USR1);
    let rests = || {
        let held = Held::of(manager, mode);
        held.files == 4 * 3 && held.children == 4
    };
    proc::wait_until(Duration::from_secs(30), "it comes to rest", rests);
    // Connections of ours that it has not let go of yet are not its own.
    let looks = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(50));
        Held::of(manager, mode)
    });
    looks.take(20).min_by_key(|held| held.descriptors).expect("a look")
}

fn many(mode: Mode) {
    let total: usize = std::env::var("PADDOCK_TEST_RESTARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let manager = App::new(mode)
        .set("workers", 4)
        .set("command", vec!["sleep".to_owned(), "100000".to_owned()])
        .set("ready", "settle")
        .set("timeouts.settle", "1ms")
        .set("restart.backoff", "1ms")
        .set("restart.backoff_max", "1ms")
        .sockets(Vec::new())
        .start_ready(4);
    let bound = Duration::from_mins(1) + Duration::from_millis(100) * u32::try_from(total).unwrap();
    let until = std::time::Instant::now() + bound;
    let (mut next, mut restarts, mut first) = (0, 0, None);
    // A line about somebody may come when the status has shown it ready already; and numbers of processes come again.
    let mut killed = BTreeSet::new();
    while restarts < total {
        assert!(std::time::Instant::now() < until, "{restarts} restarts within {bound:?}");
        manager.log.wait_after(next, bound, "a ready worker", |line| line.is("worker-ready"));
        let lines = manager.log.lines_after(next);
        next += lines.len();
        for line in lines.iter().filter(|line| line.is("worker-ready")) {
            if let Some(pid) = line.pid()
                && let Some(process) = proc::Process::open(pid)
                && killed.insert(line.number("worker"))
            {
                process.signal(rustix::process::Signal::KILL);
                restarts += 1;
            }
        }
        if first.is_none() && restarts >= 100 {
            next = settle(&manager, next, restarts);
            first = Some(at_rest(&manager, mode));
            // Everybody is ready now, and nobody would say so again.
            for pid in manager.status().ready_pids() {
                let line = manager.log.wait(SOON, "that it is ready", |line| line.is_of("worker-ready", pid));
                killed.insert(line.number("worker"));
                proc::signal(pid, rustix::process::Signal::KILL);
                restarts += 1;
            }
        }
    }
    settle(&manager, next, restarts);
    let (first, last) = (first.unwrap(), at_rest(&manager, mode));
    let _ =
        writeln!(std::io::stderr(), "{mode:?}: {restarts} restarts\n  after 100: {first:?}\n  at the end: {last:?}");
    let within = |first: usize, last: usize| last * 100 <= first * 105;
    assert_eq!((first.descriptors, first.files, first.groups), (last.descriptors, last.files, last.groups));
    assert!(within(first.threads, last.threads));
    assert!(
        within(usize::try_from(first.resident_kib).unwrap(), usize::try_from(last.resident_kib).unwrap()),
        "resident memory grew: {first:?} to {last:?}"
    );
    manager.stop();
}

/// Waits until all who were killed have been replaced; where the log ends then.
fn settle(manager: &Manager, next: usize, killed: usize) -> usize {
    let noticed = || manager.log.lines_after(0).iter().filter(|line| line.is("worker-died")).count();
    proc::wait_until(SOON, &format!("{killed} deaths are noticed, not only {}", noticed()), || noticed() >= killed);
    manager.wait_ready(4);
    next.max(manager.log.mark())
}
