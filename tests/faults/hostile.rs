//! Workers, and strangers at their sockets, that mean harm.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::shortage::{app, load};
use crate::support::http;
use crate::support::manager::{Manager, SOON};
use crate::support::proc;
use crate::support::status::Status;
use crate::support::suite::{EVERYWHERE, FENCED, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.alone("flood_of_notify_messages", EVERYWHERE, own_flood);
    suite.alone("flood_of_forged_messages", EVERYWHERE, forged_flood);
    suite.add("drain_ignored_with_a_daemon_left", FENCED, ignores_everything);
    suite.add("notify_socket_removed", EVERYWHERE, socket_removed);
}

/// How many datagrams a flood has: `PADDOCK_TEST_FLOOD`, else enough for some seconds on a busy machine.
fn flood_size() -> usize {
    std::env::var("PADDOCK_TEST_FLOOD").ok().and_then(|text| text.parse().ok()).unwrap_or(8_000)
}

/// The longest that anybody may wait for an answer of the manager during a flood.
const BOUND: Duration = Duration::from_secs(2);

/// Asks for the status until the flood is over; the longest wait for an answer, and how many there were.
fn ask_meanwhile(manager: &Manager, over: &AtomicBool) -> (Duration, u32) {
    let control = manager.app.dir.path().join("run/control");
    let (mut longest, mut answers) = (Duration::ZERO, 0);
    loop {
        // A fast machine is through with the flood before the first answer.
        let ends = over.load(SeqCst);
        let asked = Instant::now();
        Status::ask(&control).expect("a status during the flood");
        longest = longest.max(asked.elapsed());
        answers += 1;
        if ends {
            return (longest, answers);
        }
    }
}

fn during(manager: &Manager, flood: impl FnOnce() + Send + 'static) {
    let before = manager.status().ready_by_slot();
    let load = load(manager);
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let flooding = std::thread::spawn(move || {
        flood();
        ends.store(true, SeqCst);
    });
    // What another worker says arrives too.
    manager.ask(before[&1], "/notify?text=STATUS=heard");
    manager.wait_status(BOUND, "what the other worker says", |status| {
        status.workers().iter().any(|worker| worker.0["status_text"] == "heard")
    });
    let (longest, answers) = ask_meanwhile(manager, &over);
    flooding.join().expect("the flood ends");
    assert!(answers > 0 && longest < BOUND, "{answers} answers, the longest wait {longest:?}");
    load.stop().assert_none_lost();
    assert_eq!(manager.wait_ready(2).ready_by_slot(), before, "somebody was shot");
}

fn own_flood(mode: Mode) {
    let manager = app(mode).set("timeouts.watchdog", "2s").start_ready(2);
    let direct = manager.direct(manager.status().ready_by_slot()[&0]);
    during(&manager, move || {
        // Several at once, so that the queue is never empty.
        let senders: Vec<_> = (0..4)
            .map(|_| {
                let direct = direct.clone();
                let path = format!("/notify?text=STATUS=noise&times={}", flood_size() / 4);
                std::thread::spawn(move || http::get_within(&direct, &path, Duration::from_mins(10)))
            })
            .collect();
        for sender in senders {
            sender.join().unwrap().expect("all is said");
        }
    });
    manager.stop();
}

fn forged_flood(mode: Mode) {
    let manager = app(mode).set("timeouts.watchdog", "2s").start_ready(2);
    let victim = manager.status().ready_by_slot()[&0];
    let facts = manager.ask(victim, "/facts").body;
    let socket = facts["env"]["NOTIFY_SOCKET"].as_str().expect("a notify socket").to_owned();
    during(&manager, move || {
        let forger = UnixDatagram::unbound().unwrap();
        for _ in 0..flood_size() / 4 {
            forger.send_to(b"X_PADDOCK_RECYCLE=1", &socket).expect("it is sent");
        }
    });
    assert_eq!(manager.log.count(|line| line.is("recycle-due")), 0, "a forged message was obeyed");
    assert_eq!(manager.log.count(|line| line.message().contains("ignored a notify message")), 1, "logged once");
    manager.stop();
}

fn ignores_everything(mode: Mode) {
    let manager = app(mode).set("timeouts.graceful", "1s").worker("ignore_term", 1).start_ready(2);
    let victim = manager.status().ready_by_slot()[&0];
    let daemon = u32::try_from(manager.ask(victim, "/daemon").number("daemon")).unwrap();
    assert!(proc::is_alive(daemon));
    assert_eq!(manager.cli("recycle", &["0"]).status.code(), Some(0));
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
    assert_eq!(died.reason(), "drain-deadline", "{died}");
    proc::wait_until(SOON, "its daemon is gone too", || !proc::is_alive(daemon));
    manager.wait_ready(2);
    manager.stop();
}

/// Nothing that it says arrives any more.
fn socket_removed(mode: Mode) {
    let manager = app(mode).set("timeouts.watchdog", "1s").set("timeouts.abort", "200ms").start_ready(2);
    let before = manager.status().ready_by_slot();
    let facts = manager.ask(before[&0], "/facts").body;
    fs::remove_file(facts["env"]["NOTIFY_SOCKET"].as_str().expect("a notify socket")).unwrap();
    let died = manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", before[&0]));
    assert_eq!(died.reason(), "watchdog", "{died}");
    assert_eq!(manager.wait_ready(2).ready_by_slot()[&1], before[&1]);
    manager.stop();
}
