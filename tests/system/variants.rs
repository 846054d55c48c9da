//! The other ways to run it: below a user's own systemd, and without root in a delegated group.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::adoption::{crash, main_pid, slowly};
use crate::service::{
    PATIENCE, install, is_ready, property, shipped_unit, systemctl, systemctl_ok, unique_name, wait_status,
};
use crate::shutdown::session_ends;
use crate::support::cgroup;
use crate::support::http::{self, Target};
use crate::support::load::Load;
use crate::support::manager::{App, Dir, run_within};
use crate::support::proc::{self, Process};
use crate::support::status::Status;
use crate::support::suite::{Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.system("x_systemd_user_mode", user_mode);
    suite.system("x_delegated_group_without_root", delegated);
    // DelegateSubgroup= (systemd.resource-control(5)).
    suite.system_since(254, "b27_delegated_workers_outlive_a_crash", delegated_adoption);
}

/// The user for whom this runs; the lab's guests have it.
const USER: &str = "lab";

fn id_of(user: &str) -> (u32, u32, PathBuf) {
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user));
    let fields: Vec<&str> = line.unwrap_or_else(|| panic!("no user {user} here")).split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap(), PathBuf::from(fields[5]))
}

/// A file or directory that belongs to the user.
fn give(path: &Path, uid: u32, gid: u32) {
    chown(path, Some(uid), Some(gid)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn write_for(path: &Path, text: &str, uid: u32, gid: u32, home: &Path) {
    let parent = path.parent().expect("a directory");
    fs::create_dir_all(parent).expect("a directory");
    for above in parent.ancestors().take_while(|above| above.starts_with(home) && *above != home) {
        give(above, uid, gid);
    }
    fs::write(path, text).expect("a file");
    give(path, uid, gid);
}

fn app_of_user(mode: Mode, uid: u32, gid: u32) -> App {
    let mut app =
        App::new_in(Mode::Scope, Dir::create_in(Path::new("/run"))).sockets(Vec::new()).named(&unique_name("u"));
    give(app.dir.path(), uid, gid);
    app.put("isolation", mode.key());
    app.put("log.format", "auto");
    app.put("timeouts.start", "100s");
    app.put("environment.W_DIRECT", "1");
    app.put("memory.max", "64M");
    app.put("memory.recycle_at", "90%");
    app
}

/// An app under the user's own systemd, with the shipped units.
pub(crate) struct UserService {
    app: App,
    unit: String,
    runtime: PathBuf,
    home: PathBuf,
    uid: u32,
}

impl UserService {
    /// Two ready workers. A unit that needs it, and takes four seconds to stop, is there as well.
    pub(crate) fn start() -> Self {
        let (uid, gid, home) = id_of(USER);
        systemctl_ok(&["start", &format!("user@{uid}.service")]);
        let app = app_of_user(Mode::Scope, uid, gid).set("workers", 2);
        let units = home.join(".config/systemd/user");
        for unit in ["paddock@.service", "paddock@.socket"] {
            write_for(&units.join(unit), &shipped_unit(&format!("user/{unit}")), uid, gid, &home);
        }
        let unit = format!("paddock@{}.service", app.name);
        let needs = format!(
            "[Unit]\nAfter={unit}\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecStop=/bin/sleep 4\n"
        );
        write_for(&units.join("needs-paddock.service"), &needs, uid, gid, &home);
        let service = Self { unit, runtime: PathBuf::from(format!("/run/user/{uid}")), home, uid, app };
        write_for(&service.config(), &service.app.config_text(), uid, gid, &service.home);
        Self::systemctl(&["daemon-reload"]);
        Self::systemctl(&["start", &service.unit]);
        Self::systemctl(&["start", "needs-paddock.service"]);
        wait_status(&service.control(), "two ready workers", is_ready(2));
        service
    }

    /// `systemctl --user`; its output.
    #[track_caller]
    fn systemctl(arguments: &[&str]) -> String {
        let mut command = Command::new("systemctl");
        command.arg("--user").arg(format!("--machine={USER}@")).args(arguments);
        let output = run_within(PATIENCE, &mut command);
        assert!(output.status.success(), "systemctl --user {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As at the last log-out.
    pub(crate) fn end_session(&self) {
        systemctl_ok(&["stop", &format!("user@{}.service", self.uid)]);
    }

    fn config(&self) -> PathBuf {
        self.home.join(format!(".config/paddock/{}.toml", self.app.name))
    }

    fn control(&self) -> PathBuf {
        self.runtime.join("paddock").join(&self.app.name).join("control")
    }

    pub(crate) fn name(&self) -> &str {
        &self.app.name
    }

    pub(crate) fn main_pid(&self) -> u32 {
        Self::systemctl(&["show", "--value", "--property=MainPID", &self.unit]).trim().parse().unwrap_or(0)
    }

    pub(crate) fn try_status(&self) -> Option<Status> {
        Status::ask(&self.control()).ok()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        self.try_status().expect("a status")
    }

    /// One worker's own socket.
    pub(crate) fn direct(&self, pid: u32) -> Target {
        Target::Unix(self.app.dir.path().join(format!("direct-{pid}.sock")))
    }
}

impl Drop for UserService {
    fn drop(&mut self) {
        self.end_session();
        let _ = fs::remove_file(self.config());
    }
}

fn user_mode() {
    let service = UserService::start();
    let status = service.status();
    assert_eq!(status.isolation(), "scope");
    for pid in status.ready_pids() {
        let group = cgroup::memory_group_of(pid).expect("a group");
        assert!(group.to_string_lossy().ends_with(".scope"), "{}", group.display());
        assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap().trim(), (64 << 20).to_string());
    }
    UserService::systemctl(&["reload", &service.unit]);
    let after = wait_status(&service.control(), "the roll is over", is_ready(2));
    assert!(after.ready_pids().is_disjoint(&status.ready_pids()));
    session_ends(&service, 4);
}

/// An app for the shipped delegated unit, whose instances are named after their user, and its socket and service.
fn delegated_app() -> (App, PathBuf, [String; 2]) {
    install();
    let (uid, gid, _) = id_of(USER);
    let app = app_of_user(Mode::Cgroup, uid, gid).named(USER).set("workers", 2);
    fs::create_dir_all("/etc/paddock").expect("a directory for configurations");
    let config = PathBuf::from(format!("/etc/paddock/{USER}.toml"));
    fs::write(&config, app.config_text()).expect("the configuration is written");
    (app, config, ["socket", "service"].map(|kind| format!("paddock-delegated@{USER}.{kind}")))
}

/// With the shipped drop-in the manager has a leaf of its own, and systemd starts it again beside living workers.
fn delegated_adoption() {
    let (_app, config, [socket, unit]) = delegated_app();
    let directory = PathBuf::from("/run/systemd/system/paddock-delegated@.service.d");
    fs::create_dir_all(&directory).expect("a directory for it");
    fs::write(directory.join("delegated-254.conf"), shipped_unit("drop-ins/delegated-254.conf")).expect("a drop-in");
    systemctl_ok(&["daemon-reload"]);
    systemctl_ok(&["start", &socket]);
    systemctl_ok(&["start", &unit]);
    let control = PathBuf::from(format!("/run/paddock/{USER}/control"));
    let before = wait_status(&control, "two ready workers", is_ready(2));
    assert_eq!(before.isolation(), "cgroup");
    let load = Load { clients: 4, rate: Some(5.0), patience: PATIENCE, ..Load::default() };
    let load = load.start(&Target::Unix(PathBuf::from(format!("/run/paddock-{USER}.sock"))));
    for number in 1..=2 {
        crash(&unit);
        let after = wait_status(&control, "two ready workers again", is_ready(2));
        assert_eq!(after.ready_by_slot(), before.ready_by_slot(), "crash {number}");
        let until = load.answered() + 5;
        proc::wait_until(PATIENCE, "answers", || load.answered() >= until);
    }
    systemctl_ok(&["reload", &unit]);
    let last = wait_status(&control, "the roll is over", is_ready(2)).ready_pids();
    assert!(last.is_disjoint(&before.ready_pids()));
    load.stop().assert_none_lost();
    systemctl_ok(&["stop", &unit]);
    assert_eq!(property(&unit, "Result"), "success");
    assert!(last.iter().all(|pid| !proc::is_alive(*pid)), "workers left behind");
    // Where no next manager comes, workers are drained.
    systemctl_ok(&["start", &unit]);
    let last = wait_status(&control, "two ready workers", is_ready(2)).ready_pids();
    let never = PathBuf::from(format!("/run/systemd/system/{unit}.d/never.conf"));
    fs::create_dir_all(never.parent().expect("its directory")).expect("a directory for it");
    fs::write(&never, "[Service]\nRestart=no\n").expect("a drop-in");
    systemctl_ok(&["daemon-reload"]);
    let manager = Process::open(main_pid(&unit)).expect("the manager");
    manager.signal(Signal::KILL);
    assert!(manager.wait_gone(PATIENCE));
    slowly(|| last.iter().all(|pid| !proc::is_alive(*pid)));
    slowly(|| property(&format!("paddock-delegated-reap@{USER}.service"), "ActiveState") == "inactive");
    let _removed = fs::remove_file(never).and_then(|()| fs::remove_dir_all(directory)).and(fs::remove_file(config));
    systemctl_ok(&["stop", &socket]);
    systemctl_ok(&["daemon-reload"]);
    let _reset = systemctl(&["reset-failed", &unit]);
}

/// The kernel's record of who was moved into which group. A birth inside one is no move (`cgroup_attach_task`,
/// include/trace/events/cgroup.h).
struct Moves(PathBuf);

impl Moves {
    fn record() -> Self {
        let tracing = Path::new("/sys/kernel/tracing");
        if !tracing.join("instances").exists() {
            let mount = run_within(PATIENCE, Command::new("mount").args(["-t", "tracefs", "tracefs"]).arg(tracing));
            assert!(mount.status.success(), "{mount:?}");
        }
        let moves = Self(tracing.join("instances").join(unique_name("paddock")));
        fs::create_dir(&moves.0).expect("an instance of the kernel's tracing");
        fs::write(moves.0.join("events/cgroup/cgroup_attach_task/enable"), "1").expect("it is switched on");
        moves
    }

    /// One line each, with `dst_path=` and `comm=`.
    fn so_far(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("trace")).expect("the record");
        text.lines().filter(|line| line.contains("cgroup_attach_task:")).map(str::to_owned).collect()
    }
}

impl Drop for Moves {
    fn drop(&mut self) {
        let _removed = fs::remove_dir(&self.0);
    }
}

/// The shipped delegated unit: groups below the service's own, no D-Bus, no root. Workers are born in their groups.
fn delegated() {
    let (app, config, [socket, unit]) = &delegated_app();
    let moves = Moves::record();
    systemctl_ok(&["start", socket]);
    systemctl_ok(&["start", unit]);
    let control = PathBuf::from(format!("/run/paddock/{USER}/control"));
    let status = wait_status(&control, "two ready workers", is_ready(2));
    assert_eq!(status.isolation(), "cgroup");
    let victim = *status.ready_pids().first().unwrap();
    let group = cgroup::memory_group_of(victim).expect("a group");
    assert!(group.to_string_lossy().contains(unit), "below the service's own group: {}", group.display());
    assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap().trim(), (64 << 20).to_string());
    let direct = Target::Unix(app.dir.path().join(format!("direct-{victim}.sock")));
    let _lost = http::get_within(&direct, "/leak?mb=128", PATIENCE);
    let status = wait_status(&control, "an OOM kill with its name", |status| status.restarts("oom-kill") == 1);
    assert_eq!(status.restarts("signal"), 0);
    let before = wait_status(&control, "two ready workers again", is_ready(2)).ready_pids();
    systemctl_ok(&["reload", unit]);
    assert!(wait_status(&control, "the roll is over", is_ready(2)).ready_pids().is_disjoint(&before));
    let moves = moves.so_far();
    let into = |group: &str| moves.iter().filter(|line| line.contains(&format!("{unit}/{group}"))).count();
    assert_eq!(into("manager"), 1, "the manager moved itself, and the kernel says so: {moves:#?}");
    assert_eq!(into("paddock-"), 0, "workers were moved: {moves:#?}");
    systemctl_ok(&["stop", unit, socket]);
    let _removed = fs::remove_file(config);
}
