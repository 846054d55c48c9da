//! A real manager: configured, started with sockets, watched, and cleaned up after.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::activate::{self, ListenPid};
use super::cgroup::Group;
use super::http::{self, Reply, Target};
use super::log::Log;
use super::notify::Receiver;
use super::pace::{patient, patient_text};
use super::proc::{self, Process};
use super::status::Status;
use super::suite::Mode;

/// The bound of waits that usually take no time at all; whoever waits stretches it for slow machines.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The program under test.
pub(crate) fn paddock() -> PathBuf {
    std::env::var_os("PADDOCK_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_paddock")), PathBuf::from)
}

/// A value in the configuration file, as TOML writes it.
pub(crate) struct Toml(String);

impl From<&str> for Toml {
    fn from(value: &str) -> Self {
        Self(format!("{value:?}"))
    }
}

impl From<String> for Toml {
    fn from(value: String) -> Self {
        Self::from(value.as_str())
    }
}

impl From<i64> for Toml {
    fn from(value: i64) -> Self {
        Self(value.to_string())
    }
}

impl From<bool> for Toml {
    fn from(value: bool) -> Self {
        Self(value.to_string())
    }
}

impl From<Vec<String>> for Toml {
    fn from(value: Vec<String>) -> Self {
        Self(format!("{value:?}"))
    }
}

/// A socket that the harness holds and passes, as systemd would.
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
    Datagram(UnixDatagram),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket, _) => socket.as_fd(),
            Self::Datagram(socket) => socket.as_fd(),
        }
    }
}

impl Socket {
    /// A free loopback port.
    pub(crate) fn tcp() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("non-blocking");
        Self::Tcp(listener)
    }

    /// The same, blocking.
    pub(crate) fn blocking_tcp() -> Self {
        Self::Tcp(TcpListener::bind("127.0.0.1:0").expect("a free port"))
    }

    /// A unix stream listener.
    pub(crate) fn unix(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a unix socket");
        listener.set_nonblocking(true).expect("non-blocking");
        Self::Unix(listener, path.to_owned())
    }

    /// How to reach it.
    pub(crate) fn target(&self) -> Target {
        match self {
            Self::Tcp(listener) => Target::Tcp(listener.local_addr().expect("an address")),
            Self::Unix(_, path) => Target::Unix(path.clone()),
            Self::Datagram(_) => panic!("no stream"),
        }
    }
}

/// A directory of its own under the system's temporary one; short, since socket paths end at 107 bytes.
pub(crate) struct Dir(PathBuf);

impl Dir {
    /// Makes it.
    pub(crate) fn create() -> Self {
        Self::create_in(&std::env::temp_dir())
    }

