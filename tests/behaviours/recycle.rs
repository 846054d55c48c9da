//! B7–B10, B37, B38: planned replacements by quota.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::http;
use crate::support::load::Load;
use crate::support::manager::{App, Manager, SOON};
use crate::support::pace;
use crate::support::proc;
use crate::support::status::Worker;
use crate::support::suite::{EVERYWHERE, Mode, Suite};
use crate::support::timeline::timeline;

pub(crate) fn register(suite: &mut Suite) {
    suite.add("b07_recycles_by_quota_lose_nothing", EVERYWHERE, b07_quota);
    suite.add("b08_keep_alive_clients_lose_nothing", EVERYWHERE, b08_keep_alive);
    suite.add("b09_jitter", &[Mode::None], b09_jitter);
    suite.add("b10_one_replacement_at_a_time", EVERYWHERE, b10_one_at_a_time);
    suite.add("b37_spread_quotas_halve_the_peak", &[Mode::None], b37_spread);
    suite.add("b38_surge_0_stops_first", EVERYWHERE, b38_stop_first);
    suite.add("b38_max_lifetime", EVERYWHERE, b38_lifetime);
    suite.add("b38_soft_limit", EVERYWHERE, b38_memory);
    suite.add("x_worker_asks_for_its_replacement", &[Mode::None], recycle_on_request);
    suite.add("x_quota_is_a_trigger_not_a_fence", &[Mode::None], quota_is_no_fence);
}

fn b07_quota(mode: Mode) {
    let app = App::new(mode).set("workers", 4).set("recycle.max_requests", 50);
    let manager = app.start_ready(4);
    let requests = pace::share(4000);
    let load = Load { clients: 16, rate: Some(pace::rate(130.0)), total: Some(requests), ..Load::default() };
    let report = load.run(&manager.target());
    report.assert_none_lost();
    assert_eq!(u64::try_from(report.total()), Ok(requests));
    manager.wait_ready(4);
    let recycles = quota_recycles(&manager);
    assert!(recycles >= pace::share(60), "{recycles} recycles");
    let history = timeline(&manager.log.lines(), 4);
    assert!(history.least_ready >= 4 && history.most_alive <= 5, "{history:?}");
    assert_eq!(manager.log.count(|line| line.is("worker-died") && line.reason() != "drained"), 0);
    manager.stop();
}

fn quota_recycles(manager: &Manager) -> u64 {
    manager.log.all(|line| line.is("drain-started") && line.reason() == "quota").len() as u64
}

fn b08_keep_alive(mode: Mode) {
    let app = App::new(mode).set("workers", 4).set("recycle.max_requests", 50);
    let manager = app.start_ready(4);
    let load = Load {
        clients: 16,
        keep_alive: true,
        rate: Some(pace::rate(130.0)),
        total: Some(pace::share(2000)),
        ..Load::default()
    };
    let report = load.run(&manager.target());
    report.assert_none_lost();
    manager.wait_ready(4);
    let recycles = quota_recycles(&manager);
    assert!(recycles >= pace::share(8), "{recycles} recycles");
    assert!(timeline(&manager.log.lines(), 4).least_ready >= 4);
    manager.stop();
}

