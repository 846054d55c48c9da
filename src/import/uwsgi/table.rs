//! What becomes of uWSGI's options about processes and their lives; all options that are not in here are passed on.

use crate::config::key::Key;
use crate::import::table::{Fate, Row, Table};

use Fate::{Changed, Kept, Mapped, NotNeeded, Unsupported};

const fn row(names: &'static [&'static str], fate: Fate, note: &'static str) -> Row {
    Row { names, fate, note }
}

/// By what they are about.
pub const TABLE: &Table = &[
    ("Sockets", SOCKETS),
    ("Workers", WORKERS),
    ("Replacing workers", REPLACING),
    ("Memory and other limits", LIMITS),
    ("The service", SERVICE),
    ("Watching files", FILES),
    ("Log", LOG),
    ("Other processes", PROCESSES),
    ("What processes shared", SHARED),
    ("Hooks", HOOKS),
    ("Statistics and control", CONTROL),
    ("Configuration", CONFIGURATION),
];

const SOCKETS: &[Row] = &[
    row(
        &[
            "socket",
            "uwsgi-socket",
            "http-socket",
            "http11-socket",
            "fastcgi-socket",
            "fastcgi-nph-socket",
            "scgi-socket",
            "scgi-nph-socket",
            "raw-socket",
            "puwsgi-socket",
        ],
        Mapped(&[Key::Bind]),
        "paddock binds the address; the worker gets it as `fd://3`, the next one as `fd://4`, in this order",
    ),
    row(
        &["http", "httprouter"],
        Mapped(&[Key::Bind]),
        "uWSGI's HTTP router is a process of its own: instead the workers speak HTTP themselves (`--http-socket`)",
    ),
    row(
        &["https-socket", "suwsgi-socket", "ssl-socket", "https", "https2", "http-to-https"],
        Unsupported,
        "let the proxy in front end TLS, or serve with `python -m paddock_worker gunicorn` (certfile) or `asgi`",
    ),
    row(&["listen"], Mapped(&[Key::Backlog]), "the same number"),
    row(&["chmod-socket", "chmod"], Mapped(&[Key::SocketMode]), "without a value 0666"),
    row(&["chown-socket"], Mapped(&[Key::SocketUser, Key::SocketGroup]), "USER:GROUP"),
    row(
        &["shared-socket", "undeferred-shared-socket", "abstract-socket", "map-socket", "zerg", "zerg-fallback"],
        Unsupported,
        "every worker has every socket of [listen]: name the address in `socket` itself, as a path or IP:PORT",
    ),
    row(&["freebind"], Unsupported, "use a socket unit of systemd's with FreeBind=yes"),
    row(&["reuse-port"], NotNeeded, "all workers accept on the one socket that paddock holds"),
    row(
        &["shutdown-sockets"],
        Unsupported,
        "shutdown(2) of a socket that all workers share would end it for all of them",
    ),
    row(
        &["http-socket-modifier1", "http-socket-modifier2", "https-socket-modifier1", "https-socket-modifier2"],
        Kept,
        "",
    ),
];

const WORKERS: &[Row] = &[
    row(&["processes", "workers"], Mapped(&[Key::Workers]), "the same number; each is a uWSGI without master"),
    row(&["master"], NotNeeded, "paddock is the master"),
    row(&["lazy", "lazy-apps"], NotNeeded, "every worker loads the application itself"),
    row(
        &["thunder-lock"],
        Unsupported,
        "the lock was shared with forked siblings; without it a connection may wake more than one idle worker, no more",
    ),
    row(
        &["cheap", "cheaper*", "idle", "die-on-idle", "vassal-sos*"],
        Unsupported,
        "the number of workers is `workers`; `paddock scale APP N` changes it",
    ),
    row(
        &["cpu-affinity"],
        Unsupported,
        "it goes by the worker's number, which is 1 in each of them: use CPUAffinity= of the unit, or [limits] cpu_weight",
    ),
    row(
        &["harakiri"],
        Changed,
        "without a master the worker ends itself by alarm(2); paddock replaces it, the verdict is `exit`. Its other threads' \
         requests end with it, as before",
    ),
    row(
        &["harakiri-verbose", "harakiri-graceful-timeout", "harakiri-graceful-signal", "harakiri-queue-threshold"],
        Unsupported,
        "the master did it",
    ),
    row(&["harakiri-no-arh", "no-harakiri-arh", "no-harakiri-after-req-hook"], Kept, ""),
    row(&["no-orphans"], NotNeeded, "workers outlive the manager on purpose: the next one adopts them"),
    row(&["threads", "enable-threads", "async", "gevent", "single-interpreter"], Kept, "of one worker, as before"),
    row(
        &["need-app"],
        Kept,
        "always given: a release that does not import must fail to start, so that the reload is undone",
    ),
];

