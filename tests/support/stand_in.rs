//! A program in paddock's place that behaves on request: where the manager that is to be replaced looks, it finds this
//! file. What it does is in the file `stand-in` beside it, as `key=value` lines.
//!
//! | key | what happens |
//! |---|---|
//! | `answer=hang` | asked whether it can take over, it never answers |
//! | `answer=refuse` | it refuses and says why, at great length |
//! | `answer=spoil` | it agrees, but cannot be executed any more |
//! | `answer=agree` | it has the real program answer |
//! | `real=PATH` | the real program |
//!
//! Executed in the manager's place it says so with the file `held`, waits for the file `go`, and becomes the real program.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::manager::{install, paddock};
use super::proc;

/// The longest wait for `go`.
const PATIENCE: Duration = Duration::from_mins(1);

/// Puts it in the place of the program at `at`.
pub(crate) fn put(at: &Path, answer: &str) {
    let real = at.with_file_name("real");
    if !real.exists() {
        install(&paddock(), &real);
    }
    for signal in ["held", "go"] {
        let _ = fs::remove_file(at.with_file_name(signal));
    }
    let text = format!("answer={answer}\nreal={}\n", real.display());
    fs::write(at.with_file_name("stand-in"), text).expect("its orders");
    install(&std::env::current_exe().expect("this program"), at);
}

/// Waits until it stands in the manager's place.
#[track_caller]
pub(crate) fn wait_held(at: &Path) {
    proc::wait_until(PATIENCE, "the stand-in is executed", || at.with_file_name("held").exists());
}

/// Lets it become the real program.
pub(crate) fn let_go(at: &Path) {
    fs::write(at.with_file_name("go"), "").expect("the sign");
}

/// Its own part.
pub(crate) fn run() -> ExitCode {
    let own = std::env::current_exe().expect("its own path");
    let orders = fs::read_to_string(own.with_file_name("stand-in")).expect("its orders");
    let orders: BTreeMap<&str, &str> = orders.lines().filter_map(|line| line.split_once('=')).collect();
    let real = PathBuf::from(orders["real"]);
    if std::env::args_os().nth(1).is_some_and(|role| role == "can-take-over") {
        match orders["answer"] {
            "hang" => std::thread::sleep(PATIENCE * 10),
            "refuse" => {
                let _ = std::io::stderr().write_all("\u{1b}[31mnever \u{7}".repeat(10_000).as_bytes());
                return ExitCode::FAILURE;
            }
            "spoil" => fs::set_permissions(&own, fs::Permissions::from_mode(0o644)).expect("its own mode"),
            _ => {}
        }
        return become_real(&real);
    }
    fs::write(own.with_file_name("held"), "").expect("the sign");
    let until = Instant::now() + PATIENCE;
    while !own.with_file_name("go").exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    become_real(&real)
}

/// Not with the standard library, which unblocks every signal.
fn become_real(real: &Path) -> ExitCode {
    let text = |text: std::ffi::OsString| CString::new(text.into_vec()).expect("a text");
    let arguments: Vec<CString> = std::env::args_os().map(text).collect();
    let error = nix::unistd::execv(&text(real.as_os_str().to_owned()), &arguments).unwrap_err();
    let _ = writeln!(std::io::stderr(), "{}: {error}", real.display());
    ExitCode::FAILURE
}
