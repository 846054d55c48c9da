//! Fences on the machine itself: real groups, real processes, real kills.
//!
//! What needs a cgroup that this process may divide is skipped, and said, where there is none.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod birth;

use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use paddock::isolation::cgroup::CgroupIsolation;
use paddock::isolation::none::{self, NoneIsolation};
use paddock::isolation::{Fence, FenceEvent, FenceLimits, FenceName, Isolation, Mode};
use rustix::process::{Pid, PidfdFlags};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const MIB: u64 = 1 << 20;

/// What this program does when a test starts it again as a worker: orders come line by line on standard input.
///
/// Not a test of its own: without orders it is over at once.
#[test]
fn worker_role() {
    if std::env::var_os("PADDOCK_TEST_ROLE").is_none() {
        return;
    }
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut children = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (order, argument) = line.split_once(' ').unwrap_or((&line, ""));
        match order {
            "hold" => held.push(vec![1; argument.parse().unwrap()]),
            "cache" => {
                let mut file = std::fs::File::create(argument).unwrap();
                for _ in 0..48 {
                    file.write_all(&vec![1; 1 << 20]).unwrap();
                }
            }
            "child" => {
                let mut child = Worker::role();
                child.order(&format!("hold {argument}"));
                children.push(child);
            }
            "leak" => loop {
                // At its own pace, whoever looks.
                held.push(vec![1; argument.parse().unwrap()]);
                std::thread::sleep(Duration::from_millis(5));
            },
            "exit" => return,
            other => panic!("no such order: {other}"),
        }
        let mut out = std::io::stdout();
        writeln!(out, "done {}", held.len()).unwrap();
        out.flush().unwrap();
    }
}

struct Worker {
    child: Child,
    lines: UnboundedReceiver<String>,
}

impl Worker {
    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = unbounded_channel();
        std::thread::spawn(move || {
            for line in output.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        Self { child, lines }
    }

    /// This program as a worker.
    fn role() -> Self {
        Self::spawn(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "worker_role", "--nocapture", "--test-threads=1"])
                .env("PADDOCK_TEST_ROLE", "1"),
        )
    }

    /// A script that starts when it is told to.
    fn script(script: &str) -> Self {
        Self::spawn(Command::new("sh").arg("-c").arg(format!("read go; {script}")))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn order(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
    }

    /// Wait for a line that holds this.
    async fn says(&mut self, text: &str) {
        loop {
            let line = self.lines.recv().await;
            if line.unwrap_or_else(|| panic!("its output ended before {text:?}")).contains(text) {
                return;
            }
        }
    }

    /// Give an order and wait until it is done.
    async fn does(&mut self, order: &str) {
        self.order(order);
        self.says("done").await;
    }

    /// Grow in steps while the fence is watched, as a manager would, until it reports.
    async fn grows_watched(&mut self, steps: u64, fence: &Rc<dyn Fence>, edge: u64) -> FenceEvent {
        for _ in 0..steps {
            self.order(&format!("hold {}", 4 * MIB));
            tokio::select! {
                event = fence.next_event() => {
                    self.says("done").await;
                    return event;
                }
                () = self.says("done") => {}
            }
            let wait = if fence.memory().unwrap().unreclaimable >= edge { 5000 } else { 50 };
            if let Ok(event) = tokio::time::timeout(Duration::from_millis(wait), fence.next_event()).await {
                return event;
            }
        }
        panic!("nothing was reported: {:?}", fence.memory());
    }

    /// Wait for a line with a number.
    async fn number(&mut self) -> Pid {
        Pid::from_raw(self.lines.recv().await.unwrap().trim().parse().unwrap()).unwrap()
    }

    /// Wait until nobody holds its output any more: whoever lived would.
    async fn is_silent(&mut self) {
        let silence = async { while self.lines.recv().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(10), silence).await.unwrap();
    }

    async fn reap(&mut self) -> ExitStatus {
        let pidfd = rustix::process::pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let watch = paddock::sys::watch(pidfd, tokio::io::Interest::READABLE).unwrap();
        watch.readable().await.unwrap().retain_ready();
        self.child.wait().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let _ = probed();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(Duration::from_mins(1), test).await.unwrap() })
}

