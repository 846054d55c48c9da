//! B33: another image of the program in the same process.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::http::{self, InFlight};
use crate::support::load::Load;
use crate::support::manager::{App, Manager, SOON, install, paddock};
use crate::support::pace;
use crate::support::proc;
use crate::support::stand_in;
use crate::support::suite::{EVERYWHERE, FENCED, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("b33_five_upgrades_under_load", EVERYWHERE, b33_under_load);
    suite.add("b27_b33_crashes_and_upgrades_under_load", EVERYWHERE, crashes_and_upgrades);
    suite.add("b33_programs_that_cannot_take_over", &[Mode::None], b33_refused);
    suite.add("b33_upgrade_in_a_roll", EVERYWHERE, b33_in_a_roll);
    suite.add("b33_upgrade_while_workers_start_and_drain", EVERYWHERE, b33_start_and_drain);
    suite.add("b33_upgrade_during_the_stop", EVERYWHERE, b33_during_the_stop);
    suite.add("b33_signals_during_the_exec", EVERYWHERE, b33_signals);
    suite.add("b33_deaths_during_the_exec", EVERYWHERE, b33_deaths);
    suite.add("b33_oom_kill_during_the_exec", FENCED, b33_oom_kill);
    suite.add("b33_an_exec_that_fails", &[Mode::None], b33_exec_fails);
    suite.add("b33_worker_sockets_live_on", EVERYWHERE, b33_worker_sockets);
}

/// How often the manager is killed, and how often it is replaced in place, under load.
const CRASHES: usize = 20;
const UPGRADES: usize = 5;

/// The file that a process runs.
fn inode(path: &Path) -> (u64, u64) {
    let status = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (status.dev(), status.ino())
}

fn running(manager: &Manager) -> (u64, u64) {
    inode(Path::new(&format!("/proc/{}/exe", manager.pid())))
}

fn descriptors(manager: &Manager) -> usize {
    fs::read_dir(format!("/proc/{}/fd", manager.pid())).expect("its descriptors").count()
}

/// Installs another copy of the program and sends USR2.
#[track_caller]
fn upgrade(manager: &Manager) {
    let before = running(manager);
    install(&paddock(), manager.app.program());
    let mark = manager.log.mark();
    manager.signal(Signal::USR2);
    let line = manager.log.wait_after(mark, SOON, "the replacement", |line| line.message().contains("replace"));
    assert!(!line.message().contains("not replaced"), "{line}");
    manager.log.wait_after(mark, SOON, "the new image", |line| line.message().starts_with("replaced in place"));
    assert_eq!(running(manager), inode(manager.app.program()), "the new file runs");
    assert_ne!(running(manager), before);
}

fn b33_under_load(mode: Mode) {
    let app = App::new(mode)
        .own_program()
        .set("workers", 4)
        .set("timeouts.watchdog", pace::patient_text(Duration::from_secs(5)));
    let app = app.set("recycle.max_requests", 100_000).set("memory.max", "256M").set("memory.budget", "2G");
    let manager = app.start_ready(4);
    let before = manager.status();
    let load = Load { rate: Some(pace::rate(200.0)), ..Load::default() }.start(&manager.target());
    let mut open = None;
    for _ in 0..5 {
        upgrade(&manager);
        assert_eq!(manager.wait_ready(4).ready_by_slot(), before.ready_by_slot(), "a worker was touched");
        // Some are open only until the workers' memory is watched again.
        let most = open.map(|before| before + 2);
        proc::wait_until(SOON, "no more descriptors than before", || {
            most.is_none_or(|most| descriptors(&manager) <= most)
        });
        open = open.or_else(|| Some(descriptors(&manager)));
    }
    let name = fs::read_to_string(format!("/proc/{}/comm", manager.pid())).unwrap();
    assert_eq!(name.trim(), "paddock");
    let report = load.stop();
    report.assert_none_lost();
    assert_eq!(report.pids(), before.ready_pids());
    let after = manager.status();
    assert_eq!(after.generation(), before.generation());
    for (old, new) in before.workers().iter().zip(after.workers()) {
        assert_eq!((old.slot(), old.pid(), old.quota()), (new.slot(), new.pid(), new.quota()));
        assert_eq!(old.0["fence"], new.0["fence"]);
    }
    let said = manager.notify.assignments().into_iter().filter(|(_, text)| text == "READY=1").count();
    assert_eq!(said, 1, "systemd is told once");
    manager.stop();
}

