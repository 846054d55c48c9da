//! The kernel gives no process, no descriptor, no memory.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::support::cgroup;
use crate::support::load::Load;
use crate::support::manager::{App, Manager, SOON};
use crate::support::proc;
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("no_process_can_be_started", EVERYWHERE, no_process);
    suite.add("no_descriptor_is_left", EVERYWHERE, no_descriptor);
    suite.add("no_memory_is_left", EVERYWHERE, no_memory);
}

/// An app whose workers come back fast.
pub(crate) fn app(mode: Mode) -> App {
    App::new(mode)
        .set("workers", 2)
        .set("restart.backoff", "100ms")
        .set("restart.backoff_max", "300ms")
        .worker("direct", 1)
        .worker("count", 0)
}

/// Clients whose every request must be answered whatever happens to the manager.
pub(crate) fn load(manager: &Manager) -> crate::support::load::Running {
    Load { clients: 4, rate: Some(60.0), ..Load::default() }.start(&manager.target())
}

/// Kills one of the two workers while nobody asks it anything, and returns its pid.
pub(crate) fn kill_one(manager: &Manager) -> u32 {
    let victim = *manager.status().ready_pids().first().expect("a worker");
    proc::signal(victim, Signal::KILL);
    manager.log.wait(SOON, "its death", |line| line.is_of("worker-died", victim));
    victim
}

/// A bound on the tasks of one process and of what it starts from now on; lifted when dropped.
struct TaskLimit {
    dir: PathBuf,
    /// Where the process was, if it had to be moved.
    home: Option<(PathBuf, u32)>,
}