/// The cgroup mode of this machine, or why a test is skipped; with `PADDOCK_TEST_CGROUP=1` none is, and it fails.
fn cgroup(test: &str) -> Option<&'static CgroupIsolation> {
    probed()
        .as_ref()
        .inspect_err(|reason| {
            assert!(std::env::var_os("PADDOCK_TEST_CGROUP").is_none(), "{test}: no cgroup mode here: {reason}");
            // Past the harness, which shows only what failed.
            let line = format!("SKIPPED {test}: no cgroup mode here: {reason}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
        })
        .ok()
}

/// As a manager does it: once, before any child is started.
fn probed() -> &'static Result<CgroupIsolation, String> {
    static PROBED: OnceLock<Result<CgroupIsolation, String>> = OnceLock::new();
    PROBED.get_or_init(CgroupIsolation::probe)
}

fn name(app: &str) -> FenceName {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    FenceName {
        app: format!("{app}-{}", std::process::id()),
        slot: 1,
        unique: NEXT.fetch_add(1, Ordering::Relaxed).to_string(),
    }
}

fn memory(max: u64) -> FenceLimits {
    FenceLimits { memory_max: Some(max), swap_max: Some(0), ..FenceLimits::default() }
}

async fn event(fence: &Rc<dyn Fence>) -> FenceEvent {
    tokio::time::timeout(Duration::from_secs(20), fence.next_event()).await.unwrap()
}

/// Every directory of this fence on the machine, in whichever hierarchy.
fn directories(fence: &Rc<dyn Fence>) -> Vec<PathBuf> {
    fn search(dir: &Path, wanted: &std::ffi::OsStr, depth: u32, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name() == wanted {
                found.push(entry.path());
            } else if depth > 0 {
                search(&entry.path(), wanted, depth - 1, found);
            }
        }
    }
    let described = fence.describe();
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), Path::new(&described).file_name().unwrap(), 6, &mut found);
    found
}

#[test]
fn b4_a_worker_is_inside_with_its_limits_and_nobody_else_is() {
    let Some(isolation) = cgroup("b4") else { return };
    run(async {
        let mut worker = Worker::script("sleep 30 & echo $!; wait");
        let limits = FenceLimits { tasks_max: Some(50), cpu_weight: Some(200), ..memory(64 * MIB + 1) };
        let fence = isolation.enclose(&name("b4"), worker.pid(), &limits).await.unwrap();
        assert_eq!(isolation.mode(), Mode::Cgroup);
        worker.order("go");
        let child = worker.number().await;
        assert!(fence.contains(worker.pid()));
        assert!(fence.contains(child));
        assert!(!fence.contains(rustix::process::getpid()));
        assert_eq!(fence.memory().unwrap().limit, Some(64 * MIB));
        let places = directories(&fence);
        let limit = |file: &str| places.iter().find_map(|dir| std::fs::read_to_string(dir.join(file)).ok());
        assert_eq!(limit("pids.max").as_deref().map(str::trim), Some("50"));
        let weight = limit("cpu.weight").or_else(|| limit("cpu.shares"));
        assert!(matches!(weight.as_deref().map(str::trim), Some("200" | "2048")), "{weight:?}");
        // A stranger that only shares our session is outside.
        let mut stranger = Worker::script("");
        assert!(!fence.contains(stranger.pid()));
        stranger.order("go");

        worker.child.kill().unwrap();
        worker.reap().await;
        let facts = fence.death_facts().await;
        assert_eq!(facts.oom_killed, Some(false));
        assert!(facts.peak.unwrap() > 0);
        fence.sweep().await.unwrap();
        assert!(directories(&fence).is_empty());
        assert!(!fence.contains(child));
    });
}

