//! An app as a systemd service: unit files, configuration, `systemctl`, journal.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::http::{self, Reply, Target};
use crate::support::log::Log;
use crate::support::manager::{App, Dir, SOON, paddock, run_within};
use crate::support::pace::patient;
use crate::support::proc;
use crate::support::status::Status;
use crate::support::suite::Mode;

/// The bound of every wait; whoever waits stretches it for slow machines.
pub(crate) const PATIENCE: Duration = SOON;

/// Where the units come from.
fn shipped_units() -> PathBuf {
    std::env::var_os("PADDOCK_UNITS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/units")), PathBuf::from)
}

/// A shipped unit's text, with the program under test in place of the installed one.
pub(crate) fn shipped_unit(name: &str) -> String {
    let path = shipped_units().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // An emulated processor that has to share its host's can keep a process waiting for longer than the shipped half minute.
    let text = text.replace("WatchdogSec=30\n", "WatchdogSec=3min\n");
    text.replace("/usr/bin/paddock", paddock().to_str().expect("a path"))
}

/// Puts the shipped system units in place, once for this process.
pub(crate) fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let target = Path::new("/run/systemd/system");
        fs::create_dir_all(target).expect("a directory for units");
        for folder in ["", "delegated/"] {
            for entry in fs::read_dir(shipped_units().join(folder)).expect("the shipped units").flatten() {
                let name = entry.file_name().into_string().expect("a unit's name");
                if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                    fs::write(target.join(&name), shipped_unit(&format!("{folder}{name}"))).expect("it is installed");
                }
            }
        }
        systemctl_ok(&["daemon-reload"]);
    });
}

/// `systemctl`, whatever comes of it.
pub(crate) fn systemctl(arguments: &[&str]) -> Output {
    run_within(PATIENCE, Command::new("systemctl").arg("--no-pager").args(arguments))
}

/// `systemctl`, which must succeed; its output.
#[track_caller]
pub(crate) fn systemctl_ok(arguments: &[&str]) -> String {
    let output = systemctl(arguments);
    assert!(output.status.success(), "systemctl {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The number of systemd's release.
#[track_caller]
pub(crate) fn systemd_version() -> u32 {
    let said = systemctl_ok(&["--version"]);
    said.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no version: {said}"))
}

/// A property of a unit.
#[track_caller]
pub(crate) fn property(unit: &str, name: &str) -> String {
    systemctl_ok(&["show", "--value", &format!("--property={name}"), unit]).trim().to_owned()
}

/// `-` written as unit names need it inside one component.
pub(crate) fn escape(name: &str) -> String {
    name.replace('-', "\\x2d")
}

/// A name that no test before had.
pub(crate) fn unique_name(prefix: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}n{}", std::process::id(), NUMBER.fetch_add(1, SeqCst))
}

/// An app for the shipped units: their socket, the journal, files outside `/tmp`.
pub(crate) fn app() -> App {
    app_named(&unique_name("t"))
}

/// As [`app`], with a name.
pub(crate) fn app_named(name: &str) -> App {
    let mut app = App::new_in(Mode::Scope, Dir::create_in(Path::new("/run"))).sockets(Vec::new()).named(name);
    app.put("isolation", "auto");
    app.put("log.format", "auto");
    app.put("timeouts.start", "100s");
    app.put("environment.W_DIRECT", "1");
    app
}

/// An installed app.
pub(crate) struct Service {
    pub(crate) app: App,
    pub(crate) unit: String,
    socket_unit: String,
    /// Whether systemd was asked to hold the app's socket.
    holds_socket: Cell<bool>,
    /// The journal's entries of this app, as they come.
    pub(crate) log: Log,
    journal: Child,
}

impl Service {
    /// Installs an app for `paddock@.service` and `paddock@.socket`; nothing is started.
    pub(crate) fn install(app: App) -> Self {
        install();
        fs::create_dir_all("/etc/paddock").expect("a directory for configurations");
        let service = Self {
            unit: format!("paddock@{}.service", app.name),
            socket_unit: format!("paddock@{}.socket", app.name),
            holds_socket: Cell::new(false),
            log: Log::default(),
            journal: follow_journal(&app.name),
            app,
        };
        let mut service = service;
        service.log.collect(service.journal.stdout.take().expect("the journal"));
        service.write_config();
        service
    }

    /// Installs and starts it; `systemctl start` returns once the service is ready.
    #[track_caller]
    pub(crate) fn start(app: App, workers: usize) -> Self {
        let service = Self::install(app);
        service.start_with_socket(workers);
        service
    }

    /// Starts what is installed: the socket, then the service.
    #[track_caller]
    pub(crate) fn start_with_socket(&self, workers: usize) {
        systemctl_ok(&["start", &self.socket_unit]);
        self.holds_socket.set(true);
        self.start_service();
        self.wait_ready(workers);
    }

    /// `systemctl start` of the service; what failed is shown.
    #[track_caller]
    pub(crate) fn start_service(&self) {
        let output = systemctl(&["start", &self.unit]);
        assert!(output.status.success(), "{output:?}\n{}", self.log.text());
    }

    /// Writes the configuration as it stands.
    pub(crate) fn write_config(&self) {
        fs::write(self.config_path(), self.app.config_text()).expect("the configuration is written");
    }

    /// `/etc/paddock/APP.toml`.
    pub(crate) fn config_path(&self) -> PathBuf {
        PathBuf::from(format!("/etc/paddock/{}.toml", self.app.name))
    }

    /// Adds to the unit for as long as the value lives.
    #[track_caller]
    pub(crate) fn drop_in(&self, name: &str, text: &str) -> DropIn {
        let directory = PathBuf::from(format!("/run/systemd/system/{}.d", self.unit));
        fs::create_dir_all(&directory).expect("a directory for it");
        let drop_in = DropIn(directory.join(name));
        fs::write(&drop_in.0, text).expect("it is written");
        systemctl_ok(&["daemon-reload"]);
        drop_in
    }

    /// The path of the socket that systemd holds.
    pub(crate) fn socket_path(&self) -> PathBuf {
        PathBuf::from(format!("/run/paddock-{}.sock", self.app.name))
    }

    /// The socket that systemd holds.
    pub(crate) fn target(&self) -> Target {
        Target::Unix(self.socket_path())
    }

    /// The app's slice.
    pub(crate) fn slice(&self) -> String {
        format!("paddock-{}.slice", escape(&self.app.name))
    }

    /// One worker's own socket.
    pub(crate) fn direct(&self, pid: u32) -> Target {
        Target::Unix(self.app.dir.path().join(format!("direct-{pid}.sock")))
    }

    /// Asks one worker.
    #[track_caller]
    pub(crate) fn ask(&self, pid: u32, path: &str) -> Reply {
        http::get(&self.direct(pid), path).unwrap_or_else(|failure| panic!("{path} of {pid}: {failure}"))
    }

    /// Replaces "the code on disk".
    pub(crate) fn switch(&self, lines: &str) {
        let path = self.app.switch_path();
        let next = path.with_extension("next");
        fs::write(&next, lines).and_then(|()| fs::rename(&next, &path)).expect("the switch is written");
    }

    /// What the manager says about itself.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        Status::ask(&self.control()).unwrap_or_else(|error| panic!("no status: {error}"))
    }

    fn control(&self) -> PathBuf {
        PathBuf::from(format!("/run/paddock/{}/control", self.app.name))
    }

    /// Waits until the status is as wanted.
    #[track_caller]
    pub(crate) fn wait_status(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        wait_status(&self.control(), what, holds)
    }

    /// Waits until exactly so many workers live and all are ready.
    #[track_caller]
    pub(crate) fn wait_ready(&self, workers: usize) -> Status {
        self.wait_status(&format!("{workers} ready workers and no other"), is_ready(workers))
    }

    /// `systemctl stop`; nothing of the app may be left.
    #[track_caller]
    pub(crate) fn stop(self) {
        systemctl_ok(&["stop", &self.unit]);
        assert_eq!(property(&self.unit, "Result"), "success");
        let path = self.socket_path();
        assert_eq!(path.exists(), self.holds_socket.get(), "the path that systemd owns: {}", path.display());
        assert_eq!(self.left(), BTreeSet::new(), "processes left behind");
        assert_eq!(self.scopes(), Vec::<String>::new(), "units left loaded");
    }

    /// Living processes of the app.
    pub(crate) fn left(&self) -> BTreeSet<u32> {
        let mut left = proc::with_marker(&format!("W_MARK={}", self.app.dir.name()));
        left.retain(|pid| proc::is_alive(*pid));
        left
    }

    /// The app's scopes that are loaded, failed ones included.
    pub(crate) fn scopes(&self) -> Vec<String> {
        let pattern = format!("paddock-{}-*.scope", escape(&self.app.name));
        let text = systemctl_ok(&["list-units", "--all", "--plain", "--no-legend", "--full", &pattern]);
        text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }
}

