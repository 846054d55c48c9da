//! Faults of what systemd is made of: the bus, process 1, the clock, the journal.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::service::{PATIENCE, Service, app, property, systemctl, systemctl_ok};
use crate::support::load::{Load, Running};
use crate::support::manager::run_within;
use crate::support::proc;
use crate::support::suite::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("fault_bus_restarted_and_stopped", bus);
    suite.system("fault_process_1_answers_nobody", slow_process_1);
    suite.system("fault_daemon_reexec_storm_during_a_roll", reexec_storm);
    suite.system("fault_clock_jumps", clock_jumps);
    suite.system("fault_journald_stalled", journald_stalled);
    suite.system("fault_many_restarts_leave_no_unit", many_restarts);
}

fn start() -> Service {
    let app = app().set("workers", 2).set("restart.backoff", "100ms").set("restart.backoff_max", "1s");
    Service::start(app.worker("count", 0), 2)
}

fn load(service: &Service) -> Running {
    let load = Load { clients: 4, rate: Some(10.0), patience: PATIENCE, ..Load::default() };
    load.start(&service.target())
}

fn answers(load: &Running) {
    let before = load.answered();
    proc::wait_until(PATIENCE, "answers", || load.answered() > before + 5);
}

fn kill_one(service: &Service) -> u32 {
    let victim = *service.status().ready_pids().first().expect("a worker");
    proc::signal(victim, Signal::KILL);
    service.log.wait(PATIENCE, "its death", |line| line.is_of("worker-died", victim));
    victim
}

/// The bus as it was, at the end of a test that took it away. logind 257 stays up without its name when the bus is started anew,
/// and no user's systemd starts then: seen in the guest.
struct BusComesBack;

impl Drop for BusComesBack {
    fn drop(&mut self) {
        for arguments in [["start", "dbus.socket", "dbus.service"].as_slice(), &["restart", "systemd-logind.service"]] {
            systemctl(arguments);
        }
    }
}

fn bus() {
    let _back = BusComesBack;
    let service = start();
    let before = service.status().ready_pids();
    systemctl_ok(&["restart", "dbus.service"]);
    kill_one(&service);
    service.wait_ready(2);

    // Without its socket nobody starts it again.
    systemctl_ok(&["stop", "dbus.socket", "dbus.service"]);
    let mark = service.log.mark();
    kill_one(&service);
    service.log.wait_after(mark, PATIENCE, "why there is no worker", |line| {
        line.is("start-failed") && line.message().contains("bus")
    });
    let load = load(&service);
    answers(&load);
    assert_eq!(service.status().ready_pids().len(), 1);
    systemctl_ok(&["start", "dbus.socket", "dbus.service"]);
    service.wait_ready(2);
    answers(&load);
    load.stop().assert_none_lost();
    assert!(service.wait_ready(2).ready_pids().is_disjoint(&before));
    // What could not be removed without the bus is removed now.
    proc::wait_until(PATIENCE, "no unit stays behind", || service.scopes().len() == 2);
    service.stop();
}

/// A generator that takes its time keeps process 1 from everything else during a `daemon-reload`.
fn slow_process_1() {
    let generator = Path::new("/run/systemd/system-generators/paddock-test-slow");
    let service = start();
    fs::create_dir_all(generator.parent().unwrap()).unwrap();
    // Quick once the mark is gone; it says when it begins.
    let (mark, begun) = (service.app.dir.path().join("slow"), service.app.dir.path().join("begun"));
    fs::write(&mark, "").unwrap();
    let script = format!(
        "#!/bin/sh\n: >{}\nfor i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ -e {} ] && sleep 1; done\n",
        begun.display(),
        mark.display()
    );
    fs::write(generator, script).unwrap();
    let chmod = run_within(PATIENCE, Command::new("chmod").arg("755").arg(generator));
    assert!(chmod.status.success());
    let mut reload = Command::new("systemctl").arg("daemon-reload").spawn().unwrap();
    proc::wait_until(PATIENCE, "the generator runs", || begun.exists());
    // A worker that is killed takes what it has accepted along: clients come afterwards.
    kill_one(&service);
    assert_eq!(service.status().ready_pids().len(), 1, "process 1 was not slow");
    let load = load(&service);
    answers(&load);
    fs::remove_file(&mark).unwrap();
    let status = reload.wait();
    fs::remove_file(generator).unwrap();
    assert!(status.unwrap().success());
    service.wait_ready(2);
    load.stop().assert_none_lost();
    service.stop();
}

