//! Development: notices that watched files have changed, and says so once for each burst of changes.
//!
//! Reading directories can take long, so a thread of its own does it. It sleeps in `poll(2)` until the kernel reports
//! something (`inotify(7)`); only while a burst is under way does it wait for a time as well.

mod burst;
mod names;
mod tree;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::clock;
use crate::aside::thread;
use burst::Burst;
use tree::Tree;

/// What the thread has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Files have changed, and for a moment no further one; which, in words.
    Changed(String),
    /// From now on some changes go unnoticed; why.
    Trouble(String),
}

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// There is no such file.
    #[error("--reload-on-change: {}: {source}", path.display())]
    Path {
        /// As it was given.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// No instance is free (`inotify(7)`).
    #[error(
        "--reload-on-change: this user has no inotify instance left; end another program that watches files, or raise \
         the limit: sysctl fs.inotify.max_user_instances=1024"
    )]
    Instances,
    /// Too many directories.
    #[error(
        "--reload-on-change: this user has no inotify watch left for {} ({watched} directories are watched); name \
         fewer directories, or raise the limit: sysctl fs.inotify.max_user_watches=1048576", path.display()
    )]
    Watches {
        /// The first that is not watched.
        path: PathBuf,
        /// How many are.
        watched: usize,
    },
    /// Something else.
    #[error("--reload-on-change: {what}: {source}")]
    Other {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: Errno,
    },
}

/// Watch these files and directories; nothing of `excluded` (the manager's own files) counts as a change.
///
/// # Errors
/// See [`WatchError`].
pub fn watch(paths: &[PathBuf], excluded: &Path) -> Result<UnboundedReceiver<News>, WatchError> {
    let tree = Tree::new(paths, excluded)?;
    let (tell, news) = unbounded_channel();
    thread("changes", move || listen(tree, &tell))
        .map_err(|error| WatchError::Other { what: "starting a thread".to_owned(), source: errno(&error) })?;
    Ok(news)
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Until nobody wants to know any more.
fn listen(mut tree: Tree, tell: &UnboundedSender<News>) {
    let mut burst = Burst::default();
    let mut troubled = false;
    loop {
        let result = wait(&tree, burst.remaining(clock::now()))
            .and_then(|ready| if ready { tree.read(&mut burst, clock::now()) } else { Ok(()) });
        if let Err(error) = result {
            // Once: what holds for one new directory holds for its thousand neighbours.
            if !std::mem::replace(&mut troubled, true) && tell.send(News::Trouble(error.to_string())).is_err() {
                return;
            }
            if matches!(error, WatchError::Other { .. }) {
                return;
            }
        }
        if burst.is_over(clock::now())
            && let Some(what) = std::mem::take(&mut burst).describe()
            && tell.send(News::Changed(what)).is_err()
        {
            return;
        }
    }
}

/// Whether there is something to read, after at most this long; none: for ever.
fn wait(tree: &Tree, bound: Option<Duration>) -> Result<bool, WatchError> {
    let timeout = bound.map(|bound| Timespec {
        tv_sec: i64::try_from(bound.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(bound.subsec_nanos()),
    });
    let mut fds = [PollFd::new(tree, PollFlags::IN)];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(source) => Err(WatchError::Other { what: "waiting for changes".to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_comes_with_its_remedy() {
        let path = PathBuf::from("/srv/shop");
        let said = WatchError::Watches { path, watched: 7 }.to_string();
        assert!(said.contains("/srv/shop (7 directories") && said.contains("fs.inotify.max_user_watches="), "{said}");
        assert!(WatchError::Instances.to_string().contains("fs.inotify.max_user_instances="));
    }
}
