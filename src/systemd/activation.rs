//! Sockets that the service manager passes in: `sd_listen_fds(3)`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, getsockname, sockopt};

use crate::sys;

/// The first descriptor that is passed in (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// More than any service holds; a hostile count must not make us count to the end.
const MOST: usize = 4096;
/// Descriptors of paddock's own from systemd's store have names that begin with this.
pub const STORED_PREFIX: &str = "paddock.";

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Everything that was passed in.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The app's sockets, in systemd's order.
    pub sockets: Vec<InheritedSocket>,
    /// What an earlier manager of this app left in the descriptor store, named without [`STORED_PREFIX`].
    pub stored: Vec<(String, OwnedFd)>,
    /// Descriptors were passed, but to this process: they were not touched.
    pub meant_for: Option<u32>,
}

/// One socket (or other descriptor: a FIFO, a message queue) for the workers.
#[derive(Debug)]
pub struct InheritedSocket {
    /// Its name in `LISTEN_FDNAMES`; `unknown` where the service manager gave none.
    pub name: String,
    /// Close-on-exec is set; whether it blocks is left as it came, because every worker shares that flag.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: SocketKind,
    /// Whether `listen(2)` was called on it.
    pub listening: bool,
    /// Where it is bound.
    pub address: Option<LocalAddress>,
}

/// What kind of descriptor it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// Stream over IPv4 or IPv6.
    Tcp,
    /// Datagram over IPv4 or IPv6.
    Udp,
    /// Unix stream.
    UnixStream,
    /// Unix datagram.
    UnixDatagram,
    /// Unix seqpacket.
    UnixSeqpacket,
    /// A socket of another family or type.
    OtherSocket,
    /// Not a socket.
    File,
}

impl fmt::Display for SocketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::UnixStream => "unix",
            Self::UnixDatagram => "unix-datagram",
            Self::UnixSeqpacket => "unix-seqpacket",
            Self::OtherSocket => "socket",
            Self::File => "file",
        })
    }
}

/// Where a socket is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalAddress {
    /// An internet address.
    Inet(SocketAddr),
    /// A path in the file system.
    Path(PathBuf),
    /// A name in Linux's abstract namespace, without the leading zero.
    Abstract(Vec<u8>),
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Path(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
        }
    }
}

/// The protocol's variables do not hold together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ActivationError {
    /// A variable is not a number.
    #[error("{variable}={value:?} is not a number: the program that started paddock passes sockets wrongly")]
    NotANumber {
        /// Which variable.
        variable: &'static str,
        /// What it holds.
        value: String,
    },
    /// Too many.
    #[error("LISTEN_FDS={0} is more than the {MOST} descriptors that paddock accepts")]
    TooMany(usize),
    /// Names and descriptors do not match.
    #[error("LISTEN_FDNAMES has {names} names for {fds} descriptors")]
    Names {
        /// How many names.
        names: usize,
        /// How many descriptors.
        fds: usize,
    },
    /// A promised descriptor is not there.
    #[error("LISTEN_FDS promises descriptor {fd}, which cannot be used: {error}")]
    NotOpen {
        /// Which.
        fd: RawFd,
        /// What the kernel said.
        error: String,
    },
    /// Called twice.
    #[error("the inherited descriptors have already been taken")]
    TakenBefore,
}

/// Take what was passed to this process, with close-on-exec set. Works once in the life of the process; call it first in
/// `main`, while nothing else can have opened a descriptor. `environment` is usually [`std::env::var_os`]; it is read,
/// not changed.
pub fn take(environment: impl Fn(&str) -> Option<OsString>) -> Result<Inherited, ActivationError> {
    let names = match announced(environment, std::process::id())? {
        Announced::Nothing => return Ok(Inherited::default()),
        Announced::ForAnother(pid) => {
            return Ok(Inherited { meant_for: Some(pid), ..Inherited::default() });
        }
        Announced::Ours(names) => names,
    };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(ActivationError::TakenBefore);
    }
    let mut inherited = Inherited::default();
    for (name, number) in names.into_iter().zip(FIRST..) {
        let fd = adopt(number).map_err(|error| ActivationError::NotOpen { fd: number, error: error.to_string() })?;
        match name.strip_prefix(STORED_PREFIX) {
            Some(own) => inherited.stored.push((own.to_owned(), fd)),
            None => inherited.sockets.push(InheritedSocket::describe(name, fd)),
        }
    }
    Ok(inherited)
}

fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    let fd = sys::adopt_fd(number)?;
    fcntl_setfd(&fd, fcntl_getfd(&fd)? | FdFlags::CLOEXEC)?;
    Ok(fd)
}

impl InheritedSocket {
    /// Find out what `fd` is.
    pub fn describe(name: String, fd: OwnedFd) -> Self {
        let kind = kind(&fd);
        let listening = kind != SocketKind::File && sockopt::socket_acceptconn(&fd).unwrap_or(false);
        let address = if kind == SocketKind::File { None } else { local_address(&fd) };
        Self { name, fd, kind, listening, address }
    }
}

fn kind(fd: impl AsFd) -> SocketKind {
    let Ok(domain) = sockopt::socket_domain(&fd) else {
        return SocketKind::File;
    };
    let Ok(socket_type) = sockopt::socket_type(&fd) else {
        return SocketKind::OtherSocket;
    };
    match (domain, socket_type) {
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => SocketKind::Tcp,
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => SocketKind::Udp,
        (AddressFamily::UNIX, SocketType::STREAM) => SocketKind::UnixStream,
        (AddressFamily::UNIX, SocketType::DGRAM) => SocketKind::UnixDatagram,
        (AddressFamily::UNIX, SocketType::SEQPACKET) => SocketKind::UnixSeqpacket,
        _ => SocketKind::OtherSocket,
    }
}

