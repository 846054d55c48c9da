//! Somebody stands still: a worker, the manager, everybody.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::shortage::{app, load};
use crate::support::http;
use crate::support::manager::SOON;
use crate::support::proc;
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("stopped_worker_and_the_drain_deadline", EVERYWHERE, stopped_drain);
    suite.add("stopped_worker_and_the_watchdog", EVERYWHERE, stopped_watchdog);
    suite.add("stopped_manager_with_pings_queued", EVERYWHERE, stopped_manager);
    suite.add("everybody_stopped", EVERYWHERE, stopped_everybody);
    suite.add("output_flood_with_a_stopped_manager", EVERYWHERE, output_flood);
}

fn stopped_drain(mode: Mode) {
    let manager = app(mode).set("timeouts.graceful", "1s").start_ready(2);
    let before = manager.status().ready_by_slot();
    proc::signal(before[&0], Signal::STOP);
    let asked = Instant::now();
    assert_eq!(manager.cli("recycle", &["0"]).status.code(), Some(0));
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", before[&0]));
    assert_eq!(died.reason(), "drain-deadline", "{died}");
    assert!(died.at - asked >= Duration::from_millis(950), "killed after {:?}", died.at - asked);
    manager.wait_ready(2);
    manager.stop();
}

fn stopped_watchdog(mode: Mode) {
    let app = app(mode).set("timeouts.watchdog", "1s").set("timeouts.abort", "300ms");
    let manager = app.start_ready(2);
    let victim = *manager.status().ready_pids().first().unwrap();
    proc::signal(victim, Signal::STOP);
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
    // It never saw SIGABRT: SIGKILL is the only signal that ends a stopped process.
    assert_eq!(died.reason(), "watchdog", "{died}");
    manager.wait_ready(2);
    manager.stop();
}

/// Longer than the watchdog's patience several times over; each ping waits in its socket.
const STANDSTILL: Duration = Duration::from_secs(5);

fn stopped_manager(mode: Mode) {
    let manager = app(mode).set("timeouts.watchdog", "1500ms").start_ready(2);
    let before = manager.status().ready_pids();
    let load = load(&manager);
    manager.signal(Signal::STOP);
    std::thread::sleep(STANDSTILL);
    manager.signal(Signal::CONT);
    assert_nobody_is_shot(&manager, &before, Duration::from_secs(3));
    load.stop().assert_none_lost();
    manager.stop();
}

/// A paused machine: nobody pinged, because nobody ran.
fn stopped_everybody(mode: Mode) {
    let manager = app(mode).set("timeouts.watchdog", "1s").start_ready(2);
    let before = manager.status().ready_pids();
    let everybody = || before.iter().copied();
    manager.signal(Signal::STOP);
    everybody().for_each(|pid| proc::signal(pid, Signal::STOP));
    std::thread::sleep(STANDSTILL);
    // The manager first, which is the worst order.
    manager.signal(Signal::CONT);
    std::thread::sleep(Duration::from_millis(300));
    everybody().for_each(|pid| proc::signal(pid, Signal::CONT));
    manager.log.wait(SOON, "that it stood still", |line| line.message().contains("stalled"));
    assert_nobody_is_shot(&manager, &before, Duration::from_secs(7));
    // Afterwards it is as strict as before.
    let victim = *before.first().unwrap();
    manager.ask(victim, "/mute");
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
    assert_eq!(died.reason(), "watchdog", "{died}");
    manager.wait_ready(2);
    manager.stop();
}

fn assert_nobody_is_shot(
    manager: &crate::support::manager::Manager,
    before: &std::collections::BTreeSet<u32>,
    window: Duration,
) {
    let shot = manager.log.try_wait_after(0, window, |line| line.is("worker-killing") || line.is("worker-died"));
    assert!(shot.is_none(), "{}", shot.unwrap());
    assert_eq!(&manager.wait_ready(2).ready_pids(), before);
}

fn output_flood(mode: Mode) {
    const LINES: usize = 20_000;
    let manager = app(mode).set("log.format", "text").start_ready(2);
    let pids = manager.status().ready_pids();
    let (talker, other) = (*pids.first().unwrap(), *pids.last().unwrap());
    manager.signal(Signal::STOP);
    let direct = manager.direct(talker);
    // Far more than the buffer: whoever writes waits, which is a thread of its own here.
    let flood = std::thread::spawn(move || {
        http::get_within(&direct, "/print?text=0123456789012345678901234567890123456789&times=20000", SOON)
    });
    let load = load(&manager);
    proc::wait_until(SOON, "answers while the manager stands still", || load.answered() > 30);
    assert!(!flood.is_finished(), "the buffer has no end");
    manager.ask(other, "/");
    manager.signal(Signal::CONT);
    flood.join().unwrap().expect("it has written everything");
    load.stop().assert_none_lost();
    let is_line = |line: &crate::support::log::Line| line.text.contains("0123456789012345678901234567890123456789");
    proc::wait_until(SOON, "every line arrives", || manager.log.count(is_line) == LINES);
    assert_eq!(manager.wait_ready(2).ready_pids(), pids);
    manager.stop();
}
