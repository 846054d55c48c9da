//! Every key, once: the file's names, the flags, the defaults and the documentation are all read from here, so that
//! they cannot differ.

use std::fmt;

/// Where a key's value comes from when nobody gives one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This text, read like a flag's value.
    Value(&'static str),
    /// No value; the text says what that means.
    Unset(&'static str),
    /// Another value decides; the text says which.
    Derived(&'static str),
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    One,
    /// `true` or `false`; as a flag `--key` and `--no-key`.
    Switch,
    /// An array of texts; as a flag repeated.
    Many,
    /// A table of texts; as a flag repeated, `NAME=VALUE`.
    Map,
    /// An array of texts; on the command line everything after `--`.
    Command,
}

/// All there is to know of a key.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The table it stands in; empty: none.
    pub table: &'static str,
    /// Its name in that table.
    pub name: &'static str,
    /// Its flag, without the leading dashes.
    pub flag: &'static str,
    /// How it is written.
    pub shape: Shape,
    /// What stands for the value in a usage line.
    pub metavar: &'static str,
    /// Without a value.
    pub default: Fallback,
    /// A TOML value that shows it.
    pub example: &'static str,
    /// Whether a reload refuses to change it.
    pub fixed: bool,
    /// What it says: a summary, then what else there is to know, a line of text each.
    pub help: &'static [&'static str],
}

