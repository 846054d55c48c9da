//! B27: the manager dies by `kill -9`, its workers serve on, the next one takes them up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::http::{self, Client, Target};
use crate::support::load::{Load, Running};
use crate::support::manager::{App, Manager, SOON};
use crate::support::pace;
use crate::support::proc;
use crate::support::status::{Status, Worker};
use crate::support::suite::{EVERYWHERE, FENCED, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("b27_workers_serve_on_and_are_taken_up", EVERYWHERE, taken_up);
    suite.add("b27_a_death_that_nobody_saw_is_unknown", EVERYWHERE, unseen_death);
    suite.add("b27_an_oom_kill_that_nobody_saw_is_one", FENCED, unseen_oom_kill);
    suite.add("b27_own_listeners_come_back", EVERYWHERE, own_listeners);
    suite.add("b27_a_broken_configuration_abandons_nobody", &[Mode::None], broken_configuration);
    suite.add("b27_the_next_manager_pings_systemd", EVERYWHERE, pings);
    suite.add("b27_a_crash_in_a_roll", EVERYWHERE, crash_in_a_roll);
    suite.add("b27_a_crash_in_a_start", EVERYWHERE, crash_in_a_start);
    suite.add("b27_a_crash_in_a_stop", EVERYWHERE, crash_in_a_stop);
    suite.add("b27_a_crash_at_any_instant", EVERYWHERE, crash_at_any_instant);
}

/// Clients with a connection for each request, and clients that keep theirs.
fn load(target: &Target) -> [Running; 2] {
    [false, true].map(|keep_alive| {
        Load { clients: 4, keep_alive, rate: Some(pace::rate(60.0)), ..Load::default() }.start(target)
    })
}

fn answered(load: &[Running; 2]) -> u64 {
    load.iter().map(|load| load.answered() as u64).sum()
}

/// Until so many more requests have been answered.
#[track_caller]
fn serve_on(load: &[Running; 2], more: u64) {
    let until = answered(load) + pace::share(more);
    proc::wait_until(SOON, "answers", || answered(load) >= until);
}

#[track_caller]
fn assert_none_lost(load: [Running; 2]) {
    for load in load {
        load.stop().assert_none_lost();
    }
}

#[track_caller]
fn wait_told_ready(manager: &Manager, times: usize) {
    assert!(manager.notify.try_wait("READY=1", times, SOON).is_some(), "READY={times} was not said");
}

/// All of a worker that a crash must not change.
fn identity(worker: &Worker) -> serde_json::Value {
    let keys = ["slot", "pid", "generation", "state", "quota", "fence", "last_verdict", "restarts", "cause"];
    let mut identity: BTreeMap<&str, serde_json::Value> =
        keys.into_iter().map(|key| (key, worker.0[key].clone())).collect();
    for key in ["limit", "recycle_at", "headroom"] {
        identity.insert(key, worker.0["memory"][key].clone());
    }
    identity.insert("deadline", worker.0["next_deadline"]["name"].clone());
    serde_json::json!(identity)
}

fn identities(status: &Status) -> Vec<serde_json::Value> {
    status.workers().iter().map(identity).collect()
}

fn requests(status: &Status) -> BTreeMap<u64, u64> {
    status.workers().iter().map(|worker| (worker.slot(), worker.requests().unwrap_or(0))).collect()
}

/// Seconds until each worker's next deadline.
fn deadlines(status: &Status) -> Vec<f64> {
    status.workers().iter().map(|worker| worker.0["next_deadline"]["in_seconds"].as_f64().unwrap_or(-1.0)).collect()
}

