//! B27 under a real systemd: the manager dies by `kill -9`, systemd starts it again, nobody notices.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::service::{PATIENCE, Service, app, is_ready, property, systemctl_ok};
use crate::support::http::{self, Target};
use crate::support::load::{Load, Running};
use crate::support::pace::patient;
use crate::support::proc::{self, Process, wait_until};
use crate::support::status::{Status, Worker};
use crate::support::suite::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("b27_crashes_under_load", crashes);
    suite.system("b27_a_crash_in_a_roll", crash_in_a_roll);
    suite.system("b27_an_oom_kill_that_nobody_saw", unseen_oom_kill);
}

/// How often the manager is killed; more of it by `PADDOCK_CRASHES`.
fn times() -> u64 {
    std::env::var("PADDOCK_CRASHES").ok().and_then(|times| times.parse().ok()).unwrap_or(2)
}

/// Kills the manager and waits until systemd has another one, and calls the service active.
#[track_caller]
pub(crate) fn crash(unit: &str) {
    let pid = main_pid(unit);
    let manager = Process::open(pid).expect("the manager");
    manager.signal(Signal::KILL);
    assert!(manager.wait_gone(PATIENCE));
    slowly(|| {
        let main = main_pid(unit);
        main != 0 && main != pid && property(unit, "ActiveState") == "active"
    });
}

/// Waits without starting processes all the time: an emulated processor would do nothing else.
#[track_caller]
pub(crate) fn slowly(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + patient(PATIENCE);
    while !holds() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

pub(crate) fn main_pid(unit: &str) -> u32 {
    property(unit, "MainPID").parse().expect("a number")
}

/// By slot what a crash must not change: pid, generation, quota and limit.
fn identities(status: &Status) -> BTreeMap<u64, serde_json::Value> {
    let identity = |worker: &Worker| {
        let value = &worker.0;
        serde_json::json!([value["pid"], value["generation"], value["quota"], value["memory"]["limit"]])
    };
    status.workers().iter().map(|worker| (worker.slot(), identity(worker))).collect()
}

/// Flags of an open file of a process, as `fcntl(2)` has them.
fn flags(pid: u32, fd: u32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).expect("an open file");
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).expect("its flags");
    u32::from_str_radix(flags.trim(), 8).expect("an octal number")
}

fn crashes() {
    let app = app()
        .set("workers", 3)
        .set("memory.max", "200M")
        .set("recycle.max_requests", 100_000)
        .set("recycle.max_requests_jitter", "20%")
        .set("timeouts.watchdog", "60s");
    let own = app.dir.path().join("own.sock");
    let app = app.set("listen.bind", vec![format!("unix:{}", own.display())]);
    let service = Service::start(app, 3);
    let mut load: Vec<Running> = Vec::new();
    for (target, keep_alive) in
        [(service.target(), false), (service.target(), true), (Target::Unix(own.clone()), false)]
    {
        let clients = if keep_alive { 4 } else { 2 };
        load.push(Load { clients, keep_alive, rate: Some(4.0), patience: PATIENCE, ..Load::default() }.start(&target));
    }
    let serve_on = |more: usize| {
        for each in &load {
            let until = each.answered() + more;
            wait_until(PATIENCE, "answers", || each.answered() >= until);
        }
    };
    serve_on(5);
    let before = service.wait_ready(3);
    for number in 1..=times() {
        crash(&service.unit);
        let after = service.wait_ready(3);
        assert_eq!(identities(&after), identities(&before), "crash {number}");
        serve_on(2);
    }
    assert_eq!(property(&service.unit, "NRestarts"), times().to_string());
    // One descriptor for each worker's notify socket, and the listener that systemd does not hold.
    assert_eq!(property(&service.unit, "NFileDescriptorStore"), "4");
    for pid in before.ready_pids() {
        assert_ne!(flags(pid, 3) & 0o4000, 0, "somebody made the listeners of living workers blocking");
    }
    // A worker that is made by the new manager gets the sockets, and none of what was stored.
    systemctl_ok(&["reload", &service.unit]);
    let after = service.wait_ready(3);
    assert!(after.ready_pids().is_disjoint(&before.ready_pids()));
    let facts = service.ask(*after.ready_pids().first().unwrap(), "/facts").body;
    assert_eq!(facts["env"]["LISTEN_FDS"], "2", "{facts:#}");
    assert_eq!(facts["env"]["LISTEN_FDNAMES"], "listen:listen", "{facts:#}");
    serve_on(5);
    for each in load {
        let report = each.stop();
        report.assert_none_lost();
        let _ = writeln!(std::io::stderr(), "{} requests, {} crashes, 0 failed", report.total(), times());
    }
    service.stop();
    assert!(!own.exists(), "the own path is left behind");
}

/// What a worker says while there is no manager waits for the next one: the roll goes on.
fn crash_in_a_roll() {
    let service = Service::start(app().set("workers", 2), 2);
    let before = service.status().ready_pids();
    service.switch("ready_delay_ms=1500\n");
    systemctl_ok(&["kill", "--kill-who=main", "--signal=HUP", &service.unit]);
    service.wait_status("the canary", |status| status.in_state("starting").iter().any(|worker| worker.pid().is_some()));
    crash(&service.unit);
    let status = service.wait_status("the end of the roll", |status| status.generation() == 2 && is_ready(2)(status));
    assert!(status.ready_pids().is_disjoint(&before));
    assert!(status.workers().iter().all(|worker| worker.generation() == Some(2)));
    assert!(!service.log.text().contains("it may have said READY"), "what was said was lost");
    service.stop();
}

fn unseen_oom_kill() {
    // The soft limit hardly below the hard one: the kernel slows down whoever is over it until a manager lifts it.
    let app = app().set("workers", 2).set("memory.max", "64M").set("memory.recycle_at", "99%");
    let service = Service::install(app);
    // However long an emulated processor takes to fill the memory.
    let drop_in = service.drop_in("restart.conf", "[Service]\nRestartSec=10min\n");
    service.start_service();
    let before = service.wait_ready(2).ready_by_slot();
    let manager = Process::open(main_pid(&service.unit)).expect("the manager");
    manager.signal(Signal::KILL);
    assert!(manager.wait_gone(PATIENCE));
    let victim = Process::open(before[&0]).expect("it lives");
    let _lost = http::get_within(&service.direct(before[&0]), "/leak?mb=128", PATIENCE);
    assert!(victim.wait_gone(PATIENCE));
    assert_eq!(main_pid(&service.unit), 0, "there is no manager yet");
    systemctl_ok(&["restart", &service.unit]);
    let after = service.wait_status("both again", is_ready(2));
    assert_eq!(after.restarts("oom-kill"), 1, "{after:#?}");
    assert_eq!(after.ready_by_slot()[&1], before[&1]);
    assert!(proc::is_alive(before[&1]));
    let died = service.log.wait(PATIENCE, "its death", |line| line.is_of("worker-died", before[&0]));
    assert_eq!(died.reason(), "oom-kill", "{died}");
    service.stop();
    drop(drop_in);
}