/// An addition to a unit.
pub(crate) struct DropIn(PathBuf);

impl Drop for DropIn {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = systemctl(&["daemon-reload"]);
    }
}

/// Waits for a status through a control socket.
#[track_caller]
pub(crate) fn wait_status(control: &Path, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
    let until = Instant::now() + patient(PATIENCE);
    loop {
        let status = Status::ask(control);
        match &status {
            Ok(status) if holds(status) => return status.clone(),
            _ => assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}; status: {status:#?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Exactly so many workers live, all are ready, and no roll is under way.
pub(crate) fn is_ready(workers: usize) -> impl Fn(&Status) -> bool {
    move |status| status.ready_pids().len() == workers && status.workers().len() == workers && !status.is_rolling()
}

fn follow_journal(app: &str) -> Child {
    Command::new("journalctl")
        .args(["--quiet", "--follow", "--no-tail", "--output=json", &format!("PADDOCK_APP={app}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("journalctl")
}

/// Entries of the journal that match, now.
pub(crate) fn journal(matches: &[&str]) -> Vec<serde_json::Value> {
    let _synced = run_within(PATIENCE, Command::new("journalctl").arg("--sync"));
    let output = run_within(PATIENCE, Command::new("journalctl").args(["--quiet", "--output=json"]).args(matches));
    String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            use std::io::Write as _;
            let show = |arguments: &[&str]| {
                let output = run_within(PATIENCE, Command::new("journalctl").arg("--no-pager").args(arguments));
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let _ = writeln!(
                std::io::stderr(),
                "--- configuration\n{}--- journal of {}\n{}",
                self.app.config_text(),
                self.unit,
                show(&["--unit", &self.unit, "--lines=200"]),
            );
        }
        let _stopped = systemctl(&["stop", &self.unit, &self.socket_unit, &self.slice()]);
        let _reset = systemctl(&["reset-failed", &self.unit, &self.socket_unit]);
        let _ = self.journal.kill();
        let _ = self.journal.wait();
        let _ = fs::remove_file(self.config_path());
    }
}
