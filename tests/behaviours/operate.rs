//! B30, B31, B34, B39, B40 and the environment of a worker: what operators and neighbours see.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::http::{self, Target};
use crate::support::load::Load;
use crate::support::manager::{App, SOON, Socket, paddock, run_within};
use crate::support::pace;
use crate::support::proc;
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("b30_an_idle_manager_sleeps", EVERYWHERE, b30_idle);
    suite.add("b31_scaling", EVERYWHERE, b31_scale);
    suite.add("b34_forged_messages", EVERYWHERE, b34_forged);
    suite.add("b39_check_beside_a_live_manager", EVERYWHERE, b39_check);
    suite.add("b39_check_says_what_is_wrong", &[Mode::None], b39_check_fails);
    suite.add("b40_names_that_begin_alike", EVERYWHERE, b40_names);
    suite.add("x_environment_of_a_worker", EVERYWHERE, environment);
    suite.add("x_workers_of_another_user", EVERYWHERE, another_user);
    suite.add("x_a_second_manager_is_refused", &[Mode::None], second_manager);
    suite.add("x_signals_and_stop_by_command", &[Mode::None], commands);
}

fn b30_idle(mode: Mode) {
    let mut app = App::new(mode).set("workers", 8);
    if mode.has_fence() {
        app.put("memory.max", "64M");
    }
    let manager = app.start_ready(8);
    // Whatever follows a start (first counts, spread timers) is over when the manager has slept for a second.
    let mut last = switches(manager.pid());
    proc::wait_until(SOON, "the manager comes to rest", || {
        std::thread::sleep(Duration::from_secs(1));
        let now = switches(manager.pid());
        let rests = now == last;
        last = now;
        rests
    });
    std::thread::sleep(Duration::from_mins(1));
    let after = switches(manager.pid());
    let woken: u64 = after.iter().map(|(thread, count)| count - last.get(thread).unwrap_or(&0)).sum();
    assert!(woken <= 2, "{woken} voluntary context switches in 60 idle seconds");
    manager.stop();
}

/// Voluntary context switches of each thread; a thread that the runtime lends out may be gone the next time.
fn switches(pid: u32) -> BTreeMap<OsString, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let count_of =
        |text: String| text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok());
    threads
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("status")).ok()?;
            Some((thread.file_name(), count_of(text)?))
        })
        .collect()
}

fn b31_scale(mode: Mode) {
    let manager = App::new(mode).set("workers", 2).start_ready(2);
    let first = manager.status().ready_pids();
    manager.signal(Signal::TTIN);
    let three = manager.wait_ready(3).ready_pids();
    assert!(first.is_subset(&three), "the others stay");

    let load = Load { clients: 4, rate: Some(pace::rate(50.0)), ..Load::default() }.start(&manager.target());
    manager.signal(Signal::TTOU);
    let two = manager.wait_ready(2).ready_pids();
    let drained = &three - &two;
    assert!(drained.is_subset(&first), "one of the oldest was drained, not the newest");
    let pid = *drained.first().expect("one");
    let line = manager.log.wait(SOON, "its drain", |line| line.is_of("drain-started", pid));
    assert_eq!(line.reason(), "scale", "{line}");

    assert_eq!(manager.cli("scale", &["4"]).status.code(), Some(0));
    manager.wait_ready(4);
    assert_eq!(manager.cli("scale", &["1"]).status.code(), Some(0));
    let one = manager.wait_ready(1).ready_pids();
    load.stop().assert_none_lost();

    manager.signal(Signal::TTOU);
    assert_eq!(manager.cli("scale", &["0"]).status.code(), Some(2));
    assert_eq!(manager.status().ready_pids(), one, "never below 1");
    manager.stop();
}

fn b34_forged(mode: Mode) {
    let manager = App::new(mode).worker("direct", 1).start_ready(1);
    let pid = *manager.status().ready_pids().first().unwrap();
    let facts = manager.ask(pid, "/facts").body;
    let socket = facts["env"]["NOTIFY_SOCKET"].as_str().expect("a notify socket").to_owned();
    let forger = UnixDatagram::unbound().unwrap();
    for _ in 0..3 {
        forger.send_to(b"X_PADDOCK_RECYCLE=1", &socket).expect("the forged message is sent");
    }
    // What the worker itself says afterwards comes out of the same queue, so the forged ones have been judged by then.
    manager.ask(pid, "/notify?text=STATUS=genuine");
    manager.wait_status(SOON, "the genuine message", |status| {
        status.workers().iter().any(|worker| worker.0["status_text"] == "genuine")
    });
    let us = format!("process {}", std::process::id());
    // The log and the status come to this process by different ways.
    manager.log.wait(SOON, "the stranger is named", |line| line.message().contains(&us));
    assert_eq!(manager.log.count(|line| line.is("recycle-due")), 0, "the forged message was obeyed");
    assert_eq!(manager.log.count(|line| line.message().contains(&us)), 1, "logged once, with the sender's pid");

    manager.ask(pid, "/notify?text=X_PADDOCK_RECYCLE=1");
    manager.log.wait(SOON, "the genuine one is obeyed", |line| line.is_of("worker-died", pid));
    manager.wait_ready(1);
    manager.stop();
}

