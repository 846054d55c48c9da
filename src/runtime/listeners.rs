//! The app's sockets: those that were passed in, then those that it binds itself. They stay open as long as the manager
//! lives, so that connections wait in the backlog while workers come and go.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::config::model::{Bind, BindAddress, Listen};
use crate::systemd::activation::{Inherited, InheritedSocket, LocalAddress, SocketKind};
use crate::worker::account::{self, AccountError};
use crate::worker::order::SOCKETS_MAX;

/// The sockets, in the order in which workers see them.
#[derive(Debug, Default)]
pub struct Listeners {
    sockets: Vec<InheritedSocket>,
    passed_in: usize,
    own_paths: Vec<OwnPath>,
}

/// A unix socket that we bound: device and inode tell whether the name is still ours to unlink.
#[derive(Debug)]
struct OwnPath {
    path: PathBuf,
    identity: (u64, u64),
}

/// Why the app has not got its sockets.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Nothing is ours.
    #[error(
        "LISTEN_FDS is set for process {pid}, not for this one, and [listen] bind is empty: start paddock directly from \
         the service (no shell that stays in between), or name addresses with bind"
    )]
    MeantForAnother {
        /// Whose.
        pid: u32,
    },
    /// Too many for one worker.
    #[error("{0} sockets are more than the {SOCKETS_MAX} that a worker can be given")]
    TooMany(usize),
    /// An address could not be bound.
    #[error("binding {address}: {source}")]
    Bind {
        /// As configured.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody is listening there.
    #[error("binding {}: another process is listening there", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The name is taken by something that is not a socket.
    #[error("binding {}: there is a file of another kind; move it away or choose another path", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// `socket_user` or `socket_group`.
    #[error("[listen] {key}: {source}")]
    Account {
        /// Which key.
        key: &'static str,
        /// Why.
        source: AccountError,
    },
}

