//! Scope mode under a real systemd, as root: every promise of a fence, with processes that really die.
//!
//! Elsewhere than under systemd with cgroup v2 the tests are ignored; `lab/run` gives them a machine.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "tests panic, and the workers in this one answer on their stdout"
)]

use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use paddock::config::model::Signal;
use paddock::isolation::scope::ScopeIsolation;
use paddock::isolation::{Drain, Fence, FenceEvent, FenceLimits, FenceName, Isolation};
use paddock::supervisor::event::Ended;
use paddock::systemd::journal;
use paddock::worker::process::Process;
use rustix::process::Pid;

const ROLE: &str = "PADDOCK_TEST_ROLE";
const APP: &str = "my-test";
const MIB: u64 = 1 << 20;
/// Emulated machines are slow.
const LONG: Duration = Duration::from_secs(90);
const DRAIN: Drain = Drain { signal: Signal(3), graceful: Duration::from_secs(30) };
const LIMITS: FenceLimits =
    FenceLimits { memory_max: Some(64 * MIB), swap_max: Some(0), tasks_max: Some(50), cpu_weight: Some(50) };

fn main() {
    if std::env::var(ROLE).as_deref() == Ok("worker") {
        return work();
    }
    let arguments = Arguments::from_args();
    let absent = on_loop(async { ScopeIsolation::probe(APP, DRAIN).await.err() });
    if let Some(why) = &absent {
        println!("ignored: {why}");
    }
    let trial =
        |name: &str, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(absent.is_some());
    let trials = vec![
        trial("b4_a_worker_is_alone_in_a_scope_with_its_limits", || on_loop(limits_in_force())),
        trial("b11_an_oom_kill_is_known_every_time", || on_loop(oom_kills())),
        trial("b12_a_foreign_kill_is_not_an_oom_kill", || on_loop(foreign_kill())),
        trial("b13_the_edge_is_reported_and_lifted", || on_loop(edge())),
        trial("an_edge_that_was_passed_is_reported_at_once", || on_loop(edge_passed())),
        trial("limits_of_a_living_worker_change", || on_loop(living_limits())),
        trial("b29_a_daemonised_grandchild_is_swept", || on_loop(grandchild())),
        trial("what_a_dead_manager_left_is_found_and_nobody_else_s", || on_loop(leftovers())),
        trial("whoever_stops_a_scope_asks_us", || on_loop(stop_asked())),
        trial("a_scope_whose_controller_is_gone_is_stopped_by_signal", || on_loop(controller_gone())),
        trial("a_hundred_scopes_at_once", || on_loop(hundred())),
        trial("a_gate_that_is_dead_leaves_no_failed_unit", || on_loop(dead_gate())),
        trial("what_a_worker_wrote_is_found_by_its_scope", || on_loop(last_words())),
        trial("notes_are_found_by_the_worker_s_scope", || on_loop(notes())),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn on_loop<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// A process that does what it is told, in a scope.
struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    process: Process,
    fence: Option<Rc<dyn Fence>>,
}

impl Worker {
    fn blocked() -> Self {
        Self::with_stderr(Stdio::inherit())
    }

    fn with_stderr(stderr: Stdio) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, "worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let process = Process::open(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()).unwrap();
        Self { child, orders, answers, process, fence: None }
    }

    async fn fenced(isolation: &ScopeIsolation) -> Self {
        let mut worker = Self::blocked();
        worker.enter(isolation).await;
        worker
    }

    async fn enter(&mut self, isolation: &ScopeIsolation) {
        let app = isolation.app().to_owned();
        self.fence =
            Some(isolation.enclose(&FenceName { app, ..fresh_name() }, self.process.pid(), &LIMITS).await.unwrap());
    }

    fn fence(&self) -> &dyn Fence {
        &**self.fence.as_ref().unwrap()
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    fn told(&mut self, order: &str) -> String {
        self.order(order);
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    fn directory(&self) -> PathBuf {
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", self.child.id())).unwrap();
        Path::new("/sys/fs/cgroup").join(cgroup.trim().strip_prefix("0::/").unwrap())
    }
}

fn fresh_name() -> FenceName {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let unique = format!("{:x}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    FenceName { app: APP.to_owned(), slot: 3, unique }
}

async fn isolation() -> ScopeIsolation {
    ScopeIsolation::probe(APP, DRAIN).await.unwrap()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("it takes too long")
}

fn systemctl(arguments: &[&str]) -> String {
    let whose = if rustix::process::geteuid().is_root() { "--system" } else { "--user" };
    let output = Command::new("systemctl").arg(whose).args(arguments).output().unwrap();
    assert!(output.status.success(), "systemctl {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", "--value", "-p", property, unit])
}

fn loaded(unit: &str) -> bool {
    !systemctl(&["list-units", "--all", "--plain", "--no-legend", unit]).is_empty()
}

fn file(directory: &Path, name: &str) -> String {
    std::fs::read_to_string(directory.join(name)).unwrap().trim().to_owned()
}

async fn swept(worker: &Worker) {
    let unit = worker.fence().describe();
    soon(worker.fence().sweep()).await.unwrap();
    assert!(!loaded(&unit), "{unit} is still loaded");
}

async fn limits_in_force() -> Result<(), Failed> {
    let isolation = isolation().await;
    println!("{}", isolation.describe());
    let mut worker = Worker::fenced(&isolation).await;
    let directory = worker.directory();
    let unit = worker.fence().describe();
    assert!(unit.starts_with(r"paddock-my\x2dtest-3-"), "{unit}");
    assert_eq!(directory.file_name().unwrap().to_str().unwrap(), unit);
    assert_eq!(
        directory.parent().unwrap(),
        Path::new("/sys/fs/cgroup").join(isolation.above().trim_start_matches('/'))
    );
    assert_eq!(file(&directory, "cgroup.procs"), worker.child.id().to_string());
    assert_eq!(file(&directory, "memory.max"), (64 * MIB).to_string());
    assert_eq!(file(&directory, "memory.swap.max"), "0");
    assert_eq!(file(&directory, "memory.oom.group"), "1");
    assert_eq!(file(&directory, "pids.max"), "50");
    assert_eq!(file(&directory, "cpu.weight"), "50");
    assert_eq!(show(&unit, "TimeoutStopUSec"), "40s");
    assert_eq!(show(&unit, "KillSignal"), "3");

    assert!(worker.fence().contains(worker.process.pid()));
    assert!(!worker.fence().contains(rustix::process::getpid()));
    assert_eq!(worker.told("allocate 20"), "allocated");
    let reading = worker.fence().memory().unwrap();
    assert!(reading.unreclaimable >= 20 * MIB && reading.unreclaimable <= reading.current, "{reading:?}");
    assert_eq!(reading.limit, Some(64 * MIB));

    worker.order("exit 0");
    assert_eq!(soon(worker.process.ended()).await, Ended::Exit(0));
    assert_eq!(worker.fence().death_facts().await.oom_killed, Some(false));
    swept(&worker).await;
    assert!(!directory.exists());
    Ok(())
}

async fn oom_kills() -> Result<(), Failed> {
    let isolation = isolation().await;
    for _ in 0..6 {
        let mut worker = Worker::fenced(&isolation).await;
        worker.order("allocate 200");
        assert_eq!(soon(worker.process.ended()).await, Ended::Signal(Signal(9)));
        let facts = worker.fence().death_facts().await;
        assert_eq!(facts.oom_killed, Some(true));
        assert!(facts.peak.unwrap() > 60 * MIB, "{facts:?}");
        swept(&worker).await;
    }
    Ok(())
}

async fn foreign_kill() -> Result<(), Failed> {
    let isolation = isolation().await;
    for _ in 0..6 {
        let mut worker = Worker::fenced(&isolation).await;
        worker.child.kill().unwrap();
        assert_eq!(soon(worker.process.ended()).await, Ended::Signal(Signal(9)));
        assert_eq!(worker.fence().death_facts().await.oom_killed, Some(false));
        swept(&worker).await;
    }
    Ok(())
}

async fn edge() -> Result<(), Failed> {
    let isolation = isolation().await;
    let mut worker = Worker::fenced(&isolation).await;
    let directory = worker.directory();
    worker.fence().arm(Some(40 * MIB)).await.unwrap();
    assert_eq!(file(&directory, "memory.high"), (40 * MIB).to_string());
    let nothing = tokio::time::timeout(Duration::from_millis(300), worker.fence().next_event()).await;
    assert!(nothing.is_err(), "{nothing:?}");

    worker.order("allocate 50");
    let FenceEvent::Memory(reading) = soon(worker.fence().next_event()).await else { panic!("not the edge") };
    assert!(reading.unreclaimable >= 38 * MIB, "{reading:?}");
    assert_eq!(file(&directory, "memory.high"), "max");
    let mut answer = String::new();
    worker.answers.read_line(&mut answer).unwrap();
    assert_eq!(answer, "allocated\n");

    // The second edge, and an edge that is lifted before it is reached.
    worker.fence().arm(Some(60 * MIB)).await.unwrap();
    assert_eq!(file(&directory, "memory.high"), (60 * MIB).to_string());
    worker.fence().arm(None).await.unwrap();
    assert_eq!(file(&directory, "memory.high"), "max");
    worker.fence().kill().unwrap();
    soon(worker.process.ended()).await;
    swept(&worker).await;
    Ok(())
}

async fn edge_passed() -> Result<(), Failed> {
    let isolation = isolation().await;
    let mut worker = Worker::fenced(&isolation).await;
    assert_eq!(worker.told("allocate 30"), "allocated");
    worker.fence().arm(Some(20 * MIB)).await.unwrap();
    let FenceEvent::Memory(reading) = soon(worker.fence().next_event()).await else { panic!("not the edge") };
    assert!(reading.unreclaimable >= 30 * MIB, "{reading:?}");
    assert_eq!(file(&worker.directory(), "memory.high"), "max");
    swept(&worker).await;
    soon(worker.process.ended()).await;
    Ok(())
}

async fn living_limits() -> Result<(), Failed> {
    let isolation = isolation().await;
    let mut worker = Worker::fenced(&isolation).await;
    let directory = worker.directory();
    let more = FenceLimits { memory_max: Some(96 * MIB), tasks_max: None, ..LIMITS };
    assert_eq!(worker.fence().set_limits(&more).await.unwrap(), Vec::<String>::new());
    assert_eq!(file(&directory, "memory.max"), (96 * MIB).to_string());
    assert_eq!(file(&directory, "pids.max"), "max");
    assert_eq!(worker.told("allocate 80"), "allocated");
    let refused = worker.fence().set_limits(&LIMITS).await.unwrap();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(file(&directory, "memory.max"), (96 * MIB).to_string());
    assert_eq!(file(&directory, "pids.max"), "50");
    swept(&worker).await;
    soon(worker.process.ended()).await;
    Ok(())
}

async fn grandchild() -> Result<(), Failed> {
    let isolation = isolation().await;
    let mut worker = Worker::fenced(&isolation).await;
    let directory = worker.directory();
    let answer = worker.told("daemon");
    let daemon = Pid::from_raw(answer.strip_prefix("daemon ").unwrap().parse().unwrap()).unwrap();
    assert!(worker.fence().contains(daemon));
    worker.order("exit 0");
    assert_eq!(soon(worker.process.ended()).await, Ended::Exit(0));
    assert!(worker.fence().contains(daemon), "the daemon died by itself");
    swept(&worker).await;
    assert!(!directory.exists());
    assert!(!worker.fence().contains(daemon));
    Ok(())
}

async fn leftovers() -> Result<(), Failed> {
    let isolation = isolation().await;
    let other = ScopeIsolation::probe("my", DRAIN).await.unwrap();
    let mut worker = Worker::fenced(&isolation).await;
    let mut stranger = Worker::fenced(&other).await;
    assert!(stranger.fence().describe().starts_with("paddock-my-3-"));

    let found = self::isolation().await.leftovers(APP).await.unwrap().living;
    let units: Vec<_> = found.iter().map(|left| left.fence.describe()).collect();
    assert_eq!(units, [worker.fence().describe()]);
    let left = &found[0];
    assert_eq!((left.name.app.as_str(), left.name.slot), (APP, 3));
    assert!(left.fence.contains(worker.process.pid()));
    assert_eq!(left.fence.memory().unwrap().limit, Some(64 * MIB));

    // The adopted fence does what the first one did.
    left.fence.arm(Some(20 * MIB)).await.unwrap();
    worker.order("allocate 200");
    assert!(matches!(soon(left.fence.next_event()).await, FenceEvent::Memory(_)));
    soon(worker.process.ended()).await;
    assert_eq!(left.fence.death_facts().await.oom_killed, Some(true));
    // A failed scope that nobody swept does not stay, and tells why it failed.
    let again = self::isolation().await.leftovers(APP).await.unwrap();
    assert!(again.living.is_empty());
    let told: Vec<_> = again.dead.iter().map(|(name, facts)| (name.slot, facts.oom_killed)).collect();
    assert_eq!(told, [(3, Some(true))]);
    assert!(self::isolation().await.leftovers(APP).await.unwrap().dead.is_empty());
    swept(&worker).await;

    stranger.order("exit 0");
    soon(stranger.process.ended()).await;
    swept(&stranger).await;
    Ok(())
}

/// With `Controller=` systemd sends no signal of its own, and waits.
async fn stop_asked() -> Result<(), Failed> {
    let isolation = isolation().await;
    let mut worker = Worker::fenced(&isolation).await;
    let unit = worker.fence().describe();
    assert!(show(&unit, "Controller").starts_with(':'), "{}", show(&unit, "Controller"));
    assert!(!isolation.system_stops().await);
    systemctl(&["stop", "--no-block", &unit]);
    let event = soon(worker.fence().next_event()).await;
    assert_eq!(event, FenceEvent::StopRequested);
    assert_eq!(show(&unit, "ActiveState"), "deactivating");
    assert_eq!(worker.told("allocate 1"), "allocated", "it got no signal");
    worker.order("exit 0");
    assert_eq!(soon(worker.process.ended()).await, Ended::Exit(0));
    assert_eq!(worker.fence().death_facts().await.oom_killed, Some(false));
    swept(&worker).await;

    // A signal of that name that somebody else sends is no news.
    let worker = Worker::fenced(&isolation).await;
    let unit = worker.fence().describe();
    forge_stop(&unit, &show(&unit, "Controller"));
    let event = tokio::time::timeout(Duration::from_secs(3), worker.fence().next_event()).await;
    assert!(event.is_err(), "{event:?}");
    swept(&worker).await;
    Ok(())
}

/// `RequestStop` of a unit that nobody stops.
fn forge_stop(unit: &str, to: &str) {
    let encoded: String = unit
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("_{byte:02x}") })
        .collect();
    let path = format!("/org/freedesktop/systemd1/unit/{encoded}");
    let which = if rustix::process::geteuid().is_root() { "--system" } else { "--user" };
    let destination = format!("--destination={to}");
    let arguments = [which, &destination, "emit", &path, "org.freedesktop.systemd1.Scope", "RequestStop"];
    let output = Command::new("busctl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// As after a crash: systemd notices that our name has left the bus, and ends the scope as it does without a controller.
async fn controller_gone() -> Result<(), Failed> {
    let first = isolation().await;
    let mut worker = Worker::fenced(&first).await;
    let unit = worker.fence().describe();
    worker.fence = None;
    drop(first);
    soon(async {
        while !show(&unit, "Controller").is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    systemctl(&["daemon-reexec"]);
    systemctl(&["stop", &unit]);
    assert_eq!(soon(worker.process.ended()).await, Ended::Signal(DRAIN.signal));
    assert!(!loaded(&unit));
    Ok(())
}

async fn hundred() -> Result<(), Failed> {
    let isolation = Rc::new(isolation().await);
    let mut starting = Vec::new();
    for _ in 0..100 {
        let isolation = Rc::clone(&isolation);
        starting.push(tokio::task::spawn_local(async move { Worker::fenced(&isolation).await }));
    }
    let mut workers = Vec::new();
    for start in starting {
        workers.push(start.await.unwrap());
    }
    let mut directories: Vec<_> = workers.iter().map(Worker::directory).collect();
    directories.sort();
    directories.dedup();
    assert_eq!(directories.len(), 100);
    assert!(loaded(r"paddock-my\x2dtest-*.scope"), "systemctl does not see what is there");
    let sweeping = workers.into_iter().map(|worker| {
        tokio::task::spawn_local(async move {
            soon(worker.fence().sweep()).await.unwrap();
            soon(worker.process.ended()).await;
        })
    });
    for sweep in sweeping.collect::<Vec<_>>() {
        sweep.await.unwrap();
    }
    assert!(!loaded(r"paddock-my\x2dtest-*.scope"));
    Ok(())
}

async fn dead_gate() -> Result<(), Failed> {
    let isolation = isolation().await;
    let mut worker = Worker::blocked();
    worker.child.kill().unwrap();
    // Dead, but not reaped: the number is still its own.
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", worker.child.id())).unwrap();
    while !state().contains(") Z") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let name = fresh_name();
    let refused = soon(isolation.enclose(&name, worker.process.pid(), &LIMITS)).await;
    assert!(refused.is_err());
    let pattern = r"paddock-my\x2dtest-3-*.scope";
    soon(async {
        while loaded(pattern) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    Ok(())
}

async fn last_words() -> Result<(), Failed> {
    let isolation = isolation().await;
    let name = fresh_name();
    // The unit need not exist yet when the stream is opened.
    let unit = format!(r"paddock-my\x2dtest-3-{}.scope", name.unique);
    let stream = journal::open_worker_stream(APP, &unit).unwrap();
    let mut worker = Worker::with_stderr(Stdio::from(stream));
    let fence = isolation.enclose(&name, worker.process.pid(), &LIMITS).await.unwrap();
    assert_eq!(fence.describe(), unit);
    for number in 0..9 {
        assert_eq!(worker.told(&format!("say line {number}")), "said");
    }
    worker.order("say last words before I allocate");
    worker.order("allocate 200");
    soon(worker.process.ended()).await;
    assert_eq!(fence.death_facts().await.oom_killed, Some(true));
    soon(fence.sweep()).await.unwrap();
    let words = journal::last_lines(&unit, 3, LONG).await;
    assert_eq!(words, ["line 7", "line 8", "last words before I allocate"]);
    Ok(())
}

async fn notes() -> Result<(), Failed> {
    let socket = journal::JournalSocket::open().unwrap();
    let log = paddock::observe::log::Log::journald_to(APP, socket);
    let unit = format!(r"paddock-my\x2dtest-9-{:x}.scope", std::process::id());
    let note = paddock::supervisor::note::Note {
        level: paddock::supervisor::note::Level::Warning,
        kind: paddock::supervisor::note::NoteKind::WorkerDied,
        slot: Some(paddock::supervisor::id::SlotId(9)),
        worker: None,
        generation: None,
        pid: None,
        reason: Some("oom-kill".to_owned()),
        memory: None,
        limit: None,
        message: "slot 9: a test".to_owned(),
    };
    log.note(&note, Some(&unit));
    let found = soon(async {
        loop {
            let output = Command::new("journalctl").args(["-q", "-o", "json", "-u", &unit]).output().unwrap();
            if !output.stdout.is_empty() {
                return String::from_utf8(output.stdout).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let entry: serde_json::Value = serde_json::from_str(found.trim()).unwrap();
    assert_eq!(entry["MESSAGE"], "slot 9: a test");
    assert_eq!(entry["PADDOCK_REASON"], "oom-kill");
    assert_eq!(entry["PADDOCK_SLOT"], "9");
    assert_eq!(entry["PRIORITY"], "4");
    Ok(())
}

/// The worker's half: orders on stdin, answers on stdout.
fn work() {
    let mut held = Vec::new();
    for order in std::io::stdin().lines() {
        let order = order.unwrap();
        let (verb, rest) = order.split_once(' ').unwrap_or((&order, ""));
        match verb {
            "allocate" => {
                for _ in 0..rest.parse::<u32>().unwrap() {
                    let mut block = vec![0_u8; 1 << 20];
                    for page in block.chunks_mut(4096) {
                        page[0] = 1;
                    }
                    held.push(block);
                }
                println!("allocated");
            }
            "daemon" => {
                // Its parent ends at once, as a daemon's does.
                let script = "setsid sleep 3600 >/dev/null 2>&1 & echo daemon $!";
                let output = Command::new("/bin/sh").args(["-c", script]).output().unwrap();
                println!("{}", String::from_utf8(output.stdout).unwrap().trim());
            }
            "say" => {
                eprintln!("{rest}");
                println!("said");
            }
            "exit" => return,
            other => panic!("{other}?"),
        }
    }
}
