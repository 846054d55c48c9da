//! What a manager gives away: files, variables, and obedience.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::as_root;
use crate::support::manager::{App, Manager, run_within};
use crate::support::suite::{Mode, Suite};

/// Debian's and everybody's user that owns nothing.
const NOBODY: u32 = 65_534;

pub(crate) fn register(suite: &mut Suite) {
    suite.add("without_inheritance_a_worker_gets_what_is_configured_and_the_protocol", &[Mode::None], environment);
    as_root(suite, "the_runtime_directory_is_roots_and_a_workers_sockets_are_its_users", modes);
    as_root(suite, "only_root_and_the_named_group_may_talk_to_a_root_manager", control);
}

fn environment(mode: Mode) {
    let mut app = App::new(mode).set("inherit_environment", false).set("environment.ASKED", "1");
    for name in ["SECRET", "LC_ALL", "LD_PRELOAD_X", "HOME", "RUNTIME_DIRECTORY_X", "LANG", "TZ"] {
        app = app.variable(name, "inherited");
    }
    let manager = app.set("timeouts.watchdog", "90s").set("recycle.max_requests", 9_000).start_ready(1);
    let pid = *manager.status().ready_pids().first().unwrap();
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let names: BTreeSet<&str> = text.split_terminator('\0').filter_map(|pair| Some(pair.split_once('=')?.0)).collect();
    let configured = names.iter().filter(|name| name.starts_with("W_")).copied();
    let expected: BTreeSet<&str> = configured
        .chain([
            "ASKED",
            "LANG",
            "LISTEN_FDNAMES",
            "LISTEN_FDS",
            "LISTEN_PID",
            "MEMORY_PRESSURE_WATCH",
            "NOTIFY_SOCKET",
            "PADDOCK_APP",
            "PADDOCK_GENERATION",
            "PADDOCK_MAX_REQUESTS",
            "PADDOCK_SLOT",
            "PADDOCK_WORKER",
            "PATH",
            "TZ",
            "WATCHDOG_PID",
            "WATCHDOG_USEC",
        ])
        .collect();
    assert_eq!(names, expected);
    manager.stop();
}

/// Owner and mode of everything in a directory.
fn listing(directory: &Path) -> BTreeMap<String, (u32, u32)> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let status = fs::symlink_metadata(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), (status.uid(), status.mode() & 0o7777))
        })
        .collect()
}

/// Workers that run as nobody, and need no file of ours for it.
fn sleepers() -> App {
    App::new(Mode::None)
        .set("user", NOBODY.to_string())
        .set("ready", "settle")
        .set("timeouts.settle", "100ms")
        .set("command", vec!["/bin/sleep".to_owned(), "1000".to_owned()])
}

fn modes() {
    let manager = sleepers().start_ready(1);
    let run = manager.app.dir.path().join("run");
    let status = fs::metadata(&run).unwrap();
    assert_eq!((status.uid(), status.mode() & 0o7777), (0, 0o711));
    let ours = (0, 0o600);
    let theirs = (NOBODY, 0o600);
    let expected: BTreeMap<String, (u32, u32)> = [
        ("1.notify", theirs),
        ("1.output", theirs),
        ("1.pressure", theirs),
        ("control", ours),
        ("lock", ours),
        ("performed", ours),
        ("state", ours),
    ]
    .map(|(name, found)| (name.to_owned(), found))
    .into();
    assert_eq!(listing(&run), expected);
    assert!(fs::symlink_metadata(run.join("1.notify")).unwrap().file_type().is_socket());
    manager.stop();
}

/// `paddock status`, by a user of that group.
fn status_as(manager: &Manager, user: u32, group: u32) -> Output {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
    command.arg(manager.app.program()).args(["status", "shop", "--runtime-directory"]);
    command.arg(manager.app.dir.path().join("run"));
    run_within(Duration::from_secs(30), &mut command)
}

fn control() {
    let closed = sleepers().own_program().start_ready(1);
    let refused = status_as(&closed, NOBODY, NOBODY);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(status_as(&closed, 0, 0).status.code(), Some(0));
    closed.stop();
    let open = sleepers().own_program().set("control.group", "12346").start_ready(1);
    let control = fs::symlink_metadata(open.app.dir.path().join("run/control")).unwrap();
    assert_eq!((control.uid(), control.gid(), control.mode() & 0o7777), (0, 12_346, 0o660));
    assert_eq!(status_as(&open, NOBODY, 12_346).status.code(), Some(0));
    assert_eq!(status_as(&open, NOBODY, NOBODY).status.code(), Some(1));
    open.stop();
}
