//! Somebody else stops the workers' scopes: an operator, or systemd at the end of everything.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::adoption::slowly;
use crate::service::{PATIENCE, Service, app, is_ready, journal, property, systemctl_ok};
use crate::support::http::InFlight;
use crate::support::proc::Process;
use crate::support::suite::Suite;
use crate::variants::UserService;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("x_scopes_that_are_stopped_by_hand_are_drained_and_replaced", by_hand);
    suite.system("x_the_end_of_a_session_after_a_crash_replaces_nobody", session_ends_after_crash);
}

/// The unit that a process is in.
#[track_caller]
fn unit_of(pid: u32) -> String {
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its group");
    group.trim().rsplit('/').next().expect("a unit").to_owned()
}

/// systemd asks the manager, which drains the worker as always: what is in flight is answered, by the first process alone.
fn by_hand() {
    let service = Service::start(app().set("workers", 2), 2);
    let before = service.status().ready_pids();
    let pid = *before.first().unwrap();
    let scope = unit_of(pid);
    assert!(property(&scope, "Controller").starts_with(':'), "{}", property(&scope, "Controller"));
    let request = InFlight::send(&service.direct(pid), "/sleep?ms=4000", PATIENCE);
    let began = Instant::now();
    systemctl_ok(&["stop", &scope]);
    assert!(began.elapsed() < Duration::from_secs(35), "systemd lost its patience");
    request.answer().expect("what is in flight is answered");
    let drain = service.log.wait(PATIENCE, "its drain", |line| line.is_of("drain-started", pid));
    assert_eq!(drain.reason(), "from outside");
    let death = service.log.wait(PATIENCE, "its death", |line| line.is_of("worker-died", pid));
    assert_eq!(death.reason(), "drained");
    let after = service.wait_ready(2).ready_pids();
    assert_eq!(before.intersection(&after).count(), 1, "{before:?} {after:?}");

    // While their slice is being stopped nobody can be started; then they come back.
    let before = after;
    let request = InFlight::send(&service.direct(*before.first().unwrap()), "/sleep?ms=3000", PATIENCE);
    systemctl_ok(&["stop", &service.slice()]);
    request.answer().expect("what is in flight is answered");
    let after = service
        .wait_status("two other workers", |status| is_ready(2)(status) && status.ready_pids().is_disjoint(&before));
    assert_eq!(after.restarts("drain-deadline"), 0);
    service.stop();
}

/// A whole service manager shuts down, and for four seconds the manager is not told to stop itself: something that
/// needs it has to end first. Systemd asks it to end its workers; it does, starts nobody in their place, and ends well
/// when its turn comes. `readies`: how often a worker was ready before.
pub(crate) fn session_ends(service: &UserService, readies: usize) {
    let pids = service.status().ready_pids();
    let request = InFlight::send(&service.direct(*pids.first().unwrap()), "/sleep?ms=6000", PATIENCE);
    let began = Instant::now();
    service.end_session();
    assert!(began.elapsed() < Duration::from_mins(1), "somebody's patience was lost");
    request.answer().expect("what is in flight is answered");
    service.nobody_was_replaced(readies);
    let reason = |note: &serde_json::Value| note["PADDOCK_REASON"].as_str().map(str::to_owned);
    let asked =
        service.notes("drain-started").iter().filter(|note| reason(note).as_deref() == Some("from outside")).count();
    assert_eq!(asked, pids.len());
    let ends: BTreeSet<_> = service.notes("worker-died").iter().filter_map(reason).collect();
    assert_eq!(ends, BTreeSet::from(["drained".to_owned()]));
}

/// Workers that were taken up have no controller any more: systemd sends them the drain signal itself, and the manager
/// learns from their ends that all is over.
fn session_ends_after_crash() {
    let service = UserService::start();
    let pids = service.status().ready_pids();
    let manager = Process::open(service.main_pid()).expect("the manager");
    manager.signal(Signal::KILL);
    assert!(manager.wait_gone(PATIENCE));
    slowly(|| service.main_pid() > 0 && service.try_status().is_some_and(|status| is_ready(2)(&status)));
    assert_eq!(service.status().ready_pids(), pids, "they are taken up");
    let request = InFlight::send(&service.direct(*pids.first().unwrap()), "/sleep?ms=3000", PATIENCE);
    service.end_session();
    request.answer().expect("what is in flight is answered");
    service.nobody_was_replaced(pids.len());
}

impl UserService {
    #[track_caller]
    fn nobody_was_replaced(&self, readies: usize) {
        let said: Vec<String> =
            self.notes_of_all().iter().filter_map(|note| Some(note["MESSAGE"].as_str()?.to_owned())).collect();
        let text = said.join("\n");
        let count = |words: &str| said.iter().filter(|line| line.contains(words)).count();
        assert_eq!(count("the system stops: no worker is started any more"), 1, "{text}");
        assert!(count("not replaced, the system stops") >= 1, "{text}");
        assert_eq!(count(": ready after"), readies, "somebody was started\n{text}");
        assert_eq!((count("could not start"), count("next start")), (0, 0), "{text}");
        assert_eq!(count("stopped, no worker is left"), 1, "{text}");
    }

    fn notes_of_all(&self) -> Vec<serde_json::Value> {
        journal(&[&format!("PADDOCK_APP={}", self.name())])
    }

    fn notes(&self, event: &str) -> Vec<serde_json::Value> {
        journal(&[&format!("PADDOCK_APP={}", self.name()), &format!("PADDOCK_EVENT={event}")])
    }
}