impl Listeners {
    /// Take what was passed in and bind what is configured, but for addresses that were passed in already. `kept` are
    /// sockets that an earlier manager had bound: what is at a configured address is used instead of a new one.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn open(inherited: Inherited, listen: &Listen, kept: Vec<OwnedFd>) -> Result<Self, ListenError> {
        let mut kept: Vec<InheritedSocket> =
            kept.into_iter().map(|fd| InheritedSocket::describe(String::new(), fd)).collect();
        if let (Some(pid), true) = (inherited.meant_for, listen.bind.is_empty()) {
            return Err(ListenError::MeantForAnother { pid });
        }
        let passed_in = inherited.sockets.len();
        let mut listeners = Self { sockets: inherited.sockets, passed_in, own_paths: Vec::new() };
        for bind in &listen.bind {
            if listeners.has(&bind.address) {
                continue;
            }
            if let Some(index) = kept.iter().position(|socket| socket.listening && is_bound_to(socket, &bind.address)) {
                listeners.take_over(kept.swap_remove(index), bind);
                continue;
            }
            let fd = match &bind.address {
                BindAddress::Tcp(address) => bind_tcp(*address, listen.backlog)
                    .map_err(|source| ListenError::Bind { address: address.to_string(), source })?,
                BindAddress::Unix(path) => listeners.bind_unix(path, listen)?,
            };
            listeners.sockets.push(InheritedSocket::describe(bind.name.clone(), fd));
        }
        if listeners.sockets.len() > SOCKETS_MAX {
            return Err(ListenError::TooMany(listeners.sockets.len()));
        }
        Ok(listeners)
    }

    /// Sockets of the same number, kind, order and names on free loopback ports and in `directory`: for trying a worker
    /// out without anybody noticing. None of the app's addresses is touched.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn stand_ins(inherited: &Inherited, listen: &Listen, directory: &Path) -> Result<Self, ListenError> {
        let mut stand_ins = Self::default();
        for socket in &inherited.sockets {
            let v6 = matches!(socket.address, Some(LocalAddress::Inet(address)) if address.is_ipv6());
            stand_ins.add_stand_in(&socket.name, socket.kind, v6, directory)?;
        }
        for bind in &listen.bind {
            let (kind, v6) = match &bind.address {
                BindAddress::Tcp(address) => (SocketKind::Tcp, address.is_ipv6()),
                BindAddress::Unix(_) => (SocketKind::UnixStream, false),
            };
            let passed_in = inherited.sockets.iter().any(|socket| is_at(socket, &bind.address));
            if !passed_in {
                stand_ins.add_stand_in(&bind.name, kind, v6, directory)?;
            }
        }
        Ok(stand_ins)
    }

    /// Go on with the sockets that an earlier image of this process had, as they are: whether they block, too, is left
    /// alone.
    pub fn continued(sockets: Vec<(String, OwnedFd)>, passed_in: usize, own_paths: Vec<(PathBuf, (u64, u64))>) -> Self {
        Self {
            sockets: sockets.into_iter().map(|(name, fd)| InheritedSocket::describe(name, fd)).collect(),
            passed_in,
            own_paths: own_paths.into_iter().map(|(path, identity)| OwnPath { path, identity }).collect(),
        }
    }

    /// The paths that we bound, with device and inode.
    pub fn own_paths(&self) -> Vec<(PathBuf, (u64, u64))> {
        self.own_paths.iter().map(|own| (own.path.clone(), own.identity)).collect()
    }

    /// Names for `LISTEN_FDNAMES`.
    pub fn names(&self) -> Vec<String> {
        self.sockets.iter().map(|socket| socket.name.clone()).collect()
    }

    /// Descriptors, in the same order.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.fd.as_fd()).collect()
    }

    /// Every socket's name, and its address where it has one.
    pub fn describe(&self) -> Vec<(String, String)> {
        self.sockets
            .iter()
            .map(|socket| {
                let address = socket.address.as_ref().map_or_else(|| socket.kind.to_string(), ToString::to_string);
                (socket.name.clone(), address)
            })
            .collect()
    }

    /// Take away the names of those that we bound: at a clean stop, right before all are closed.
    pub fn unlink_own(&self) {
        for own in &self.own_paths {
            // Somebody may have put something else there since, or another directory in the place of its own.
            let _ = Place::find(&own.path).and_then(|place| place.remove(own.identity));
        }
    }

    fn take_over(&mut self, socket: InheritedSocket, bind: &Bind) {
        if let BindAddress::Unix(path) = &bind.address
            && let Ok(identity) = identity(path)
        {
            self.own_paths.push(OwnPath { path: path.clone(), identity });
        }
        self.sockets.push(InheritedSocket { name: bind.name.clone(), ..socket });
    }

    /// The sockets that we bound ourselves, which nobody else holds for us.
    pub fn own(&self) -> &[InheritedSocket] {
        self.sockets.get(self.passed_in..).unwrap_or_default()
    }

    /// How many sockets were passed in.
    pub const fn passed_in(&self) -> usize {
        self.passed_in
    }

    fn has(&self, address: &BindAddress) -> bool {
        self.sockets.iter().any(|socket| is_at(socket, address))
    }

    fn add_stand_in(&mut self, name: &str, kind: SocketKind, v6: bool, directory: &Path) -> Result<(), ListenError> {
        let loopback =
            SocketAddr::new(if v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) }, 0);
        let path = directory.join(format!("s{}", self.sockets.len()));
        let fd = match kind {
            SocketKind::Tcp => bind_tcp(loopback, 16),
            SocketKind::Udp => std::net::UdpSocket::bind(loopback).map(OwnedFd::from),
            SocketKind::UnixStream => bind_unix_at(&path, SocketType::STREAM, 0o600, 16),
            SocketKind::UnixDatagram => bind_unix_at(&path, SocketType::DGRAM, 0o600, 0),
            SocketKind::UnixSeqpacket => bind_unix_at(&path, SocketType::SEQPACKET, 0o600, 16),
            SocketKind::OtherSocket | SocketKind::File => std::fs::File::open("/dev/null").map(OwnedFd::from),
        };
        let fd = fd.map_err(|source| ListenError::Bind { address: format!("a stand-in for {name:?}"), source })?;
        if let Ok(identity) = identity(&path) {
            self.own_paths.push(OwnPath { path, identity });
        }
        self.sockets.push(InheritedSocket::describe(name.to_owned(), fd));
        Ok(())
    }

    fn bind_unix(&mut self, path: &Path, listen: &Listen) -> Result<OwnedFd, ListenError> {
        let failed = |source: io::Error| ListenError::Bind { address: format!("unix:{}", path.display()), source };
        remove_stale(path)?;
        let fd = bind_unix_at(path, SocketType::STREAM, listen.socket_mode, listen.backlog).map_err(failed)?;
        let user = listen.socket_user.as_deref().map(account::resolve_user).transpose();
        let user = user.map_err(|source| ListenError::Account { key: "socket_user", source })?;
        let group = listen.socket_group.as_deref().map(account::resolve_group).transpose();
        let group = group.map_err(|source| ListenError::Account { key: "socket_group", source })?;
        if user.is_some() || group.is_some() {
            give_away(path, user.map(nix::unistd::Uid::as_raw), group.map(nix::unistd::Gid::as_raw)).map_err(failed)?;
        }
        let identity = identity(path).map_err(failed)?;
        self.own_paths.push(OwnPath { path: path.to_owned(), identity });
        Ok(fd)
    }
}