fn taken_up(mode: Mode) {
    let app = App::new(mode)
        .set("workers", 3)
        .set("recycle.max_requests", 100_000)
        .set("recycle.max_requests_jitter", "20%")
        .set("recycle.max_lifetime", "10m")
        .set("memory.max", "200M")
        .set("memory.recycle_at", "90%")
        .worker("direct", 1);
    let mut manager = app.start_ready(3);
    // So that there is something that only the state knows.
    proc::signal(*manager.status().ready_pids().first().unwrap(), Signal::KILL);
    manager.wait_status(SOON, "its replacement", |status| status.restarts("signal") == 1);
    assert!(manager.cli("reload", &[]).status.success());
    let load = load(&manager.target());
    serve_on(&load, 100);
    for pid in manager.wait_ready(3).ready_pids() {
        let mut client = Client::connect(&manager.direct(pid), SOON).expect("a connection");
        client.get("/", true).expect("an answer");
    }
    let before = manager.wait_status(SOON, "counted requests", |status| {
        status.workers().iter().all(|worker| worker.requests().unwrap_or(0) > 0)
    });
    let then = Instant::now();
    assert_eq!(before.generation(), 2);
    assert!(deadlines(&before).iter().all(|seconds| *seconds > 60.0), "{before:#?}");
    manager.crash();
    serve_on(&load, 60);
    assert_eq!(manager.left(), before.ready_pids(), "workers serve on without a manager");
    manager.start_again();
    wait_told_ready(&manager, 2);
    let after = manager.wait_ready(3);
    let passed = then.elapsed().as_secs_f64();
    assert_eq!(identities(&after), identities(&before), "nobody and nothing has changed");
    for (before, after) in deadlines(&before).into_iter().zip(deadlines(&after)) {
        assert!((before - after - passed).abs() < 1.0, "a deadline moved: {before} s, {passed} s later {after} s");
    }
    // What was said within the last second may be lost, no more; a running total makes up for it with the next message.
    let counted = requests(&before);
    manager.wait_status(SOON, "requests counted on", |status| {
        requests(status).iter().all(|(slot, requests)| *requests > counted[slot])
    });

    let adopted = after.ready_pids();
    assert!(manager.cli("recycle", &["1"]).status.success());
    assert_eq!(manager.wait_ready(3).ready_pids().intersection(&adopted).count(), 2, "one was replaced");
    assert!(manager.cli("scale", &["4"]).status.success());
    manager.wait_ready(4);
    let reload = manager.cli("reload", &[]);
    assert!(reload.status.success(), "{reload:?}");
    let status = manager.wait_ready(4);
    assert!(status.ready_pids().is_disjoint(&adopted));
    assert_eq!(status.generation(), 3);
    assert_none_lost(load);
    assert_eq!(manager.log.count(|line| line.is("worker-died") && line.reason() != "drained"), 1, "but for the first");
    manager.stop();
}

fn unseen_death(mode: Mode) {
    let mut manager = App::new(mode).set("workers", 3).start_ready(3);
    let before = manager.status().ready_by_slot();
    manager.crash();
    let victim = proc::Process::open(before[&1]).expect("it lives");
    victim.signal(Signal::KILL);
    assert!(victim.wait_gone(SOON));
    manager.start_again();
    wait_told_ready(&manager, 2);
    let after = manager.wait_ready(3);
    assert_eq!((after.ready_by_slot()[&0], after.ready_by_slot()[&2]), (before[&0], before[&2]));
    let slot = after.workers().into_iter().find(|worker| worker.slot() == 1).unwrap();
    assert_eq!(slot.last_verdict(), "unknown", "nobody saw how it ended");
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", before[&1]));
    assert_eq!(died.reason(), "unknown", "{died}");
    // One whose death is seen has its verdict, though it is not this manager's child.
    let victim = proc::Process::open(before[&0]).expect("it lives");
    assert!(manager.cli("recycle", &["0"]).status.success());
    assert!(victim.wait_gone(SOON));
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", before[&0]));
    assert_eq!(died.reason(), "drained", "{died}");
    manager.stop();
}

fn unseen_oom_kill(mode: Mode) {
    // The soft limit hardly below the hard one: with nobody to lift it, the kernel slows down whoever is over it.
    let app = App::new(mode).set("workers", 2).set("memory.max", "64M").set("memory.recycle_at", "99%");
    let app = app.worker("direct", 1);
    let mut manager = app.start_ready(2);
    let before = manager.status().ready_by_slot();
    manager.crash();
    let victim = proc::Process::open(before[&0]).expect("it lives");
    let _lost = http::get(&manager.direct(before[&0]), "/leak?mb=128");
    assert!(victim.wait_gone(SOON), "it was not killed");
    manager.start_again();
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", before[&0]));
    assert_eq!(died.reason(), "oom-kill", "{died}");
    assert!(died.number("memory_bytes").is_some_and(|peak| peak > 60 << 20), "the peak: {died}");
    let after = manager.wait_ready(2);
    assert_eq!(after.ready_by_slot()[&1], before[&1]);
    assert_eq!(after.restarts("oom-kill"), 1);
    // The adopted fence counts on.
    let _lost = http::get(&manager.direct(before[&1]), "/leak?mb=128");
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", before[&1]));
    assert_eq!(died.reason(), "oom-kill", "{died}");
    manager.wait_ready(2);
    manager.stop();
}