fn b33_refused(mode: Mode) {
    let manager = App::new(mode).own_program().set("workers", 2).start_ready(2);
    let (image, pids) = (running(&manager), manager.status().ready_pids());
    let program = manager.app.program().to_owned();
    let load = Load { clients: 2, rate: Some(pace::rate(20.0)), ..Load::default() }.start(&manager.target());
    let refused = |why: &str| {
        let mark = manager.log.mark();
        manager.signal(Signal::USR2);
        let line = manager.log.wait_after(mark, SOON, why, |line| line.message().contains("not replaced"));
        assert!(line.message().contains(why), "{line}");
        assert!(line.message().len() < 2000 && !line.message().contains('\u{1b}'), "{line}");
        assert_eq!(running(&manager), image);
        assert_eq!(manager.status().ready_pids(), pids);
    };
    fs::remove_file(&program).unwrap();
    refused("No such file");
    fs::write(&program, "no program at all").unwrap();
    refused("Permission denied");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    refused("Exec format error");
    install(Path::new("/bin/true"), &program);
    refused("does not understand");
    stand_in::put(&program, "refuse");
    refused("never");
    stand_in::put(&program, "agree");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o757)).unwrap();
    refused("others than its owner");
    stand_in::put(&program, "hang");
    refused("did not answer");
    load.stop().assert_none_lost();
    upgrade(&manager);
    assert_eq!(manager.wait_ready(2).ready_pids(), pids);
    manager.stop();
}

/// The roll goes on, and whoever waits for its end is told.
fn b33_in_a_roll(mode: Mode) {
    let app = App::new(mode).own_program().set("workers", 3).worker("ready_delay_ms", pace::millis(300));
    let manager = app.start_ready(3);
    let before = manager.status().ready_pids();
    let load = Load { rate: Some(pace::rate(60.0)), ..Load::default() }.start(&manager.target());
    let reload = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| manager.cli("reload", &[]));
        manager.log.wait(SOON, "the canary", |line| line.is("worker-starting") && line.number("generation") == Some(2));
        upgrade(&manager);
        assert!(manager.status().is_rolling(), "the roll was over before");
        waiting.join().expect("the client")
    });
    assert_eq!(reload.status.code(), Some(0), "{reload:?}");
    let after = manager.wait_ready(3);
    assert!(after.ready_pids().is_disjoint(&before));
    assert!(after.workers().iter().all(|worker| worker.generation() == Some(2)), "{after:?}");
    load.stop().assert_none_lost();
    manager.stop();
}

fn b33_start_and_drain(mode: Mode) {
    let app =
        App::new(mode).own_program().set("workers", 2).worker("direct", 1).worker("ready_delay_ms", pace::millis(700));
    let manager = app.start_ready(2);
    let slots = manager.status().ready_by_slot();
    let old = slots[&0];
    let request = InFlight::send(&manager.direct(old), &format!("/sleep?ms={}", pace::millis(3000)), SOON);
    std::thread::scope(|scope| {
        let recycle = scope.spawn(|| manager.cli("recycle", &["0"]));
        manager.log.wait(SOON, "the replacement's start", |line| {
            line.is("worker-starting") && line.slot() == Some(0) && line.pid() != Some(old)
        });
        upgrade(&manager);
        let status = manager.wait_status(SOON, "the old one drains", |status| !status.in_state("draining").is_empty());
        assert_eq!(status.in_state("draining")[0].pid(), Some(old));
        upgrade(&manager);
        assert!(!request.is_over(), "it was answered before the upgrade");
        assert_eq!(recycle.join().expect("the client").status.code(), Some(0));
    });
    request.answer().expect("what was in flight is answered");
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", old));
    assert_eq!(died.reason(), "drained", "{died}");
    assert_eq!(manager.wait_ready(2).ready_by_slot()[&1], slots[&1]);
    manager.stop();
}

