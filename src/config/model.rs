//! What an app's configuration says, once every rule has been checked.
//!
//! Every field is documented with its key. Percentages are still symbolic here: what they are of is only known on the
//! machine, where `resolve` turns a [`Config`] into a [`crate::supervisor::policy::Policy`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The most workers of one app, whoever asks for them.
pub const WORKERS_MAX: u32 = 10_000;

/// One app: the whole of a configuration file and its flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `name`: `[A-Za-z0-9][A-Za-z0-9_.-]{0,47}`.
    pub name: String,
    /// `command`: program and arguments, never empty.
    pub command: Vec<String>,
    /// `workers`.
    pub workers: Workers,
    /// `ready`.
    pub ready: Ready,
    /// `drain_signal`.
    pub drain_signal: Signal,
    /// `isolation`.
    pub isolation: IsolationChoice,
    /// `working_directory`: entered after dropping privileges.
    pub working_directory: Option<PathBuf>,
    /// `user`: name or number; workers only.
    pub user: Option<String>,
    /// `group`: name or number; default: the user's own, with its supplementary groups.
    pub group: Option<String>,
    /// `umask`, as octal text in the file.
    pub umask: u32,
    /// `environment`: beats `environment_file`, which beats what is inherited.
    pub environment: BTreeMap<String, String>,
    /// `environment_file`: systemd's syntax (systemd.exec(5), EnvironmentFile=).
    pub environment_file: Option<PathBuf>,
    /// `inherit_environment`.
    pub inherit_environment: bool,
    /// `[listen]`.
    pub listen: Listen,
    /// `[memory]`.
    pub memory: Memory,
    /// `[recycle]`.
    pub recycle: Recycle,
    /// `[timeouts]`.
    pub timeouts: Timeouts,
    /// `[restart]`.
    pub restart: Restart,
    /// `[reload]`.
    pub reload: Reload,
    /// `[limits]`.
    pub limits: Limits,
    /// `[log]`.
    pub log: Log,
    /// `[control]`.
    pub control: Control,
}

/// `workers`: how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Workers {
    /// A number, at least 1.
    Count(u32),
    /// `"auto"`: min(usable CPUs, budget / max - surge), at least 1.
    Auto,
}

/// `ready`: what makes a worker ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// `READY=1` on its notify socket, nothing else.
    Notify,
    /// Being alive for `timeouts.settle`.
    Settle,
}

/// A signal number, 1 to 64, known by its name without `SIG`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signal(pub i32);

/// `isolation`: which fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationChoice {
    /// The best that the machine has.
    Auto,
    /// A transient systemd scope for each worker.
    Scope,
    /// A cgroup below the manager's own for each worker.
    Cgroup,
    /// No fence: memory is sampled, `max` is not enforced.
    None,
}

/// `[listen]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// `bind`, with each address's name from `names` (default `listen`).
    pub bind: Vec<Bind>,
    /// `backlog` of the sockets that paddock binds.
    pub backlog: u32,
    /// `socket_mode` of the unix sockets that paddock binds.
    pub socket_mode: u32,
    /// `socket_user` of the unix sockets that paddock binds.
    pub socket_user: Option<String>,
    /// `socket_group` of the unix sockets that paddock binds.
    pub socket_group: Option<String>,
}

/// One address to bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where.
    pub address: BindAddress,
    /// Its name in `LISTEN_FDNAMES`.
    pub name: String,
}

/// `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BindAddress {
    /// A TCP address; port 0 takes a free one.
    Tcp(std::net::SocketAddr),
    /// A unix stream socket at an absolute path.
    Unix(PathBuf),
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of a percent (`"12.5%"` is 1250) of what the key says.
    Percent(u32),
    /// `"infinity"`.
    Infinity,
}

/// `[memory]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `max`: each worker's `memory.max`.
    pub max: Option<Size>,
    /// `budget`: what all workers and their overlaps must fit in.
    pub budget: Option<Size>,
    /// `recycle_at`: the soft limit; a percentage is of `max`.
    pub recycle_at: Size,
    /// `swap_max`: each worker's `memory.swap.max`.
    pub swap_max: Size,
}

/// An absolute number or a share of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Share {
    /// The number itself.
    Absolute(u64),
    /// Hundredths of a percent.
    Percent(u32),
}

/// `[recycle]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recycle {
    /// `max_requests`; 0 is off.
    pub max_requests: u64,
    /// `max_requests_jitter`.
    pub max_requests_jitter: Share,
    /// `spread`.
    pub spread: bool,
    /// `max_lifetime`; none is off.
    pub max_lifetime: Option<Duration>,
    /// `surge`.
    pub surge: u32,
}

/// `[timeouts]`. `Duration::MAX` stands for `infinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// `start`: until `READY=1`.
    pub start: Duration,
    /// `settle`: alive this long is ready, with `ready = "settle"`.
    pub settle: Duration,
    /// `watchdog`: between `WATCHDOG=1` messages; none is off.
    pub watchdog: Option<Duration>,
    /// `graceful`: a drain's bound.
    pub graceful: Duration,
    /// `abort`: SIGABRT before SIGKILL on a watchdog kill.
    pub abort: Duration,
}

/// `[restart]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// `backoff`.
    pub backoff: Duration,
    /// `backoff_max`.
    pub backoff_max: Duration,
}

/// `[reload]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// `hold`: the canary must stay up this long after READY.
    pub hold: Duration,
}

/// `[limits]`; unset: the system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// `tasks_max`: `pids.max`; `u64::MAX` is infinity.
    pub tasks_max: Option<u64>,
    /// `cpu_weight`: `cpu.weight`, 1 to 10000.
    pub cpu_weight: Option<u64>,
    /// `nofile`: RLIMIT_NOFILE, soft and hard.
    pub nofile: Option<u64>,
}

/// `[log]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// `format`.
    pub format: LogFormat,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The journal when stderr is connected to it, else text.
    Auto,
    /// journald's native protocol.
    Journald,
    /// Lines for people.
    Text,
    /// One object a line.
    Json,
}

/// `[control]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Control {
    /// `group` that may use the control socket; unset: owner only.
    pub group: Option<String>,
}
