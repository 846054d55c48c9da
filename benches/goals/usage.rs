//! What a process has used, as `proc(5)` tells it.

use std::fs;

use crate::support::proc;

/// Nanoseconds on a processor of all threads that live (`/proc/PID/task/TID/schedstat`).
pub(crate) fn processor_time(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a living process").flatten();
    threads
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}

/// Voluntary context switches of all threads that live.
pub(crate) fn voluntary_switches(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a living process").flatten();
    threads
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("status")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
        })
        .sum()
}

/// Mebibytes of a field of `/proc/PID/status`.
pub(crate) fn mebibytes(pid: u32, field: &str) -> f64 {
    let text = proc::field(pid, field).expect("a memory figure");
    text.trim_end_matches("kB").trim().parse::<f64>().expect("kibibytes") / 1024.0
}
