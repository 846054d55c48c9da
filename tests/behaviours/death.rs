//! B6, B12, B14, B22, B28: workers that end on their own or are ended by others.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::http::InFlight;
use crate::support::load::Load;
use crate::support::manager::{App, SOON};
use crate::support::pace;
use crate::support::proc;
use crate::support::stall::assert_median_of_three;
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.alone("b06_kill_one_worker", EVERYWHERE, b06_kill_one);
    suite.add("b12_foreign_kill_is_not_oom", EVERYWHERE, b12_foreign_kill);
    suite.add("b12_exit_and_signal_verdicts", EVERYWHERE, b12_verdicts);
    suite.alone("b14_watchdog", EVERYWHERE, b14_watchdog);
    suite.add("b14_kill_after_abort", EVERYWHERE, b14_abort);
    suite.add("b14_watchdog_trigger", &[Mode::None], b14_trigger);
    suite.add("b28_crash_loop_backs_off", EVERYWHERE, b28_crash_loop);
}

fn b06_kill_one(mode: Mode) {
    let manager = App::new(mode).set("workers", 4).worker("direct", 1).start_ready(4);
    let load = Load { clients: 4, rate: Some(pace::rate(60.0)), ..Load::default() }.start(&manager.target());
    assert_median_of_three("from the kill to its replacement's READY", Duration::from_millis(500), || {
        let before = manager.wait_ready(4);
        // The slot's restart delay is forgotten after ten seconds of being ready; another slot has none yet.
        let slot =
            (0..4).find(|slot| manager.log.count(|line| line.is("worker-died") && line.slot() == Some(*slot)) == 0);
        let slot = slot.expect("a slot that has not lost a worker");
        let victim = before.ready_by_slot()[&slot];
        let others = &before.ready_pids() - &[victim].into();
        let mark = manager.log.mark();
        let began = std::time::Instant::now();
        proc::signal(victim, Signal::KILL);
        let ready = manager.log.wait_after(mark, SOON, "a replacement", |line| line.is("worker-ready"));
        assert_eq!(ready.slot(), Some(slot), "in its place: {ready}");
        let after = manager.wait_ready(4);
        assert!(others.is_subset(&after.ready_pids()), "the others' pids changed");
        ready.at - began
    });
    let report = load.stop();
    // What the victim held is lost with it: at most one request of each client for each kill, and none of the others'.
    assert!(report.failed.len() <= 12, "{:?}", report.failed);
    manager.stop();
}

fn b12_foreign_kill(mode: Mode) {
    let manager = App::new(mode).set("workers", 2).set("memory.max", "128M").start_ready(2);
    let victim = *manager.status().ready_pids().first().expect("a worker");
    proc::signal(victim, Signal::KILL);
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
    assert_eq!(died.reason(), "signal", "{died}");
    assert!(died.message().contains("signal 9"), "{died}");
    assert!(!died.message().to_lowercase().contains("oom"), "{died}");
    let status = manager.wait_ready(2);
    assert_eq!((status.restarts("signal"), status.restarts("oom-kill")), (1, 0));
    manager.stop();
}

fn b12_verdicts(mode: Mode) {
    let manager = App::new(mode).set("workers", 3).worker("direct", 1).start_ready(3);
    let pids: Vec<u32> = manager.status().ready_pids().into_iter().collect();
    for (pid, path, verdict, words) in [
        (pids[0], "/exit?code=7", "exit", "7"),
        (pids[1], "/exit?code=0", "exit", "0"),
        // Not 11: Rust programs take that for a stack overflow and return.
        (pids[2], "/signal?n=8", "signal", "signal 8"),
    ] {
        let _lost = crate::support::http::get(&manager.direct(pid), path);
        let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", pid));
        assert_eq!(died.reason(), verdict, "{died}");
        assert!(died.message().contains(words), "{words:?} is not in: {died}");
    }
    manager.wait_ready(3);
    manager.stop();
}

fn b14_watchdog(mode: Mode) {
    let app = App::new(mode)
        .set("workers", 2)
        .set("timeouts.watchdog", pace::patient_text(Duration::from_secs(2)))
        .set("timeouts.abort", "500ms");
    let manager = app.worker("direct", 1).start_ready(2);
    assert_median_of_three("from the last ping to SIGABRT", Duration::from_millis(2200), || {
        let victim = *manager.wait_ready(2).ready_pids().last().expect("a worker");
        let asked = std::time::Instant::now();
        manager.ask(victim, "/hang");
        let killing = manager.log.wait(SOON, "the kill", |line| line.is_of("worker-killing", victim));
        assert_eq!(killing.reason(), "watchdog", "{killing}");
        assert!(
            killing.at - asked >= pace::patient(Duration::from_millis(950)),
            "shot {:?} after it was well",
            killing.at - asked
        );
        let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
        assert_eq!(died.reason(), "watchdog", "{died}");
        assert!(died.message().contains("watchdog"), "{died}");
        killing.at - asked
    });
    manager.stop();
}

/// SIGABRT first, for a stack dump or a core; SIGKILL when that did not help.
fn b14_abort(mode: Mode) {
    let app = App::new(mode)
        .set("timeouts.watchdog", pace::patient_text(Duration::from_secs(1)))
        .set("timeouts.abort", "700ms");
    let manager = app.worker("direct", 1).worker("ignore_abort", 1).start_ready(1);
    let victim = *manager.status().ready_pids().last().expect("a worker");
    let request = InFlight::send(&manager.direct(victim), "/sleep?ms=60000", SOON);
    manager.ask(victim, "/hang");
    let killing = manager.log.wait(SOON, "the kill", |line| line.is_of("worker-killing", victim));
    assert!(!request.is_over(), "killed before SIGABRT had its time");
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
    assert_eq!(died.reason(), "watchdog", "{died}");
    let between = died.at - killing.at;
    assert!(between >= Duration::from_millis(650), "SIGKILL {between:?} after SIGABRT");
    manager.wait_ready(1);
    manager.stop();
}

fn b14_trigger(mode: Mode) {
    let manager = App::new(mode).worker("direct", 1).start_ready(1);
    let victim = *manager.status().ready_pids().first().expect("a worker");
    let _answer = crate::support::http::get(&manager.direct(victim), "/notify?text=WATCHDOG=trigger");
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
    assert_eq!(died.reason(), "watchdog", "{died}");
    manager.wait_ready(1);
    manager.stop();
}

fn b28_crash_loop(mode: Mode) {
    let app = App::new(mode).set("workers", 3).worker("refuse_slots", "2");
    let mut manager = app.start();
    manager.wait_told_ready(SOON);
    let load = Load { clients: 2, rate: Some(pace::rate(20.0)), ..Load::default() }.start(&manager.target());
    let first = manager
        .log
        .wait(SOON, "the first start in slot 2", |line| line.is("worker-starting") && line.slot() == Some(2));
    let window = Duration::from_secs(10);
    manager.log.try_wait_after(manager.log.mark(), window, |line| line.at > first.at + window);
    let starts =
        manager.log.count(|line| line.is("worker-starting") && line.slot() == Some(2) && line.at <= first.at + window);
    assert!((3..=6).contains(&starts), "{starts} starts in the first ten seconds");
    assert_eq!(manager.status().in_state("backoff").len(), 1);
    load.stop().assert_none_lost();
    assert_eq!(manager.log.count(|line| line.is("worker-died") && line.slot() != Some(2)), 0);
    manager.stop();
}