/// An address that was bound by the manager, as its status tells it.
fn bound(manager: &Manager) -> Target {
    let status = manager.status();
    let address = status.0["listeners"][0]["address"].as_str().expect("an address").to_owned();
    Target::Tcp(address.parse().expect("a TCP address"))
}

fn own_listeners(mode: Mode) {
    let app = App::new(mode).sockets(Vec::new()).set("workers", 2);
    let path: PathBuf = app.dir.path().join("own.sock");
    let bind = vec!["127.0.0.1:0".to_owned(), format!("unix:{}", path.display())];
    let mut manager = app.set("listen.bind", bind).start_ready(2);
    let tcp = bound(&manager);
    let before = manager.status().ready_pids();
    let loads = [load(&tcp), load(&Target::Unix(path.clone()))];
    for times in 2..4 {
        manager.crash();
        for load in &loads {
            serve_on(load, 10);
        }
        manager.start_again();
        wait_told_ready(&manager, times);
        assert_eq!(manager.wait_ready(2).ready_pids(), before);
        assert_eq!(bound(&manager), tcp);
    }
    assert!(manager.cli("reload", &[]).status.success());
    assert!(manager.wait_ready(2).ready_pids().is_disjoint(&before));
    for load in loads {
        serve_on(&load, 10);
        assert_none_lost(load);
    }
    manager.stop();
    assert!(!path.exists(), "the own path is left behind");
}

fn broken_configuration(mode: Mode) {
    let mut manager = App::new(mode).set("workers", 2).start_ready(2);
    let before = manager.status().ready_pids();
    manager.crash();
    std::fs::write(manager.app.config_path(), "workers = \"many\"\n").expect("it is written");
    manager.start_again();
    wait_told_ready(&manager, 2);
    assert_eq!(manager.wait_ready(2).ready_pids(), before);
    manager.log.wait(SOON, "what is wrong with it", |line| line.message().contains("workers"));
    manager.app.write_config();
    assert!(manager.cli("reload", &[]).status.success());
    manager.stop();
}

/// Also while workers are busy talking to it: systemd would shoot it for its silence.
fn pings(mode: Mode) {
    let app = App::new(mode).set("workers", 3).set("recycle.max_requests", 100_000).set("timeouts.watchdog", "30s");
    let mut manager = app.variable("WATCHDOG_USEC", "400000").start_ready(3);
    let load = load(&manager.target());
    for _ in 0..3 {
        manager.crash();
        manager.start_again();
        manager.wait_ready(3);
        let said = manager.notify.count("WATCHDOG=1");
        assert!(manager.notify.try_wait("WATCHDOG=1", said + 10, SOON).is_some(), "it fell silent");
    }
    assert_none_lost(load);
    manager.stop();
}

/// All are ready and of one generation, and nothing is under way.
fn is_whole(status: &Status, workers: usize) -> bool {
    let generation = Some(status.generation());
    status.ready_pids().len() == workers
        && status.workers().len() == workers
        && !status.is_rolling()
        && !status.is_mixed()
        && status.workers().iter().all(|worker| worker.generation() == generation)
}