impl TaskLimit {
    /// As many tasks as there are now, and none more. None: this machine has no such bound for us.
    fn as_it_is(manager: &Manager, mode: Mode) -> Option<Self> {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let limit = if v1.join("cgroup.procs").exists() {
            let dir = v1.join(manager.app.dir.name());
            fs::create_dir(&dir).ok()?;
            let limit = Self { dir, home: Some((v1.to_owned(), manager.pid())) };
            limit.write("cgroup.procs", &manager.pid().to_string());
            limit
        } else if mode == Mode::Cgroup {
            Self { dir: manager.app.group().memory_dir().to_owned(), home: None }
        } else {
            return None;
        };
        let now = fs::read_to_string(limit.dir.join("pids.current")).ok()?;
        limit.write("pids.max", now.trim());
        Some(limit)
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.dir.join(file);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for TaskLimit {
    fn drop(&mut self) {
        let _ = fs::write(self.dir.join("pids.max"), "max");
        if let Some((home, _)) = &self.home {
            for process in cgroup::processes_in(&self.dir) {
                let _ = fs::write(home.join("cgroup.procs"), process.to_string());
            }
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

fn no_process(mode: Mode) {
    let manager = app(mode).start_ready(2);
    let Some(limit) = TaskLimit::as_it_is(&manager, mode) else {
        let _ = writeln!(std::io::stderr(), "no pids controller here: not tested");
        return;
    };
    let mark = manager.log.mark();
    kill_one(&manager);
    for _ in 0..2 {
        manager.log.wait_after(mark, SOON, "why there is no worker", |line| {
            line.is("start-failed") && line.message().contains("Resource temporarily unavailable")
        });
    }
    let load = load(&manager);
    proc::wait_until(SOON, "answers of the other worker", || load.answered() > 20);
    assert_eq!(manager.status().ready_pids().len(), 1);
    drop(limit);
    manager.wait_ready(2);
    load.stop().assert_none_lost();
    manager.stop();
}

/// Sets a limit of the living manager, and its old one again when dropped.
struct Limited {
    process: Pid,
    resource: Resource,
    before: Rlimit,
}

impl Limited {
    fn to(manager: &Manager, resource: Resource, current: u64) -> Self {
        let process = Pid::from_raw(i32::try_from(manager.pid()).unwrap()).unwrap();
        let read = fs::read_to_string(format!("/proc/{}/limits", manager.pid())).unwrap();
        let maximum = limit_in(&read, resource);
        let before = prlimit(Some(process), resource, Rlimit { current: Some(current), maximum }).expect("prlimit");
        Self { process, resource, before }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = prlimit(Some(self.process), self.resource, self.before);
    }
}

/// The hard limit: it cannot be raised again, so it must stay as it is.
fn limit_in(limits: &str, resource: Resource) -> Option<u64> {
    let name = if resource == Resource::Nofile { "Max open files" } else { "Max address space" };
    let line = limits.lines().find(|line| line.starts_with(name)).expect("the limit");
    line[name.len()..].split_whitespace().nth(1).and_then(|hard| hard.parse().ok())
}

fn no_descriptor(mode: Mode) {
    let manager = app(mode).set("timeouts.watchdog", "2s").start_ready(2);
    let before = manager.status().ready_pids();
    let groups = groups(&manager, mode);
    let limited = Limited::to(&manager, Resource::Nofile, 3);
    let quiet = load(&manager);
    // Three times the watchdog's patience: pings are believed although no file can be opened to look at the sender.
    std::thread::sleep(Duration::from_secs(6));
    for pid in &before {
        assert!(proc::is_alive(*pid), "worker {pid} was shot");
    }
    quiet.stop().assert_none_lost();

    let victim = *before.first().unwrap();
    let mark = manager.log.mark();
    proc::signal(victim, Signal::KILL);
    let died = manager.log.wait_after(mark, SOON, "its death", |line| line.is_of("worker-died", victim));
    assert!(["signal", "unknown"].contains(&died.reason()), "{died}");
    manager.log.wait_after(mark, SOON, "why there is no worker", |line| {
        line.is("start-failed") && line.message().contains("Too many open files")
    });
    let load = load(&manager);
    proc::wait_until(SOON, "answers of the other worker", || load.answered() > 20);
    drop(limited);
    let after = manager.wait_ready(2);
    load.stop().assert_none_lost();
    assert_eq!((&after.ready_pids() & &before).len(), 1, "the other one lives on");
    proc::wait_until(SOON, "nothing stays behind", || {
        worker_files(&manager).len() == 6 && self::groups(&manager, mode) == groups
    });
    manager.stop();
}

/// Files of workers in the runtime directory: three for each.
pub(crate) fn worker_files(manager: &Manager) -> Vec<String> {
    let entries = fs::read_dir(manager.app.dir.path().join("run")).expect("the runtime directory").flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(|first: char| first.is_ascii_digit()))
        .collect()
}

/// How many groups there are below the manager's.
pub(crate) fn groups(manager: &Manager, mode: Mode) -> usize {
    if mode != Mode::Cgroup {
        return 0;
    }
    let directories = manager.app.group().dirs().iter().flat_map(fs::read_dir).flatten().flatten();
    directories.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
}

/// Either the start fails and is tried again, or the manager itself ends and the next one finds everything.
fn no_memory(mode: Mode) {
    let mut manager = app(mode).start_ready(2);
    let before = manager.status().ready_pids();
    let limited = Limited::to(&manager, Resource::As, 1 << 20);
    let load = load(&manager);
    let victim = *before.first().unwrap();
    // The replacement of a worker needs memory for its stack at the latest.
    let mark = manager.log.mark();
    let idle = load.answered();
    proc::wait_until(SOON, "answers", || load.answered() > idle + 5);
    load.stop().assert_none_lost();
    proc::signal(victim, Signal::KILL);
    let failed = manager.log.try_wait_after(mark, Duration::from_secs(2), |line| line.is("start-failed"));
    let load = self::load(&manager);
    let idle = load.answered();
    proc::wait_until(SOON, "answers", || load.answered() > idle + 20);
    drop(limited);
    if manager.try_wait_exit(Duration::ZERO).is_some() {
        manager.start_again();
    } else {
        assert!(failed.is_some(), "memory was there after all");
    }
    let after = manager.wait_ready(2);
    load.stop().assert_none_lost();
    assert_eq!((&after.ready_pids() & &before).len(), 1, "the other one lives on");
    manager.stop();
}
