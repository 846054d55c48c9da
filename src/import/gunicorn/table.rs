//! What becomes of each of gunicorn's settings.

use crate::config::key::Key;
use crate::import::table::{Fate, Row, Table};

use Fate::{Changed, Kept, Mapped, NotNeeded, Unsupported};

const fn row(names: &'static [&'static str], fate: Fate, note: &'static str) -> Row {
    Row { names, fate, note }
}

/// By the sections of gunicorn's documentation.
pub const TABLE: &Table = &[
    ("Config file", CONFIG_FILE),
    ("Server socket", SERVER_SOCKET),
    ("Worker processes", WORKER_PROCESSES),
    ("Server mechanics", SERVER_MECHANICS),
    ("Debugging", DEBUGGING),
    ("Logging and process naming", LOGGING),
    ("Security, protocol and TLS", PROTOCOL),
    ("Server hooks", HOOKS),
    ("Dirty arbiters and control socket", OTHERS),
];

const CONFIG_FILE: &[Row] = &[
    row(&["config"], Kept, "part of the command; paddock_worker has gunicorn read it, unchanged"),
    row(&["wsgi_app"], Kept, ""),
];

const SERVER_SOCKET: &[Row] = &[
    row(
        &["bind"],
        Mapped(&[Key::Bind]),
        "paddock holds the sockets. `localhost` becomes 127.0.0.1; other host names are not looked up. Sockets that systemd passes in need no `bind`",
    ),
    row(&["backlog"], Mapped(&[Key::Backlog]), "the same number"),
    row(
        &["reuse_port"],
        NotNeeded,
        "all workers accept on the one socket that paddock holds, so that a worker's end loses no connection",
    ),
];

const WORKER_PROCESSES: &[Row] = &[
    row(&["workers"], Mapped(&[Key::Workers]), "the same number; `auto` is one for each usable CPU"),
    row(
        &["worker_class"],
        Kept,
        "sync, gthread, gevent and uvicorn_worker.UvicornWorker are known to count requests and to drain; for others see the guide",
    ),
    row(&["threads"], Kept, "threads of one worker, as before"),
    row(&["worker_connections"], Kept, "connections of one worker, as before"),
    row(
        &["max_requests"],
        Mapped(&[Key::MaxRequests]),
        "the same number; the replacement is ready before the old worker drains",
    ),
    row(
        &["max_requests_jitter"],
        Mapped(&[Key::MaxRequestsJitter]),
        "the same number, rolled once for each life; a percentage of max_requests does as well",
    ),
    row(
        &["timeout"],
        Mapped(&[Key::TimeoutWatchdog]),
        "one and a half times as long, because pings come every third of it: never less patient than gunicorn. For sync \
         it is also the time after which a request that hangs makes its worker ask for a replacement",
    ),
    row(
        &["graceful_timeout"],
        Mapped(&[Key::TimeoutGraceful]),
        "the bound of every drain: stop, reload and recycle, for every worker class alike",
    ),
    row(&["keepalive"], Kept, ""),
    row(&["asgi_loop", "asgi_lifespan", "asgi_disconnect_grace_period", "websocket_max_message_size"], Kept, ""),
    row(&["http_parser"], Kept, ""),
];

const SERVER_MECHANICS: &[Row] = &[
    row(
        &["preload_app"],
        Unsupported,
        "every worker starts by itself, so nothing is shared: plan memory for it. What it gave besides, a broken release \
         noticed before the old one is gone, a reload's canary gives",
    ),
    row(&["sendfile"], Kept, ""),
    row(&["chdir"], Kept, "gunicorn enters it in every worker, before it imports the application"),
    row(&["daemon"], NotNeeded, "paddock stays in the foreground; systemd keeps it running"),
    row(&["raw_env"], Kept, "set in every worker; `environment` would do the same"),
    row(&["pidfile"], NotNeeded, "`paddock status` shows the pids"),
    row(&["worker_tmp_dir"], NotNeeded, "signs of life go to the manager as messages, not through a file's time stamp"),
    row(
        &["user"],
        Mapped(&[Key::User]),
        "workers only; with all of its supplementary groups. The manager stays who started it",
    ),
    row(&["group"], Mapped(&[Key::Group]), "needs `user`"),
    row(&["initgroups"], NotNeeded, "a `user`'s supplementary groups always come with it"),
    row(
        &["umask"],
        Mapped(&[Key::Umask, Key::SocketMode]),
        "gunicorn's default is 0, paddock's 0022. It also made the mode of unix sockets: `[listen] socket_mode`",
    ),
    row(&["tmp_upload_dir"], Kept, ""),
    row(&["pythonpath", "paste", "raw_paste_global_conf"], Kept, ""),
    row(&["root_path"], Kept, ""),
];

