//! Talking to the manager: `sd_notify(3)` by hand, since the tests also need to say what no library would.

use std::ffi::OsString;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, ExitCode};

/// The worker's notify socket; silent without `NOTIFY_SOCKET`.
pub(super) struct Notify {
    socket: UnixDatagram,
    path: Option<OsString>,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET`.
    pub(super) fn from_env() -> std::io::Result<Self> {
        Ok(Self { socket: UnixDatagram::unbound()?, path: std::env::var_os("NOTIFY_SOCKET") })
    }

    /// Sends one datagram; a manager that is gone is no reason to stop serving.
    pub(super) fn send(&self, text: &str) {
        if let Some(path) = &self.path {
            let _ = self.socket.send_to(text.as_bytes(), path);
        }
    }

    /// As [`Self::send`], from a child that is gone when the message is read.
    pub(super) fn send_by_a_child_that_leaves(text: &str) {
        if let Ok(program) = std::env::current_exe()
            && let Ok(mut child) = Command::new(program).arg("--worker-say").arg(text).spawn()
        {
            let _ = child.wait();
        }
    }
}

/// The child's part: say it, leave.
pub(crate) fn say_and_leave(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match (Notify::from_env(), arguments.next()) {
        (Ok(notify), Some(text)) => {
            notify.send(&text.to_string_lossy());
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}
