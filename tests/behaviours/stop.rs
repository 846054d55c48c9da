//! B23–B25: stopping, and stopping at once.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::http::{Client, InFlight};
use crate::support::manager::{App, Manager, SOON};
use crate::support::stall::assert_median_of_three;
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.alone("b23_a_stop_answers_what_is_in_flight", EVERYWHERE, b23_graceful);
    suite.add("b24_a_stop_has_a_deadline", EVERYWHERE, b24_deadline);
    suite.alone("b25_a_second_term_in_a_drain", EVERYWHERE, b25_second_term);
    suite.alone("b25_int_in_a_drain", EVERYWHERE, b25_int);
    suite.alone("b25_int_in_a_roll", EVERYWHERE, b25_roll);
    suite.add("x_a_worker_that_dies_by_the_drain_signal_was_drained", EVERYWHERE, dies_by_term);
    suite.add("x_another_drain_signal", &[Mode::None], another_drain_signal);
}

fn b23_graceful(mode: Mode) {
    assert_median_of_three("from TERM to the exit, with 2 s in flight", Duration::from_secs(3), || {
        let mut manager = App::new(mode).set("workers", 2).set("timeouts.graceful", "10s").start_ready(2);
        let request = InFlight::send(&manager.target(), "/sleep?ms=2000", SOON);
        in_flight(&manager);
        let began = Instant::now();
        manager.signal(Signal::TERM);
        manager.log.wait(SOON, "the stop", |line| line.is("service-stopping"));
        manager.log.wait(SOON, "a drain", |line| line.is("drain-started"));
        assert!(manager.notify.try_wait("STOPPING=1", 1, SOON).is_some());
        let answer = request.answer().expect("the request in flight is answered");
        assert!(answer.closes);
        let status = manager.wait_exit(SOON);
        let took = began.elapsed();
        assert_eq!(status.code(), Some(0));
        Client::connect(&manager.target(), SOON).expect("new connections wait on the held listener");
        assert_eq!(manager.log.count(|line| line.is("worker-died") && line.reason() != "drained"), 0);
        manager.assert_nothing_left();
        took
    });
}

fn b24_deadline(mode: Mode) {
    let mut manager = App::new(mode).set("timeouts.graceful", "1s").start_ready(1);
    let request = InFlight::send(&manager.target(), "/sleep?ms=60000", SOON);
    in_flight(&manager);
    let began = Instant::now();
    manager.signal(Signal::TERM);
    assert_eq!(manager.wait_exit(SOON).code(), Some(0));
    assert!(began.elapsed() >= Duration::from_secs(1), "killed after {:?}", began.elapsed());
    assert!(request.answer().is_err(), "the request outlived its worker");
    let died = manager.log.wait(SOON, "its death", |line| line.is("worker-died"));
    assert_eq!(died.reason(), "drain-deadline", "{died}");
    assert!(died.message().contains("drain-deadline"), "{died}");
    manager.assert_nothing_left();
}

fn b25_second_term(mode: Mode) {
    fast_stop(mode, |manager| {
        manager.signal(Signal::TERM);
        manager.log.wait(SOON, "a drain", |line| line.is("drain-started"));
        Signal::TERM
    });
}

fn b25_int(mode: Mode) {
    fast_stop(mode, |manager| {
        manager.signal(Signal::TERM);
        manager.log.wait(SOON, "a drain", |line| line.is("drain-started"));
        Signal::INT
    });
}

fn b25_roll(mode: Mode) {
    fast_stop(mode, |manager| {
        manager.switch("ready_delay_ms=10000\n");
        manager.signal(Signal::HUP);
        manager.log.wait(SOON, "the canary", |line| line.is("worker-starting") && line.number("generation") == Some(2));
        Signal::INT
    });
}

fn fast_stop(mode: Mode, prepare: impl Fn(&Manager) -> Signal) {
    assert_median_of_three("from the signal until everything is gone", Duration::from_millis(500), || {
        let mut manager = App::new(mode).set("workers", 4).worker("direct", 1).start_ready(4);
        for pid in manager.status().ready_pids() {
            manager.ask(pid, "/daemon");
        }
        let request = InFlight::send(&manager.target(), "/sleep?ms=60000", Duration::from_mins(1));
        in_flight(&manager);
        let signal = prepare(&manager);
        let began = Instant::now();
        manager.signal(signal);
        assert_eq!(manager.wait_exit(SOON).code(), Some(0));
        let took = began.elapsed();
        manager.assert_nothing_left();
        assert!(request.answer().is_err());
        let verdicts = manager.log.all(|line| line.is("worker-died"));
        assert!(verdicts.iter().any(|line| line.reason() == "fast-stop"), "{}", manager.log.text());
        took
    });
}

/// Until a worker has accepted what was sent: then nothing waits on the listener.
fn in_flight(manager: &Manager) {
    let probe = crate::support::http::get(&manager.target(), "/").expect("an answer to a later connection");
    assert!(probe.pid() > 0);
}

fn dies_by_term(mode: Mode) {
    let mut manager = App::new(mode).set("workers", 2).worker("die_by_term", 1).start_ready(2);
    manager.signal(Signal::TERM);
    assert_eq!(manager.wait_exit(SOON).code(), Some(0));
    let verdicts: Vec<String> =
        manager.log.all(|line| line.is("worker-died")).iter().map(|line| line.reason().to_owned()).collect();
    assert_eq!(verdicts, ["drained", "drained"]);
}

fn another_drain_signal(mode: Mode) {
    let manager = App::new(mode).set("drain_signal", "QUIT").worker("direct", 1).start_ready(1);
    let old = *manager.status().ready_pids().first().unwrap();
    let request = InFlight::send(&manager.direct(old), "/sleep?ms=1000", SOON);
    assert!(manager.cli("recycle", &["0"]).status.success());
    manager.log.wait(SOON, "its drain", |line| line.is_of("drain-started", old));
    request.answer().expect("an answer");
    manager.log.wait(SOON, "its end", |line| line.is_of("worker-died", old));
    manager.wait_ready(1);
    manager.stop();
}
