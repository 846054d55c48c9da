//! What the manager tells a gate: the whole of what the worker is to become, in one message.
//!
//! The text travels in a memory file whose descriptor comes first in `SCM_RIGHTS` (`unix(7)`), so that sending never
//! blocks, however large the environment is. Output and sockets follow it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::open_files::OpenFiles;

/// The most sockets that one worker can be given; `SCM_MAX_FD` is 253, and three descriptors are ours.
pub const SOCKETS_MAX: usize = 250;

/// The most text that a gate reads; the kernel's own limit for arguments and environment is far below.
const TEXT_MAX: u64 = 64 << 20;

/// How the gate becomes the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment, but for what only the worker itself can know: its own pid.
    pub environment: Vec<(OsString, OsString)>,
    /// Entered after dropping privileges.
    pub working_directory: Option<PathBuf>,
    /// Who to become; none: stay who we are.
    pub account: Option<Account>,
    /// File mode creation mask.
    pub umask: u32,
    /// How many files it may have open: not as many as the manager.
    pub open_files: OpenFiles,
}

/// Send an order; `output` becomes standard output and error, `sockets` the descriptors from 3 on.
///
/// # Errors
/// What `memfd_create(2)` or `sendmsg(2)` say; the gate is gone (EPIPE).
pub fn send(
    control: BorrowedFd<'_>,
    order: &Order,
    output: BorrowedFd<'_>,
    errors: BorrowedFd<'_>,
    sockets: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let memory = rustix::fs::memfd_create("paddock-order", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    serde_json::to_writer(io::BufWriter::new(&mut file), order).map_err(io::Error::other)?;
    file.flush()?;
    file.rewind()?;
    let mut descriptors = vec![file.as_fd(), output, errors];
    descriptors.extend_from_slice(sockets);
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(&descriptors).size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    rustix::net::sendmsg(control, &[IoSlice::new(b"o")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What a gate received.
#[derive(Debug)]
pub struct Received {
    /// The text.
    pub order: Order,
    /// Standard output.
    pub output: OwnedFd,
    /// Standard error.
    pub errors: OwnedFd,
    /// Listening sockets, in order.
    pub sockets: Vec<OwnedFd>,
}

/// Wait for an order; none when the manager went away without giving one.
///
/// # Errors
/// What `recvmsg(2)` says, or an order that makes no sense.
pub fn receive(control: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    let mut byte = [0_u8; 1];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX + 3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let message = loop {
        match rustix::net::recvmsg(control, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if message.bytes == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            descriptors.extend(fds);
        }
    }
    let mut descriptors = descriptors.into_iter();
    let (Some(text), Some(output), Some(errors)) = (descriptors.next(), descriptors.next(), descriptors.next()) else {
        return Err(io::Error::other("an order without its descriptors"));
    };
    let mut json = Vec::new();
    File::from(text).take(TEXT_MAX).read_to_end(&mut json)?;
    let order = serde_json::from_slice(&json).map_err(io::Error::other)?;
    Ok(Some(Received { order, output, errors, sockets: descriptors.collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn order() -> Order {
        Order {
            command: vec!["true".into()],
            environment: vec![("A".into(), "x".repeat(3 << 20).into())],
            working_directory: None,
            account: None,
            umask: 0o22,
            open_files: OpenFiles::exactly(1024),
        }
    }

    #[test]
    fn an_order_larger_than_any_socket_buffer_arrives_with_its_descriptors() {
        let (manager, gate) = UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let sockets: Vec<BorrowedFd<'_>> = (0..SOCKETS_MAX).map(|_| null.as_fd()).collect();
        send(manager.as_fd(), &order(), null.as_fd(), null.as_fd(), &sockets).unwrap();
        let received = receive(gate.as_fd()).unwrap().unwrap();
        assert_eq!(received.order, order());
        assert_eq!(received.sockets.len(), SOCKETS_MAX);
    }

    #[test]
    fn a_manager_that_went_away_gives_no_order() {
        let (manager, gate) = UnixStream::pair().unwrap();
        drop(manager);
        assert!(receive(gate.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_byte_without_descriptors_is_refused() {
        let (mut manager, gate) = UnixStream::pair().unwrap();
        manager.write_all(b"o").unwrap();
        assert!(receive(gate.as_fd()).is_err());
    }
}
