//! What becomes of each of Celery's settings about workers and tasks, and of `celery worker`'s options.

use crate::config::key::Key;
use crate::import::table::{Fate, Row, Table};

use Fate::{Changed, Kept, Mapped, NotNeeded, Unsupported};

const fn row(names: &'static [&'static str], fate: Fate, note: &'static str) -> Row {
    Row { names, fate, note }
}

/// By the prefix of the settings, then the command line.
pub const TABLE: &Table = &[
    ("worker_*: processes and their lives", PROCESSES),
    ("worker_*: the rest", WORKER),
    ("task_*", TASK),
    ("celery worker: processes and their lives", PROCESS_OPTIONS),
    ("celery worker: the rest", OPTIONS),
    ("celery: before the word worker", GENERAL),
    ("All other settings", OTHERS),
];

const POOL: &str = "prefork's own; a slot here is one process, started by paddock and not forked from a pool";

const PROCESSES: &[Row] = &[
    row(
        &["worker_concurrency"],
        Mapped(&[Key::Workers]),
        "one process for each; none given: `auto`. With the threads pool it stays the number of threads of each worker",
    ),
    row(
        &["worker_pool"],
        Changed,
        "solo, in as many workers as prefork had children, or threads; gevent and eventlet are not supported",
    ),
    row(
        &["worker_max_tasks_per_child"],
        Mapped(&[Key::MaxRequests]),
        "the same number, with a jitter that Celery does not have; the replacement is ready before the old worker drains",
    ),
    row(
        &["worker_max_memory_per_child"],
        Mapped(&[Key::MemoryRecycleAt, Key::MemoryMax]),
        "KiB become `recycle_at`, the soft limit; a quarter more becomes `max`, which the kernel enforces also within a task",
    ),
    row(&["worker_autoscaler"], Unsupported, "`paddock scale APP N`"),
    row(&["worker_pool_restarts"], Unsupported, "`paddock reload`, one worker after the other"),
    row(&["worker_pool_putlocks", "worker_pool_start_method"], NotNeeded, POOL),
    row(
        &["worker_proc_alive_timeout"],
        NotNeeded,
        "a worker has `[timeouts] start` to get ready: 60 s, and none is killed after four",
    ),
    row(&["worker_lost_wait"], NotNeeded, "the verdict on a worker that died is read from the kernel, not waited for"),
    row(
        &["worker_prefetch_multiplier"],
        Changed,
        "1, unless `--prefetch-multiplier` says otherwise: what a worker holds back, no other can do",
    ),
    row(
        &["worker_state_db"],
        Unsupported,
        "all workers would write the one file: take it out, or revoked tasks are remembered by whoever came first",
    ),
    row(
        &["worker_soft_shutdown_timeout", "worker_enable_soft_shutdown_on_idle"],
        Changed,
        "Celery's own; a drain ends at `[timeouts] graceful` at the latest, so keep it shorter",
    ),
];

const WORKER: &[Row] = &[
    row(&["worker_agent", "worker_consumer", "worker_timer", "worker_timer_precision"], Kept, ""),
    row(&["worker_cancel_long_running_tasks_on_connection_loss"], Kept, ""),
    row(&["worker_deduplicate_successful_tasks"], Kept, ""),
    row(&["worker_detect_quorum_queues", "worker_eta_task_limit"], Kept, ""),
    row(
        &["worker_direct"],
        Changed,
        "the direct queue is named after the node, and a node's name has its slot and pid here: another one for each life",
    ),
    row(&["worker_disable_prefetch", "worker_enable_prefetch_count_reduction"], Kept, ""),
    row(
        &["worker_disable_rate_limits"],
        Changed,
        "rate limits count in each worker: now one process, before all of them",
    ),
    row(&["worker_enable_remote_control", "worker_send_task_events"], Kept, ""),
    row(
        &[
            "worker_hijack_root_logger",
            "worker_log_color",
            "worker_log_datefmt",
            "worker_log_format",
            "worker_task_log_datefmt",
            "worker_task_log_format",
            "worker_redirect_stdouts",
            "worker_redirect_stdouts_level",
        ],
        Kept,
        "what Celery logs reaches paddock's log, and the journal, with the worker's slot",
    ),
];