/// An app that binds its sockets itself, since only those are in the file.
fn self_bound(mode: Mode) -> App {
    let app = App::new(mode).sockets(Vec::new());
    let free = Socket::tcp();
    let Target::Tcp(address) = free.target() else { panic!("a TCP socket") };
    drop(free);
    let path = app.dir.path().join("own.sock");
    app.set("listen.bind", vec![address.to_string(), format!("unix:{}", path.display())])
        .set("listen.names", vec!["http".to_owned(), "admin".to_owned()])
}

fn check(app: &App) -> std::process::Output {
    let mut command = Command::new(paddock());
    command.arg("check").arg(app.config_path());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    run_within(Duration::from_mins(1), &mut command)
}

fn b39_check(mode: Mode) {
    let app = self_bound(mode).worker("record", "1").set("workers", 2);
    let target = Target::Unix(app.dir.path().join("own.sock"));
    let manager = app.start_ready(2);
    let (before, lines) = (manager.status().ready_pids(), manager.log.mark());
    let load = Load { clients: 4, rate: Some(pace::rate(50.0)), ..Load::default() }.start(&target);
    let output = check(&manager.app);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = load.stop();
    report.assert_none_lost();
    assert!(report.pids().is_subset(&before), "a request was answered by the checked worker");
    assert_eq!(manager.status().ready_pids(), before);
    assert_eq!(manager.log.mark(), lines, "the live manager noticed: {}", manager.log.text());

    let records = fs::read_to_string(manager.app.dir.path().join("records")).unwrap();
    let records: Vec<serde_json::Value> = records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [live, _, checked] = records.as_slice() else { panic!("{} workers started", records.len()) };
    for key in ["LISTEN_FDS", "LISTEN_FDNAMES"] {
        assert_eq!(live["env"][key], checked["env"][key], "the same sockets");
    }
    for fd in ["3", "4"] {
        assert_ne!(live["fds"][fd], checked["fds"][fd], "stand-ins");
    }
    manager.stop();
}

fn b39_check_fails(mode: Mode) {
    let app = self_bound(mode);
    app.write_config();
    fs::write(app.switch_path(), "refuse=3\n").unwrap();
    let output = check(&app);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("the code on disk is broken"), "{output:?}");

    fs::write(app.config_path(), "workers = 0\ncolour = 1\n").unwrap();
    let output = check(&app);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("1:") && said.contains("2:") && said.contains("colour"), "all errors at once: {said}");
}

fn b40_names(mode: Mode) {
    let long = App::new(mode).named("my-shop").set("workers", 2).start_ready(2);
    let short = App::new(mode).named("my").beside(&long).set("workers", 2).start_ready(2);
    let (of_long, of_short) = (long.status().ready_pids(), short.status().ready_pids());
    assert!(of_long.is_disjoint(&of_short) && of_long.len() == 2 && of_short.len() == 2);
    short.stop();
    assert_eq!(long.wait_ready(2).ready_pids(), of_long, "stopping `my` touched `my-shop`");
    let again = App::new(mode).named("my").beside(&long).set("workers", 2).start_ready(2);
    let of_again = again.status().ready_pids();
    let mut long = long;
    long.signal(Signal::TERM);
    assert_eq!(long.wait_exit(SOON).code(), Some(0));
    assert_eq!(again.wait_ready(2).ready_pids(), of_again, "stopping `my-shop` touched `my`");
    again.stop();
}