const REPLACING: &[Row] = &[
    row(
        &["max-requests"],
        Unsupported,
        "nothing counts uWSGI's requests, and its own quota would end a worker before its replacement is there: use [memory] \
         and max_lifetime, or serve with `python -m paddock_worker wsgi`, which counts",
    ),
    row(&["max-requests-delta"], NotNeeded, "`[recycle] spread` staggers by itself, whatever the number of workers"),
    row(&["max-worker-lifetime"], Mapped(&[Key::MaxLifetime]), "seconds"),
    row(&["max-worker-lifetime-delta"], NotNeeded, "`[recycle] spread` staggers by itself"),
    row(&["min-worker-lifetime"], NotNeeded, "limits hold from a worker's first moment, also in its first ten seconds"),
    row(
        &["worker-reload-mercy", "reload-mercy"],
        Mapped(&[Key::TimeoutGraceful]),
        "the bound of every drain: stop, reload and recycle; uWSGI's default is 60 s",
    ),
    row(
        &["reload-on-exception", "reload-on-exception-type", "reload-on-exception-value", "reload-on-exception-repr"],
        Changed,
        "without a master the worker just ends; paddock replaces it, but not start before stop",
    ),
    row(&["reload-on-fd", "brutal-reload-on-fd", "exception-handler"], Unsupported, "the master did it"),
    row(
        &["check-interval", "forkbomb-delay"],
        NotNeeded,
        "paddock is told by the kernel when a worker ends, and waits longer each time one fails ([restart] backoff)",
    ),
];

const LIMITS: &[Row] = &[
    row(
        &["reload-on-rss", "reload-on-as"],
        Mapped(&[Key::MemoryRecycleAt, Key::MemoryMax]),
        "MB become `recycle_at`, the soft limit; a quarter more becomes `max`, which the kernel enforces also within a \
         request. Address space (`-as`) is more than memory: measure, and take less",
    ),
    row(
        &["evil-reload-on-rss", "evil-reload-on-as", "limit-as"],
        Mapped(&[Key::MemoryMax]),
        "MB; beyond it the kernel kills that worker alone, and `recycle_at` replaces it before. Address space (`-as`) is \
         more than memory: measure, and take less",
    ),
    row(&["mem-collector-freq"], NotNeeded, "the kernel counts, and says so at once"),
    row(
        &["limit-nproc"],
        Mapped(&[Key::TasksMax]),
        "for each worker, threads included; it was for the user as a whole",
    ),
    row(&["max-fd"], Mapped(&[Key::Nofile]), "for each worker"),
    row(&["never-swap"], NotNeeded, "`[memory] swap_max` is 0 unless set"),
    row(&["cgroup", "cgroup-opt", "cgroup-dir-mode"], NotNeeded, "every worker has a group of its own"),
    row(&["ksm", "prio", "memory-report"], Kept, ""),
];

const SERVICE: &[Row] = &[
    row(
        &["uid", "immediate-uid"],
        Mapped(&[Key::User]),
        "workers only; with all of its supplementary groups. The manager stays who started it",
    ),
    row(&["gid", "immediate-gid"], Mapped(&[Key::Group]), "needs `user`"),
    row(&["add-gid", "no-initgroups"], NotNeeded, "a `user`'s supplementary groups always come with it"),
    row(&["umask"], Mapped(&[Key::Umask]), "octal"),
    row(&["master-as-root", "drop-after-init", "drop-after-apps"], Unsupported, "a worker is `user` from its start on"),
    row(
        &[
            "chroot",
            "pivot-root",
            "pivot_root",
            "unshare",
            "unshare2",
            "setns",
            "setns-*",
            "namespace",
            "namespace-*",
            "ns",
            "ns-*",
            "jail*",
            "cap",
            "refork*",
            "re-fork*",
            "libjail",
            "jid-file",
            "jidfile",
        ],
        Unsupported,
        "needs root, which a worker is not: use the unit's directives (RootDirectory=, PrivateTmp=, CapabilityBoundingSet=)",
    ),
    row(&["daemonize", "daemonize2"], NotNeeded, "paddock stays in the foreground, and its log has what workers print"),
    row(&["pidfile", "pidfile2", "safe-pidfile", "safe-pidfile2"], NotNeeded, "`paddock status` shows the pids"),
    row(
        &["flock", "flock-wait", "flock2", "flock-wait2"],
        Unsupported,
        "two lives of a slot overlap, so the second could not start: paddock's own lock keeps a second manager away",
    ),
    row(&["die-on-term", "exit-on-reload"], NotNeeded, "the drain signal is HUP, and ends a uWSGI without master"),
    row(&["vacuum"], NotNeeded, "paddock removes the sockets that it bound, at a clean stop"),
    row(&["procname-master"], NotNeeded, "there is no master"),
    row(
        &["stop", "reload", "pause", "suspend", "resume"],
        NotNeeded,
        "`paddock stop`, `paddock reload`; the others have no like",
    ),
    row(&["worker-mount"], Changed, "every worker is number 1: what names another number is loaded by none"),
    row(&["reload-os-env"], Kept, "at each request, as before"),
    row(&["chdir", "chdir2", "env", "procname", "procname-*", "auto-procname"], Kept, ""),
];

