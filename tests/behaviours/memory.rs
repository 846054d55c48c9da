//! B11, B13, B29, B35, B36: memory limits, hard and soft, and what is left in a fence.

use std::time::Duration;

use crate::support::cgroup;
use crate::support::http::{self, InFlight};
use crate::support::manager::{App, Manager, SOON};
use crate::support::pace;
use crate::support::proc;
use crate::support::suite::{EVERYWHERE, FENCED, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("b11_oom_kill", FENCED, b11_oom_kill);
    suite.add("b11_oom_kill_of_a_child", FENCED, b11_child);
    suite.add("b11_said_in_text", FENCED, b11_text);
    suite.add("b13_soft_limit_in_a_long_request", EVERYWHERE, b13_soft_limit);
    suite.add("b13_leak_outruns_the_start", FENCED, b13_outrun);
    suite.add("b29_daemonised_grandchild", EVERYWHERE, b29_grandchild);
    suite.add("b35_no_room_for_an_overlap", &[Mode::Cgroup], b35_no_room);
    suite.add("b36_every_verdict_is_oom_kill", FENCED, b36_verdicts);
}

fn b11_oom_kill(mode: Mode) {
    let app = App::new(mode).set("workers", 3).set("memory.max", "64M");
    let manager = app.worker("direct", 1).start_ready(3);
    let pids: Vec<u32> = manager.status().ready_pids().into_iter().collect();
    let slot_of_victim = manager.status().ready_by_slot().into_iter().find(|(_, pid)| *pid == pids[0]).unwrap().0;
    let others: Vec<InFlight> = pids[1..]
        .iter()
        .map(|pid| InFlight::send(&manager.direct(*pid), &format!("/sleep?ms={}", pace::millis(1500)), SOON))
        .collect();
    let _lost = http::get(&manager.direct(pids[0]), "/leak?mb=128");

    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", pids[0]));
    assert_eq!(died.reason(), "oom-kill", "{died}");
    assert_eq!(died.slot(), Some(slot_of_victim));
    assert_eq!(died.number("memory_limit_bytes"), Some(64 << 20), "{died}");
    assert!(died.number("memory_bytes").is_some_and(|peak| peak > 60 << 20), "the peak: {died}");
    for word in ["oom-kill", "slot", "64", "peak", &pids[0].to_string()] {
        assert!(died.message().contains(word), "{word:?} is not in: {died}");
    }
    for other in others {
        other.answer().expect("a request in flight on another worker");
    }
    let status = manager.wait_ready(3);
    assert!(pids[1..].iter().all(|pid| status.ready_pids().contains(pid)), "only that worker died");
    let slot = status.workers().into_iter().find(|worker| worker.slot() == slot_of_victim).unwrap();
    assert_eq!(slot.last_verdict(), "oom-kill");
    assert_eq!(status.restarts("oom-kill"), 1);
    manager.stop();
}

/// The kernel takes a child of the worker, and with it goes the whole worker, under its right name.
fn b11_child(mode: Mode) {
    let app = App::new(mode).set("memory.max", "64M").set("ready", "settle").set("timeouts.settle", "100ms");
    let hungry = "head -c 256M /dev/zero | tail -c 200M > /dev/null";
    // On its way to the limit it crosses the soft one: it must not be drained before it gets there.
    let script =
        format!("if mkdir $W_DIR/once 2>/dev/null; then trap '' TERM; sleep 0.5; {hungry}; exit 0; fi; exec sleep 600");
    let manager = app.set("command", ["sh", "-c", &script].map(str::to_owned).to_vec()).start();
    let died = manager.log.wait(SOON, "its death", |line| line.is("worker-died"));
    assert_eq!(died.reason(), "oom-kill", "{died}");
    manager.wait_ready(1);
    manager.stop();
}

fn b11_text(mode: Mode) {
    let app = App::new(mode).set("memory.max", "64M").set("log.format", "text").worker("direct", 1);
    let manager = app.start_ready(1);
    let victim = *manager.status().ready_pids().first().unwrap();
    let _lost = http::get(&manager.direct(victim), "/leak?mb=128");
    let line = manager.log.wait(SOON, "its death in words", |line| line.text.contains("oom-kill"));
    for word in ["slot 0", "64", "peak", &victim.to_string()] {
        assert!(line.text.contains(word), "{word:?} is not in: {line}");
    }
    manager.wait_ready(1);
    manager.stop();
}

fn b13_soft_limit(mode: Mode) {
    let app = App::new(mode).set("memory.max", "240M").set("memory.recycle_at", "80M").worker("direct", 1);
    let manager = app.start_ready(1);
    let old = *manager.status().ready_pids().first().unwrap();
    let request = InFlight::send(
        &manager.direct(old),
        &format!("/grow?mb=120&step=4&pause=10&then={}", pace::millis(4000)),
        SOON,
    );
    let due = manager.log.wait(SOON, "the soft limit", |line| line.is_of("recycle-due", old));
    assert_eq!(due.reason(), "memory", "{due}");
    let drained = manager.log.wait(SOON, "its drain", |line| line.is_of("drain-started", old));
    let readied = manager.log.all(|line| line.is("worker-ready") && line.pid() != Some(old));
    assert!(readied.len() == 1 && readied[0].at <= drained.at, "the replacement is ready before the drain");
    assert!(!request.is_over(), "the drain began in the request");

    let reply = request.answer().expect("the request is answered");
    assert_eq!(reply.pid(), old);
    let steps: Vec<u64> =
        reply.body["step_micros"].as_array().unwrap().iter().filter_map(serde_json::Value::as_u64).collect();
    let (before, after) = steps.split_at(18);
    assert!(median(after) <= 10 * median(before) + 10_000, "throttled past the limit: {steps:?} microseconds a step");
    let died = manager.log.wait(SOON, "its end", |line| line.is_of("worker-died", old));
    assert_eq!(died.reason(), "drained", "{died}");
    assert_eq!(manager.log.count(|line| line.is("drain-first")), 0);
    manager.wait_ready(1);
    manager.stop();
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values[values.len() / 2]
}

