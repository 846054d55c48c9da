//! B3–B5, B26, B40 and what a stop leaves, with the shipped units.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::service::{PATIENCE, Service, app, app_named, escape, property, systemctl, systemctl_ok, unique_name};
use crate::support::cgroup;
use crate::support::http;
use crate::support::load::Load;
use crate::support::suite::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("b04_a_scope_for_each_worker", scopes);
    suite.system("b05_systemctl_start_waits_for_ready", start_waits);
    suite.system("b05_systemctl_start_fails_if_no_worker_starts", start_fails);
    suite.system("b26_stop_and_start_under_load", stop_and_start);
    suite.system("b40_names_that_begin_alike", names);
}

fn scopes() {
    let service = Service::start(app().set("workers", 4).set("memory.max", "200M"), 4);
    let status = service.status();
    assert_eq!(status.isolation(), "scope");
    let mut seen = BTreeSet::new();
    for (slot, pid) in status.ready_by_slot() {
        let daemon = u32::try_from(service.ask(pid, "/daemon").number("daemon")).unwrap();
        let group = cgroup::memory_group_of(pid).expect("a group");
        let scope = group.file_name().unwrap().to_string_lossy().into_owned();
        assert!(scope.starts_with(&format!("paddock-{}-{slot}-", escape(&service.app.name))), "{scope}");
        assert_eq!(group.parent().unwrap().file_name().unwrap().to_string_lossy(), service.slice());
        assert_eq!(cgroup::processes_below(&group), BTreeSet::from([pid, daemon]), "exactly its own tree");
        assert_eq!(property(&scope, "MemoryMax"), (200 << 20).to_string());
        assert_eq!(std::fs::read_to_string(group.join("memory.max")).unwrap().trim(), (200 << 20).to_string());
        assert!(seen.insert(scope));
    }
    assert_eq!(service.scopes().into_iter().collect::<BTreeSet<_>>(), seen, "no other scope");
    service.stop();
}

fn start_waits() {
    let service = Service::install(app().set("workers", 2).worker("ready_delay_ms", 3000));
    let began = Instant::now();
    service.start_service();
    assert!(began.elapsed() >= Duration::from_secs(3), "systemctl start returned after {:?}", began.elapsed());
    assert_eq!(service.status().ready_pids().len(), 2);
    service.stop();
}

fn start_fails() {
    let service = Service::install(app().set("workers", 2).worker("refuse", 3));
    let output = systemctl(&["start", &service.unit]);
    assert!(!output.status.success(), "{output:?}");
    service.log.wait(PATIENCE, "the last words", |line| line.text.contains("the code on disk is broken"));
    let _stopped = systemctl(&["stop", &service.unit]);
    assert_eq!(service.left(), BTreeSet::new());
}

fn stop_and_start() {
    let service = Service::start(app().set("workers", 2), 2);
    let load = Load { clients: 20, rate: Some(20.0), patience: PATIENCE, ..Load::default() };
    let load = load.start(&service.target());
    let before = service.status().ready_pids();
    systemctl_ok(&["stop", &service.unit]);
    service.start_service();
    let after = service.wait_ready(2).ready_pids();
    let answered = load.answered();
    crate::support::proc::wait_until(PATIENCE, "answers", || load.answered() > answered + 10);
    let report = load.stop();
    report.assert_none_lost();
    assert!(before.is_disjoint(&after));
    service.stop();
}

fn names() {
    let short = unique_name("my");
    let long = Service::start(app_named(&format!("{short}-shop")).set("workers", 2), 2);
    let short = Service::start(app_named(&short).set("workers", 2), 2);
    let of_long = long.status().ready_pids();
    assert_eq!(short.scopes().len(), 2, "{:?}", short.scopes());
    short.stop();
    assert_eq!(long.wait_ready(2).ready_pids(), of_long, "stopping the one touched the other");
    assert_eq!(http::get(&long.target(), "/").map(|reply| of_long.contains(&reply.pid())), Ok(true));
    long.stop();
}