#[test]
fn b11_b12_an_oom_kill_is_told_from_every_other_kill() {
    let Some(isolation) = cgroup("b11, b12") else { return };
    run(async {
        for round in 0..50 {
            let mut worker = Worker::role();
            let limits = memory(48 * MIB);
            let fence = isolation.enclose(&name("b11"), worker.pid(), &limits).await.unwrap();
            let oom = round % 2 == 0;
            if oom {
                worker.order(&format!("hold {}", 96 * MIB));
            } else {
                worker.does(&format!("hold {}", 8 * MIB)).await;
                rustix::process::kill_process(worker.pid(), rustix::process::Signal::KILL).unwrap();
            }
            assert_eq!(worker.reap().await.signal(), Some(9));
            let facts = fence.death_facts().await;
            assert_eq!(facts.oom_killed, Some(oom), "round {round}");
            let peak = facts.peak.unwrap();
            if oom {
                assert!((47 * MIB..=48 * MIB).contains(&peak), "round {round}: {peak}");
            } else {
                assert!((8 * MIB..40 * MIB).contains(&peak), "round {round}: {peak}");
            }
            fence.sweep().await.unwrap();
        }
    });
}

#[test]
fn the_edge_fires_at_the_line_once() {
    let Some(isolation) = cgroup("edge") else { return };
    run(async {
        let mut worker = Worker::role();
        let fence = isolation.enclose(&name("edge"), worker.pid(), &memory(128 * MIB)).await.unwrap();
        worker.does("hold 1").await;
        let edge = 64 * MIB;
        fence.arm(Some(edge)).await.unwrap();
        let event = worker.grows_watched(30, &fence, edge).await;
        let FenceEvent::Memory(reading) = event else { panic!("{event:?}") };
        assert!((edge..edge + 6 * MIB).contains(&reading.unreclaimable), "{reading:?}");
        assert_eq!(reading.limit, Some(128 * MIB));
        // It is disarmed: growing on is not reported.
        worker.does(&format!("hold {}", 16 * MIB)).await;
        tokio::time::timeout(Duration::from_millis(300), fence.next_event()).await.unwrap_err();
        // Passed already: at once. A higher one: not yet. Lifted: never.
        fence.arm(Some(edge)).await.unwrap();
        assert!(matches!(event_now(&fence).await, FenceEvent::Memory(_)));
        fence.arm(Some(110 * MIB)).await.unwrap();
        tokio::time::timeout(Duration::from_millis(100), fence.next_event()).await.unwrap_err();
        fence.arm(None).await.unwrap();
        worker.does(&format!("hold {}", 28 * MIB)).await;
        tokio::time::timeout(Duration::from_millis(300), fence.next_event()).await.unwrap_err();
        fence.kill().unwrap();
        worker.reap().await;
        fence.sweep().await.unwrap();
    });
}

async fn event_now(fence: &Rc<dyn Fence>) -> FenceEvent {
    tokio::time::timeout(Duration::from_millis(200), fence.next_event()).await.unwrap()
}

#[test]
fn b13_both_edges_are_seen_in_a_leak_at_its_own_pace() {
    let Some(isolation) = cgroup("b13") else { return };
    run(async {
        let (first, second, max) = (96 * MIB, 128 * MIB, 192 * MIB);
        let mut late = Vec::new();
        let mut arming = Vec::new();
        for _ in 0..3 {
            let mut worker = Worker::role();
            let fence = isolation.enclose(&name("b13"), worker.pid(), &memory(max)).await.unwrap();
            worker.does("hold 1").await;
            let start = tokio::time::Instant::now();
            fence.arm(Some(first)).await.unwrap();
            arming.push(start.elapsed());
            worker.order(&format!("leak {}", MIB / 2));
            let mut over = 0;
            for (edge, next) in [(first, Some(second)), (second, None)] {
                let FenceEvent::Memory(reading) = event(&fence).await else { panic!("no warning before the kill") };
                assert!((edge..max).contains(&reading.unreclaimable), "{reading:?}");
                over = over.max(reading.unreclaimable - edge);
                fence.arm(next).await.unwrap();
            }
            late.push(over);
            fence.kill().unwrap();
            worker.reap().await;
            fence.sweep().await.unwrap();
        }
        // 100 MB/s, and a machine that may be busy with other things.
        late.sort_unstable();
        assert!(late[1] < 16 * MIB, "{late:?}");
        // The kernel takes its time to watch; nobody else's worker may wait for that.
        assert!(arming.iter().min().unwrap() < &Duration::from_millis(30), "{arming:?}");
    });
}