fn reexec_storm() {
    let service = start();
    let before = service.status().ready_pids();
    let load = load(&service);
    systemctl_ok(&["--no-block", "reload", &service.unit]);
    // A few and no more: on an emulated processor each takes longer than a step of the roll.
    for _ in 0..3 {
        systemctl_ok(&["daemon-reexec"]);
    }
    service.log.wait(PATIENCE, "the end of the roll", |line| line.is("reload-done"));
    assert!(service.wait_ready(2).ready_pids().is_disjoint(&before));
    answers(&load);
    load.stop().assert_none_lost();
    assert_eq!(service.scopes().len(), 2, "{:?}", service.scopes());
    service.stop();
}

fn set_clock(by: &str) {
    let set = run_within(PATIENCE, Command::new("date").arg(format!("--set={by}")));
    assert!(set.status.success(), "{set:?}");
}

fn clock_jumps() {
    let app = app().set("workers", 2).set("timeouts.watchdog", "60s").set("recycle.max_lifetime", "6h");
    let service = Service::start(app.worker("count", 0), 2);
    let before = service.status().ready_pids();
    let load = load(&service);
    for by in ["+2 days", "-4 days", "+2 days"] {
        set_clock(by);
        answers(&load);
        assert_eq!(service.wait_ready(2).ready_pids(), before, "somebody was replaced after {by}");
    }
    // A start in the past is as quick as ever.
    set_clock("-1 day");
    kill_one(&service);
    service.wait_ready(2);
    set_clock("+1 day");
    answers(&load);
    load.stop();
    service.stop();
}

fn journald_stalled() {
    let service = start();
    let journald: u32 = property("systemd-journald.service", "MainPID").parse().unwrap();
    let load = load(&service);
    proc::signal(journald, Signal::STOP);
    let victim = *service.status().ready_pids().first().unwrap();
    proc::signal(victim, Signal::KILL);
    service.wait_status("a replacement while journald stands still", |status| {
        status.ready_pids().len() == 2 && !status.ready_pids().contains(&victim)
    });
    answers(&load);
    proc::signal(journald, Signal::CONT);
    service.log.wait(PATIENCE, "what happened meanwhile", |line| line.is_of("worker-died", victim));
    answers(&load);
    load.stop();
    service.stop();
}

/// `PADDOCK_TEST_RESTARTS` of them, else a few: an emulated processor takes about a second for each.
fn many_restarts() {
    let total: usize = std::env::var("PADDOCK_TEST_RESTARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let service = start();
    let manager: u32 = property(&service.unit, "MainPID").parse().unwrap();
    let descriptors = || fs::read_dir(format!("/proc/{manager}/fd")).unwrap().count();
    let resident = || proc::field(manager, "VmRSS").unwrap();
    let mut restarts = 0;
    let mut first = None;
    while restarts < total {
        for pid in service.wait_ready(2).ready_pids() {
            proc::signal(pid, Signal::KILL);
            service.log.wait(PATIENCE, "its death", |line| line.is_of("worker-died", pid));
            restarts += 1;
        }
        if restarts >= 100.min(total / 2) && first.is_none() {
            service.wait_ready(2);
            first = Some((descriptors(), resident()));
        }
    }
    service.wait_ready(2);
    proc::wait_until(PATIENCE, "no unit stays behind", || service.scopes().len() == 2);
    let first = first.unwrap();
    let _ =
        writeln!(std::io::stderr(), "{restarts} restarts: first {first:?}, last ({}, {})", descriptors(), resident());
    proc::wait_until(PATIENCE, "no descriptor stays behind", || descriptors() <= first.0 + 2);
    let kib = |text: &str| text.split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(kib(&resident()) * 100 <= kib(&first.1) * 110, "{first:?}, {}", resident());
    service.stop();
}