    /// Makes it elsewhere.
    pub(crate) fn create_in(parent: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("pt-{}-{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
        let path = parent.join(name);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Its own name, unique among the suites of this machine.
    pub(crate) fn name(&self) -> String {
        self.0.file_name().expect("a name").to_string_lossy().into_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An app that is not started yet.
pub(crate) struct App {
    mode: Mode,
    pub(crate) name: String,
    pub(crate) dir: Dir,
    tables: BTreeMap<String, BTreeMap<String, String>>,
    sockets: Vec<(String, Socket)>,
    listen_pid: ListenPid,
    group: Option<Group>,
    /// Another manager's group, to be in as well as it.
    joined: Option<Vec<PathBuf>>,
    variables: BTreeMap<String, String>,
    arguments: Vec<OsString>,
    program: PathBuf,
}

impl App {
    /// An app of test workers with one TCP socket.
    pub(crate) fn new(mode: Mode) -> Self {
        Self::new_in(mode, Dir::create())
    }

    /// The same, with its files in that directory.
    pub(crate) fn new_in(mode: Mode, dir: Dir) -> Self {
        fs::create_dir(dir.path().join("run")).expect("a runtime directory");
        let group = (mode == Mode::Cgroup).then(|| Group::create(&dir.name()).expect("a group"));
        let worker = std::env::current_exe().expect("this program's path").display().to_string();
        let mut app = Self {
            mode,
            name: "shop".to_owned(),
            tables: BTreeMap::new(),
            sockets: Vec::new(),
            listen_pid: ListenPid::Own,
            group,
            joined: None,
            variables: BTreeMap::new(),
            arguments: Vec::new(),
            program: paddock(),
            dir,
        };
        app.put("isolation", mode.key());
        app.put("command", vec![worker, "--worker".to_owned()]);
        app.put("log.format", "json");
        app.put("timeouts.start", patient_text(SOON));
        app.put("timeouts.graceful", patient_text(SOON));
        app.put("reload.hold", "200ms");
        app.put("environment.W_DIR", app.dir.path().display().to_string());
        app.put("environment.W_SWITCH", app.switch_path().display().to_string());
        app.put("environment.W_MARK", app.dir.name());
        app.sockets.push(("http".to_owned(), Socket::tcp()));
        app
    }

    /// Sets a key, `table.key` or `key`.
    pub(crate) fn set(mut self, key: &str, value: impl Into<Toml>) -> Self {
        self.put(key, value);
        self
    }

    /// As [`Self::set`], in place.
    pub(crate) fn put(&mut self, key: &str, value: impl Into<Toml>) {
        let (table, key) = key.split_once('.').unwrap_or(("", key));
        self.tables.entry(table.to_owned()).or_default().insert(key.to_owned(), value.into().0);
    }

    /// Sets one of the worker's `W_…` variables, named in lower case.
    pub(crate) fn worker(self, key: &str, value: impl Into<Toml>) -> Self {
        let Toml(value) = value.into();
        self.set(&format!("environment.W_{}", key.to_uppercase()), value.trim_matches('"'))
    }

    /// Another name than `shop`.
    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Passes these sockets instead of the one TCP socket.
    pub(crate) fn sockets(mut self, sockets: Vec<(&str, Socket)>) -> Self {
        self.sockets = sockets.into_iter().map(|(name, socket)| (name.to_owned(), socket)).collect();
        self
    }

    /// Announces the sockets to another process.
    pub(crate) fn for_another_process(mut self) -> Self {
        self.listen_pid = ListenPid::Another;
        self
    }

    /// Starts the manager in the same group as another one.
    pub(crate) fn beside(mut self, other: &Manager) -> Self {
        self.joined = other.app.group.as_ref().map(|group| group.dirs().to_vec());
        self
    }

    /// Sets a variable of the manager's own environment.
    pub(crate) fn variable(mut self, key: &str, value: &str) -> Self {
        self.variables.insert(key.to_owned(), value.to_owned());
        self
    }

    /// One more argument of `paddock run`.
    pub(crate) fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Starts a copy of the program that is the app's alone, so that it can be replaced.
    pub(crate) fn own_program(mut self) -> Self {
        self.program = self.dir.path().join("paddock");
        install(&paddock(), &self.program);
        self
    }

    /// The program that the manager is started from.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The group around the manager.
    pub(crate) fn group(&self) -> &Group {
        self.group.as_ref().expect("a group around the manager")
    }

    /// "The code on disk": lines of `key=value`.
    pub(crate) fn switch_path(&self) -> PathBuf {
        self.dir.path().join("switch")
    }

    /// Where the configuration file will be.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join(format!("{}.toml", self.name))
    }

    /// The configuration file's text.
    pub(crate) fn config_text(&self) -> String {
        let mut text = String::new();
        for (table, keys) in &self.tables {
            if !table.is_empty() {
                let _ = writeln!(text, "[{table}]");
            }
            for (key, value) in keys {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        text
    }

    /// Writes the configuration file.
    pub(crate) fn write_config(&self) {
        fs::write(self.config_path(), self.config_text()).expect("the configuration is written");
    }

    /// Starts the manager; nothing has been waited for.
    pub(crate) fn start(self) -> Manager {
        self.write_config();
        let notify = Receiver::bind(&self.dir.path().join("notify"));
        let log = Log::default();
        let (child, process) = self.spawn(&notify, &log);
        Manager { app: self, child, process, status: None, log, notify }
    }

    fn spawn(&self, notify: &Receiver, log: &Log) -> (Child, Process) {
        let own_group = self.group.as_ref().map_or(&[][..], |group| group.dirs());
        let cgroups = self.joined.as_deref().unwrap_or(own_group);
        let fds: Vec<BorrowedFd<'_>> = self.sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        let mut command = activate::command(&self.program, &fds, self.listen_pid, cgroups);
        command.arg("run").arg(self.config_path()).arg("--runtime-directory").arg(self.dir.path().join("run"));
        command.args(&self.arguments);
        plain_environment(&mut command, &self.dir.name());
        command.env("NOTIFY_SOCKET", notify.path()).envs(&self.variables);
        if !self.sockets.is_empty() {
            let names: Vec<&str> = self.sockets.iter().map(|(name, _)| name.as_str()).collect();
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the manager starts");
        log.collect(child.stderr.take().expect("its log"));
        let process = Process::open(child.id()).expect("the manager's pidfd");
        (child, process)
    }

    /// Starts the manager and waits until it told systemd that it is ready and every worker is.
    #[track_caller]
    pub(crate) fn start_ready(self, workers: usize) -> Manager {
        let mut manager = self.start();
        manager.wait_told_ready(SOON);
        let status = manager.wait_ready(workers);
        assert_eq!(status.isolation(), manager.app.mode.key(), "the mode that was asked for");
        manager
    }
}

/// Puts a copy of a program in the place of another, as a package manager does: the old file lives on while it runs.
pub(crate) fn install(from: &Path, at: &Path) {
    let new = at.with_extension("new");
    // By another process: a child that another test starts meanwhile would hold our descriptor, and the file be "busy".
    let copied = Command::new("cp").arg(from).arg(&new).status().expect("cp starts");
    assert!(copied.success(), "cp fails");
    fs::rename(&new, at).expect("the program is installed");
}

/// PATH and the marker by which everything that the test starts is known.
fn plain_environment(command: &mut Command, marker: &str) {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("W_MARK", marker);
    if let Some(directory) = std::env::var_os("TMPDIR") {
        command.env("TMPDIR", directory);
    }
}

/// A running manager.
pub(crate) struct Manager {
    pub(crate) app: App,
    child: Child,
    process: Process,
    status: Option<ExitStatus>,
    /// Its standard error.
    pub(crate) log: Log,
    /// What it tells systemd.
    pub(crate) notify: Receiver,
}

impl Manager {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first socket.
    pub(crate) fn target(&self) -> Target {
        self.app.sockets.first().expect("a socket").1.target()
    }

    /// The socket with that place in the list.
    pub(crate) fn socket(&self, index: usize) -> &Socket {
        &self.app.sockets[index].1
    }

    /// A socket of one worker alone, with `W_DIRECT=1`.
    pub(crate) fn direct(&self, pid: u32) -> Target {
        Target::Unix(self.app.dir.path().join(format!("direct-{pid}.sock")))
    }

    /// Asks one worker, with `W_DIRECT=1`.
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

    /// Sends a signal to the manager.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Runs `paddock COMMAND APP ARGUMENTS…` against this manager.
    pub(crate) fn cli(&self, subcommand: &str, arguments: &[&str]) -> Output {
        self.cli_within(Duration::from_mins(1), subcommand, arguments)
    }

    /// As [`Self::cli`], with a bound.
    pub(crate) fn cli_within(&self, bound: Duration, subcommand: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(paddock());
        command.arg(subcommand).arg(&self.app.name).args(arguments);
        command.arg("--runtime-directory").arg(self.app.dir.path().join("run"));
        plain_environment(&mut command, &self.app.dir.name());
        run_within(bound, &mut command)
    }

    /// `paddock status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|error| panic!("no status: {error}"))
    }

    /// As [`Self::status`], for when the manager may not be there.
    pub(crate) fn try_status(&self) -> Result<Status, String> {
        let output = self.cli("status", &["--json"]);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map(Status).map_err(|error| error.to_string())
    }

    /// Waits until the status is as wanted.
    #[track_caller]
    pub(crate) fn wait_status(&self, bound: Duration, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        let bound = patient(bound);
        let until = Instant::now() + bound;
        loop {
            let status = Status::ask(&self.app.dir.path().join("run/control"));
            match &status {
                Ok(status) if holds(status) => return status.clone(),
                _ => assert!(Instant::now() < until, "not within {bound:?}: {what}; status: {status:#?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until exactly so many workers live and all are ready.
    #[track_caller]
    pub(crate) fn wait_ready(&self, workers: usize) -> Status {
        self.wait_status(SOON, &format!("{workers} ready workers and no other"), |status| {
            status.ready_pids().len() == workers && status.workers().len() == workers && !status.is_rolling()
        })
    }

    /// Waits for `READY=1`.
    #[track_caller]
    pub(crate) fn wait_told_ready(&mut self, bound: Duration) -> Instant {
        let bound = patient(bound);
        let until = Instant::now() + bound;
        loop {
            if let Some(at) = self.notify.try_wait("READY=1", 1, Duration::from_millis(100)) {
                return at;
            }
            let over = self.try_wait_exit(Duration::ZERO);
            assert!(over.is_none(), "the manager ended before READY=1: {over:?}");
            assert!(Instant::now() < until, "no READY=1 within {bound:?}");
        }
    }

    /// Ends the manager as a crash would, and nothing else.
    #[track_caller]
    pub(crate) fn crash(&mut self) {
        self.process.signal(Signal::KILL);
        assert!(self.process.wait_gone(SOON), "the manager does not die");
        let _ = self.child.wait();
        self.log.wait_end(Duration::from_secs(5));
    }

    /// Starts a manager again where one has ended: the same arguments and, as from systemd, the same sockets.
    pub(crate) fn start_again(&mut self) {
        let (child, process) = self.app.spawn(&self.notify, &self.log);
        (self.child, self.process, self.status) = (child, process, None);
    }

    /// How the manager ended, if it did within the bound.
    pub(crate) fn try_wait_exit(&mut self, bound: Duration) -> Option<ExitStatus> {
        if self.status.is_none() && self.process.wait_gone(bound) {
            self.status = self.child.wait().ok();
            self.log.wait_end(Duration::from_secs(5));
        }
        self.status
    }

    /// How the manager ended.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, bound: Duration) -> ExitStatus {
        self.try_wait_exit(bound).unwrap_or_else(|| panic!("the manager lives on after {bound:?}"))
    }

    /// TERM; the manager must leave with 0 and leave nothing behind.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_exit(SOON);
        assert_eq!(status.code(), Some(0), "exit code of a clean stop");
        self.assert_nothing_left();
    }

    /// Processes that the manager's workers have left, itself not counted.
    pub(crate) fn left(&self) -> BTreeSet<u32> {
        let mut left = proc::with_marker(&format!("W_MARK={}", self.app.dir.name()));
        left.extend(self.app.group.iter().flat_map(Group::processes));
        left.remove(&self.pid());
        left.retain(|pid| proc::is_alive(*pid));
        left
    }

    /// That nothing is left of it.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        let left = self.left();
        let names: Vec<String> = left.iter().map(|pid| format!("{pid} {:?}", proc::field(*pid, "Name"))).collect();
        assert!(left.is_empty(), "left behind: {names:?}");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let marker = format!("W_MARK={}", self.app.dir.name());
        for process in proc::with_marker(&marker).into_iter().filter_map(Process::open) {
            if proc::with_marker(&marker).contains(&process.pid) {
                process.signal(Signal::KILL);
                process.wait_gone(Duration::from_secs(2));
            }
        }
        if std::thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(
                std::io::stderr(),
                "--- configuration\n{}--- log of the manager {}\n{}--- told systemd: {:?}",
                self.app.config_text(),
                self.child.id(),
                self.log.text(),
                self.notify.assignments().into_iter().map(|(_, text)| text).collect::<Vec<_>>()
            );
        }
    }
}

/// Runs a command to its end; one that takes longer than the bound is killed and fails the test.
#[track_caller]
pub(crate) fn run_within(bound: Duration, command: &mut Command) -> Output {
    let bound = patient(bound);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("stdout"), child.stderr.take().expect("stderr"));
    let read_stdout = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.read_to_end(&mut bytes);
        bytes
    });
    let read_stderr = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        bytes
    });
    let process = Process::open(child.id()).expect("the command's pidfd");
    if !process.wait_gone(bound) {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{command:?} takes longer than {bound:?}");
    }
    Output {
        status: child.wait().expect("its status"),
        stdout: read_stdout.join().expect("stdout"),
        stderr: read_stderr.join().expect("stderr"),
    }
}