#[test]
fn page_cache_does_not_reach_the_edge() {
    let Some(isolation) = cgroup("cache") else { return };
    // A disk, not a tmpfs, which is no cache.
    let file = Path::new("/var/tmp").join(format!("paddock-cache-{}", std::process::id()));
    run(async {
        let mut worker = Worker::role();
        let fence = isolation.enclose(&name("cache"), worker.pid(), &memory(64 * MIB)).await.unwrap();
        let edge = 40 * MIB;
        fence.arm(Some(edge)).await.unwrap();
        worker.does(&format!("cache {}", file.display())).await;
        let now = fence.memory().unwrap();
        assert!(now.current + 4 * MIB > edge, "the cache must reach the edge for this test to say anything: {now:?}");
        assert!(now.unreclaimable < edge, "{now:?}");
        tokio::time::timeout(Duration::from_millis(300), fence.next_event()).await.unwrap_err();
        // The heap pushes the cache out: the usage stays where it is, yet the edge is found.
        let event = worker.grows_watched(12, &fence, edge).await;
        let FenceEvent::Memory(reading) = event else { panic!("{event:?}") };
        assert!((edge..edge + 6 * MIB).contains(&reading.unreclaimable), "{reading:?}");
        fence.kill().unwrap();
        worker.reap().await;
        fence.sweep().await.unwrap();
    });
    std::fs::remove_file(file).unwrap();
}

#[test]
fn an_oom_kill_of_a_child_ends_the_whole_worker() {
    let Some(isolation) = cgroup("child") else { return };
    run(async {
        let mut worker = Worker::role();
        let fence = isolation.enclose(&name("child"), worker.pid(), &memory(48 * MIB)).await.unwrap();
        worker.order(&format!("child {}", 96 * MIB));
        assert_eq!(event(&fence).await, FenceEvent::OomKill);
        assert_eq!(worker.reap().await.signal(), Some(9));
        assert_eq!(fence.death_facts().await.oom_killed, Some(true));
        fence.sweep().await.unwrap();
        assert!(directories(&fence).is_empty());
    });
}

#[test]
fn b29_a_tree_that_forks_all_the_time_is_killed_to_the_last() {
    let Some(isolation) = cgroup("b29") else { return };
    run(async {
        let limits = FenceLimits { tasks_max: Some(300), ..memory(256 * MIB) };
        let script = "setsid sleep 30 & (setsid sh -c 'sleep 30 & sleep 30' &); \
                      echo up; while :; do (sleep 0.05; sleep 30) 2>/dev/null & done 2>/dev/null";
        let mut worker = Worker::script(script);
        let fence = isolation.enclose(&name("b29"), worker.pid(), &limits).await.unwrap();
        worker.order("go");
        worker.says("up").await;
        fence.kill().unwrap();
        assert_eq!(worker.reap().await.signal(), Some(9));
        fence.sweep().await.unwrap();
        assert!(directories(&fence).is_empty());
        // Whoever lived would hold the pipe open.
        worker.is_silent().await;
    });
}

#[test]
fn b29_what_the_first_process_left_is_swept() {
    let Some(isolation) = cgroup("b29, left") else { return };
    run(async {
        let mut worker = Worker::script("(setsid sleep 30 &) ; exit 3");
        let fence = isolation.enclose(&name("left"), worker.pid(), &memory(64 * MIB)).await.unwrap();
        worker.order("go");
        assert_eq!(worker.reap().await.code(), Some(3));
        assert_eq!(fence.death_facts().await.oom_killed, Some(false));
        fence.sweep().await.unwrap();
        assert!(directories(&fence).is_empty());
        worker.is_silent().await;
    });
}

