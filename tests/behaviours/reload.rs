//! B17–B22: rolls, undone rolls, and what happens beside them.

use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::http;
use crate::support::load::Load;
use crate::support::manager::{App, Manager, SOON};
use crate::support::pace;
use crate::support::proc;
use crate::support::stall::Sleeper;
use crate::support::suite::{EVERYWHERE, Mode, Suite};
use crate::support::timeline::timeline;

pub(crate) fn register(suite: &mut Suite) {
    suite.alone("b17_rolling_reload", EVERYWHERE, b17_roll);
    suite.add("b18_code_that_cannot_start", EVERYWHERE, b18_broken_code);
    suite.add("b18_code_that_does_not_hold", EVERYWHERE, b18_does_not_hold);
    suite.add("b18_later_worker_fails", &[Mode::None], b18_later_worker);
    suite.add("b19_death_while_the_code_is_broken", EVERYWHERE, b19_death_while_broken);
    suite.add("b20_invalid_file", EVERYWHERE, b20_invalid_file);
    suite.add("b20_keys_that_need_a_restart", &[Mode::None], b20_restart_keys);
    suite.add("b20_new_values_take_effect", EVERYWHERE, b20_new_values);
    suite.add("b21_two_hups_make_one_further_roll", EVERYWHERE, b21_two_hups);
    suite.add("b22_death_during_a_roll", EVERYWHERE, b22_death_in_roll);
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn b17_roll(mode: Mode) {
    let manager = App::new(mode).set("workers", 4).start_ready(4);
    let old = manager.status().ready_pids();
    manager.switch("ready_delay_ms=2000\nversion=2\n");
    let sleeper = Sleeper::start();
    let load = Load { clients: 8, rate: Some(pace::rate(100.0)), ..Load::default() }.start(&manager.target());
    proc::wait_until(SOON, "load", || load.answered() > 20);
    manager.signal(Signal::HUP);
    manager.log.wait(Duration::from_secs(30), "the end of the roll", |line| line.is("reload-done"));
    let answered = load.answered();
    proc::wait_until(SOON, "load on the new workers", || load.answered() > answered + 50);
    let report = load.stop();
    report.assert_none_lost();
    let gap = report.longest_gap().saturating_sub(sleeper.worst());
    assert!(pace::is_emulated() || gap <= Duration::from_millis(200), "nothing was answered for {gap:?}");
    let status = manager.wait_ready(4);
    assert!(status.ready_pids().is_disjoint(&old), "every pid is new");
    assert_eq!(status.generation(), 2);
    assert!(status.workers().iter().all(|worker| worker.generation() == Some(2)));
    let history = timeline(&manager.log.lines(), 4);
    assert!(history.least_ready >= 4 && history.most_alive <= 5, "{history:?}");
    assert_eq!(report.generations().into_iter().collect::<Vec<_>>(), [1, 2]);
    let told = manager.notify.assignments();
    let reloading = told.iter().position(|(_, text)| text == "RELOADING=1").expect("RELOADING=1");
    assert!(told[reloading..].iter().any(|(_, text)| text.starts_with("MONOTONIC_USEC=")));
    assert!(manager.notify.try_wait("READY=1", 2, SOON).is_some(), "READY=1 after the roll");
    manager.stop();
}

fn b18_broken_code(mode: Mode) {
    let manager = App::new(mode).set("workers", 3).start_ready(3);
    let old = manager.status().ready_pids();
    manager.switch("refuse=3\n");
    let load = Load { clients: 4, rate: Some(pace::rate(50.0)), ..Load::default() }.start(&manager.target());
    let output = manager.cli("reload", &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output).contains("the code on disk is broken"), "the worker's last words: {output:?}");
    assert!(manager.notify.try_wait("READY=1", 2, SOON).is_some(), "READY=1 although the roll was undone");

    manager.signal(Signal::HUP);
    let undone = |times| {
        proc::wait_until(SOON, "the second roll is undone", || {
            manager.log.count(|line| line.is("reload-undone")) == times
        });
    };
    undone(2);
    let (answered, five_seconds) = (load.answered(), usize::try_from(pace::share(250)).unwrap());
    proc::wait_until(SOON, "five more seconds of load", || load.answered() >= answered + five_seconds);
    let report = load.stop();
    report.assert_none_lost();
    assert!(report.pids().is_subset(&old), "only the old workers served");
    let status = manager.wait_ready(3);
    assert_eq!((status.ready_pids(), status.generation()), (old.clone(), 1));

    manager.switch("version=3\n");
    let output = manager.cli("reload", &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let status = manager.wait_ready(3);
    assert!(status.ready_pids().is_disjoint(&old));
    assert_eq!(http::get(&manager.target(), "/").expect("an answer").body["version"], "3");
    manager.stop();
}

fn b18_does_not_hold(mode: Mode) {
    let manager = App::new(mode).set("workers", 2).set("reload.hold", "1s").start_ready(2);
    let old = manager.status().ready_pids();
    manager.switch("exit_after_ready_ms=200\n");
    let output = manager.cli("reload", &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output).contains("giving up soon after READY"), "the worker's last words: {output:?}");
    assert_eq!(manager.wait_ready(2).ready_pids(), old);
    manager.stop();
}

