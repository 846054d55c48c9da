//! The sockets that a worker serves on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::fs::FlockOperation;

use super::serve;
use super::settings::Settings;
use super::state::{State, wait_readable};

/// A connection of either kind.
pub(super) trait Connection: Read + Write + AsFd + Send {}
impl Connection for TcpStream {}
impl Connection for UnixStream {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(false)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(Box::new(stream))
            }
        }
    }

    fn is_blocking(&self) -> bool {
        rustix::fs::fcntl_getfl(self.as_fd()).is_ok_and(|flags| !flags.contains(rustix::fs::OFlags::NONBLOCK))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Stream listeners from `LISTEN_FDS`, and with `W_DIRECT=1` a socket of this process alone.
pub(super) struct Listeners {
    inherited: Vec<Listener>,
    own: Option<(Listener, PathBuf)>,
    directory: Option<PathBuf>,
}

impl Listeners {
    /// Takes the inherited sockets; datagram sockets are left alone.
    pub(super) fn take(settings: &Settings) -> io::Result<Self> {
        let meant_for_us = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        let mut inherited = Vec::new();
        if meant_for_us {
            let mut fds = ListenFd::from_env();
            for index in 0..fds.len() {
                if let Ok(Some(listener)) = fds.take_tcp_listener(index) {
                    inherited.push(Listener::Tcp(listener));
                } else if let Ok(Some(listener)) = fds.take_unix_listener(index) {
                    inherited.push(Listener::Unix(listener));
                }
            }
        }
        let directory = settings.get("dir").map(PathBuf::from);
        let own = match &directory {
            Some(directory) if settings.flag("direct") => {
                let path = directory.join(format!("direct-{}.sock", std::process::id()));
                let listener = UnixListener::bind(&path)?;
                listener.set_nonblocking(true)?;
                Some((Listener::Unix(listener), path))
            }
            _ => None,
        };
        Ok(Self { inherited, own, directory })
    }

    /// Gives each blocking listener a thread of its own. `poll` may wake two workers for one connection, and the loser
    /// would hang in `accept(2)` through its own drain; so they take turns, by a lock in the directory that they share.
    pub(super) fn start_blocking_acceptors(self, state: &Arc<State>) -> Self {
        let (blocking, rest): (Vec<_>, Vec<_>) = self.inherited.into_iter().partition(Listener::is_blocking);
        for (index, listener) in blocking.into_iter().enumerate() {
            let state = Arc::clone(state);
            let turn = self.directory.clone().unwrap_or_else(std::env::temp_dir).join(format!("turn-{index}"));
            std::thread::spawn(move || {
                if let Ok(turn) = File::create(turn) {
                    accept_in_turn(&state, &listener, &turn);
                }
            });
        }
        Self { inherited: rest, ..self }
    }

    /// Waits for connections, for the drain, or for the timeout.
    pub(super) fn accept(&self, state: &Arc<State>, timeout: Option<Duration>) -> Vec<Box<dyn Connection>> {
        let listeners: Vec<&Listener> = self.inherited.iter().chain(self.own.as_ref().map(|own| &own.0)).collect();
        let mut fds: Vec<BorrowedFd<'_>> = listeners.iter().map(|listener| listener.as_fd()).collect();
        fds.push(state.drain_latch());
        let readable = wait_readable(&fds, timeout);
        if state.is_draining() || state.is_hung() {
            return Vec::new();
        }
        let ready = listeners.iter().zip(readable).filter(|(_, readable)| *readable);
        ready.filter_map(|(listener, _)| accept_one(state, listener)).collect()
    }

    /// No more connections; those that wait on this process's own socket are still answered.
    pub(super) fn close(self, state: &Arc<State>) {
        if let Some((listener, path)) = self.own {
            let _ = std::fs::remove_file(path);
            while let Some(connection) = accept_one(state, &listener) {
                serve::start(state, connection);
            }
        }
    }
}

/// Accepts and enters the connection into the books before anyone can think that nothing is in flight.
fn accept_one(state: &State, listener: &Listener) -> Option<Box<dyn Connection>> {
    state.enter();
    let connection = listener.accept().ok();
    if connection.is_none() {
        state.leave();
    }
    connection
}

fn accept_in_turn(state: &Arc<State>, listener: &Listener, turn: &File) {
    loop {
        if rustix::fs::flock(turn, FlockOperation::LockExclusive).is_err() {
            continue;
        }
        state.enter();
        let connection = if state.is_draining() || state.is_hung() {
            None
        } else {
            let readable = wait_readable(&[listener.as_fd(), state.drain_latch()], None);
            if state.is_draining() || readable.first() != Some(&true) { None } else { accept_one(state, listener) }
        };
        let _ = rustix::fs::flock(turn, FlockOperation::Unlock);
        if let Some(connection) = connection {
            serve::start(state, connection);
        }
        state.leave();
        if state.is_draining() || state.is_hung() {
            return;
        }
    }
}