fn is_at(socket: &InheritedSocket, address: &BindAddress) -> bool {
    match (&socket.address, address) {
        (Some(LocalAddress::Inet(bound)), BindAddress::Tcp(wanted)) => {
            socket.kind == SocketKind::Tcp && wanted.port() != 0 && bound == wanted
        }
        (Some(LocalAddress::Path(bound)), BindAddress::Unix(wanted)) => bound == wanted,
        _ => false,
    }
}

/// The same for a socket of an earlier manager, which had taken any free port where 0 is configured.
pub fn is_bound_to(socket: &InheritedSocket, address: &BindAddress) -> bool {
    let any_port = matches!((&socket.address, address), (Some(LocalAddress::Inet(bound)), BindAddress::Tcp(wanted))
        if wanted.port() == 0 && bound.ip() == wanted.ip());
    any_port || is_at(socket, address)
}

fn bind_tcp(address: SocketAddr, backlog: u32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // Blocking, as systemd passes sockets by default: the flag belongs to the socket, every worker shares it, and a
    // server that needs it otherwise sets it itself.
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(fd)
}

fn bind_unix_at(path: &Path, kind: SocketType, mode: u32, backlog: u32) -> io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // The file takes its mode from the socket at bind, less the umask: no moment with any other mode, and no path that
    // somebody could exchange (Linux, unix_bind()).
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    let umask = rustix::process::umask(Mode::empty());
    let bound = rustix::net::bind(&fd, &SocketAddrUnix::new(path)?);
    rustix::process::umask(umask);
    bound?;
    if kind != SocketType::DGRAM {
        rustix::net::listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    }
    Ok(fd)
}

/// A name in a directory that is held open: whoever exchanges directories on the way to it changes nothing for us.
struct Place {
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    fn find(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { directory: rustix::fs::open(parent, flags, Mode::empty())?, name })
    }

    fn status(&self) -> Result<Stat, rustix::io::Errno> {
        rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Take the name away if it is still that of this file.
    fn remove(&self, identity: (u64, u64)) -> io::Result<()> {
        let status = self.status()?;
        if (status.st_dev, status.st_ino) != identity {
            return Err(io::Error::other("there is another file by now"));
        }
        Ok(rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())?)
    }
}