macro_rules! keys {
    ($(
        $(#[doc = $help:literal])+
        $variant:ident = $table:literal . $name:literal, $flag:literal, $shape:ident, $metavar:literal,
            $default:expr, $example:literal $(, $fixed:ident)?;
    )*) => {
        /// A key of the configuration, in the order of the documentation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Key {
            $($(#[doc = $help])+ $variant,)*
        }

        impl Key {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// What there is to know of it.
            pub const fn spec(self) -> &'static Spec {
                match self {
                    $(Self::$variant => &Spec {
                        table: $table,
                        name: $name,
                        flag: $flag,
                        shape: Shape::$shape,
                        metavar: $metavar,
                        default: $default,
                        example: $example,
                        fixed: keys!(@fixed $($fixed)?),
                        help: &[$($help),+],
                    },)*
                }
            }
        }
    };
    (@fixed) => { false };
    (@fixed fixed) => { true };
}

use self::Fallback::{Derived, Unset, Value};

keys! {
    /// The app's name: letters, digits, `_`, `.` and `-`, at most 48, the first one a letter or digit.
    /// Units, cgroups, the runtime directory and the log are named after it.
    Name = ""."name", "name", One, "NAME",
        Derived("the file's stem; without a file the command's basename"), "\"shop\"", fixed;
    /// The program that every worker runs, with its arguments.
    /// It is found on PATH if it has no slash, and started without a shell. On the command line it is everything after `--`.
    Command = ""."command", "", Command, "COMMAND",
        Unset("required"), "[\"uvicorn\", \"--fd\", \"3\", \"shop:app\"]";
    /// How many workers, or `auto`: one for each usable CPU, as far as the memory budget lets them fit.
    Workers = ""."workers", "workers", One, "N|auto", Value("1"), "4";
    /// What makes a worker ready: `notify` (it sends READY=1 to its NOTIFY_SOCKET) or `settle` (it stays alive for timeouts.settle).
    Ready = ""."ready", "ready", One, "notify|settle", Value("notify"), "\"settle\"";
    /// The signal that asks a worker to finish what is in flight and end.
    /// uWSGI without a master wants HUP; nginx and php-fpm want QUIT.
    DrainSignal = ""."drain_signal", "drain-signal", One, "SIGNAL", Value("TERM"), "\"QUIT\"";
    /// The fence around each worker: `scope` (a transient systemd scope), `cgroup` (a group below the manager's own), `none`, or `auto`: the best that the machine has.
    Isolation = ""."isolation", "isolation", One, "MODE", Value("auto"), "\"scope\"", fixed;
    /// The workers' working directory, an absolute path, entered after dropping privileges.
    WorkingDirectory = ""."working_directory", "working-directory", One, "DIR",
        Unset("the manager's own"), "\"/srv/shop\"";
    /// The user that workers run as; the manager keeps its own.
    /// Only root can give one that is not its own. A root manager without it runs its workers as root, and warns.
    User = ""."user", "user", One, "USER", Unset("the manager's own"), "\"shop\"";
    /// The group that workers run as; needs `user`.
    Group = ""."group", "group", One, "GROUP",
        Unset("the user's own group, with its supplementary groups"), "\"shop\"";
    /// The workers' file mode creation mask, in octal.
    Umask = ""."umask", "umask", One, "OCTAL", Value("0022"), "\"0027\"";
    /// Environment variables of the workers; they beat environment_file, which beats what is inherited.
    /// A flag sets one variable and leaves the file's others alone.
    Environment = ""."environment", "environment", Map, "NAME=VALUE",
        Unset("none"), "{ DJANGO_SETTINGS_MODULE = \"shop.settings\" }";
    /// A file of environment variables, an absolute path, in the syntax of systemd.exec(5), EnvironmentFile=.
    EnvironmentFile = ""."environment_file", "environment-file", One, "FILE",
        Unset("none"), "\"/etc/shop.env\"";
    /// Whether workers inherit the manager's environment.
    /// The service's protocol variables (NOTIFY_SOCKET, LISTEN_FDS and their like) are never inherited; HOME, USER, LOGNAME and SHELL follow `user`.
    InheritEnvironment = ""."inherit_environment", "inherit-environment", Switch, "BOOL", Value("true"), "false";

    /// Addresses to bind besides the sockets that systemd passes in: `IP:PORT` or `unix:/PATH`.
    /// They follow the inherited sockets. An address that was passed in already is not bound again.
    Bind = "listen"."bind", "bind", Many, "ADDRESS",
        Unset("none"), "[\"127.0.0.1:8000\", \"unix:/run/shop/http.sock\"]", fixed;
    /// The names of those addresses in LISTEN_FDNAMES, in the same order.
    /// An address without one is named `listen`.
    Names = "listen"."names", "names", Many, "NAME", Unset("`listen` for each"), "[\"http\", \"admin\"]", fixed;
    /// How many connections may wait to be accepted, on each socket that paddock binds.
    /// The kernel cuts it to net.core.somaxconn.
    Backlog = "listen"."backlog", "backlog", One, "N", Value("2048"), "512", fixed;
    /// The mode of the unix sockets that paddock binds, in octal.
    SocketMode = "listen"."socket_mode", "socket-mode", One, "OCTAL", Value("0666"), "\"0660\"", fixed;
    /// The owner of the unix sockets that paddock binds.
    SocketUser = "listen"."socket_user", "socket-user", One, "USER",
        Unset("the manager's own"), "\"www-data\"", fixed;
    /// The group of the unix sockets that paddock binds.
    SocketGroup = "listen"."socket_group", "socket-group", One, "GROUP",
        Unset("the manager's own"), "\"www-data\"", fixed;

    /// The most memory that a worker may hold (its memory.max): a size or a percentage.
    /// Sizes are bytes or have a unit of 1024 steps (K, M, G, T). Percentages are of the smallest memory limit above the workers, else of the machine's memory. Beyond it the kernel kills that worker and no other.
    MemoryMax = "memory"."max", "memory-max", One, "SIZE",
        Unset("budget / (workers + surge) if there is a budget, else no limit"), "\"512M\"";
    /// What all workers may hold together, replacements that overlap them included.
    /// (workers + surge) x max must fit in it.
    MemoryBudget = "memory"."budget", "memory-budget", One, "SIZE", Unset("none"), "\"75%\"";
    /// The soft limit, below max: here a worker is asked to shed its caches and is replaced.
    /// A percentage is of max. Only memory that the kernel cannot reclaim counts.
    MemoryRecycleAt = "memory"."recycle_at", "memory-recycle-at", One, "SIZE", Value("80%"), "\"400M\"";
    /// The most swap that a worker may use (its memory.swap.max).
    MemorySwapMax = "memory"."swap_max", "memory-swap-max", One, "SIZE", Value("0"), "\"infinity\"";

    /// Replace a worker once it has counted this many requests; 0 is never.
    MaxRequests = "recycle"."max_requests", "max-requests", One, "N", Value("0"), "1000";
    /// The most that a worker's own quota is raised by, at random, once per life: a number, or a percentage of max_requests.
    MaxRequestsJitter = "recycle"."max_requests_jitter", "max-requests-jitter", One, "N|PERCENT",
        Value("0"), "\"5%\"";
    /// Stagger the first quotas and lifetimes of a generation, so that workers do not fill up together.
    Spread = "recycle"."spread", "spread", Switch, "BOOL", Value("true"), "false";
    /// Replace a worker at this age.
    MaxLifetime = "recycle"."max_lifetime", "max-lifetime", One, "TIME", Unset("never"), "\"6h\"";
    /// How many replacements may overlap the workers that they replace.
    /// 0 stops a worker before its replacement starts, for programs that must never overlap.
    Surge = "recycle"."surge", "surge", One, "N", Value("1"), "0";

    /// How long a worker may take to get ready.
    TimeoutStart = "timeouts"."start", "timeout-start", One, "TIME", Value("60s"), "\"2min\"";
    /// With ready = "settle": a worker that is alive this long is ready.
    TimeoutSettle = "timeouts"."settle", "timeout-settle", One, "TIME", Value("1s"), "\"3s\"";
    /// The longest silence between two WATCHDOG=1 messages of a ready worker.
    TimeoutWatchdog = "timeouts"."watchdog", "timeout-watchdog", One, "TIME", Unset("no watchdog"), "\"30s\"";
    /// How long a worker may take to drain, at a stop, a reload and every recycle alike.
    TimeoutGraceful = "timeouts"."graceful", "timeout-graceful", One, "TIME", Value("30s"), "\"2min\"";
    /// How long SIGABRT has to leave a stack dump or a core before SIGKILL, when the watchdog ran out.
    TimeoutAbort = "timeouts"."abort", "timeout-abort", One, "TIME", Value("2s"), "\"10s\"";

    /// The delay before the second restart in a row; the first is at once, each further one waits three times longer.
    Backoff = "restart"."backoff", "restart-backoff", One, "TIME", Value("100ms"), "\"500ms\"";
    /// The longest delay before a restart.
    BackoffMax = "restart"."backoff_max", "restart-backoff-max", One, "TIME", Value("30s"), "\"1min\"";

    /// How long the first worker of a new generation must stay up before the others follow.
    Hold = "reload"."hold", "reload-hold", One, "TIME", Value("1s"), "\"5s\"";

    /// The most processes and threads of a worker (its pids.max), or `infinity`.
    TasksMax = "limits"."tasks_max", "limit-tasks-max", One, "N", Unset("the system's"), "256";
    /// A worker's share of the CPU when it is contended (its cpu.weight), 1 to 10000.
    CpuWeight = "limits"."cpu_weight", "limit-cpu-weight", One, "N", Unset("the system's"), "200";
    /// The most open files of a worker's process (RLIMIT_NOFILE, soft and hard).
    Nofile = "limits"."nofile", "limit-nofile", One, "N", Unset("the system's"), "65536";

    /// The log's form: `journald`, `text`, `json`, or `auto`: the journal when standard error is connected to it, else text.
    LogFormat = "log"."format", "log-format", One, "FORMAT", Value("auto"), "\"json\"";

    /// A group that may use the control socket.
    ControlGroup = "control"."group", "control-group", One, "GROUP", Unset("the manager's user only"), "\"adm\"", fixed;
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

impl Key {
    /// `memory.max`: as documentation and error messages write it.
    pub fn path(self) -> String {
        let spec = self.spec();
        if spec.table.is_empty() { spec.name.to_owned() } else { format!("{}.{}", spec.table, spec.name) }
    }

    /// The key of this name in this table.
    pub fn find(table: &str, name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|key| {
            let spec = key.spec();
            spec.table == table && spec.name == name
        })
    }

    /// Every table, in order, the nameless one of the file's top first.
    pub fn tables() -> Vec<&'static str> {
        let mut tables: Vec<&'static str> = Self::ALL.iter().map(|key| key.spec().table).collect();
        tables.dedup();
        tables
    }

    /// How it is written: `max = "512M"`, or as a flag `--memory-max 512M`.
    pub fn example(self, as_flag: bool) -> String {
        let spec = self.spec();
        if !as_flag {
            return format!("{} = {}", spec.name, spec.example);
        }
        let quoted = |text: &'static str| text.split('"').nth(1);
        match spec.shape {
            Shape::One | Shape::Switch | Shape::Many => {
                format!("--{} {}", spec.flag, quoted(spec.example).unwrap_or(spec.example))
            }
            Shape::Map => format!("--{} {}", spec.flag, spec.metavar),
            Shape::Command => "-- PROGRAM ARGUMENT…".to_owned(),
        }
    }

    /// The flag's summary: the first line of its help.
    pub fn summary(self) -> &'static str {
        self.spec().help.first().map_or("", |line| line.trim())
    }

    /// All of its help, as one text.
    pub fn explanation(self) -> String {
        let lines: Vec<&str> = self.spec().help.iter().map(|line| line.trim()).collect();
        lines.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_keys_share_a_name_or_a_flag() {
        let paths: BTreeSet<String> = Key::ALL.iter().map(|key| key.path()).collect();
        let flags: BTreeSet<&str> = Key::ALL.iter().map(|key| key.spec().flag).collect();
        assert_eq!(paths.len(), Key::ALL.len());
        assert_eq!(flags.len(), Key::ALL.len());
    }

    #[test]
    fn flags_are_the_name_with_dashes_and_a_prefix_for_some_tables() {
        for key in Key::ALL {
            let spec = key.spec();
            let prefix = match spec.table {
                "memory" | "restart" | "reload" | "log" | "control" => format!("{}-", spec.table),
                "timeouts" => "timeout-".to_owned(),
                "limits" => "limit-".to_owned(),
                "" | "listen" | "recycle" => String::new(),
                other => panic!("no rule for the flags of [{other}]"),
            };
            if spec.shape != Shape::Command {
                let expected = format!("{prefix}{}", spec.name.replace('_', "-"));
                assert_eq!(spec.flag, expected, "{}", key.path());
            }
        }
    }

    #[test]
    fn tables_stand_together() {
        let tables = Key::tables();
        let different: BTreeSet<&str> = tables.iter().copied().collect();
        assert_eq!(tables.len(), different.len());
    }
}
