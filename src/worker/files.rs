//! A worker's files in the app's runtime directory: named after the worker, owned by whom it runs as.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::supervisor::id::WorkerId;

/// Where a worker's files are.
#[derive(Debug, Clone)]
pub struct Files {
    /// `NOTIFY_SOCKET`
    pub notify: PathBuf,
    /// `MEMORY_PRESSURE_WATCH`
    pub pressure: PathBuf,
    /// Its output, unless that goes to the journal.
    pub output: PathBuf,
}

impl Files {
    /// The names for one worker. Short, because a socket's path has 107 bytes at most (`unix(7)`).
    pub fn new(directory: &Path, worker: WorkerId) -> Self {
        Self {
            notify: directory.join(format!("{worker}.notify")),
            pressure: directory.join(format!("{worker}.pressure")),
            output: directory.join(format!("{worker}.output")),
        }
    }
}

/// Whose file this is, going by its name.
pub fn worker_of(name: &str) -> Option<WorkerId> {
    let (number, kind) = name.split_once('.')?;
    matches!(kind, "notify" | "pressure" | "output").then_some(())?;
    number.parse().ok().map(WorkerId)
}

/// Whether a name is one of a worker's files.
pub fn is_worker_file(name: &str) -> bool {
    worker_of(name).is_some()
}

/// Give the file that we have just made to `owner` (uid, gid), if that is someone else; a link is not followed.
///
/// # Errors
/// What `chown(2)` says.
pub fn hand_over(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(uid, gid)| lchown(path, Some(uid), Some(gid)))
}

/// Bind a socket at a path that must be free, for its owner alone (0600): the file takes its mode from the socket, so
/// there is no moment with another one, and no path to change it by.
///
/// # Errors
/// What `socket(2)` and `bind(2)` say; a path over 107 bytes.
pub fn bind(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A fresh directory for a test.
#[cfg(test)]
pub(crate) fn test_directory(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("paddock-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_files_are_told_from_others() {
        let files = Files::new(Path::new("/run/paddock/shop"), WorkerId(7));
        for path in [&files.notify, &files.pressure, &files.output] {
            assert_eq!(worker_of(path.file_name().unwrap().to_str().unwrap()), Some(WorkerId(7)));
        }
        for other in ["control", "lock", "state", "x.notify", "7.other", "7"] {
            assert_eq!(worker_of(other), None, "{other}");
        }
    }
}
