//! Telling systemd: `sd_notify(3)`, without ever waiting for it.
//!
//! The words come from the `sd-notify` crate; the socket is ours, because the crate's own cannot reach an abstract
//! address and waits when systemd's queue is full.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};
use sd_notify::NotifyState;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::observe::escape::single_line;
use crate::supervisor::action::ServiceState;
use crate::sys;

use super::activation::STORED_PREFIX;

/// systemd reads 4096 bytes of a message (`NOTIFY_BUFFER_MAX`).
const STATUS_MOST: usize = 1024;
/// States that wait while the queue is full; more means that systemd is gone.
const QUEUE_MOST: usize = 32;

/// `NOTIFY_SOCKET` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Neither a path nor an abstract name.
    #[error("NOTIFY_SOCKET={0:?} is neither an absolute path nor an abstract name")]
    Address(OsString),
    /// The socket could not be made.
    #[error("no socket to notify systemd with: {0}")]
    Socket(#[from] io::Error),
}

/// The way up to the service manager.
#[derive(Debug)]
pub struct ServiceNotifier {
    address: SocketAddrUnix,
    /// Connected, so that the kernel knows whose queue to wait for.
    socket: AsyncFd<OwnedFd>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    topic: Topic,
    text: String,
    /// To be sent along.
    fd: Option<OwnedFd>,
}

/// A newer message of these topics makes an older one that still waits pointless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topic {
    State,
    Store,
    Status,
    Extension,
    Watchdog,
}