const DEBUGGING: &[Row] = &[
    row(
        &["reload", "reload_engine", "reload_extra_files"],
        Unsupported,
        "in production `paddock reload`, which is undone if the new code does not start; for development \
         `paddock run --reload-on-change PATH`",
    ),
    row(&["spew"], Kept, ""),
    row(&["check_config"], NotNeeded, "`paddock check` starts a worker on stand-in sockets, with its environment"),
    row(
        &["print_config"],
        NotNeeded,
        "`paddock show-config`; for gunicorn's own settings `gunicorn --print-config` as before",
    ),
];

const LOGGING: &[Row] = &[
    row(
        &["accesslog", "errorlog", "access_log_format", "loglevel", "logger_class"],
        Kept,
        "`-` reaches paddock's log, and the journal, with the worker's slot",
    ),
    row(&["logconfig", "logconfig_dict", "logconfig_json"], Kept, ""),
    row(&["disable_redirect_access_to_syslog", "syslog", "syslog_addr", "syslog_prefix", "syslog_facility"], Kept, ""),
    row(&["capture_output"], Kept, "what a worker prints is in paddock's log in any case"),
    row(&["enable_stdio_inheritance"], NotNeeded, "nothing is made a daemon, so standard output stays connected"),
    row(
        &["statsd_host", "dogstatsd_tags", "statsd_prefix"],
        Changed,
        "requests are reported as before; the gauge of workers was the master's: `paddock status --json` has it",
    ),
    row(&["enable_backlog_metric"], Unsupported, "gunicorn's master measured it"),
    row(
        &["proc_name"],
        Mapped(&[Key::Name]),
        "gunicorn goes on naming its processes by it; the app's name is made from it",
    ),
    row(&["default_proc_name"], Kept, "gunicorn sets it by itself"),
];

const PROTOCOL: &[Row] = &[
    row(&["limit_request_line", "limit_request_fields", "limit_request_field_size"], Kept, ""),
    row(&["secure_scheme_headers", "forwarded_allow_ips", "forwarder_headers", "header_map"], Kept, ""),
    row(&["proxy_protocol", "proxy_allow_ips", "protocol", "uwsgi_allow_ips"], Kept, ""),
    row(
        &[
            "permit_obsolete_folding",
            "strip_header_spaces",
            "permit_unconventional_http_method",
            "permit_unconventional_http_version",
            "casefold_http_method",
        ],
        Kept,
        "",
    ),
    row(
        &[
            "http_protocols",
            "http2_cleartext",
            "http2_max_concurrent_streams",
            "http2_initial_window_size",
            "http2_max_frame_size",
            "http2_max_header_list_size",
        ],
        Kept,
        "",
    ),
    row(
        &[
            "keyfile",
            "certfile",
            "ssl_version",
            "cert_reqs",
            "ca_certs",
            "suppress_ragged_eofs",
            "do_handshake_on_connect",
            "ciphers",
        ],
        Kept,
        "workers read the files as `user`, where gunicorn's master may have read them as root: check who may",
    ),
];

const HOOKS: &[Row] = &[
    row(
        &["on_starting", "when_ready", "on_exit"],
        Unsupported,
        "ran once for all workers, and there is no such moment in a worker: use ExecStartPre= and ExecStopPost= of the \
         unit, or `--server-hooks` behind `paddock_worker gunicorn` to run it in every worker",
    ),
    row(
        &["pre_fork", "child_exit"],
        Changed,
        "called in the worker itself: a worker no longer shares memory with what ran them",
    ),
    row(
        &["post_fork", "post_worker_init", "worker_int", "worker_abort", "worker_exit", "pre_request", "post_request"],
        Kept,
        "",
    ),
    row(&["ssl_context"], Kept, ""),
    row(
        &["on_reload", "pre_exec", "nworkers_changed"],
        Unsupported,
        "gunicorn's master called it, at things that paddock does now and tells in its log",
    ),
];

const OTHERS: &[Row] = &[
    row(
        &[
            "dirty_apps",
            "dirty_workers",
            "dirty_timeout",
            "dirty_threads",
            "dirty_graceful_timeout",
            "on_dirty_starting",
            "dirty_post_fork",
            "dirty_worker_init",
            "dirty_worker_exit",
        ],
        Unsupported,
        "dirty workers belong to gunicorn's master: run them as an app of their own",
    ),
    row(
        &["control_socket", "control_socket_mode", "control_socket_disable"],
        NotNeeded,
        "paddock's own commands: status, reload, scale, recycle",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::table::tests::{invented, is_sound, missing};
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_sound() {
        is_sound(TABLE);
    }

    #[test]
    fn every_setting_of_gunicorns_documentation_has_a_row() {
        let known: BTreeSet<&str> =
            include_str!("../../../tests/golden/import/gunicorn-27.0.1.names").lines().collect();
        assert_eq!(known.len(), 120);
        assert_eq!(missing(TABLE, &known), [""; 0]);
        assert_eq!(invented(TABLE, &known), [""; 0]);
    }
}