/// Lives that only say their quota and leave; slot 0 stays, so that the app does.
fn b09_jitter(mode: Mode) {
    let app = App::new(mode).sockets(Vec::new());
    let draws = app.dir.path().join("draws");
    let life = "echo $PADDOCK_MAX_REQUESTS >> $W_DIR/draws; [ $PADDOCK_SLOT != 0 ] || exec sleep 600";
    let mut app = app.set("workers", 17).set("ready", "settle").set("timeouts.settle", "500ms");
    app.put("command", ["sh", "-c", life].map(str::to_owned).to_vec());
    let mut manager = app
        .set("recycle.max_requests", 1000)
        .set("recycle.max_requests_jitter", "20%")
        .set("recycle.spread", false)
        .set("restart.backoff", "1ms")
        .set("restart.backoff_max", "1ms")
        .start();
    manager.wait_told_ready(SOON);
    let read = || -> Vec<u64> {
        let text = std::fs::read_to_string(&draws).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    proc::wait_until(Duration::from_mins(3), "1000 lives", || read().len() >= 1000);
    let quota = manager.status().workers().iter().find(|worker| worker.slot() == 0).and_then(Worker::quota);
    let draws = read();
    assert!(draws.iter().all(|draw| (1000..=1200).contains(draw)), "{draws:?}");
    assert!(quota.is_some_and(|quota| draws.contains(&quota)), "what status says was given to the worker");
    let mut buckets = [0; 10];
    for draw in &draws {
        buckets[usize::try_from((draw - 1000) / 20).unwrap().min(9)] += 1;
    }
    let even = draws.len() / 10;
    assert!(buckets.iter().all(|count| (even / 2..=even * 2).contains(count)), "not even: {buckets:?}");
    drop(manager);
}

fn b10_one_at_a_time(mode: Mode) {
    let app = App::new(mode).set("workers", 4).set("recycle.max_requests", 20).set("recycle.spread", false);
    let manager = app.worker("direct", 1).start_ready(4);
    let first = manager.status().ready_pids();
    manager.switch("ready_delay_ms=400\n");
    for pid in &first {
        let mut client = http::Client::connect(&manager.direct(*pid), SOON).expect("a connection");
        for _ in 0..20 {
            client.get("/", false).expect("an answer");
        }
    }
    let status = manager.wait_status(SOON, "four new workers", |status| {
        status.ready_pids().len() == 4 && status.workers().len() == 4 && status.ready_pids().is_disjoint(&first)
    });
    assert_eq!(status.ready_pids().len(), 4);
    let history = timeline(&manager.log.lines(), 4);
    assert!(history.least_ready >= 4 && history.most_alive <= 5, "{history:?}");
    assert_eq!(manager.log.count(|line| line.is("drain-started") && line.reason() == "quota"), 4);
    manager.stop();
}

fn b37_spread(mode: Mode) {
    let unspread = peak_of_dealt_requests(mode, false);
    let spread = peak_of_dealt_requests(mode, true);
    assert_eq!(unspread, (4 * 9 + 1) * 8, "MiB: all four fill up together, the first goes at its tenth");
    assert!(spread * 10 < unspread * 7, "peak of {spread} MiB spread, {unspread} MiB unspread");
}

/// Deals requests that leak 8 MiB each to the slots in turn; returns the most that all workers held, in MiB.
fn peak_of_dealt_requests(mode: Mode, spread: bool) -> u64 {
    let app = App::new(mode).set("workers", 4).set("recycle.max_requests", 10).set("recycle.spread", spread);
    let manager = app.worker("direct", 1).start_ready(4);
    let mut serving = manager.status().ready_by_slot();
    let mut held: BTreeMap<u32, u64> = BTreeMap::new();
    let mut peak = 0;
    for turn in 0..120 {
        let slot = turn % 4;
        let pid = serving[&slot];
        let reply = manager.ask(pid, "/leak?mb=8");
        held.insert(pid, reply.number("held") >> 20);
        peak = peak.max(held.values().sum());
        if reply.number("requests") + 1 >= reply.number("quota") {
            let status = manager.wait_status(SOON, "the replacement", |status| {
                let now = status.ready_by_slot();
                now.len() == 4 && status.workers().len() == 4 && now[&slot] != pid
            });
            serving = status.ready_by_slot();
            held.retain(|pid, _| serving.values().any(|each| each == pid));
        }
    }
    manager.stop();
    peak
}

/// Quota, operator, reload: at every kind of replacement the old worker is gone before the new one starts.
fn b38_stop_first(mode: Mode) {
    let app = App::new(mode).set("workers", 2).set("recycle.surge", 0).set("recycle.max_requests", 1000);
    let manager = app.set("recycle.spread", false).worker("direct", 1).start_ready(2);

    let before = manager.status().ready_by_slot();
    assert!(manager.cli("recycle", &["1"]).status.success());
    assert_stopped_first(&manager, before[&1], 1);
    manager.wait_ready(2);

    manager.ask(before[&0], "/notify?text=X_PADDOCK_REQUESTS=1000");
    assert_stopped_first(&manager, before[&0], 0);

    let before = manager.wait_ready(2).ready_by_slot();
    assert!(manager.cli("reload", &[]).status.success());
    assert_stopped_first(&manager, before[&0], 0);
    assert_stopped_first(&manager, before[&1], 1);
    assert!(timeline(&manager.log.lines(), 2).most_alive <= 2);
    manager.stop();
}

fn b38_lifetime(mode: Mode) {
    let app = App::new(mode).set("workers", 2).set("recycle.surge", 0).set("recycle.max_lifetime", "2s");
    let manager = app.start_ready(2);
    let before = manager.status().ready_by_slot();
    let began = Instant::now();
    for (slot, pid) in before {
        let drained = manager.log.wait(SOON, "a drain for age", |line| line.is_of("drain-started", pid));
        assert_eq!(drained.reason(), "lifetime", "{drained}");
        assert_stopped_first(&manager, pid, slot);
    }
    // Spread: the first lives end after half and after all of the lifetime.
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
    manager.stop();
}

fn b38_memory(mode: Mode) {
    let app = App::new(mode).set("workers", 2).set("recycle.surge", 0);
    let app = app.set("memory.max", "240M").set("memory.recycle_at", "80M").worker("direct", 1);
    let manager = app.start_ready(2);
    let before = manager.status().ready_by_slot();
    manager.ask(before[&1], "/leak?mb=120");
    assert_stopped_first(&manager, before[&1], 1);
    let drained = manager.log.wait(SOON, "its drain", |line| line.is_of("drain-started", before[&1]));
    assert_eq!(drained.reason(), "memory", "{drained}");
    let status = manager.wait_ready(2);
    assert_eq!(status.ready_by_slot()[&0], before[&0], "the other worker is left alone");
    assert!(timeline(&manager.log.lines(), 2).most_alive <= 2);
    manager.stop();
}

#[track_caller]
fn assert_stopped_first(manager: &Manager, old: u32, slot: u64) {
    let died = manager.log.wait(SOON, "the old worker's end", |line| line.is_of("worker-died", old));
    let lines = manager.log.lines();
    let worker = died.number("worker").expect("its number");
    let next = |line: &&crate::support::log::Line| {
        line.is("worker-starting") && line.slot() == Some(slot) && line.number("worker") > Some(worker)
    };
    let mark = lines.iter().position(|line| line.is_of("worker-died", old)).expect("its end");
    assert!(!lines[..mark].iter().any(|line| next(&line)), "the next worker of slot {slot} was started before");
    manager.log.wait_after(mark, SOON, "the next worker of the slot", |line| next(&line));
}

fn recycle_on_request(mode: Mode) {
    let manager = App::new(mode).worker("direct", 1).start_ready(1);
    let old = *manager.status().ready_pids().first().expect("a worker");
    manager.ask(old, "/notify?text=X_PADDOCK_RECYCLE=1");
    manager.log.wait(SOON, "its end", |line| line.is_of("worker-died", old));
    let lines = manager.log.lines();
    let drained = lines.iter().position(|line| line.is_of("drain-started", old)).expect("its drain");
    assert_eq!(lines[..drained].iter().filter(|line| line.is("worker-ready")).count(), 2, "start before stop");
    manager.wait_ready(1);
    manager.stop();
}

fn quota_is_no_fence(mode: Mode) {
    let manager = App::new(mode).set("recycle.max_requests", 5).start_ready(1);
    let old = *manager.status().ready_pids().first().expect("a worker");
    manager.switch("ready_delay_ms=1500\n");
    for _ in 0..12 {
        let reply = http::get(&manager.target(), "/").expect("an answer");
        assert_eq!(reply.pid(), old, "it serves until its replacement is ready");
    }
    let status = manager.wait_status(SOON, "the overrun", |status| {
        status.workers().iter().any(|worker| worker.pid() == Some(old) && worker.requests() >= Some(12))
    });
    let worker = status.workers().into_iter().find(|worker| worker.pid() == Some(old)).expect("the worker");
    assert_eq!(worker.0["overrun"].as_u64(), worker.requests().map(|requests| requests - 5));
    manager.wait_ready(1);
    manager.stop();
}