const FILES: &[Row] = &[
    row(
        &["touch-*", "fs-reload", "fs-brutal-reload", "fs-signal", "propagate-touch"],
        Unsupported,
        "the master watched: `paddock reload` where the file was touched, or a path unit of systemd's that runs it",
    ),
    row(
        &["py-auto-reload*", "py-autoreload", "python-auto-reload", "python-autoreload", "perl-auto-reload*"],
        Unsupported,
        "for development: `paddock run --reload-on-change PATH`",
    ),
    row(&["check-mount*", "mountpoint-check", "mount-check"], Unsupported, "use RequiresMountsFor= of the unit"),
];

const LOG: &[Row] = &[
    row(
        &["logto", "logto2"],
        Changed,
        "all workers append to the one file; without it the log goes to paddock's, and the journal",
    ),
    row(&["log-truncate"], Unsupported, "every replacement would empty the log"),
    row(
        &[
            "log-master*",
            "logger",
            "req-logger",
            "logger-req",
            "log-socket",
            "log-syslog",
            "log-zeromq",
            "threaded-logger",
            "log-encoder",
            "log-req-encoder",
            "log-maxsize",
            "log-drain",
            "log-filter",
            "log-route",
            "log-req-route",
            "log-backupname",
        ],
        Unsupported,
        "the master logged: what a worker prints goes to paddock's log, and the journal",
    ),
];

const PROCESSES: &[Row] = &[
    row(
        &["emperor*", "vassal*", "early-emperor", "imperial-monitor*", "heartbeat"],
        Unsupported,
        "each vassal becomes an app of its own: paddock@NAME.service with a file for each",
    ),
    row(
        &[
            "http-*",
            "https-*",
            "fastrouter*",
            "rawrouter*",
            "sslrouter*",
            "forkpty*",
            "tuntap*",
            "force-gateway",
            "http-stud-prefix",
        ],
        Unsupported,
        "a router is no worker: put a proxy in front, or run the router as a service of its own",
    ),
    row(
        &["mule*", "farm", "spooler*"],
        Unsupported,
        "mules and spoolers belong to the master: run them in a uWSGI of their own, or as an app with a queue",
    ),
    row(
        &[
            "cron*",
            "unique-cron*",
            "legion-cron*",
            "unique-legion-cron*",
            "curl-cron*",
            "legion-curl-cron",
            "signal-timer",
            "timer",
            "signal-rbtimer",
            "rbtimer",
        ],
        Unsupported,
        "every worker would run it: use a timer unit of systemd's",
    ),
    row(
        &["attach-*", "smart-attach-*", "legion-attach-*", "legion-smart-attach-*", "daemons-honour-stdin"],
        Unsupported,
        "give the daemon a unit of its own",
    ),
    row(
        &["legion*", "subscribe*", "subscription*", "st", "unsubscribe-on-graceful-reload", "start-unsubscribed"],
        Unsupported,
        "the master spoke to other instances",
    ),
    row(&["zergpool", "zerg-pool", "zerg-server"], Unsupported, "paddock holds the sockets, and shares them"),
    row(
        &[
            "privileged-binary-patch*",
            "unprivileged-binary-patch*",
            "worker-exec*",
            "python-worker-override",
            "fallback-config",
        ],
        Unsupported,
        "name in `command` what is to run; a release that does not start is undone by the reload's canary",
    ),
    row(&["no-server", "command-mode"], Unsupported, "a worker serves"),
];

const SHARED: &[Row] = &[
    row(
        &[
            "cache",
            "cache2",
            "cache-*",
            "add-cache-item",
            "load-file-in-cache",
            "load-file-in-cache-gzip",
            "queue",
            "queue-*",
        ],
        Changed,
        "was shared by all processes; now each worker has one of its own, which is empty at its start",
    ),
    row(
        &[
            "cache-store",
            "cache-udp-server",
            "cache-udp-node",
            "queue-store",
            "ssl-session-use-cache",
            "ssl-sessions-use-cache",
        ],
        Unsupported,
        "needs the master",
    ),
    row(&["static-cache-paths", "static-cache-paths-name"], Unsupported, "needs the master; it only saved look-ups"),
    row(
        &["sharedarea", "locks", "lock-engine", "ftok", "persistent-ipcsem", "rpc-max"],
        Changed,
        "was shared by all processes; now each worker has its own",
    ),
];

