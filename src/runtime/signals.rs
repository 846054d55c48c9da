//! Signals to the manager, with gunicorn's meanings.

use std::io;

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::supervisor::event::Request;

/// What a signal asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// Something for the supervisor.
    Request(Request),
    /// HUP: read the configuration again and roll.
    Reload,
    /// USR1: the status to the log.
    Status,
    /// USR2: replace the manager's binary.
    Upgrade,
    /// A child is over that nobody may be waiting for.
    Children,
}

/// All signals that the manager hears.
#[derive(Debug)]
pub struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    more: Signal,
    fewer: Signal,
    status: Signal,
    upgrade: Signal,
    children: Signal,
}

impl Signals {
    /// Listen.
    ///
    /// # Errors
    /// What `sigaction(2)` says.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            more: signal(SignalKind::from_raw(libc::SIGTTIN))?,
            fewer: signal(SignalKind::from_raw(libc::SIGTTOU))?,
            status: signal(SignalKind::user_defined1())?,
            upgrade: signal(SignalKind::user_defined2())?,
            children: signal(SignalKind::child())?,
        })
    }

    /// The next one. Cancel-safe.
    pub async fn next(&mut self) -> Asked {
        meaning(self.next_number().await)
    }

    /// Its number. Cancel-safe.
    pub async fn next_number(&mut self) -> i32 {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.quit.recv() => libc::SIGQUIT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
            _ = self.more.recv() => libc::SIGTTIN,
            _ = self.fewer.recv() => libc::SIGTTOU,
            _ = self.status.recv() => libc::SIGUSR1,
            _ = self.upgrade.recv() => libc::SIGUSR2,
            _ = self.children.recv() => libc::SIGCHLD,
        }
    }
}

fn meaning(signal: i32) -> Asked {
    match signal {
        libc::SIGINT | libc::SIGQUIT => Asked::Request(Request::Stop { fast: true }),
        libc::SIGTERM => Asked::Request(Request::Terminate),
        libc::SIGHUP => Asked::Reload,
        libc::SIGTTIN => Asked::Request(Request::ScaleBy { by: 1 }),
        libc::SIGTTOU => Asked::Request(Request::ScaleBy { by: -1 }),
        libc::SIGUSR1 => Asked::Status,
        libc::SIGUSR2 => Asked::Upgrade,
        _ => Asked::Children,
    }
}