fn local_address(fd: impl AsFd) -> Option<LocalAddress> {
    let address: SocketAddrAny = getsockname(fd).ok()?;
    if let Ok(inet) = SocketAddr::try_from(address.clone()) {
        return Some(LocalAddress::Inet(inet));
    }
    let unix = SocketAddrUnix::try_from(address).ok()?;
    if let Some(path) = unix.path_bytes().filter(|path| !path.is_empty()) {
        return Some(LocalAddress::Path(OsString::from_vec(path.to_vec()).into()));
    }
    unix.abstract_name().filter(|name| !name.is_empty()).map(|name| LocalAddress::Abstract(name.to_vec()))
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Announced {
    Nothing,
    ForAnother(u32),
    Ours(Vec<String>),
}

/// What the variables say, before any descriptor is touched.
pub(crate) fn announced(
    environment: impl Fn(&str) -> Option<OsString>,
    own_pid: u32,
) -> Result<Announced, ActivationError> {
    // Without LISTEN_PID nothing was passed (sd_listen_fds(3)).
    let Some(pid) = environment("LISTEN_PID").filter(|pid| !pid.is_empty()) else {
        return Ok(Announced::Nothing);
    };
    let pid = number("LISTEN_PID", &pid)?;
    if pid != own_pid {
        return Ok(Announced::ForAnother(pid));
    }
    let Some(count) = environment("LISTEN_FDS") else {
        return Ok(Announced::Nothing);
    };
    let count = number::<usize>("LISTEN_FDS", &count)?;
    if count == 0 {
        return Ok(Announced::Nothing);
    }
    if count > MOST {
        return Err(ActivationError::TooMany(count));
    }
    let Some(names) = environment("LISTEN_FDNAMES") else {
        return Ok(Announced::Ours(vec!["unknown".to_owned(); count]));
    };
    let names: Vec<String> = names.to_string_lossy().split(':').map(str::to_owned).collect();
    if names.len() == count {
        Ok(Announced::Ours(names))
    } else {
        Err(ActivationError::Names { names: names.len(), fds: count })
    }
}

fn number<T: std::str::FromStr>(variable: &'static str, value: &OsStr) -> Result<T, ActivationError> {
    let text = value.to_string_lossy();
    // A sign or a blank is not what any service manager writes.
    if !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(number) = text.parse()
    {
        return Ok(number);
    }
    Err(ActivationError::NotANumber { variable, value: text.into_owned() })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use rustix::fs::{OFlags, fcntl_getfl};

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Announced, ActivationError> {
        let variables: Vec<(String, OsString)> =
            variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        announced(|key| variables.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()), 42)
    }

    #[test]
    fn b1_descriptors_for_another_process_are_left_alone() {
        assert_eq!(read(&[("LISTEN_PID", "41"), ("LISTEN_FDS", "1")]), Ok(Announced::ForAnother(41)));
        // Whatever else is wrong with them is not our business.
        assert_eq!(read(&[("LISTEN_PID", "41"), ("LISTEN_FDS", "nonsense")]), Ok(Announced::ForAnother(41)));
    }

    #[test]
    fn nothing_announced_is_nothing() {
        assert_eq!(read(&[]), Ok(Announced::Nothing));
        assert_eq!(read(&[("LISTEN_FDS", "2")]), Ok(Announced::Nothing));
        assert_eq!(read(&[("LISTEN_PID", "42")]), Ok(Announced::Nothing));
        assert_eq!(read(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "0")]), Ok(Announced::Nothing));
    }

    #[test]
    fn b2_names_keep_their_order() {
        assert_eq!(
            read(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "3"), ("LISTEN_FDNAMES", "web:admin:web")]),
            Ok(Announced::Ours(vec!["web".into(), "admin".into(), "web".into()]))
        );
        assert_eq!(
            read(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "2")]),
            Ok(Announced::Ours(vec!["unknown".into(), "unknown".into()]))
        );
    }

    #[test]
    fn wrong_values_are_named() {
        for (pid, fds, variable, value) in [
            ("me", "1", "LISTEN_PID", "me"),
            ("-42", "1", "LISTEN_PID", "-42"),
            ("42", "+1", "LISTEN_FDS", "+1"),
            ("42", "", "LISTEN_FDS", ""),
            ("42", "99999999999999999999999", "LISTEN_FDS", "99999999999999999999999"),
        ] {
            assert_eq!(
                read(&[("LISTEN_PID", pid), ("LISTEN_FDS", fds)]),
                Err(ActivationError::NotANumber { variable, value: value.into() })
            );
        }
        assert_eq!(read(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "5000")]), Err(ActivationError::TooMany(5000)));
        assert_eq!(
            read(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a:b:c")]),
            Err(ActivationError::Names { names: 3, fds: 2 })
        );
    }

    #[test]
    fn every_kind_is_recognised_and_its_blocking_left_as_it_was() {
        let directory = std::env::temp_dir().join(format!("paddock-activation-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("stream");

        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let tcp = InheritedSocket::describe("web".into(), tcp.into());
        assert_eq!((tcp.kind, tcp.listening), (SocketKind::Tcp, true));
        assert_eq!(tcp.address, Some(LocalAddress::Inet(address)));
        assert!(fcntl_getfl(&tcp.fd).unwrap().contains(OFlags::NONBLOCK));

        let stream = InheritedSocket::describe("u".into(), UnixListener::bind(&path).unwrap().into());
        assert_eq!((stream.kind, stream.listening), (SocketKind::UnixStream, true));
        assert_eq!(stream.address, Some(LocalAddress::Path(path)));
        assert!(!fcntl_getfl(&stream.fd).unwrap().contains(OFlags::NONBLOCK));

        let datagram = InheritedSocket::describe("d".into(), UnixDatagram::unbound().unwrap().into());
        assert_eq!((datagram.kind, datagram.listening), (SocketKind::UnixDatagram, false));
        assert_eq!(datagram.address, None);

        let udp = InheritedSocket::describe("n".into(), UdpSocket::bind("[::1]:0").unwrap().into());
        assert_eq!(udp.kind, SocketKind::Udp);

        let packets = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        assert_eq!(InheritedSocket::describe("s".into(), packets).kind, SocketKind::UnixSeqpacket);

        let file = InheritedSocket::describe("f".into(), std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!((file.kind, file.listening, file.address), (SocketKind::File, false, None));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
