//! Signals to the manager, with gunicorn's meanings.

use std::io;

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
            more: signal(SignalKind::from_raw(nix::libc::SIGTTIN))?,
            fewer: signal(SignalKind::from_raw(nix::libc::SIGTTOU))?,
            status: signal(SignalKind::user_defined1())?,
            upgrade: signal(SignalKind::user_defined2())?,
            children: signal(SignalKind::child())?,
        })
    }

    /// The next one. Cancel-safe.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Asked::Request(Request::Stop { fast: true }),
            _ = self.quit.recv() => Asked::Request(Request::Stop { fast: true }),
            _ = self.terminate.recv() => Asked::Request(Request::Terminate),
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.more.recv() => Asked::Request(Request::ScaleBy { by: 1 }),
            _ = self.fewer.recv() => Asked::Request(Request::ScaleBy { by: -1 }),
            _ = self.status.recv() => Asked::Status,
            _ = self.upgrade.recv() => Asked::Upgrade,
            _ = self.children.recv() => Asked::Children,
        }
    }
}