#[test]
fn a_failed_enclosure_leaves_nothing_but_the_gate() {
    let Some(isolation) = cgroup("failed") else { return };
    run(async {
        let mut worker = Worker::script("echo alive");
        let taken = name("failed");
        let fence = isolation.enclose(&taken, worker.pid(), &memory(64 * MIB)).await.unwrap();
        let mut second = Worker::script("echo alive");
        assert!(isolation.enclose(&taken, second.pid(), &memory(64 * MIB)).await.is_err());
        assert!(!fence.contains(second.pid()));
        // A process that is not there: found out after the groups were made.
        let other = name("refused");
        let gone = Pid::from_raw(i32::MAX).unwrap();
        assert!(isolation.enclose(&other, gone, &memory(64 * MIB)).await.is_err());
        // The name is free again, and the second gate still works.
        let fence_2 = isolation.enclose(&other, second.pid(), &memory(64 * MIB)).await.unwrap();
        for (worker, fence) in [(&mut worker, &fence), (&mut second, &fence_2)] {
            worker.order("go");
            worker.says("alive").await;
            assert!(worker.reap().await.success());
            fence.sweep().await.unwrap();
        }
    });
}

#[test]
fn b40_what_a_dead_manager_left_is_found_for_its_own_app_only() {
    let Some(isolation) = cgroup("b40") else { return };
    run(async {
        let (own, other) = (name("left"), name("left-shop"));
        let mut worker = Worker::role();
        drop(isolation.enclose(&own, worker.pid(), &memory(64 * MIB)).await.unwrap());
        let mut empty = Worker::role();
        let empty_name = FenceName { slot: 2, ..own.clone() };
        let emptied = isolation.enclose(&empty_name, empty.pid(), &memory(64 * MIB)).await.unwrap();
        empty.order("exit");
        assert!(empty.reap().await.success());
        assert!(!directories(&emptied).is_empty());

        let next = CgroupIsolation::probe().unwrap();
        assert!(next.leftovers("left").await.unwrap().living.is_empty());
        assert!(next.leftovers(&other.app).await.unwrap().living.is_empty());
        let found = next.leftovers(&own.app).await.unwrap();
        assert!(directories(&emptied).is_empty(), "an empty group is removed");
        let [(dead, facts)] = found.dead.as_slice() else { panic!("{}", found.dead.len()) };
        assert_eq!((dead, facts.oom_killed), (&empty_name, Some(false)), "and says how its worker ended");
        let [left] = found.living.as_slice() else { panic!("{}", found.living.len()) };
        assert_eq!(left.name, own);
        assert!(left.fence.contains(worker.pid()));
        assert_eq!(left.fence.memory().unwrap().limit, Some(64 * MIB));
        left.fence.arm(Some(8 * MIB)).await.unwrap();
        worker.order(&format!("hold {}", 16 * MIB));
        assert!(matches!(event(&left.fence).await, FenceEvent::Memory(_)));
        left.fence.kill().unwrap();
        worker.reap().await;
        left.fence.sweep().await.unwrap();
        assert!(next.leftovers(&own.app).await.unwrap().living.is_empty());
    });
}

#[test]
fn limits_of_a_living_worker_change_as_far_as_it_survives() {
    let Some(isolation) = cgroup("limits") else { return };
    run(async {
        let mut worker = Worker::role();
        let fence = isolation.enclose(&name("limits"), worker.pid(), &memory(64 * MIB)).await.unwrap();
        worker.does(&format!("hold {}", 32 * MIB)).await;
        assert_eq!(fence.set_limits(&memory(96 * MIB)).await.unwrap(), Vec::<String>::new());
        assert_eq!(fence.memory().unwrap().limit, Some(96 * MIB));
        let refused = fence.set_limits(&memory(16 * MIB)).await.unwrap();
        assert!(refused.iter().any(|reason| reason.contains("memory.max")), "{refused:?}");
        assert_eq!(fence.memory().unwrap().limit, Some(96 * MIB));
        worker.does(&format!("hold {}", 32 * MIB)).await;
        fence.kill().unwrap();
        assert_eq!(worker.reap().await.signal(), Some(9));
        assert_eq!(fence.death_facts().await.oom_killed, Some(false));
        fence.sweep().await.unwrap();
    });
}

