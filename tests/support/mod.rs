//! What the suites share: the worker program, the load generator, and a harness around a real manager.

pub(crate) mod activate;
pub(crate) mod cgroup;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod manager;
pub(crate) mod notify;
pub(crate) mod pace;
pub(crate) mod proc;
pub(crate) mod stall;
pub(crate) mod stand_in;
pub(crate) mod status;
pub(crate) mod suite;
pub(crate) mod timeline;
pub(crate) mod worker;

use std::process::ExitCode;

use suite::Suite;

/// Plays the part that this process was started for: mostly it is the suite, made of these.
pub(crate) fn run(parts: &[fn(&mut Suite)]) -> ExitCode {
    if let Some(code) = hidden_role() {
        return code;
    }
    let mut suite = Suite::default();
    for register in parts {
        register(&mut suite);
    }
    suite.run()
}

/// The part that this process plays if it was not started as the test suite: the worker program and the helpers are the
/// same file as the suite, so that one copy into another machine takes everything along.
pub(crate) fn hidden_role() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        "--worker" => Some(worker::run()),
        "--worker-daemonise" => Some(worker::daemon::daemonise()),
        "--worker-linger" => Some(worker::daemon::linger()),
        "--worker-say" => Some(worker::notify::say_and_leave(arguments)),
        "run" | "can-take-over" => Some(stand_in::run()),
        "--activate" => Some(activate::run(arguments)),
        _ => None,
    }
}
