//! B32 and rolls under systemd.

use crate::service::{PATIENCE, Service, app, property, systemctl, systemctl_ok};
use crate::support::load::Load;
use crate::support::proc;
use crate::support::suite::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("b32_systemctl_reload_returns_when_the_roll_is_over", reload_waits);
    suite.system("b32_systemctl_reload_fails_when_the_roll_is_undone", reload_fails);
    suite.system("x_daemon_reload_during_a_roll", daemon_reload);
    suite.system("x_a_reload_changes_limits_of_scopes", new_limits);
}

fn reload_waits() {
    let service = Service::start(app().set("workers", 2), 2);
    let before = service.status().ready_pids();
    service.switch("ready_delay_ms=1000\n");
    systemctl_ok(&["reload", &service.unit]);
    let status = service.status();
    assert!(!status.is_rolling(), "systemctl reload returned during the roll");
    assert_eq!(status.generation(), 2);
    assert!(status.ready_pids().len() == 2 && status.ready_pids().is_disjoint(&before), "{status:#?}");
    assert_eq!(property(&service.unit, "ActiveState"), "active");
    service.stop();
}

fn reload_fails() {
    let service = Service::start(app().set("workers", 2), 2);
    let before = service.status().ready_pids();
    service.switch("refuse=3\n");
    let output = systemctl(&["reload", &service.unit]);
    assert!(!output.status.success(), "an undone roll is a success: {output:?}");
    assert_eq!(property(&service.unit, "ActiveState"), "active");
    assert_eq!(service.wait_ready(2).ready_pids(), before);
    service.log.wait(PATIENCE, "why", |line| line.is("reload-undone"));
    service.switch("");
    systemctl_ok(&["reload", &service.unit]);
    assert!(service.wait_ready(2).ready_pids().is_disjoint(&before));
    service.stop();
}

fn daemon_reload() {
    let service = Service::start(app().set("workers", 3), 3);
    let before = service.status().ready_pids();
    let load = Load { clients: 4, rate: Some(10.0), patience: PATIENCE, ..Load::default() };
    let load = load.start(&service.target());
    systemctl_ok(&["--no-block", "reload", &service.unit]);
    let over = |service: &Service| service.log.count(|line| line.is("reload-done")) > 0;
    let mut storms = 0;
    while storms < 3 || !over(&service) {
        systemctl_ok(&["daemon-reload"]);
        storms += 1;
        assert!(storms < 200, "the roll does not end");
    }
    systemctl_ok(&["daemon-reexec"]);
    let status = service.wait_ready(3);
    assert!(status.ready_pids().is_disjoint(&before));
    assert_eq!(service.scopes().len(), 3, "{:?}", service.scopes());
    let answered = load.answered();
    proc::wait_until(PATIENCE, "answers", || load.answered() > answered + 5);
    load.stop().assert_none_lost();
    service.stop();
}

fn new_limits() {
    let mut service = Service::start(app().set("workers", 1).set("memory.max", "200M"), 1);
    service.app.put("memory.max", "300M");
    service.write_config();
    systemctl_ok(&["reload", &service.unit]);
    let scopes = service.scopes();
    assert_eq!(scopes.len(), 1, "{scopes:?}");
    assert_eq!(property(&scopes[0], "MemoryMax"), (300 << 20).to_string());
    service.stop();
}
