//! A worker's own notify socket.
//!
//! Every message's sender is known from the kernel (`SCM_CREDENTIALS`, `unix(7)`); whether it belongs to the worker is
//! for the caller to check before anything is acted upon.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::SocketType;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files;
use super::message::{self, Datagram};
use crate::closing::{self, Closing, Incoming};
use crate::sys::{self, Entrusted};

/// Larger datagrams are dropped; systemd's own bound is one page (`sd_notify(3)` messages are short).
const DATAGRAM_MAX: usize = 4096;

/// A bound socket; unlinked when dropped.
#[derive(Debug)]
pub struct NotifySocket {
    socket: AsyncFd<Entrusted>,
    path: PathBuf,
    closing: Closing,
}

/// What one datagram was.
#[derive(Debug)]
pub struct Received {
    /// Who sent it; none: the kernel could not say (gone, or in a foreign pid namespace).
    pub sender: Option<Pid>,
    /// Its text.
    pub datagram: Datagram,
    /// Descriptors that came with it: for [`NotifySocket::closing`] once it has been acted upon, which releases a barrier.
    pub descriptors: Vec<OwnedFd>,
}

impl NotifySocket {
    /// Bind at `path`, for `owner` (uid, gid) to write to.
    ///
    /// # Errors
    /// What `bind(2)`, `chown(2)` say; a path over 107 bytes.
    pub fn bind(path: PathBuf, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let socket = files::bind(&path, SocketType::DGRAM)?;
        if let Err(error) = files::hand_over(&path, owner) {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Self::keep(socket, path)
    }

    /// Go on with a socket that an earlier manager bound at `path`: what was sent meanwhile waits in it.
    ///
    /// # Errors
    /// What `setsockopt(2)` says.
    pub fn keep(socket: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let prepare = || {
            rustix::io::ioctl_fionbio(&socket, true)?;
            rustix::net::sockopt::set_socket_passcred(&socket, true)
        };
        let prepared = prepare().map_err(io::Error::from);
        let closing = Closing::default();
        let closed_by = closing.clone();
        let socket = Entrusted::new(socket, move |socket| closed_by.mailbox(socket));
        match prepared.and_then(|()| sys::watch_entrusted(socket, Interest::READABLE)) {
            Ok(socket) => Ok(Self { socket, path, closing }),
            Err(error) => {
                // Nobody else would remove it.
                let _ = std::fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// The socket itself, for safe keeping.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }

    /// Who closes what came with messages.
    pub fn closing(&self) -> &Closing {
        &self.closing
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Wait until something new can be received; what is there must then be received to the end. Cancel-safe.
    ///
    /// # Errors
    /// The loop is ending.
    pub async fn readable(&self) -> io::Result<()> {
        // Cleared first: what is sent from here on wakes us again.
        self.socket.readable().await?.clear_ready();
        Ok(())
    }

    /// The next datagram, if there is one now, whether or not the loop has heard of it; one that was cut says nothing.
    pub fn try_receive(&self) -> Option<Received> {
        loop {
            match receive(self.socket.get_ref().as_fd()) {
                Ok(received) => return Some(received),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut buffer = [0_u8; DATAGRAM_MAX];
    let Incoming { bytes, is_cut, sender, descriptors } = closing::receive(socket, &mut buffer)?;
    let datagram = message::parse(buffer.get(..bytes).filter(|_| !is_cut).unwrap_or_default());
    Ok(Received { sender, datagram, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::event::Message;
    use std::os::unix::net::UnixDatagram;

    #[tokio::test]
    async fn a_message_comes_with_its_sender() {
        let directory = files::test_directory("notify");
        let socket = NotifySocket::bind(directory.join("n"), None).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        client.send_to(b"READY=1", socket.path()).unwrap();
        socket.readable().await.unwrap();
        let received = socket.try_receive().unwrap();
        assert_eq!(received.sender.unwrap().as_raw_nonzero().get().unsigned_abs(), std::process::id());
        assert_eq!(received.datagram.messages, [Message::Ready]);
        assert!(socket.try_receive().is_none());
        let path = socket.path().to_owned();
        drop(socket);
        assert!(!path.exists());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test]
    async fn a_datagram_that_is_too_long_is_dropped_and_the_next_one_read() {
        let directory = files::test_directory("notify-long");
        let socket = NotifySocket::bind(directory.join("n"), None).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        client.send_to(&[b'x'; DATAGRAM_MAX + 1], socket.path()).unwrap();
        client.send_to(b"WATCHDOG=1", socket.path()).unwrap();
        socket.readable().await.unwrap();
        assert_eq!(socket.try_receive().unwrap().datagram.messages, []);
        assert_eq!(socket.try_receive().unwrap().datagram.messages, [Message::Watchdog]);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