/// A name that nobody answers at is left from a dead process; only a refused connect proves that.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source: io::Error| ListenError::Bind { address: format!("unix:{}", path.display()), source };
    let place = Place::find(path).map_err(failed)?;
    let status = match place.status() {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.map_err(|errno| failed(errno.into()))?,
    };
    if FileType::from_raw_mode(status.st_mode) != FileType::Socket {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    let probe = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|errno| failed(errno.into()))?;
    // The one that was looked at, whatever is in its place by now (proc_pid_fd(5)).
    let address = format!("/proc/self/fd/{}/{}", place.directory.as_raw_fd(), place.name.display());
    let address = SocketAddrUnix::new(address).map_err(|errno| failed(errno.into()))?;
    match rustix::net::connect(&probe, &address) {
        Err(rustix::io::Errno::CONNREFUSED) => place.remove((status.st_dev, status.st_ino)).map_err(failed),
        Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::PROTOTYPE) => {
            Err(ListenError::InUse { path: path.to_owned() })
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Change the owner of the socket that we have just made, and of nothing that somebody may have put in its place.
fn give_away(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let status = rustix::fs::fstat(&file)?;
    let ours = FileType::from_raw_mode(status.st_mode) == FileType::Socket
        && status.st_nlink == 1
        && status.st_uid == rustix::process::geteuid().as_raw();
    if !ours {
        return Err(io::Error::other("the socket was exchanged for something else while it was being set up"));
    }
    rustix::fs::chownat(
        &file,
        "",
        user.map(rustix::fs::Uid::from_raw),
        group.map(rustix::fs::Gid::from_raw),
        AtFlags::EMPTY_PATH,
    )?;
    Ok(())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let status = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((status.st_dev, status.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::files::test_directory;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn open(inherited: Inherited, listen: &Listen) -> Result<Listeners, ListenError> {
        Listeners::open(inherited, listen, Vec::new())
    }

    fn listen(addresses: &[BindAddress]) -> Listen {
        Listen {
            bind: addresses.iter().map(|address| Bind { address: address.clone(), name: "listen".into() }).collect(),
            backlog: 64,
            socket_mode: 0o640,
            socket_user: None,
            socket_group: None,
        }
    }

    #[test]
    fn sockets_for_another_process_are_an_error_only_without_bind() {
        let inherited = || Inherited { meant_for: Some(1), ..Inherited::default() };
        assert!(matches!(open(inherited(), &listen(&[])), Err(ListenError::MeantForAnother { pid: 1 })));
        let tcp = BindAddress::Tcp("127.0.0.1:0".parse().unwrap());
        assert_eq!(open(inherited(), &listen(&[tcp])).unwrap().names(), ["listen"]);
    }

    #[test]
    fn no_sockets_at_all_is_legal() {
        assert!(open(Inherited::default(), &listen(&[])).unwrap().names().is_empty());
    }

    #[test]
    fn a_unix_socket_has_its_mode_replaces_a_stale_one_and_goes_away_at_close() {
        let directory = test_directory("listeners");
        let path = directory.join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listeners = open(Inherited::default(), &listen(&[BindAddress::Unix(path.clone())])).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(
            open(Inherited::default(), &listen(&[BindAddress::Unix(path.clone())])),
            Err(ListenError::InUse { .. })
        ));
        listeners.unlink_own();
        drop(listeners);
        assert!(!path.exists());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_touched_and_a_name_that_was_exchanged_is_left_alone() {
        let directory = test_directory("listeners-file");
        let path = directory.join("s");
        std::fs::write(&path, "precious").unwrap();
        let wanted = listen(&[BindAddress::Unix(path.clone())]);
        assert!(matches!(open(Inherited::default(), &wanted), Err(ListenError::NotASocket { .. })));
        std::fs::remove_file(&path).unwrap();
        let listeners = open(Inherited::default(), &wanted).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody else's").unwrap();
        listeners.unlink_own();
        drop(listeners);
        assert!(path.exists());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn an_address_that_was_passed_in_is_not_bound_again() {
        let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = passed.local_addr().unwrap();
        let inherited =
            Inherited { sockets: vec![InheritedSocket::describe("web".into(), passed.into())], ..Inherited::default() };
        let listeners = open(inherited, &listen(&[BindAddress::Tcp(address)])).unwrap();
        assert_eq!(listeners.names(), ["web"]);
    }

    #[test]
    fn stand_ins_are_alike_but_elsewhere() {
        let directory = test_directory("stand-ins");
        let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = passed.local_addr().unwrap();
        let datagram = std::os::unix::net::UnixDatagram::bind(directory.join("d")).unwrap();
        let inherited = Inherited {
            sockets: vec![
                InheritedSocket::describe("web".into(), passed.into()),
                InheritedSocket::describe("log".into(), datagram.into()),
            ],
            ..Inherited::default()
        };
        let own = directory.join("own");
        let configured = listen(&[BindAddress::Unix(own.clone())]);
        let stand_ins = Listeners::stand_ins(&inherited, &configured, &directory).unwrap();
        assert_eq!(stand_ins.names(), ["web", "log", "listen"]);
        assert_eq!(stand_ins.sockets[1].kind, SocketKind::UnixDatagram);
        assert_ne!(stand_ins.sockets[0].address, Some(LocalAddress::Inet(address)));
        assert!(!own.exists());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn sockets_of_an_earlier_manager_are_used_again_and_stay_ours() {
        let directory = test_directory("listeners-kept");
        let path = directory.join("s");
        let addresses = [BindAddress::Tcp("127.0.0.1:0".parse().unwrap()), BindAddress::Unix(path.clone())];
        let earlier = open(Inherited::default(), &listen(&addresses)).unwrap();
        let kept: Vec<OwnedFd> = earlier.own().iter().map(|socket| socket.fd.try_clone().unwrap()).collect();
        let before = earlier.describe();
        drop(earlier);
        let again = Listeners::open(Inherited::default(), &listen(&addresses), kept).unwrap();
        assert_eq!(again.describe(), before);
        again.unlink_own();
        drop(again);
        assert!(!path.exists());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