const TASK: &[Row] = &[
    row(
        &["task_time_limit"],
        Mapped(&[Key::TimeoutWatchdog, Key::TimeoutGraceful]),
        "past it a task makes its worker ask for a replacement, then trips the watchdog; a drain may take as long",
    ),
    row(
        &["task_soft_time_limit"],
        Changed,
        "no SoftTimeLimitExceeded is raised in the solo and threads pools; where there is no hard limit it takes its place",
    ),
    row(
        &["task_acks_late"],
        Changed,
        "a killed worker's tasks go back to the broker and run again (prefork acknowledged them, unless \
         task_reject_on_worker_lost). On Redis that takes `visibility_timeout`, an hour unless set",
    ),
    row(
        &["task_reject_on_worker_lost", "task_retry_on_worker_lost"],
        NotNeeded,
        "the broker itself hands out again what a worker had not acknowledged when it died",
    ),
    row(&["task_acks_on_failure", "task_acks_on_failure_or_timeout", "task_acks_on_timeout"], Kept, ""),
    row(&["task_default_rate_limit"], Changed, "counts in each worker: now one process, before all of them"),
    row(&["task_annotations"], Kept, "a `rate_limit` in it counts in each worker"),
    row(&["task_track_started", "task_ignore_result", "task_remote_tracebacks"], Kept, ""),
    row(&["task_always_eager", "task_eager_propagates", "task_store_eager_result"], Kept, ""),
    row(
        &[
            "task_allow_error_cb_on_chord_header",
            "task_compression",
            "task_create_missing_queue_exchange_type",
            "task_create_missing_queue_type",
            "task_create_missing_queues",
            "task_default_delivery_mode",
            "task_default_exchange",
            "task_default_exchange_type",
            "task_default_priority",
            "task_default_queue",
            "task_default_queue_type",
            "task_default_routing_key",
            "task_inherit_parent_priority",
            "task_protocol",
            "task_publish_retry",
            "task_publish_retry_policy",
            "task_queue_max_priority",
            "task_queues",
            "task_repr_maxlevels",
            "task_routes",
            "task_send_sent_event",
            "task_serializer",
            "task_store_errors_even_if_ignored",
        ],
        Kept,
        "",
    ),
];

const PROCESS_OPTIONS: &[Row] = &[
    row(&["--concurrency"], Mapped(&[Key::Workers]), "as worker_concurrency"),
    row(&["--pool"], Changed, "as worker_pool"),
    row(&["--max-tasks-per-child"], Mapped(&[Key::MaxRequests]), "as worker_max_tasks_per_child"),
    row(
        &["--max-memory-per-child"],
        Mapped(&[Key::MemoryRecycleAt, Key::MemoryMax]),
        "KiB, as worker_max_memory_per_child",
    ),
    row(&["--pool-start-method"], NotNeeded, POOL),
    row(
        &["--optimization"],
        NotNeeded,
        "how prefork's master dealt tasks to its children: here each worker fetches its own",
    ),
    row(&["--autoscale"], Unsupported, "`paddock scale APP N`; `workers` is its maximum"),
    row(&["--uid"], Mapped(&[Key::User]), "workers only"),
    row(&["--gid"], Mapped(&[Key::Group]), "needs `user`"),
    row(&["--umask"], Mapped(&[Key::Umask]), "octal, as Celery reads it"),
    row(&["--detach", "--executable"], NotNeeded, "paddock stays in the foreground; systemd keeps it running"),
    row(&["--pidfile"], NotNeeded, "`paddock status` shows the pids"),
    row(&["--statedb"], Unsupported, "as worker_state_db"),
    row(
        &["--beat", "--schedule-filename", "--scheduler"],
        Unsupported,
        "every worker would send every periodic task: run `celery beat` as a service of its own",
    ),
    row(
        &["--time-limit", "--soft-time-limit"],
        Unsupported,
        "set task_time_limit in the application: paddock_worker looks there",
    ),
    row(
        &["--discard"],
        Unsupported,
        "`--purge`: every replacement would throw the queue away: run `celery purge` by hand",
    ),
];

const OPTIONS: &[Row] = &[
    row(&["--hostname"], Changed, "the name is followed by slot and pid, because two lives of a slot overlap"),
    row(
        &["--logfile"],
        Changed,
        "all workers write the same file, unless it has %n in it; without it the log goes to paddock's, and the journal",
    ),
    row(&["--prefetch-multiplier"], Kept, "for each worker, which is one process"),
    row(&["--loglevel", "--task-events", "--disable-prefetch"], Kept, ""),
    row(&["--queues", "--exclude-queues", "--include"], Kept, ""),
    row(&["--without-gossip", "--without-mingle", "--without-heartbeat", "--heartbeat-interval"], Kept, ""),
];

const GENERAL: &[Row] = &[
    row(&["--app", "--broker", "--result-backend", "--loader", "--config"], Kept, ""),
    row(&["--workdir"], Mapped(&[Key::WorkingDirectory]), "the same directory"),
    row(&["--no-color", "--quiet", "--skip-checks"], Kept, ""),
];

const OTHERS: &[Row] = &[row(
    &["broker_*", "result_*", "beat_*", "*_backend_*"],
    Kept,
    "Celery reads its configuration itself; nothing of it is about processes",
)];

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
    fn every_setting_about_workers_and_tasks_and_every_option_has_a_row() {
        let known: BTreeSet<&str> = include_str!("../../../tests/golden/import/celery-5.7.0.names").lines().collect();
        assert_eq!(known.len(), 36 + 39 + 33 + 9);
        assert_eq!(missing(TABLE, &known), [""; 0]);
        // The patterns are about what is neither a worker's nor a task's, and so not in the list.
        let names = invented(TABLE, &known).into_iter().filter(|name| !name.contains('*'));
        assert_eq!(names.collect::<Vec<_>>(), [""; 0]);
    }
}
