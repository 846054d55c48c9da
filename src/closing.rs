//! Receiving what comes from outside, and closing what came along where it keeps nobody waiting.
//!
//! How long close(2) takes is up to whoever made the file: a TCP socket lingers until its peer has read (`SO_LINGER`,
//! socket(7), blocking or not), a file of a FUSE daemon waits for that daemon, a unix socket closes what waits in it. A
//! worker, or a client of the control socket, can send any of them along with a message. So they are closed in a thread,
//! one at a time for each sender, and a sender that holds its thread up is not listened to until it lets go.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, sockopt};
use rustix::process::Pid;
use tokio::sync::Notify;

use crate::aside::thread;

/// The most descriptors that one message can carry: `SCM_MAX_FD`.
const DESCRIPTORS_MAX: usize = 253;

/// With so many waiting to be closed, nothing more is taken.
const MANY: usize = 64;

/// How many messages are taken out of a socket before it is closed; its queue is shorter (`max_dgram_qlen`, unix(7)).
const MESSAGES: usize = 1024;

/// Closes what one sender has sent, in the order in which they came.
#[derive(Debug, Clone, Default)]
pub struct Closing(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    fewer: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Doomed>,
    /// Whether a thread is at it.
    running: bool,
}

#[derive(Debug)]
enum Doomed {
    /// It came with a message.
    Received(OwnedFd),
    /// It is ours, and messages may wait in it.
    Mailbox(OwnedFd),
}

impl Closing {
    /// Close what came with a message.
    pub fn received(&self, descriptors: Vec<OwnedFd>) {
        self.add(descriptors.into_iter().map(Doomed::Received));
    }

    /// Close a socket of ours that the sender can send to.
    pub fn mailbox(&self, socket: OwnedFd) {
        self.add([Doomed::Mailbox(socket)]);
    }

    /// Whether so much waits to be closed that nothing more should be taken.
    pub fn is_behind(&self) -> bool {
        self.queue().waiting.len() >= MANY
    }

    /// Wait until it is no longer.
    pub async fn caught_up(&self) {
        loop {
            let fewer = self.0.fewer.notified();
            if !self.is_behind() {
                return;
            }
            fewer.await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, doomed: impl IntoIterator<Item = Doomed>) {
        let mut queue = self.queue();
        queue.waiting.extend(doomed);
        if queue.running || queue.waiting.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.0);
        // Without a thread they stay open until the next one comes: closing them here is what must not be.
        queue.running = thread("closing", move || shared.work()).is_ok();
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let next = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                let next = queue.waiting.pop_front();
                queue.running = next.is_some();
                next
            };
            self.fewer.notify_waiters();
            match next {
                None => return,
                Some(Doomed::Received(fd)) => close(fd),
                Some(Doomed::Mailbox(socket)) => {
                    empty(&socket);
                    close(socket);
                }
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // There was no thread for them, and there is none here either: rather a descriptor too many than a held loop.
        self.waiting.drain(..).for_each(std::mem::forget);
    }
}

fn close(fd: OwnedFd) {
    // It need not wait for a reader that may never come; what is no socket has no such option.
    let _ = sockopt::set_socket_linger(&fd, None);
    drop(fd);
}

/// Take out what waits in a socket, so that what came with it is closed like everything else.
fn empty(socket: &OwnedFd) {
    for _ in 0..MESSAGES {
        match receive(socket.as_fd(), &mut [0]) {
            Ok(incoming) if incoming.bytes > 0 => incoming.descriptors.into_iter().for_each(close),
            _ => return,
        }
    }
}

/// What came from outside, with all that came along.
#[derive(Debug)]
pub struct Incoming {
    /// So many bytes.
    pub bytes: usize,
    /// Whether there were more than fitted: those of a datagram are gone.
    pub is_cut: bool,
    /// Who sent it, if the socket asks for that (`SO_PASSCRED`, unix(7)); none: the kernel could not say.
    pub sender: Option<Pid>,
    /// For [`Closing::received`].
    pub descriptors: Vec<OwnedFd>,
}

