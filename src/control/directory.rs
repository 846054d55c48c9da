//! The app's runtime directory: where it is, making it, and the lock that makes a manager the only one.
//!
//! `--runtime-directory` names the app's directory itself. Without it `$RUNTIME_DIRECTORY` does (systemd.exec(5),
//! `RuntimeDirectory=`), else it is `/run/paddock/APP` for root and `$XDG_RUNTIME_DIR/paddock/APP` for others.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use crate::trust;

/// Where root's apps live.
pub const SYSTEM_ROOT: &str = "/run/paddock";
/// The control socket's name inside the runtime directory.
pub const SOCKET: &str = "control";
/// The lock file's name inside the runtime directory.
pub const LOCK: &str = "lock";

/// Everything that decides where an app's runtime directory is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `--runtime-directory`: the app's directory itself.
    pub flag: Option<PathBuf>,
    /// `$RUNTIME_DIRECTORY`: one or more paths with colons between them.
    pub runtime_directory: Option<OsString>,
    /// `$XDG_RUNTIME_DIR`.
    pub xdg_runtime_directory: Option<OsString>,
    /// Whether the effective user is root.
    pub root: bool,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process(flag: Option<&Path>) -> Self {
        Self {
            flag: flag.map(Path::to_path_buf),
            runtime_directory: std::env::var_os("RUNTIME_DIRECTORY"),
            xdg_runtime_directory: std::env::var_os("XDG_RUNTIME_DIR"),
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// The directory that a manager of this app uses.
    pub fn of_manager(&self, app: &str) -> Result<PathBuf, DirectoryError> {
        check_app_name(app)?;
        if let Some(named) = self.named(Some(app))? {
            return Ok(named);
        }
        let root = if self.root { Some(PathBuf::from(SYSTEM_ROOT)) } else { self.user_root() };
        Ok(root.ok_or(DirectoryError::Nowhere)?.join(app))
    }

    /// The directories where a client looks for this app, in order: others than root look among their own apps first,
    /// then among root's, which `[control] group` may have opened to them.
    pub fn of_client(&self, app: &str) -> Result<Vec<PathBuf>, DirectoryError> {
        check_app_name(app)?;
        if let Some(named) = self.named(Some(app))? {
            return Ok(vec![named]);
        }
        Ok(self.roots().into_iter().map(|root| root.join(app)).collect())
    }

    /// The directories of all apps that have one, sorted. A flag names one app's directory and nothing else is looked
    /// at then.
    pub fn all(&self) -> Result<Vec<PathBuf>, DirectoryError> {
        if self.flag.is_some() {
            return Ok(self.named(None)?.into_iter().collect());
        }
        let mut found = std::collections::BTreeSet::new();
        for root in self.roots() {
            // A root that is not there has no apps.
            let Ok(entries) = std::fs::read_dir(&root) else { continue };
            for entry in entries.flatten() {
                if entry.file_name().to_str().is_some_and(is_app_name) {
                    found.insert(entry.path());
                }
            }
        }
        if let Some(named) = self.named(None)?
            && std::fs::symlink_metadata(named.join(SOCKET)).is_ok()
        {
            found.insert(named);
        }
        Ok(found.into_iter().collect())
    }

    /// What the flag or the environment says outright. Of several paths in `$RUNTIME_DIRECTORY` the one named after
    /// the app wins, else the first.
    fn named(&self, app: Option<&str>) -> Result<Option<PathBuf>, DirectoryError> {
        if let Some(flag) = &self.flag {
            return std::path::absolute(flag).map(Some).map_err(|source| DirectoryError::Io {
                what: "cannot make absolute",
                path: flag.clone(),
                source,
            });
        }
        let Some(value) = &self.runtime_directory else { return Ok(None) };
        let paths: Vec<&Path> = value
            .as_bytes()
            .split(|byte| *byte == b':')
            .map(|part| Path::new(OsStr::from_bytes(part)))
            .filter(|path| path.is_absolute())
            .collect();
        let of_app = app.and_then(|app| paths.iter().find(|path| path.file_name() == Some(OsStr::new(app))));
        Ok(of_app.or_else(|| paths.first()).map(|path| path.to_path_buf()))
    }

    fn roots(&self) -> Vec<PathBuf> {
        let own = if self.root { None } else { self.user_root() };
        own.into_iter().chain([PathBuf::from(SYSTEM_ROOT)]).collect()
    }

    /// The XDG base directory specification has relative values ignored.
    fn user_root(&self) -> Option<PathBuf> {
        let base = PathBuf::from(self.xdg_runtime_directory.as_ref()?);
        base.is_absolute().then(|| base.join("paddock"))
    }
}

/// Whether this can be an app's name: `[A-Za-z0-9][A-Za-z0-9_.-]{0,47}`.
pub fn is_app_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && name.len() <= 48
}

fn check_app_name(name: &str) -> Result<(), DirectoryError> {
    if is_app_name(name) { Ok(()) } else { Err(DirectoryError::Name(name.to_owned())) }
}

/// An app's runtime directory, open and known to be ours: nobody but this user and root can put anything into it.
#[derive(Debug)]
pub struct RuntimeDirectory {
    path: PathBuf,
    fd: OwnedFd,
}