/// A script as the gate would start it: in a session of its own, marked.
fn unfenced(name: &FenceName, script: &str) -> Worker {
    Worker::spawn(
        Command::new("setsid").args(["sh", "-c", &format!("read go; {script}")]).env(none::MARKER, none::marker(name)),
    )
}

#[test]
fn without_a_fence_descendants_and_the_session_are_inside() {
    run(async {
        let isolation = NoneIsolation::new().unwrap();
        assert_eq!(isolation.mode(), Mode::None);
        let name = name("none");
        let mut worker = unfenced(&name, "sleep 30 & echo $!; wait");
        let fence = isolation.enclose(&name, worker.pid(), &memory(64 * MIB)).await.unwrap();
        let second = FenceName { slot: 2, ..name.clone() };
        let mut other = unfenced(&second, "echo $$; sleep 30");
        let fence_2 = isolation.enclose(&second, other.pid(), &memory(64 * MIB)).await.unwrap();
        worker.order("go");
        other.order("go");
        let child = worker.number().await;
        assert_eq!(other.number().await, other.pid());
        assert!(fence.contains(worker.pid()) && fence.contains(child));
        assert!(!fence.contains(rustix::process::getpid()));
        assert!(!fence.contains(other.pid()) && !fence_2.contains(child));
        fence.kill().unwrap();
        assert_eq!(worker.reap().await.signal(), Some(9));
        assert_eq!(fence.death_facts().await.oom_killed, None);
        fence.sweep().await.unwrap();
        assert!(fence_2.contains(other.pid()), "the other worker lives");
        fence_2.kill().unwrap();
        other.reap().await;
        fence_2.sweep().await.unwrap();
    });
}

#[test]
fn b29_without_a_fence_daemons_are_found_too() {
    run(async {
        let isolation = NoneIsolation::new().unwrap();
        let name = name("daemon");
        let mut worker =
            unfenced(&name, "(env -i sleep 30 &); (setsid sh -c 'sleep 30 & echo $$; wait' &) ; sleep 30 & exit 0");
        let fence = isolation.enclose(&name, worker.pid(), &memory(64 * MIB)).await.unwrap();
        worker.order("go");
        let daemon = worker.number().await;
        assert!(worker.reap().await.success());
        fence.sweep().await.unwrap();
        assert!(rustix::process::test_kill_process(daemon).is_err(), "the daemon is reaped as well");
        // Whoever lived would hold the pipe open.
        worker.is_silent().await;
    });
}

#[test]
fn without_a_fence_memory_is_sampled() {
    run(async {
        let isolation = NoneIsolation::new().unwrap();
        let mut worker = Worker::role();
        let fence = isolation.enclose(&name("sample"), worker.pid(), &memory(64 * MIB)).await.unwrap();
        fence.arm(Some(48 * MIB)).await.unwrap();
        worker.does(&format!("hold {}", 16 * MIB)).await;
        tokio::time::timeout(Duration::from_millis(1500), fence.next_event()).await.unwrap_err();
        worker.does(&format!("hold {}", 40 * MIB)).await;
        let FenceEvent::Memory(reading) = event(&fence).await else { panic!() };
        assert!((56 * MIB..70 * MIB).contains(&reading.unreclaimable), "{reading:?}");
        assert_eq!(fence.memory().unwrap(), reading);
        tokio::time::timeout(Duration::from_millis(1500), fence.next_event()).await.unwrap_err();
        fence.kill().unwrap();
        worker.reap().await;
        fence.sweep().await.unwrap();
    });
}