/// The canary holds; the second worker of the roll cannot start: old and new serve on, mixed.
fn b18_later_worker(mode: Mode) {
    let app = App::new(mode).set("workers", 3).set("restart.backoff", "10ms").set("restart.backoff_max", "20ms");
    let manager = app.start_ready(3);
    let old = manager.status().ready_by_slot();
    let canary_is_enough = "refuse_after=1\n";
    manager.switch(canary_is_enough);
    let output = manager.cli("reload", &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let failed = manager.log.count(|line| line.is("worker-died") && line.reason() == "exit");
    assert!(failed >= 3, "three starts before the roll is stopped, not {failed}");
    // What is on disk does not start under the old configuration either, so the canary is kept.
    let status = manager.wait_status(SOON, "mixed", |status| {
        status.is_mixed() && status.ready_pids().len() == 3 && status.workers().len() == 3
    });
    let untouched = old.values().filter(|pid| status.ready_pids().contains(pid)).count();
    assert_eq!(untouched, 2, "old workers that were left are untouched");
    assert!(timeline(&manager.log.lines(), 3).least_ready >= 3);
    manager.stop();
}

fn b19_death_while_broken(mode: Mode) {
    let app = App::new(mode).set("workers", 3).set("restart.backoff", "200ms").set("restart.backoff_max", "500ms");
    let manager = app.start_ready(3);
    manager.switch("refuse=3\n");
    let victim = *manager.status().ready_pids().first().unwrap();
    proc::signal(victim, Signal::KILL);
    let status = manager.wait_status(SOON, "a slot in backoff", |status| status.in_state("backoff").len() == 1);
    assert_eq!(status.ready_pids().len(), 2);
    Load { clients: 2, rate: Some(pace::rate(50.0)), total: Some(pace::share(50)), ..Load::default() }
        .run(&manager.target())
        .assert_none_lost();
    assert!(!manager.cli("status", &["--ready"]).status.success(), "status --ready while a slot is empty");
    manager.switch("");
    manager.wait_ready(3);
    assert!(manager.cli("status", &["--ready"]).status.success());
    manager.stop();
}

fn b20_invalid_file(mode: Mode) {
    let manager = App::new(mode).set("workers", 2).start_ready(2);
    let old = manager.status().ready_pids();
    let good = manager.app.config_text();
    std::fs::write(manager.app.config_path(), format!("worker = 3\n{good}")).unwrap();
    let output = manager.cli("reload", &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = text(&output);
    assert!(said.contains("worker") && said.contains("1:1"), "line and column: {said}");
    let mark = manager.log.mark();
    manager.signal(Signal::HUP);
    manager.log.wait_after(mark, SOON, "the error in the log", |line| line.text.contains("1:1"));
    assert_eq!(manager.wait_ready(2).ready_pids(), old, "the old configuration and its workers stay");
    std::fs::write(manager.app.config_path(), good).unwrap();
    assert_eq!(manager.cli("reload", &[]).status.code(), Some(0));
    assert!(manager.wait_ready(2).ready_pids().is_disjoint(&old));
    manager.stop();
}

fn b20_restart_keys(mode: Mode) {
    let mut manager = App::new(mode).start_ready(1);
    let old = manager.status().ready_pids();
    manager.app.put("name", "other");
    manager.app.write_config();
    let output = manager.cli("reload", &[]);
    assert!(!output.status.success(), "{output:?}");
    assert!(text(&output).contains("name"), "the key is named: {output:?}");
    assert_eq!(manager.wait_ready(1).ready_pids(), old);
    manager.stop();
}

fn b20_new_values(mode: Mode) {
    let mut manager = App::new(mode).set("workers", 2).start_ready(2);
    manager.app.put("workers", 3);
    manager.app.put("recycle.max_requests", 777);
    manager.app.put("recycle.spread", false);
    manager.app.put("environment.COLOUR", "green");
    manager.app.write_config();
    let output = manager.cli("reload", &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let status = manager.wait_ready(3);
    assert!(status.workers().iter().all(|worker| worker.quota() == Some(777)), "{status:#?}");
    let facts = http::get(&manager.target(), "/facts").expect("an answer").body;
    assert_eq!((&facts["env"]["COLOUR"], &facts["quota"]), (&"green".into(), &777.into()));
    manager.stop();
}

fn b21_two_hups(mode: Mode) {
    let manager = App::new(mode).set("workers", 3).start_ready(3);
    manager.switch("ready_delay_ms=500\n");
    manager.signal(Signal::HUP);
    let began = |manager: &Manager, times| {
        proc::wait_until(SOON, "a roll", || manager.log.count(|line| line.is("reload-started")) == times);
    };
    began(&manager, 1);
    manager.signal(Signal::HUP);
    // Two of the same signal that are pending at once are one; the second must come after the first was taken.
    std::thread::sleep(Duration::from_millis(100));
    manager.signal(Signal::HUP);
    manager.wait_status(SOON, "the further roll is over", |status| {
        status.generation() == 3 && !status.is_rolling() && status.ready_pids().len() == 3
    });
    manager.wait_ready(3);
    let rolls: Vec<String> = manager
        .log
        .all(|line| line.is("reload-started") || line.is("reload-done"))
        .iter()
        .map(|line| line.event().to_owned())
        .collect();
    assert_eq!(rolls, ["reload-started", "reload-done", "reload-started", "reload-done"]);
    let history = timeline(&manager.log.lines(), 3);
    assert!(history.least_ready >= 3 && history.most_alive <= 4, "{history:?}");
    manager.stop();
}

fn b22_death_in_roll(mode: Mode) {
    let manager = App::new(mode).set("workers", 4).start_ready(4);
    let old = manager.status().ready_by_slot();
    manager.switch(&format!("ready_delay_ms={}\n", pace::millis(800)));
    let begun = manager.log.mark();
    manager.signal(Signal::HUP);
    manager
        .log
        .wait(SOON, "the canary's start", |line| line.is("worker-starting") && line.number("generation") == Some(2));
    let victim = old[&3];
    let mark = manager.log.mark();
    proc::signal(victim, Signal::KILL);
    let died = manager.log.wait_after(mark, SOON, "its death", |line| line.is_of("worker-died", victim));
    let replaced = manager
        .log
        .wait_after(mark, SOON, "its replacement", |line| line.is("worker-starting") && line.slot() == Some(3));
    let canary = manager
        .log
        .wait_after(begun, SOON, "the canary is ready", |line| line.is("worker-ready") && line.slot() != Some(3));
    assert!(died.at <= replaced.at && replaced.at < canary.at, "replaced when the canary was ready, not at once");
    let done = manager.log.wait(SOON, "the end of the roll", |line| line.is("reload-done"));
    assert!(replaced.at < done.at, "the dead worker waited for the end of the roll");
    assert!(manager.wait_ready(4).workers().iter().all(|worker| worker.generation() == Some(2)));
    manager.stop();
}
