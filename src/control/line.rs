//! A client's connection. It may carry descriptors, which nobody wants, and whose closing takes as long as the client
//! likes: neither what comes in nor the connection's end holds the loop.

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, Shutdown};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::frame::{CHUNK, Frames};
use crate::closing::{self, Closing};

/// One connection.
#[derive(Debug)]
pub(super) struct Line {
    stream: UnixStream,
    closing: Closing,
}

impl Line {
    /// Of a connection from a client, before anything is read.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, closing: Closing::default() }
    }

    /// Read what there is, at least one byte; 0: the end. Cancel-safe.
    ///
    /// # Errors
    /// What `recvmsg(2)` says.
    pub(super) async fn read_some(&self, frames: &mut Frames) -> io::Result<usize> {
        loop {
            // Who has sent much that takes long to close waits for that alone.
            self.closing.caught_up().await;
            self.stream.readable().await?;
            match self.stream.try_io(Interest::READABLE, || self.receive(frames)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    fn receive(&self, frames: &mut Frames) -> io::Result<usize> {
        let mut chunk = [0_u8; CHUNK];
        let incoming = closing::receive(self.stream.as_fd(), &mut chunk)?;
        self.closing.received(incoming.descriptors);
        let read = chunk.get(..incoming.bytes).unwrap_or_default();
        frames.room().extend_from_slice(read);
        Ok(read.len())
    }
}

impl Deref for Line {
    type Target = UnixStream;

    fn deref(&self) -> &UnixStream {
        &self.stream
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // From here on nothing more gets in; what is in already must not be closed along with the connection here.
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Read);
        let mut byte = [0];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        if rustix::net::recv(&self.stream, &mut byte, flags).is_ok_and(|(waiting, _)| waiting > 0)
            && let Ok(again) = self.stream.as_fd().try_clone_to_owned()
        {
            self.closing.mailbox(again);
        }
    }
}
