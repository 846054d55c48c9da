//! A grandchild that detaches itself: double fork, session of its own, TERM ignored.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Starts the detached grandchild and returns its pid.
pub(super) fn spawn() -> std::io::Result<u32> {
    let output = Command::new(std::env::current_exe()?).arg("--worker-daemonise").stderr(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().parse().map_err(|_| std::io::Error::other(format!("no pid in {text:?}")))
}

/// The child's part: leave the session, start the grandchild, say its pid, leave.
pub(crate) fn daemonise() -> ExitCode {
    let _ = rustix::process::setsid();
    let grandchild = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .arg("--worker-linger")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    });
    match grandchild {
        Ok(child) => {
            use std::io::Write as _;
            let said = writeln!(std::io::stdout(), "{}", child.id());
            if said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// The grandchild's part; bounded, should nobody end it.
pub(crate) fn linger() -> ExitCode {
    std::thread::sleep(Duration::from_mins(10));
    ExitCode::SUCCESS
}