fn environment(mode: Mode) {
    let mut app = App::new(mode).worker("direct", 1).set("umask", "0027").set("environment.ONLY_HERE", "1");
    for (key, value) in [
        ("WATCHDOG_USEC", "90000000"),
        ("FDSTORE", "9"),
        ("INVOCATION_ID", "00112233445566778899aabbccddeeff"),
        ("JOURNAL_STREAM", "1:1"),
        ("MEMORY_PRESSURE_WRITE", "c29tZQ=="),
        ("SYSTEMD_EXEC_PID", "1"),
        ("MANAGERPID", "1"),
        ("CREDENTIALS_DIRECTORY", "/nowhere"),
        ("LISTEN_PIDFDID", "1"),
        ("INHERITED", "yes"),
    ] {
        app = app.variable(key, value);
    }
    let directory = app.dir.path().to_owned();
    let manager = app.set("working_directory", directory.display().to_string()).start_ready(1);
    let pid = *manager.status().ready_pids().first().unwrap();
    let facts = manager.ask(pid, "/facts").body;
    let env = &facts["env"];
    for key in [
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "FDSTORE",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "MEMORY_PRESSURE_WRITE",
        "SYSTEMD_EXEC_PID",
        "MANAGERPID",
        "CREDENTIALS_DIRECTORY",
        "LISTEN_PIDFDID",
    ] {
        assert!(env[key].is_null(), "{key} leaks into the worker: {}", env[key]);
    }
    assert_ne!(env["NOTIFY_SOCKET"].as_str(), manager.notify.path().to_str(), "the service's own notify socket");
    for (key, value) in [("INHERITED", "yes"), ("ONLY_HERE", "1"), ("PADDOCK_APP", "shop"), ("PADDOCK_SLOT", "0")] {
        assert_eq!(env[key], value, "{key}");
    }
    assert_eq!(env["PADDOCK_GENERATION"], "1");
    assert_eq!(facts["cwd"], directory.display().to_string());
    assert_eq!(facts["status"]["Umask"], "0027");
    assert_eq!(facts["oom_score_adj"], "0");
    assert_eq!(facts["status"]["SigBlk"], "0000000000000000", "signals are blocked in the worker");
    manager.stop();

    let manager = App::new(mode).worker("direct", 1).set("inherit_environment", false).variable("INHERITED", "yes");
    let manager = manager.start_ready(1);
    let pid = *manager.status().ready_pids().first().unwrap();
    assert!(manager.ask(pid, "/facts").body["env"]["INHERITED"].is_null());
    manager.stop();
}

/// The manager stays root, its workers are not, with the user's own groups and home.
fn another_user(mode: Mode) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let app = App::new(mode).set("user", "nobody");
    let program = app.dir.path().join("worker");
    fs::copy(std::env::current_exe().expect("this program"), &program).expect("a program that everybody may run");
    let command = vec![program.display().to_string(), "--worker".to_owned()];
    let manager = app.set("command", command).start_ready(1);
    let facts = http::get(&manager.target(), "/facts").expect("an answer").body;
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let nobody = passwd.lines().find(|line| line.starts_with("nobody:")).expect("nobody");
    let fields: Vec<&str> = nobody.split(':').collect();
    let four = |id: &str| [id; 4].join("\t");
    assert_eq!(facts["status"]["Uid"], four(fields[2]));
    assert_eq!(facts["status"]["Gid"], four(fields[3]));
    assert_eq!((&facts["env"]["USER"], &facts["env"]["HOME"]), (&fields[0].into(), &fields[5].into()));
    let uid_of_manager = proc::field(manager.pid(), "Uid").expect("the manager's user");
    assert!(uid_of_manager.starts_with('0'), "{uid_of_manager}");
    manager.stop();
}

fn second_manager(mode: Mode) {
    let manager = App::new(mode).start_ready(1);
    let before = manager.status().ready_pids();
    let mut command = Command::new(paddock());
    command.arg("run").arg(manager.app.config_path());
    command.arg("--runtime-directory").arg(manager.app.dir.path().join("run"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let output = run_within(SOON, &mut command);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("shop"), "{output:?}");
    assert_eq!(manager.status().ready_pids(), before);
    http::get(&manager.target(), "/").expect("an answer");
    manager.stop();
}

fn commands(mode: Mode) {
    let mut manager = App::new(mode).set("workers", 2).worker("direct", 1).start_ready(2);
    let by_slot = manager.status().ready_by_slot();
    assert_eq!(manager.cli("signal", &["USR1", "1"]).status.code(), Some(0));
    proc::wait_until(SOON, "the signal arrives", || {
        manager.ask(by_slot[&1], "/facts").body["signals"] == serde_json::json!(["SIGUSR1"])
    });
    assert_eq!(manager.ask(by_slot[&0], "/facts").body["signals"], serde_json::json!([]));
    assert_eq!(manager.cli("recycle", &["7"]).status.code(), Some(1), "an unknown slot");
    let mark = manager.log.mark();
    manager.signal(Signal::USR1);
    for pid in by_slot.values() {
        manager.log.wait_after(mark, SOON, "the status in the log", |line| line.text.contains(&pid.to_string()));
    }
    assert_eq!(manager.cli("stop", &[]).status.code(), Some(0));
    assert_eq!(manager.wait_exit(SOON).code(), Some(0));
    manager.assert_nothing_left();
    assert_eq!(manager.cli("status", &[]).status.code(), Some(3), "no such app is running");
}
