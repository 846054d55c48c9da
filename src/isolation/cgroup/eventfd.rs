//! v1 notifications: an eventfd that is registered in `cgroup.event_control` (cgroup-v1/memory.rst, 9. and 11.).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files;
use crate::sys;

/// Something that fires. Dropping it takes every registration back.
pub(super) struct Eventfd(AsyncFd<OwnedFd>);

impl Eventfd {
    /// A new one; call inside a tokio runtime.
    pub(super) fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        sys::watch(fd, Interest::READABLE).map(Self)
    }

    /// Another descriptor of the same one.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.get_ref().try_clone()
    }

    /// See [`register`].
    pub(super) fn register(&self, dir: &Path, file: &str, argument: &str) -> io::Result<()> {
        register(self.0.get_ref(), dir, file, argument)
    }

    /// Wait until it fires. Cancel-safe: what fired while nobody waited is reported to the next caller.
    pub(super) async fn fired(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            let mut count = [0; 8];
            match rustix::io::read(self.0.get_ref(), &mut count) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Let the kernel fire an eventfd for what happens to `file` of the group at `dir`; `argument` is a threshold or a level.
pub(super) fn register(eventfd: impl AsFd, dir: &Path, file: &str, argument: &str) -> io::Result<()> {
    let target = rustix::fs::open(dir.join(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let line = format!("{} {} {argument}", eventfd.as_fd().as_raw_fd(), target.as_raw_fd());
    files::write(dir, "cgroup.event_control", line.trim_end())
}