/// Receive what is there now.
///
/// # Errors
/// What `recvmsg(2)` says; EAGAIN: nothing.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Incoming> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let is_cut = message.flags.contains(ReturnFlags::TRUNC);
    let mut incoming = Incoming { bytes: message.bytes, is_cut, sender: None, descriptors: Vec::new() };
    for part in ancillary.drain() {
        match part {
            RecvAncillaryMessage::ScmCredentials(credentials) => incoming.sender = Some(credentials.pid),
            RecvAncillaryMessage::ScmRights(fds) => incoming.descriptors.extend(fds),
            _ => {}
        }
    }
    Ok(incoming)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a bound on how long closing may take")]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixDatagram;
    use std::time::{Duration, Instant};

    use crate::worker::files::test_directory;
    use crate::worker::notify::NotifySocket;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    /// A socket whose close takes so long if nothing is done about it, and its peer.
    fn lingering(time: Duration) -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (never_reads, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 16384]).is_ok() {}
        sockopt::set_socket_linger(&stream, Some(time)).unwrap();
        (stream.into(), never_reads)
    }

    fn send(to: &UnixDatagram, text: &[u8], fd: &OwnedFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(to, &[io::IoSlice::new(text)], &mut ancillary, SendFlags::empty()).unwrap();
    }

    /// A socket in whose queue one waits that lingers: closing it takes as long, whatever its own options are.
    fn nested(time: Duration) -> (OwnedFd, TcpStream) {
        let (inner, peer) = lingering(time);
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        send(&ours, b"x", &inner);
        (theirs.into(), peer)
    }

    async fn within(bound: Duration, what: &str, holds: impl Fn() -> bool) {
        let until = Instant::now() + bound;
        while !holds() {
            assert!(Instant::now() < until, "not within {bound:?}: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the other end of its connection is gone.
    fn is_reset(peer: &TcpStream) -> bool {
        peer.set_nonblocking(true).unwrap();
        let mut peer = peer;
        let mut all = [0; 16384];
        loop {
            match io::Read::read(&mut peer, &mut all) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    #[tokio::test]
    async fn a_message_with_a_socket_that_lingers_holds_nobody() {
        let directory = test_directory("closing");
        let socket = NotifySocket::bind(directory.join("n"), None).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        client.connect(socket.path()).unwrap();
        let (one, peer) = lingering(Duration::from_mins(1));
        let (other, other_peer) = lingering(Duration::from_mins(1));
        send(&client, b"WATCHDOG=1", &one);
        send(&client, b"WATCHDOG=1", &other);
        drop((one, other));
        let begun = Instant::now();
        let received = socket.try_receive().unwrap();
        assert_eq!(received.descriptors.len(), 1);
        socket.closing().received(received.descriptors);
        // The second one is never received.
        drop(socket);
        assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
        within(Duration::from_secs(5), "both are closed", || is_reset(&peer) && is_reset(&other_peer)).await;
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test]
    async fn who_holds_the_thread_up_is_behind_until_it_lets_go() {
        let closing = Closing::default();
        let begun = Instant::now();
        let (slow, _peer) = nested(Duration::from_secs(2));
        closing.received(vec![slow]);
        assert!(!closing.is_behind());
        let many = (0..=MANY).map(|_| std::fs::File::open("/dev/null").unwrap().into());
        closing.received(many.collect());
        assert!(closing.is_behind());
        assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
        tokio::time::timeout(Duration::from_secs(10), closing.caught_up()).await.unwrap();
        assert!(begun.elapsed() > Duration::from_secs(1), "nothing was slow");
        within(Duration::from_secs(5), "all are closed", || !closing.queue().running).await;
        // A thread of its own comes for the next one.
        let (reader, writer) = io::pipe().unwrap();
        closing.received(vec![writer.into()]);
        let mut reader = reader;
        assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
    }
}