impl ServiceNotifier {
    /// The service manager named by `NOTIFY_SOCKET`, if any; call inside a tokio runtime.
    pub fn from_environment(environment: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, NotifyError> {
        let Some(name) = environment("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let address = parse_address(&name).ok_or(NotifyError::Address(name))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).map_err(io::Error::from)?;
        let socket = sys::watch(socket, Interest::WRITABLE)?;
        Ok(Some(Self { address, socket, waiting: VecDeque::new() }))
    }

    /// Say it now, or as soon as there is room.
    ///
    /// An error means that it was not said and will not be.
    pub fn tell(&mut self, state: &ServiceState) -> io::Result<()> {
        let (topic, text) = match state {
            ServiceState::Ready => (Topic::State, NotifyState::Ready.to_string()),
            ServiceState::Reloading => {
                // The stamp must not be older than systemd's own, which it took before it sent the signal: read it here.
                let stamp = NotifyState::monotonic_usec_now()?;
                (Topic::State, format!("{}\n{stamp}", NotifyState::Reloading))
            }
            ServiceState::Stopping => (Topic::State, NotifyState::Stopping.to_string()),
            ServiceState::Status(status) => {
                (Topic::Status, NotifyState::Status(&single_line(status, STATUS_MOST)).to_string())
            }
            ServiceState::ExtendTimeout(by) => {
                // The crate's own number ends at 71 minutes.
                let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
                (Topic::Extension, format!("EXTEND_TIMEOUT_USEC={micros}"))
            }
        };
        self.queue(topic, text)
    }

    /// `WATCHDOG=1`: the loop is alive. Call it from the loop that does the work.
    pub fn ping(&mut self) -> io::Result<()> {
        self.queue(Topic::Watchdog, NotifyState::Watchdog.to_string())
    }

    /// Leave a descriptor with systemd, which hands it to the next manager if this one dies (`FDSTORE=1`; needs
    /// `FileDescriptorStoreMax=`, and is ignored without it). It is kept also while it polls as hung up.
    pub fn store(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let text = format!("FDSTORE=1\nFDNAME={STORED_PREFIX}{name}\nFDPOLL=0");
        let fd = Some(fd.try_clone_to_owned()?);
        self.waiting.push_back(Waiting { topic: Topic::Store, text, fd });
        self.flush()
    }

    /// Take a descriptor out of systemd's store.
    pub fn forget(&mut self, name: &str) -> io::Result<()> {
        self.queue(Topic::Store, format!("FDSTOREREMOVE=1\nFDNAME={STORED_PREFIX}{name}"))
    }

    /// Whether something waits for room; then await [`Self::writable`] and call [`Self::flush`].
    pub fn wants_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Room in systemd's queue. Cancel-safe.
    pub async fn writable(&self) -> io::Result<()> {
        loop {
            let mut guard = self.socket.writable().await?;
            let mut polled = [PollFd::new(self.socket.get_ref(), PollFlags::OUT)];
            if poll(&mut polled, Some(&Timespec::default()))? > 0 {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Send what waits, as far as there is room.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(next) = self.waiting.front() {
            match self.send(next) {
                Ok(()) => self.waiting.pop_front(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.waiting.clear();
                    return Err(error);
                }
            };
        }
        Ok(())
    }

    fn queue(&mut self, topic: Topic, text: String) -> io::Result<()> {
        if !matches!(topic, Topic::State | Topic::Store) {
            self.waiting.retain(|older| older.topic != topic);
        }
        self.waiting.push_back(Waiting { topic, text, fd: None });
        if self.waiting.len() > QUEUE_MOST {
            self.waiting.pop_front();
        }
        self.flush()
    }

    fn send(&self, message: &Waiting) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = message.fd.iter().map(AsFd::as_fd).collect();
        let again = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            }
            let text = [IoSlice::new(message.text.as_bytes())];
            sendmsg(self.socket.get_ref(), &text, &mut ancillary, SendFlags::NOSIGNAL)
        };
        match again() {
            Err(Errno::AGAIN) => Err(Errno::AGAIN),
            // Not connected yet, or systemd has made a new socket.
            Err(_) => connect(self.socket.get_ref(), &self.address).and_then(|()| again()),
            sent @ Ok(_) => sent,
        }?;
        Ok(())
    }
}

pub(crate) fn parse_address(name: &OsStr) -> Option<SocketAddrUnix> {
    match name.as_bytes() {
        [b'@', rest @ ..] if !rest.is_empty() => SocketAddrUnix::new_abstract_name(rest).ok(),
        [b'/', ..] => SocketAddrUnix::new(name).ok(),
        _ => None,
    }
}

/// How often to ping: half of what `WATCHDOG_USEC` allows, if it is meant for this process
/// (`sd_watchdog_enabled(3)`).
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|half| !half.is_zero())
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::path::PathBuf;

    use super::*;

    struct Service {
        directory: PathBuf,
        socket: UnixDatagram,
    }

    impl Service {
        fn new(test: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("paddock-notify-{}-{test}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let socket = UnixDatagram::bind(directory.join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { directory, socket }
        }

        fn notifier(&self) -> ServiceNotifier {
            let path = self.directory.join("notify").into_os_string();
            ServiceNotifier::from_environment(|_| Some(path.clone())).unwrap().unwrap()
        }

        fn hear(&self) -> Option<String> {
            hear(&self.socket)
        }
    }

    impl Drop for Service {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    fn hear(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 8192];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[tokio::test]
    async fn each_state_has_the_words_that_systemd_reads() {
        let service = Service::new("words");
        let mut notifier = service.notifier();
        notifier.tell(&ServiceState::Ready).unwrap();
        assert_eq!(service.hear().unwrap(), "READY=1");
        notifier.tell(&ServiceState::Stopping).unwrap();
        assert_eq!(service.hear().unwrap(), "STOPPING=1");
        notifier.tell(&ServiceState::ExtendTimeout(Duration::from_hours(2))).unwrap();
        assert_eq!(service.hear().unwrap(), "EXTEND_TIMEOUT_USEC=7200000000");
        notifier.ping().unwrap();
        assert_eq!(service.hear().unwrap(), "WATCHDOG=1");
        notifier.tell(&ServiceState::Status("a\nREADY=1\u{1b}".into())).unwrap();
        assert_eq!(service.hear().unwrap(), "STATUS=a\\nREADY=1\\x1b");
    }

    #[tokio::test]
    async fn a_reload_carries_the_monotonic_clock() {
        let service = Service::new("reload");
        let clock = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000
        };
        let before = clock();
        service.notifier().tell(&ServiceState::Reloading).unwrap();
        let text = service.hear().unwrap();
        let stamp = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!((before..=clock()).contains(&stamp.parse().unwrap()));
    }

    #[tokio::test]
    async fn an_abstract_address_works() {
        let name = format!("paddock-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let variable = OsString::from(format!("@{name}"));
        let mut notifier = ServiceNotifier::from_environment(|_| Some(variable.clone())).unwrap().unwrap();
        notifier.tell(&ServiceState::Ready).unwrap();
        assert_eq!(hear(&socket).unwrap(), "READY=1");
    }

    #[tokio::test]
    async fn a_full_queue_keeps_states_and_only_the_newest_status() {
        let service = Service::new("full");
        let mut notifier = service.notifier();
        let mut sent = 0;
        while !notifier.wants_write() {
            notifier.tell(&ServiceState::Ready).unwrap();
            sent += 1;
            assert!(sent < 100_000, "the queue never fills");
        }
        notifier.tell(&ServiceState::Status("old".into())).unwrap();
        notifier.tell(&ServiceState::Stopping).unwrap();
        notifier.tell(&ServiceState::Status("new".into())).unwrap();
        notifier.ping().unwrap();
        notifier.ping().unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(50), notifier.writable()).await.is_err(),
            "a full queue is not writable"
        );

        let mut heard = Vec::new();
        while notifier.wants_write() {
            heard.push(service.hear().expect("the queue has something"));
            tokio::time::timeout(Duration::from_secs(5), notifier.writable()).await.expect("room wakes us").unwrap();
            notifier.flush().unwrap();
        }
        heard.extend(std::iter::from_fn(|| service.hear()));
        let after_ready: Vec<_> = heard.iter().skip_while(|text| *text == "READY=1").collect();
        assert_eq!(after_ready, ["STOPPING=1", "STATUS=new", "WATCHDOG=1"]);
        assert_eq!(heard.len(), sent + 3);
    }

    #[tokio::test]
    async fn a_new_socket_of_the_service_manager_is_found() {
        let mut service = Service::new("again");
        let mut notifier = service.notifier();
        notifier.tell(&ServiceState::Ready).unwrap();
        let path = service.directory.join("notify");
        std::fs::remove_file(&path).unwrap();
        service.socket = UnixDatagram::bind(&path).unwrap();
        notifier.tell(&ServiceState::Stopping).unwrap();
        assert_eq!(service.hear().unwrap(), "STOPPING=1");
    }

    #[tokio::test]
    async fn no_service_manager_and_a_wrong_address_differ() {
        assert!(ServiceNotifier::from_environment(|_| None).unwrap().is_none());
        let wrong = ServiceNotifier::from_environment(|_| Some("vsock:2:1".into())).unwrap_err();
        assert_eq!(wrong.to_string(), "NOTIFY_SOCKET=\"vsock:2:1\" is neither an absolute path nor an abstract name");
    }
}