fn b33_during_the_stop(mode: Mode) {
    let app = App::new(mode)
        .own_program()
        .set("workers", 2)
        .worker("direct", 1)
        .set("timeouts.graceful", pace::patient_text(Duration::from_secs(10)));
    let mut manager = app.start_ready(2);
    let busy = *manager.status().ready_pids().first().unwrap();
    let request = InFlight::send(&manager.direct(busy), &format!("/sleep?ms={}", pace::millis(2500)), SOON);
    manager.signal(Signal::TERM);
    manager.log.wait(SOON, "the drain", |line| line.is_of("drain-started", busy));
    upgrade(&manager);
    request.answer().expect("what was in flight is answered");
    assert_eq!(manager.wait_exit(SOON).code(), Some(0));
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", busy));
    assert_eq!(died.reason(), "drained", "{died}");
    manager.assert_nothing_left();
}

/// Has the manager executed a program that waits, so that things can happen while nobody is in charge.
fn held_in_exec(manager: &Manager) {
    stand_in::put(manager.app.program(), "agree");
    manager.signal(Signal::USR2);
    stand_in::wait_held(manager.app.program());
}

fn b33_signals(mode: Mode) {
    let mut manager = App::new(mode).own_program().set("workers", 2).start_ready(2);
    let before = manager.status().ready_pids();
    held_in_exec(&manager);
    manager.signal(Signal::HUP);
    manager.signal(Signal::TTIN);
    stand_in::let_go(manager.app.program());
    let after = manager.wait_status(SOON, "both are honoured", |status| {
        status.generation() == 2 && status.ready_pids().len() == 3 && status.workers().len() == 3
    });
    assert!(after.ready_pids().is_disjoint(&before));

    held_in_exec(&manager);
    manager.signal(Signal::TERM);
    stand_in::let_go(manager.app.program());
    assert_eq!(manager.wait_exit(SOON).code(), Some(0));
    manager.assert_nothing_left();

    // At whatever moment of a replacement it comes: none is lost, none kills the manager.
    for delay in [0, 20, 40, 60, 80] {
        let mut manager = App::new(mode).own_program().start_ready(1);
        install(&paddock(), manager.app.program());
        manager.signal(Signal::USR2);
        std::thread::sleep(Duration::from_millis(delay));
        manager.signal(Signal::TERM);
        assert_eq!(manager.wait_exit(SOON).code(), Some(0), "{delay} ms later");
        // A file that was being asked is killed as the manager ends; the kernel takes a moment for that.
        proc::wait_until(SOON, "nothing is left of it", || manager.left().is_empty());
    }
}

fn b33_deaths(mode: Mode) {
    let manager = App::new(mode).own_program().set("workers", 3).worker("direct", 1).start_ready(3);
    let pids: Vec<u32> = manager.status().ready_pids().into_iter().collect();
    let _lost = http::get(&manager.direct(pids[0]), "/print?text=last%20words");
    held_in_exec(&manager);
    let _lost = http::get(&manager.direct(pids[0]), "/exit?code=7");
    let _lost = http::get(&manager.direct(pids[1]), "/signal?n=8");
    for pid in &pids[..2] {
        proc::wait_until(SOON, "its end", || !proc::is_alive(*pid));
    }
    stand_in::let_go(manager.app.program());
    for (pid, verdict, words) in [(pids[0], "exit", "7"), (pids[1], "signal", "signal 8")] {
        let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", pid));
        assert_eq!(died.reason(), verdict, "{died}");
        assert!(died.message().contains(words), "{died}");
    }
    let after = manager.wait_ready(3);
    assert!(after.ready_pids().contains(&pids[2]), "the third one lived on");
    assert_eq!(after.restarts("unknown"), 0);
    manager.stop();
}

fn b33_oom_kill(mode: Mode) {
    let app = App::new(mode).own_program().set("workers", 2).worker("direct", 1);
    let manager = app.set("memory.max", "64M").set("memory.budget", "1G").start_ready(2);
    let victim = *manager.status().ready_pids().first().unwrap();
    held_in_exec(&manager);
    let _lost = http::get(&manager.direct(victim), "/leak?mb=128");
    proc::wait_until(SOON, "its end", || !proc::is_alive(victim));
    stand_in::let_go(manager.app.program());
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
    assert_eq!(died.reason(), "oom-kill", "{died}");
    // The fences are watched again, and edges armed.
    let next = *manager.wait_ready(2).ready_pids().difference(&BTreeSet::from([victim])).next().unwrap();
    let _answer = http::get(&manager.direct(next), "/leak?mb=56");
    manager
        .log
        .wait(SOON, "its recycle for memory", |line| line.is_of("recycle-due", next) && line.reason() == "memory");
    manager.stop();
}

