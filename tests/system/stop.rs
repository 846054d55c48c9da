//! A clean stop is the only thing that stops workers, and where no next manager will come they are stopped all the same.

use std::collections::BTreeSet;

use rustix::process::Signal;

use crate::adoption::{main_pid, slowly};
use crate::service::{PATIENCE, Service, app, is_ready, property, systemctl, systemctl_ok};
use crate::support::http::InFlight;
use crate::support::proc::Process;
use crate::support::suite::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("x_a_manager_that_dies_in_a_stop_leaves_nothing", dies_in_a_stop);
    suite.system("x_workers_outlive_restarts_that_fail", failing_restarts);
    suite.system("x_a_stop_between_a_crash_and_the_restart", stopped_meanwhile);
}

#[track_caller]
fn kill_manager(service: &Service) {
    let manager = Process::open(main_pid(&service.unit)).expect("the manager");
    manager.signal(Signal::KILL);
    assert!(manager.wait_gone(PATIENCE));
}

/// The service fails, nobody starts it again: its workers are drained by whoever `OnFailure=` names.
fn dies_in_a_stop() {
    let service = Service::start(app().set("workers", 2), 2);
    let pid = *service.status().ready_pids().first().unwrap();
    let request = InFlight::send(&service.direct(pid), "/sleep?ms=4000", PATIENCE);
    systemctl_ok(&["stop", "--no-block", &service.unit]);
    service.log.wait(PATIENCE, "the drain", |line| line.is("drain-started"));
    kill_manager(&service);
    slowly(|| property(&service.unit, "ActiveState") == "failed");
    request.answer().expect("what is in flight is answered");
    slowly(|| service.left().is_empty());
    let reap = format!("paddock-reap@{}.service", service.app.name);
    slowly(|| property(&reap, "ActiveState") == "inactive");
    assert_eq!(property(&reap, "Result"), "success");
    assert_eq!(service.scopes(), Vec::<String>::new(), "units left loaded");
    // The next start finds nothing of that.
    service.start_service();
    service.wait_ready(2);
    service.stop();
}

/// Starts that fail and will be tried again are no end, whatever `OnFailure=` is triggered by.
fn failing_restarts() {
    let service = Service::start(app().set("workers", 2), 2);
    let before = service.status().ready_pids();
    let broken = service.drop_in("broken.conf", "[Service]\nExecStartPre=/bin/false\n");
    kill_manager(&service);
    let restarts = || property(&service.unit, "NRestarts").parse::<u32>().expect("a number");
    slowly(|| restarts() >= 3);
    assert_eq!(service.left(), before, "workers serve on");
    drop(broken);
    let after = service.wait_status("the next manager", is_ready(2));
    assert_eq!(after.ready_pids(), before);
    service.stop();
}

/// As the guide says: the service is stopped first, so that no manager comes; then its workers, by their slice.
fn stopped_meanwhile() {
    let service = Service::start(app().set("workers", 2), 2);
    let before = service.status().ready_pids();
    let slow = service.drop_in("slow.conf", "[Service]\nRestartSec=10min\n");
    kill_manager(&service);
    slowly(|| property(&service.unit, "SubState") == "auto-restart");
    systemctl_ok(&["stop", &service.unit]);
    assert_eq!(service.left(), before, "a stop that comes then stops no worker");
    systemctl_ok(&["stop", &service.slice()]);
    assert_eq!(service.left(), BTreeSet::new());
    drop(slow);
    let _reset = systemctl(&["reset-failed", &service.unit]);
    service.start_service();
    assert!(service.wait_ready(2).ready_pids().is_disjoint(&before));
    service.stop();
}