fn b13_outrun(mode: Mode) {
    let app = App::new(mode).set("memory.max", "240M").set("memory.recycle_at", "80M").worker("direct", 1);
    let manager = app.start_ready(1);
    let old = *manager.status().ready_pids().first().unwrap();
    manager.switch(&format!("ready_delay_ms={}\n", pace::millis(4000)));
    let request = InFlight::send(
        &manager.direct(old),
        &format!("/grow?mb=180&step=4&pause=20&then={}", pace::millis(1000)),
        SOON,
    );
    manager
        .log
        .wait(SOON, "drain-first", |line| line.is_of("drain-first", old) || line.message().contains("drain-first"));
    let drained = manager.log.wait(SOON, "its drain", |line| line.is_of("drain-started", old));
    assert!(
        manager.log.count(|line| line.is("worker-ready") && line.at <= drained.at) == 1,
        "it was drained before the replacement was ready"
    );
    assert_eq!(request.answer().expect("the request is answered").pid(), old);
    let died = manager.log.wait(SOON, "its end", |line| line.is_of("worker-died", old));
    assert_eq!(died.reason(), "drained", "{died}");
    manager.wait_ready(1);
    assert_eq!(manager.status().restarts("oom-kill"), 0);
    manager.stop();
}

fn b29_grandchild(mode: Mode) {
    let manager = App::new(mode).worker("direct", 1).start_ready(1);
    let old = *manager.status().ready_pids().first().unwrap();
    let daemon = u32::try_from(manager.ask(old, "/daemon").number("daemon")).unwrap();
    assert!(proc::is_alive(daemon));
    let group = cgroup::memory_group_of(old).expect("a group");
    assert!(manager.cli("recycle", &["0"]).status.success());
    manager.log.wait(SOON, "the old worker's end", |line| line.is_of("worker-died", old));
    proc::wait_until(SOON, "the grandchild is gone", || !proc::is_alive(daemon));
    if mode.has_fence() {
        proc::wait_until(SOON, "the fence is removed", || !group.exists());
    }
    manager.wait_ready(1);
    manager.stop();
}

fn b35_no_room(mode: Mode) {
    let app = App::new(mode).set("workers", 3).set("memory.max", "64M").set("memory.budget", "256M");
    let manager = app.worker("direct", 1).worker("start_leak_mb", 40).start_ready(3);
    let scaled = manager.cli("scale", &["4"]);
    assert!(scaled.status.success(), "4 workers fit: {scaled:?}");
    manager.wait_ready(4);
    assert_eq!(manager.cli("scale", &["5"]).status.code(), Some(1), "5 workers do not fit");
    manager.app.group().limit_memory(300 << 20);
    let old = manager.status().ready_by_slot()[&2];
    assert!(manager.cli("recycle", &["2"]).status.success());
    let said = manager.log.wait(SOON, "that it stops first", |line| line.is("stop-first"));
    assert!(said.message().contains("budget"), "{said}");
    let died = manager.log.wait(SOON, "the old worker's end", |line| line.is_of("worker-died", old));
    let started = manager.log.all(|line| line.is("worker-starting") && line.slot() == Some(2));
    assert!(started.len() == 1 || started[1].at >= died.at, "the new worker started before the old one was gone");
    manager.wait_ready(4);
    assert_eq!(manager.app.group().oom_kills(), 0, "an outer limit was hit");
    manager.stop();
}

/// `PADDOCK_TEST_OOM_KILLS` says how many; the full thousand belongs to a machine that has the time.
fn b36_verdicts(mode: Mode) {
    let asked = std::env::var("PADDOCK_TEST_OOM_KILLS").ok().and_then(|text| text.parse().ok());
    let kills = asked.unwrap_or_else(|| usize::try_from(pace::share(100)).unwrap());
    let app = App::new(mode).set("workers", 4).set("memory.max", "32M").set("memory.recycle_at", "90%");
    let app = app.set("restart.backoff", "10ms").set("restart.backoff_max", "10ms").worker("direct", 1);
    let manager = app.start_ready(4);
    assert_oom_verdicts(&manager, kills);
    manager.stop();
}

fn assert_oom_verdicts(manager: &Manager, kills: usize) {
    let mut seen = 0;
    while seen < kills {
        let mark = manager.log.mark();
        let ready = manager.wait_status(SOON, "a ready worker", |status| !status.ready_pids().is_empty()).ready_pids();
        let batch: Vec<u32> = ready.into_iter().take(kills - seen).collect();
        let requests: Vec<_> = batch
            .iter()
            .map(|pid| {
                let target = manager.direct(*pid);
                std::thread::spawn(move || http::get_within(&target, "/leak?mb=64", Duration::from_secs(20)))
            })
            .collect();
        for (pid, request) in batch.iter().zip(requests) {
            let _lost = request.join().expect("the client");
            let died = manager.log.wait_after(mark, SOON, "a death", |line| line.is_of("worker-died", *pid));
            assert_eq!(died.reason(), "oom-kill", "{died}");
            seen += 1;
        }
    }
    let deaths = manager.log.all(|line| line.is("worker-died"));
    assert_eq!((deaths.len(), seen), (kills, kills), "as many deaths as kills");
    manager.wait_ready(4);
    assert_eq!(manager.status().0["restarts"]["oom-kill"].as_u64(), u64::try_from(kills).ok());
}