fn b33_exec_fails(mode: Mode) {
    let manager = App::new(mode).own_program().set("workers", 2).start_ready(2);
    let (image, pids, open) = (running(&manager), manager.status().ready_pids(), descriptors(&manager));
    stand_in::put(manager.app.program(), "spoil");
    let mark = manager.log.mark();
    manager.signal(Signal::USR2);
    let line = manager.log.wait_after(mark, SOON, "the failure", |line| line.message().contains("not replaced"));
    assert!(line.message().contains("executing") && line.message().contains("Permission denied"), "{line}");
    assert_eq!(running(&manager), image);
    // In charge as before: signals arrive, deaths are seen, workers get no descriptors that are not theirs.
    let victim = *pids.first().unwrap();
    proc::signal(victim, Signal::KILL);
    let after = manager.wait_status(SOON, "a replacement", |status| {
        status.ready_pids().len() == 2 && !status.ready_pids().contains(&victim)
    });
    let fresh = *after.ready_pids().difference(&pids).next().unwrap();
    let inherited = http::get(&manager.target(), "/facts").map(|reply| reply.body["fds"].clone());
    assert!(inherited.is_ok(), "{inherited:?}");
    let of = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let old = *pids.last().unwrap();
    assert!(of(fresh) <= of(old) + 1, "the new worker has {} descriptors, the old one {}", of(fresh), of(old));
    proc::wait_until(SOON, "descriptors as before", || descriptors(&manager) <= open + 2);
    upgrade(&manager);
    manager.stop();
}

/// Messages that were sent while nobody listened are heard; who watches for pressure still does.
fn b33_worker_sockets(mode: Mode) {
    let app = App::new(mode).own_program().set("recycle.max_requests", 50).worker("direct", 1);
    let manager = app.start_ready(1);
    let pid = *manager.status().ready_pids().first().unwrap();
    held_in_exec(&manager);
    manager.ask(pid, "/notify?text=STATUS=heard%20later");
    let began = Instant::now();
    stand_in::let_go(manager.app.program());
    manager.wait_status(SOON, "what was said", |status| {
        status.workers().first().is_some_and(|worker| worker.0["status_text"] == "heard later")
    });
    assert!(began.elapsed() < pace::patient(SOON));
    manager.ask(pid, "/notify?text=X_PADDOCK_RECYCLE=1");
    let died = manager.log.wait(SOON, "its end", |line| line.is_of("worker-died", pid));
    assert_eq!(died.reason(), "drained", "{died}");
    manager.wait_ready(1);
    manager.stop();
}

/// What a figure is promised for: whatever happens to the manager, nobody who uses the app notices.
fn crashes_and_upgrades(mode: Mode) {
    let app = App::new(mode).own_program().set("workers", 4).set("memory.max", "256M").set("memory.budget", "2G");
    let mut manager = app.set("recycle.max_requests", 1_000_000).start_ready(4);
    let before = manager.status().ready_by_slot();
    let target = manager.target();
    let load: Vec<_> = [false, true]
        .into_iter()
        .map(|keep_alive| {
            Load { clients: 4, keep_alive, rate: Some(pace::rate(100.0)), ..Load::default() }.start(&target)
        })
        .collect();
    for number in 1..=CRASHES {
        manager.crash();
        // Clients have nobody but the workers for a while.
        let until = load[0].answered() + 5;
        proc::wait_until(SOON, "answers without a manager", || load[0].answered() >= until);
        manager.start_again();
        assert_eq!(manager.wait_ready(4).ready_by_slot(), before, "crash {number}");
        if number % (CRASHES / UPGRADES) == 0 {
            upgrade(&manager);
            assert_eq!(manager.wait_ready(4).ready_by_slot(), before, "the upgrade after crash {number}");
        }
    }
    let mut total = 0;
    for load in load {
        let report = load.stop();
        report.assert_none_lost();
        assert!(report.pids().is_subset(&before.values().copied().collect()), "somebody else answered");
        total += report.total();
    }
    let _ = writeln!(
        std::io::stderr(),
        "{}: {CRASHES} crashes and {UPGRADES} upgrades under 8 clients: {total} requests, 0 failed, no pid changed",
        mode.key()
    );
    manager.stop();
}
