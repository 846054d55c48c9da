//! A worker's memory pressure socket: `MEMORY_PRESSURE_WATCH` (systemd's MEMORY_PRESSURE.md) names it, and every
//! connection to it gets one byte when the soft limit is reached: shed caches now.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::net::{SendFlags, SocketFlags, SocketType};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files;
use crate::closing::Closing;
use crate::sys::{self, Entrusted};

/// More connections than this push the oldest out.
const CONNECTIONS_MAX: usize = 64;

/// The pause while there is no descriptor for a connection; it waits in the backlog.
const SHORTAGE: std::time::Duration = std::time::Duration::from_millis(500);

/// How many may wait to be let in.
const BACKLOG: i32 = 128;

/// A bound socket and who is connected; unlinked when dropped.
#[derive(Debug)]
pub struct PressureSocket {
    listener: AsyncFd<Entrusted>,
    connections: RefCell<Vec<Entrusted>>,
    path: PathBuf,
    closing: Closing,
}

impl PressureSocket {
    /// Listen at `path`, for `owner` (uid, gid) to connect to.
    ///
    /// # Errors
    /// What `bind(2)`, `chown(2)` say; a path over 107 bytes.
    pub fn bind(path: PathBuf, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let listener = files::bind(&path, SocketType::STREAM)?;
        let bound = path.clone();
        files::hand_over(&path, owner)
            .and_then(|()| Ok(rustix::net::listen(&listener, BACKLOG)?))
            .and_then(|()| Self::keep(listener, Vec::new(), path))
            .inspect_err(|_| drop(std::fs::remove_file(&bound)))
    }

    /// Go on with a socket that an earlier image of this process listened on, and with whom it had let in.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn keep(listener: OwnedFd, connections: Vec<OwnedFd>, path: PathBuf) -> io::Result<Self> {
        let closing = Closing::default();
        let listener = sys::watch_entrusted(entrust(listener, &closing), Interest::READABLE)?;
        let connections = connections.into_iter().map(|connection| entrust(connection, &closing)).collect();
        Ok(Self { listener, connections: RefCell::new(connections), path, closing })
    }

    /// The socket itself.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.get_ref().as_fd()
    }

    /// The numbers of its connections.
    pub fn connections(&self) -> Vec<RawFd> {
        self.connections.borrow().iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Take connections from processes that `belongs` lets in, for ever.
    ///
    /// # Errors
    /// What `accept(2)` says, when going on makes no sense.
    pub async fn serve(&self, belongs: impl Fn(Pid) -> bool) -> io::Result<()> {
        loop {
            // What was sent along with connections that are over must be closed before more is taken.
            self.closing.caught_up().await;
            let mut guard = self.listener.readable().await?;
            match rustix::net::accept_with(self.listener.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => {
                    let connection = entrust(connection, &self.closing);
                    if rustix::net::sockopt::socket_peercred(&connection).is_ok_and(|peer| belongs(peer.pid)) {
                        self.let_in(connection);
                    }
                    // A worker that connects without end must not hold the loop.
                    tokio::task::yield_now().await;
                }
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(
                    rustix::io::Errno::MFILE
                    | rustix::io::Errno::NFILE
                    | rustix::io::Errno::NOBUFS
                    | rustix::io::Errno::NOMEM,
                ) => tokio::time::sleep(SHORTAGE).await,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn let_in(&self, connection: Entrusted) {
        let mut connections = self.connections.borrow_mut();
        if connections.len() >= CONNECTIONS_MAX {
            connections.remove(0);
        }
        connections.push(connection);
    }

    /// One byte to everyone; who cannot take it is full of earlier ones, or gone.
    pub fn pulse(&self) {
        self.connections.borrow_mut().retain(|connection| {
            match rustix::net::send(connection.as_fd(), b"p", SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => true,
                Err(_) => false,
            }
        });
    }
}

/// A worker can send descriptors along, which nobody here reads: they wait in the socket until that is closed.
fn entrust(socket: OwnedFd, closing: &Closing) -> Entrusted {
    let closing = closing.clone();
    Entrusted::new(socket, move |socket| closing.mailbox(socket))
}

impl Drop for PressureSocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    #[tokio::test(flavor = "current_thread")]
    async fn every_connection_gets_one_byte_and_strangers_none() {
        let directory = files::test_directory("pressure");
        let socket = Rc::new(PressureSocket::bind(directory.join("p"), None).unwrap());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let served = Rc::clone(&socket);
                let ours = tokio::task::spawn_local(async move {
                    served.serve(|pid| pid.as_raw_nonzero().get().unsigned_abs() == std::process::id()).await
                });
                let mut client = UnixStream::connect(socket.path()).unwrap();
                while socket.connections.borrow().is_empty() {
                    tokio::task::yield_now().await;
                }
                ours.abort();
                socket.pulse();
                let mut byte = [0_u8; 8];
                assert_eq!(client.read(&mut byte).unwrap(), 1);

                let served = Rc::clone(&socket);
                let strangers = tokio::task::spawn_local(async move { served.serve(|_| false).await });
                let mut stranger = UnixStream::connect(socket.path()).unwrap();
                stranger.set_nonblocking(true).unwrap();
                let end = loop {
                    match stranger.read(&mut byte) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::task::yield_now().await,
                        other => break other,
                    }
                };
                assert_eq!(end.unwrap(), 0);
                strangers.abort();
                drop(client);
                socket.pulse();
                assert!(socket.connections.borrow().is_empty());
            })
            .await;
        std::fs::remove_dir_all(directory).unwrap();
    }
}