impl RuntimeDirectory {
    /// Open the manager's directory, made first (0711, with one missing parent) where it is not there. Symbolic links
    /// and directories of other users are refused; the mode is set through the open directory, so nothing can be
    /// exchanged in between.
    pub fn create(path: &Path) -> Result<Self, DirectoryError> {
        let wrong = |reason: &str| DirectoryError::Wrong { path: path.to_path_buf(), reason: reason.to_owned() };
        let io = |what| move |errno: Errno| DirectoryError::Io { what, path: path.to_path_buf(), source: errno.into() };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(wrong("it cannot be an app's own directory"));
        };
        let parent = open_parent(parent)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o711)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io("cannot make")(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(wrong("it is a symbolic link or no directory"));
            }
            Err(errno) => return Err(io("cannot open")(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(io("cannot stat"))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(wrong("it belongs to another user"));
        }
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o711)).map_err(io("cannot set the mode of"))?;
        Ok(Self { path: path.to_path_buf(), fd })
    }

    /// Where it is: absolute if it came from [`Surroundings`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Take the app's lock; it is free again when the [`Lock`] is dropped or its process is over, however it ended.
    pub fn lock(&self, app: &str) -> Result<Lock, LockError> {
        let io = |source: Errno| LockError::Io { path: self.path.join(LOCK), source: source.into() };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A file that was unlinked between opening and locking locks nobody out: open the new one.
        for _ in 0..8 {
            let file = rustix::fs::openat(&self.fd, LOCK, flags, Mode::from_raw_mode(0o600)).map_err(io)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(held_by(&file, &self.path)),
                Err(errno) => return Err(io(errno)),
            }
            if rustix::fs::fstat(&file).map_err(io)?.st_nlink == 0 {
                continue;
            }
            let text = format!("{} {app}\n", std::process::id());
            rustix::fs::ftruncate(&file, 0).map_err(io)?;
            rustix::io::pwrite(&file, text.as_bytes(), 0).map_err(io)?;
            return Ok(Lock { file });
        }
        Err(io(Errno::AGAIN))
    }
}

impl Lock {
    /// The lock that an earlier image of this process holds: it is the open file's, and was never let go of.
    pub fn keep(file: OwnedFd) -> Result<Self, Errno> {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { file })
    }
}

impl AsFd for RuntimeDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Open the directory that shall hold an app's directory, made first where it is not there. On the whole way there only
/// root and this user may exchange anything: else what was checked once could be another directory the next time.
fn open_parent(parent: &Path) -> Result<OwnedFd, DirectoryError> {
    let io = |what| move |errno: Errno| DirectoryError::Io { what, path: parent.to_path_buf(), source: errno.into() };
    let found = match check_way(parent) {
        Err(DirectoryError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            check_way(parent.parent().unwrap_or(parent))?;
            match rustix::fs::mkdir(parent, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(io("cannot make")(errno)),
            }
            check_way(parent)
        }
        found => found,
    };
    found?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(parent, flags, Mode::empty()).map_err(io("cannot open"))
}

fn check_way(to: &Path) -> Result<(), DirectoryError> {
    let user = rustix::process::geteuid().as_raw();
    let io = |source| DirectoryError::Io { what: "cannot look at", path: to.to_path_buf(), source };
    trust::exchanger(to, user).map_err(io)?.map_or(Ok(()), |trust::Fault { who, path }| {
        let reason = format!("{who} may rename what is in it; {}", who.remedy(&path, user));
        Err(DirectoryError::Wrong { path, reason })
    })
}

/// Being the app's only manager.
#[derive(Debug)]
pub struct Lock {
    file: OwnedFd,
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Read who holds the lock; the answer is for people, the lock itself is what counts.
fn held_by(file: &OwnedFd, directory: &Path) -> LockError {
    let mut buffer = [0_u8; 128];
    let length = rustix::io::pread(file, &mut buffer, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    let (pid, app) = text.trim_end().split_once(' ').unwrap_or_default();
    LockError::Held {
        pid: pid.parse().ok(),
        app: is_app_name(app).then(|| app.to_owned()),
        directory: directory.to_path_buf(),
    }
}

/// The address of the control socket in a directory: its path, or through the open directory where the path is longer
/// than `sockaddr_un` allows (unix(7)).
pub(super) fn socket_address(path: &Path, directory: BorrowedFd<'_>) -> Result<SocketAddrUnix, Errno> {
    use std::os::fd::AsRawFd as _;
    SocketAddrUnix::new(path.join(SOCKET))
        .or_else(|_| SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())))
}

/// Why there is no runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Nothing says where it is.
    #[error(
        "no runtime directory: neither --runtime-directory nor $RUNTIME_DIRECTORY nor $XDG_RUNTIME_DIR is set, \
         and only root uses {SYSTEM_ROOT}"
    )]
    Nowhere,
    /// No app can have this name.
    #[error(
        "{0:?} cannot be an app's name: letters, digits, \"_\", \".\" and \"-\", a letter or digit first, at most 48"
    )]
    Name(String),
    /// It is there, and not as it must be.
    #[error("runtime directory {}: {reason}", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The kernel refused.
    #[error("runtime directory: {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Why the app's lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another manager has it.
    #[error(
        "a manager{} is already running{} and uses {}",
        app.as_ref().map(|app| format!(" of {app}")).unwrap_or_default(),
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        directory.display()
    )]
    Held {
        /// Which process, if it had written that yet.
        pid: Option<u32>,
        /// Of which app.
        app: Option<String>,
        /// Whose lock it is.
        directory: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}
