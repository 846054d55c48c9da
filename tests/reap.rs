//! What a dead manager left is found and stopped, and nothing else.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use paddock::command::reap::find::{Marks, marked};
use paddock::command::reap::{Outcome, stop};
use paddock::control::directory::Surroundings;

fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("reap-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A process group that does not outlive the test, however that ends.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(pid(self)) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// A shell that says on its standard output when it is ready, waited for until then.
fn shell(script: &str, directory: &Path, variable: &str) -> Group {
    shell_with(script, directory, variable, Stdio::null())
}

fn shell_with(script: &str, directory: &Path, variable: &str, stderr: Stdio) -> Group {
    let mut child = Command::new("sh")
        .args(["-c", script])
        .env(variable, directory.join("3.notify"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .process_group(0)
        .spawn()
        .map(Group)
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.0.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn marks(directory: &Path) -> Marks {
    let surroundings = Surroundings { flag: Some(directory.to_path_buf()), root: true, ..Default::default() };
    Marks::of("shop", directory, &surroundings)
}

fn pids(directory: &Path) -> Vec<i32> {
    marked(&marks(directory), &mut BTreeSet::new()).unwrap().iter().map(|process| process.pid).collect()
}

fn pid(child: &Group) -> i32 {
    i32::try_from(child.0.id()).unwrap()
}

#[test]
fn workers_end_when_asked_and_what_they_leave_is_killed() {
    let directory = scratch("ends");
    // The descriptor that the child inherits says when it is gone.
    let (alive, held) = std::io::pipe().unwrap();
    // Its child bears no marks of its own, ignores TERM and outlives it.
    let script = "trap 'exit 7' TERM; (trap '' TERM; exec env -i sh -c 'echo ready; exec sleep 100') & wait";
    let mut polite = shell_with(script, &directory, "NOTIFY_SOCKET", held.into());
    let mut stubborn =
        shell("trap '' TERM; echo ready; while :; do sleep 100; done", &directory, "MEMORY_PRESSURE_WATCH");
    // Another app's directory, whose name begins alike; and a variable of another name.
    let mut stranger = shell("echo ready; exec sleep 100", &directory.join("x"), "NOTIFY_SOCKET");
    let mut other = shell("echo ready; exec sleep 100", &directory, "SOMETHING_SOCKET");
    let before = pids(&directory);
    assert!(before.contains(&pid(&polite)) && before.contains(&pid(&stubborn)), "{before:?}");
    assert!(!before.contains(&pid(&stranger)) && !before.contains(&pid(&other)), "{before:?}");
    // The two and the sleeping child of the first; the second's may not be there yet.
    assert!((3..=4).contains(&before.len()), "{before:?}");
    let outcome = stop(&marks(&directory), Duration::from_millis(500)).unwrap();
    assert_eq!(outcome.ended, 1, "{outcome:?}");
    assert!(outcome.killed >= 2 && outcome.stuck.is_empty(), "{outcome:?}");
    assert_eq!(polite.0.wait().unwrap().code(), Some(7), "it was asked, not killed");
    assert_eq!(stubborn.0.wait().unwrap().signal(), Some(9));
    assert_eq!(pids(&directory), Vec::<i32>::new());
    let mut fds = [rustix::event::PollFd::new(&alive, rustix::event::PollFlags::empty())];
    assert_eq!(rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(1), "its child lives on");
    for child in [&mut stranger, &mut other] {
        assert_eq!(child.0.try_wait().unwrap(), None, "a stranger was stopped");
    }
}

#[test]
fn an_open_file_gives_away_who_overwrote_its_environment() {
    let directory = scratch("file");
    let output = directory.join("4.output");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &output,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let fifo = std::fs::OpenOptions::new().read(true).write(true).custom_flags(0).open(&output).unwrap();
    let mut worker = Command::new("sleep")
        .arg("100")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(fifo)
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map(Group)
        .unwrap();
    assert_eq!(pids(&directory), [pid(&worker)]);
    let outcome = stop(&marks(&directory), Duration::from_secs(20)).unwrap();
    assert_eq!(outcome, Outcome { ended: 1, killed: 0, stuck: Vec::new() });
    assert_eq!(worker.0.wait().unwrap().signal(), Some(15));
}

#[test]
fn with_nothing_left_there_is_nothing_to_do() {
    let directory = scratch("nothing");
    assert_eq!(stop(&marks(&directory), Duration::from_secs(20)).unwrap(), Outcome::default());
}
