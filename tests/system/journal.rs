//! The journal: fields of the manager's entries, and each worker's own words.

use crate::service::{PATIENCE, Service, app, journal};
use crate::support::cgroup;
use crate::support::http;
use crate::support::proc;
use crate::support::suite::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("x_journal_fields", fields);
    suite.system("x_last_words_of_a_killed_worker", last_words);
}

fn fields() {
    let service = Service::start(app().set("memory.max", "64M").set("memory.recycle_at", "90%"), 1);
    let victim = *service.status().ready_pids().first().unwrap();
    let _lost = http::get_within(&service.direct(victim), "/leak?mb=128", PATIENCE);
    service.log.wait(PATIENCE, "its death", |line| line.is_of("worker-died", victim));
    let entries = journal(&[&format!("PADDOCK_APP={}", service.app.name), "PADDOCK_EVENT=worker-died"]);
    let [entry] = entries.as_slice() else { panic!("{} entries: {entries:#?}", entries.len()) };
    for (field, value) in [
        ("PADDOCK_SLOT", "0"),
        ("PADDOCK_GENERATION", "1"),
        ("PADDOCK_WORKER_PID", &victim.to_string()),
        ("PADDOCK_REASON", "oom-kill"),
        ("PADDOCK_MEMORY_LIMIT_BYTES", &(64 << 20).to_string()),
        ("_SYSTEMD_UNIT", &service.unit),
        ("SYSLOG_IDENTIFIER", "paddock"),
    ] {
        assert_eq!(entry[field], value, "{field} of {entry:#?}");
    }
    for field in ["MESSAGE_ID", "PRIORITY", "PADDOCK_MEMORY_BYTES"] {
        assert!(entry[field].is_string(), "{field} of {entry:#?}");
    }
    assert!(entry["MESSAGE"].as_str().unwrap().contains("oom-kill"));
    service.wait_ready(1);
    service.stop();
}

/// What a worker wrote is found under its scope, the last line before its end included.
fn last_words() {
    let service = Service::start(app().set("memory.max", "64M").set("memory.recycle_at", "90%"), 1);
    let victim = *service.status().ready_pids().first().unwrap();
    let group = cgroup::memory_group_of(victim).expect("a group");
    let scope = group.file_name().unwrap().to_string_lossy().into_owned();
    service.ask(victim, "/print?text=the%20last%20thing%20it%20said");
    let _lost = http::get_within(&service.direct(victim), "/leak?mb=128", PATIENCE);
    service.log.wait(PATIENCE, "its death", |line| line.is_of("worker-died", victim));
    proc::wait_until(PATIENCE, "its words under its scope", || {
        journal(&["--unit", &scope]).iter().any(|entry| entry["MESSAGE"] == "the last thing it said")
    });
    service.wait_ready(1);
    service.stop();
}
