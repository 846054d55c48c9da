//! B12, B13, B36: what killed a worker, as systemd and the kernel know it.

use std::collections::BTreeMap;
use std::io::Write as _;

use rustix::process::Signal;

use crate::service::{PATIENCE, Service, app};
use crate::support::http::{self, InFlight};
use crate::support::proc;
use crate::support::suite::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("b36_every_verdict_is_oom_kill", oom_kills);
    suite.system("b12_foreign_kills_are_not_oom", foreign_kills);
    suite.system("b13_soft_limit_in_a_long_request", soft_limit);
}

fn count_of(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `PADDOCK_TEST_OOM_KILLS` says how many.
fn oom_kills() {
    let kills = count_of("PADDOCK_TEST_OOM_KILLS", 60);
    let app = app().set("workers", 4).set("memory.max", "32M").set("memory.recycle_at", "90%");
    let service = Service::start(app.set("restart.backoff", "10ms").set("restart.backoff_max", "10ms"), 4);
    let deaths = kill_all(&service, kills, |service, pid| {
        let target = service.direct(pid);
        std::thread::spawn(move || drop(http::get_within(&target, "/leak?mb=64", PATIENCE)))
    });
    assert_all(&deaths, "oom-kill", kills);
    service.wait_ready(4);
    assert_eq!(service.scopes().len(), 4, "failed scopes stay loaded: {:?}", service.scopes());
    service.stop();
}

/// `PADDOCK_TEST_FOREIGN_KILLS` says how many.
fn foreign_kills() {
    let kills = count_of("PADDOCK_TEST_FOREIGN_KILLS", 20);
    let app = app().set("workers", 4).set("memory.max", "200M");
    let service = Service::start(app.set("restart.backoff", "10ms").set("restart.backoff_max", "10ms"), 4);
    let deaths = kill_all(&service, kills, |_, pid| {
        proc::signal(pid, Signal::KILL);
        std::thread::spawn(|| ())
    });
    assert_all(&deaths, "signal", kills);
    service.stop();
}

/// Kills workers, all that are ready at a time, until there were so many; their verdicts.
fn kill_all(
    service: &Service,
    kills: usize,
    kill: impl Fn(&Service, u32) -> std::thread::JoinHandle<()>,
) -> Vec<String> {
    let mut verdicts = Vec::new();
    while verdicts.len() < kills {
        let mark = service.log.mark();
        let ready = service.wait_status("a ready worker", |status| !status.ready_pids().is_empty()).ready_pids();
        let batch: Vec<u32> = ready.into_iter().take(kills - verdicts.len()).collect();
        let killers: Vec<_> = batch.iter().map(|pid| kill(service, *pid)).collect();
        for (pid, killer) in batch.iter().zip(killers) {
            killer.join().expect("the killer");
            let died = service.log.wait_after(mark, PATIENCE, "a death", |line| line.is_of("worker-died", *pid));
            verdicts.push(died.reason().to_owned());
        }
    }
    assert_eq!(service.log.count(|line| line.is("worker-died")), kills, "as many deaths as kills");
    verdicts
}

/// Says how many of each verdict there were, and that all are this one.
fn assert_all(verdicts: &[String], wanted: &str, kills: usize) {
    let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
    for verdict in verdicts {
        *tally.entry(verdict).or_default() += 1;
    }
    let _ = writeln!(std::io::stdout(), "{kills} kills, verdicts {tally:?}");
    assert_eq!(tally, BTreeMap::from([(wanted, kills)]));
}

fn soft_limit() {
    let app = app().set("memory.max", "300M").set("memory.recycle_at", "100M");
    let service = Service::start(app, 1);
    let old = *service.status().ready_pids().first().unwrap();
    let request = InFlight::send(&service.direct(old), "/grow?mb=140&step=4&pause=50&then=8000", PATIENCE);
    let due = service.log.wait(PATIENCE, "the soft limit", |line| line.is_of("recycle-due", old));
    assert_eq!(due.reason(), "memory", "{due}");
    let drained = service.log.wait(PATIENCE, "its drain", |line| line.is_of("drain-started", old));
    let readied = service.log.all(|line| line.is("worker-ready") && line.pid() != Some(old));
    assert!(readied.len() == 1 && readied[0].at <= drained.at, "the replacement is ready before the drain");
    let reply = request.answer().expect("the request is answered");
    let steps: Vec<u64> =
        reply.body["step_micros"].as_array().unwrap().iter().filter_map(serde_json::Value::as_u64).collect();
    let mut late = steps[steps.len() - 6..].to_vec();
    late.sort_unstable();
    // A throttled worker gets 1–3 MB a second: more than a second for a step of 4.
    assert!(late[3] < 1_000_000, "throttled past the limit: {steps:?} microseconds a step");
    let died = service.log.wait(PATIENCE, "its end", |line| line.is_of("worker-died", old));
    assert_eq!(died.reason(), "drained", "{died}");
    service.wait_ready(1);
    service.stop();
}