const HOOKS: &[Row] = &[
    row(
        &[
            "hook-master-start",
            "hook-touch",
            "hook-emperor-*",
            "hook-as-emperor",
            "hook-as-vassal",
            "hook-as-mule",
            "hook-as-gateway",
            "exec-as-emperor",
            "exec-as-vassal",
            "call-as-emperor*",
            "call-as-vassal*",
            "mount-as-emperor",
            "mount-as-vassal",
            "umount-as-emperor",
            "umount-as-vassal",
        ],
        Unsupported,
        "there is no such process",
    ),
    row(
        &["hook-*", "exec-*", "call-*", "mount-*", "umount-*", "file-write"],
        Changed,
        "ran once for all workers (the phases before the fork); now every worker runs it, as its user. What must run once \
         belongs into ExecStartPre= of the unit",
    ),
    row(&["hook-post-fork", "hook-accepting", "after-request-hook", "after-request-call"], Kept, ""),
];

const CONTROL: &[Row] = &[
    row(
        &["stats*", "snmp*", "master-fifo", "notify-socket", "udp", "multicast*"],
        Unsupported,
        "the master served it, and every worker would bind the same address: `paddock status --json`",
    ),
    row(
        &["enable-metrics", "metric*", "alarm-metric", "carbon*", "rrdtool*"],
        Unsupported,
        "the master measured: `paddock status --json`",
    ),
    row(
        &[
            "alarm*",
            "segfault-alarm",
            "backlog-alarm",
            "lq-alarm",
            "listen-queue-alarm",
            "log-alarm",
            "not-log-alarm",
            "not-alarm-log",
        ],
        Unsupported,
        "the master raised them",
    ),
    row(&["py-tracebacker"], Unsupported, "needs the master"),
];

const CONFIGURATION: &[Row] = &[
    row(&["ini", "include", "inherit"], NotNeeded, "read: what it says is in this file now"),
    row(
        &[
            "xml",
            "xmlconfig",
            "yaml",
            "yml",
            "json",
            "js",
            "config",
            "sqlite*",
            "ldap*",
            "inject-before",
            "inject-after",
        ],
        Unsupported,
        "only ini files are read: write its options into one",
    ),
    row(&["set", "set-placeholder", "set-ph"], NotNeeded, "read: every placeholder is replaced by its value"),
    row(&["resolve"], Unsupported, "paddock does not look names up: write the IP address"),
    row(
        &[
            "for",
            "for-times",
            "for-readline",
            "endfor",
            "end-for",
            "if-*",
            "ifenv",
            "ifexists",
            "ifdir",
            "endif",
            "end-if",
            "end",
        ],
        NotNeeded,
        "followed, as this machine and this moment have it",
    ),
    row(
        &["for-glob", "if-plugin", "if-not-plugin", "ifplugin", "if-hostname-match", "if-not-hostname-match"],
        Unsupported,
        "not followed: its lines are left out",
    ),
    row(&["blacklist", "end-blacklist", "whitelist", "end-whitelist"], NotNeeded, "nobody else's options are mixed in"),
    row(
        &[
            "help",
            "usage",
            "version",
            "get",
            "show-config",
            "print",
            "print-sym",
            "print-symbol",
            "extract",
            "connect-and-read",
            "signal",
            "ping*",
            "nagios",
            "plugins-list",
            "plugin-list",
            "router-list",
            "routers-list",
            "logger-list",
            "loggers-list",
            "clock-list",
            "clocks-list",
            "dump-options",
            "cflags",
            "dot-h",
            "config-py",
            "build-plugin",
            "python-version",
            "perl-version",
            "mono-version",
        ],
        NotNeeded,
        "it asks something, and starts no worker",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::table::find;
    use crate::import::table::tests::{invented, is_sound};
    use crate::import::uwsgi::options;

    #[test]
    fn the_table_is_sound() {
        is_sound(TABLE);
    }

    #[test]
    fn every_name_and_pattern_stands_for_an_option() {
        // The logic of the file itself, which no command line has.
        let known = options::all().keys().copied().chain(["end", "print"]).collect();
        assert_eq!(invented(TABLE, &known), [""; 0]);
    }

    #[test]
    fn what_would_bring_the_master_back_is_never_passed_on() {
        for (name, _) in options::all().iter().filter(|(_, option)| option.master) {
            let fate = find(TABLE, name).map(|row| row.fate);
            assert!(matches!(fate, Some(Unsupported | NotNeeded | Mapped(_))), "{name}: {fate:?}");
        }
    }
}