/// Until the app is whole and nothing besides lives.
#[track_caller]
fn wait_whole(manager: &Manager, workers: usize) -> Status {
    let (control, until) =
        (manager.app.dir.path().join("run/control"), Instant::now() + pace::patient(Duration::from_mins(1)));
    loop {
        // Load goes on, and with it recycles: the two must agree at one moment.
        let (status, left) = (Status::ask(&control), manager.left());
        if let Ok(status) = &status
            && is_whole(status, workers)
            && status.ready_pids() == left
        {
            return status.clone();
        }
        assert!(Instant::now() < until, "it does not become whole: {left:?} live; {status:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn crash_in_a_roll(mode: Mode) {
    let mut manager = App::new(mode).set("workers", 3).start_ready(3);
    let load = load(&manager.target());
    let starting = |generation: u64| {
        move |status: &Status| status.in_state("starting").iter().any(|worker| worker.generation() == Some(generation))
    };
    // While the canary starts, while it holds, and while the others follow.
    manager.switch("ready_delay_ms=500\n");
    manager.signal(Signal::HUP);
    manager.wait_status(SOON, "a canary", starting(2));
    manager.crash();
    manager.start_again();
    wait_told_ready(&manager, 2);
    let status = wait_whole(&manager, 3);
    let from = status.generation();
    manager.signal(Signal::HUP);
    let next = manager.wait_status(SOON, "a roll", Status::is_rolling).0["roll"]["generation"].as_u64();
    let next = next.expect("its generation");
    manager.wait_status(SOON, "the first of them", |status| {
        status.in_state("ready").iter().any(|worker| worker.generation() == Some(next))
    });
    manager.crash();
    manager.start_again();
    let status = wait_whole(&manager, 3);
    assert!([from, next].contains(&status.generation()), "{status:#?}");
    assert_none_lost(load);
    assert_eq!(manager.log.count(|line| line.is("worker-died") && line.reason() != "drained"), 0);
    manager.stop();
}

fn crash_in_a_start(mode: Mode) {
    let mut dice = Dice::new();
    for round in 0..5 {
        let mut manager = App::new(mode).set("workers", 4).start();
        manager.log.wait(SOON, "a start", |line| line.is("worker-starting"));
        dice.pause(30);
        manager.crash();
        manager.start_again();
        let status = wait_whole(&manager, 4);
        assert_eq!(status.ready_by_slot().len(), 4, "round {round}: {status:#?}");
        assert!(manager.notify.try_wait("READY=1", 1, SOON).is_some());
        manager.stop();
    }
}

fn crash_in_a_stop(mode: Mode) {
    let mut dice = Dice::new();
    for _ in 0..5 {
        let mut manager = App::new(mode).set("workers", 3).worker("drain_delay_ms", 20).start_ready(3);
        manager.signal(Signal::TERM);
        dice.pause(40);
        manager.crash();
        manager.start_again();
        // Either the stop had been written down, and it goes on with it, or it never knew of it.
        let mut code = None;
        proc::wait_until(SOON, "the end of the stop, or a whole app", || {
            code = manager.try_wait_exit(Duration::ZERO).map(|status| status.code());
            code.is_some() || manager.try_status().is_ok_and(|status| !status.is_stopping() && is_whole(&status, 3))
        });
        if let Some(code) = code {
            assert_eq!(code, Some(0));
            manager.assert_nothing_left();
        } else {
            manager.stop();
        }
    }
}

/// Crashes at random moments of everything that an app can be doing. `PADDOCK_CRASH_SEED` repeats a run as far as time
/// allows, `PADDOCK_CRASHES` has more of them.
fn crash_at_any_instant(mode: Mode) {
    let mut dice = Dice::new();
    let crashes = number("PADDOCK_CRASHES").unwrap_or(24);
    let app = App::new(mode).set("workers", 3).set("recycle.max_requests", 60).set("reload.hold", "50ms");
    let mut manager = app.set("restart.backoff", "20ms").set("restart.backoff_max", "100ms").start_ready(3);
    let load = load(&manager.target());
    for crash in 1..=crashes {
        match dice.below(5) {
            0 => manager.signal(Signal::HUP),
            1 => manager.signal(Signal::TTIN),
            2 => manager.signal(Signal::TTOU),
            // The way in which a worker may be asked to go at any time without losing anything.
            3 => {
                let pid = manager.try_status().ok().and_then(|status| status.ready_pids().first().copied());
                if let Some(worker) = pid.and_then(proc::Process::open) {
                    worker.signal(Signal::TERM);
                }
            }
            _ => {}
        }
        dice.pause(60);
        manager.crash();
        if dice.below(3) == 0 {
            dice.pause(100);
        }
        manager.start_again();
        if dice.below(3) == 0 || crash == crashes {
            let status = manager.wait_status(SOON, "an answer", |_| true);
            let wanted = status.0["workers_wanted"].as_u64().and_then(|wanted| usize::try_from(wanted).ok());
            wait_whole(&manager, wanted.expect("how many workers there are to be"));
        }
    }
    assert_none_lost(load);
    let verdicts = manager.log.all(|line| line.is("worker-died"));
    assert!(
        verdicts.iter().all(|line| ["drained", "unknown", "exit"].contains(&line.reason())),
        "{:?}",
        verdicts.iter().map(|line| line.text.clone()).collect::<Vec<_>>()
    );
    manager.stop();
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A small generator (`xorshift64`) whose seed is shown with a failed test.
struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    fn new() -> Self {
        let seed = number("PADDOCK_CRASH_SEED").unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time");
            now.subsec_nanos().into()
        });
        Self { seed, state: seed | 1 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % bound
    }

    /// Lets up to so many milliseconds pass: the moment of the crash is what is random.
    fn pause(&mut self, most: u64) {
        let micros = self.below(most * 1000);
        std::thread::sleep(Duration::from_micros(micros));
    }
}

impl Drop for Dice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "PADDOCK_CRASH_SEED={}", self.seed);
        }
    }
}
