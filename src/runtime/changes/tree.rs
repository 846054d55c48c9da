//! The directories that are watched, and what the kernel says about them (`inotify(7)`).
//!
//! Only directories are watched, never files: editors save by renaming a new file over the old one, and a watch would
//! stay with the old. So each path's parent is watched, too, and a directory that is removed and made again goes on
//! being watched.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::burst::Burst;
use super::names::is_ignored;
use super::{WatchError, errno};
use crate::supervisor::time::Time;

/// A file counts when its writer has closed it, not at each write.
const MASK: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ONLYDIR);

/// Room for a few hundred events.
const BUFFER: usize = 16 << 10;

/// What somebody wants to have watched.
#[derive(Debug)]
struct Root {
    /// As it was named, made absolute.
    named: PathBuf,
    /// Without symbolic links.
    real: PathBuf,
}

/// One event, taken out of the kernel's buffer.
struct Happened {
    watch: i32,
    flags: ReadFlags,
    name: Option<Vec<u8>>,
}

/// An inotify instance and what its watches stand for.
#[derive(Debug)]
pub(super) struct Tree {
    inotify: OwnedFd,
    roots: Vec<Root>,
    /// Directories by their watch.
    watches: BTreeMap<i32, PathBuf>,
    /// The manager's own files.
    excluded: PathBuf,
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Tree {
    /// Watch these paths and all below them.
    pub(super) fn new(paths: &[PathBuf], excluded: &Path) -> Result<Self, WatchError> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|source| match source {
            Errno::MFILE => WatchError::Instances,
            _ => WatchError::Other { what: "inotify_init1".to_owned(), source },
        })?;
        let excluded = fs::canonicalize(excluded).unwrap_or_else(|_| excluded.to_owned());
        let roots = paths.iter().map(|path| root(path)).collect::<Result<_, _>>()?;
        let mut tree = Self { inotify, roots, watches: BTreeMap::new(), excluded };
        tree.watch_roots()?;
        Ok(tree)
    }

    /// Takes all that has happened into account.
    pub(super) fn read(&mut self, burst: &mut Burst, now: Time) -> Result<(), WatchError> {
        let mut result = Ok(());
        for happened in self.take()? {
            // One directory that cannot be watched is no reason to miss what happened in the others.
            if let Err(error) = self.happened(&happened, burst, now) {
                result = Err(error);
            }
        }
        result
    }

    /// One buffer full of events.
    fn take(&self) -> Result<Vec<Happened>, WatchError> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut list = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => list.push(Happened {
                    watch: event.wd(),
                    flags: event.events(),
                    name: event.file_name().map(|name| name.to_bytes().to_owned()),
                }),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(list),
                Err(source) => return Err(WatchError::Other { what: "reading changes".to_owned(), source }),
            }
            if reader.is_buffer_empty() {
                return Ok(list);
            }
        }
    }

    fn happened(&mut self, event: &Happened, burst: &mut Burst, now: Time) -> Result<(), WatchError> {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            // What was lost is not known: all is looked at again.
            if let Some(root) = self.roots.first() {
                burst.changed(&root.real, now);
            }
            return self.watch_roots();
        }
        if event.flags.contains(ReadFlags::IGNORED) {
            self.watches.remove(&event.watch);
            return Ok(());
        }
        let Some((directory, name)) = self.watches.get(&event.watch).zip(event.name.as_ref()) else {
            return Ok(());
        };
        let path = directory.join(OsStr::from_bytes(name));
        let root = self.roots.iter().position(|root| root.named == path || root.real == path);
        if root.is_none() && !self.is_inside(&path) {
            return Ok(());
        }
        let is_directory = event.flags.contains(ReadFlags::ISDIR);
        let appeared = event.flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        if event.flags.contains(ReadFlags::CREATE) {
            burst.born(&path, now);
            // Nobody writes to a link.
            let is_link = |entry: fs::Metadata| entry.is_symlink() || entry.is_file() && entry.nlink() > 1;
            if !is_directory && path.symlink_metadata().is_ok_and(is_link) {
                burst.changed(&path, now);
            }
        } else {
            burst.changed(&path, now);
        }
        if is_directory && !appeared {
            self.forget(&path);
        }
        // What is in a new directory may have come before the watch.
        let mut found = |path: &Path| {
            burst.born(path, now);
            burst.changed(path, now);
        };
        match root {
            _ if !appeared => Ok(()),
            Some(index) => self.watch_root(index, &mut found),
            None if is_directory => self.watch_below(&path, &mut found),
            None => Ok(()),
        }
    }

    /// Whether a path lies below a root, and nothing on the way there is ignored.
    fn is_inside(&self, path: &Path) -> bool {
        let below = |root: &Root| {
            path.strip_prefix(&root.real).is_ok_and(|rest| {
                rest.components().all(|component| !is_ignored(component.as_os_str())) && !rest.as_os_str().is_empty()
            })
        };
        !path.starts_with(&self.excluded) && self.roots.iter().any(below)
    }

    fn watch_roots(&mut self) -> Result<(), WatchError> {
        (0..self.roots.len()).try_for_each(|index| self.watch_root(index, &mut |_| ()))
    }

    /// Watches a root and its parents; one that is not there now is watched when it comes.
    fn watch_root(&mut self, index: usize, found: &mut dyn FnMut(&Path)) -> Result<(), WatchError> {
        let Some(root) = self.roots.get_mut(index) else { return Ok(()) };
        if let Ok(real) = fs::canonicalize(&root.named) {
            root.real = real;
        }
        let (named, real) = (root.named.clone(), root.real.clone());
        for parent in [named.parent(), real.parent()].into_iter().flatten() {
            self.watch(parent)?;
        }
        if real.is_dir() { self.watch_below(&real, found) } else { Ok(()) }
    }

    /// Watches a directory and all below it, and tells which files are there.
    fn watch_below(&mut self, top: &Path, found: &mut dyn FnMut(&Path)) -> Result<(), WatchError> {
        let mut waiting = vec![top.to_owned()];
        while let Some(directory) = waiting.pop() {
            // First the watch: what comes while the directory is read is reported or read, or both.
            if !self.watch(&directory)? {
                continue;
            }
            // One that is gone again is reported as such.
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten().filter(|entry| !is_ignored(&entry.file_name())) {
                let path = entry.path();
                if path == self.excluded {
                    continue;
                }
                // Of the entry itself: a link to a directory is not followed, it could lead in circles.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    waiting.push(path);
                } else {
                    found(&path);
                }
            }
        }
        Ok(())
    }

    /// Watches one directory; whether it could be, for it may be gone already, or be closed to us.
    fn watch(&mut self, directory: &Path) -> Result<bool, WatchError> {
        match inotify::add_watch(&self.inotify, directory, MASK) {
            Ok(watch) => {
                self.watches.insert(watch, directory.to_owned());
                Ok(true)
            }
            Err(Errno::NOSPC) => Err(WatchError::Watches { path: directory.to_owned(), watched: self.watches.len() }),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => Ok(false),
            Err(source) => Err(WatchError::Other { what: format!("watching {}", directory.display()), source }),
        }
    }

    /// A directory that was moved away takes its watches along, under names that are wrong now.
    fn forget(&mut self, top: &Path) {
        let gone: Vec<i32> =
            self.watches.iter().filter(|(_, path)| path.starts_with(top)).map(|(watch, _)| *watch).collect();
        for watch in gone {
            self.watches.remove(&watch);
            // Of a removed directory it is gone already.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }
}

/// A path that has to be there.
fn root(path: &Path) -> Result<Root, WatchError> {
    let failed = |error: std::io::Error| WatchError::Path { path: path.to_owned(), source: errno(&error) };
    let real = fs::canonicalize(path).map_err(failed)?;
    let named = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            fs::canonicalize(parent).map_err(failed)?.join(name)
        }
        // `/` and `..` have no name of their own.
        _ => real.clone(),
    };
    Ok(Root { named, real })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::worker::files::test_directory;

    /// A watched directory, and what the last deed in it amounts to.
    struct Bench {
        directory: PathBuf,
        tree: Tree,
    }

    impl Bench {
        fn new(name: &str, watched: &[&str]) -> Self {
            let directory = fs::canonicalize(test_directory(name)).unwrap();
            for path in ["src/shop", "src/.git", "run"] {
                fs::create_dir_all(directory.join(path)).unwrap();
            }
            fs::write(directory.join("src/app.py"), "1").unwrap();
            let watched: Vec<PathBuf> = watched.iter().map(|path| directory.join(path)).collect();
            let tree = Tree::new(&watched, &directory.join("run")).unwrap();
            Self { directory, tree }
        }

        fn after(&mut self, deed: impl FnOnce(&Path)) -> Option<String> {
            deed(&self.directory);
            let mut burst = Burst::default();
            // All is in the queue when the deed's system calls have returned; new watches may add to it.
            for _ in 0..3 {
                self.tree.read(&mut burst, Time::from_boot(Duration::from_secs(1))).unwrap();
            }
            let prefix = format!("{}/", self.directory.display());
            burst.describe().map(|text| text.replace(&prefix, ""))
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    fn write(path: &Path) {
        fs::write(path, "new").unwrap();
    }

    fn changed(name: &str) -> String {
        format!("{name} has changed")
    }

    #[test]
    fn a_file_that_is_written_renamed_over_or_removed_has_changed() {
        let mut bench = Bench::new("tree-files", &["src"]);
        assert_eq!(bench.after(|_| ()), None);
        assert_eq!(bench.after(|at| write(&at.join("src/app.py"))), Some(changed("src/app.py")));
        let saved = bench.after(|at| {
            write(&at.join("src/sedXYZ"));
            fs::rename(at.join("src/sedXYZ"), at.join("src/app.py")).unwrap();
        });
        assert_eq!(saved, Some(changed("src/app.py")));
        let removed = bench.after(|at| fs::remove_file(at.join("src/app.py")).unwrap());
        assert_eq!(removed.unwrap(), "src/app.py is gone");
        let linked = bench.after(|at| std::os::unix::fs::symlink("shop", at.join("src/link")).unwrap());
        assert_eq!(linked, Some(changed("src/link")));
    }

    #[test]
    fn what_is_ignored_outside_or_the_managers_own_has_not() {
        let mut bench = Bench::new("tree-ignored", &["src", "."]);
        for name in ["src/.git/index", "src/app.py~", "src/.app.py.swp", "run/state", "src/4913"] {
            assert_eq!(bench.after(|at| write(&at.join(name))), None, "{name}");
        }
        let mut bench = Bench::new("tree-outside", &["src/shop", "src/app.py"]);
        assert_eq!(bench.after(|at| write(&at.join("src/other.py"))), None);
        assert_eq!(bench.after(|at| write(&at.join("src/app.py"))), Some(changed("src/app.py")));
        assert_eq!(bench.after(|at| write(&at.join("src/shop/a.py"))), Some(changed("src/shop/a.py")));
    }

    #[test]
    fn new_directories_are_watched_with_all_that_is_in_them() {
        let mut bench = Bench::new("tree-new", &["src"]);
        assert_eq!(bench.after(|at| fs::create_dir(at.join("src/empty")).unwrap()), None);
        assert_eq!(bench.after(|at| write(&at.join("src/empty/a.py"))), Some(changed("src/empty/a.py")));
        let deep = bench.after(|at| {
            fs::create_dir_all(at.join("src/x/y")).unwrap();
            write(&at.join("src/x/y/z.py"));
        });
        assert_eq!(deep, Some(changed("src/x/y/z.py")));
        bench.after(|at| fs::rename(at.join("src/x"), at.join("src/moved")).unwrap()).unwrap();
        assert_eq!(bench.after(|at| write(&at.join("src/moved/y/z.py"))), Some(changed("src/moved/y/z.py")));
        let away = bench.after(|at| fs::rename(at.join("src/moved"), at.join("away")).unwrap());
        assert_eq!(away.unwrap(), "src/moved is gone");
        assert_eq!(bench.after(|at| write(&at.join("away/y/z.py"))), None);
    }

    #[test]
    fn a_root_that_is_removed_and_made_again_goes_on_being_watched() {
        let mut bench = Bench::new("tree-root", &["src"]);
        assert!(bench.after(|at| fs::remove_dir_all(at.join("src")).unwrap()).is_some());
        bench.after(|at| {
            fs::create_dir(at.join("src")).unwrap();
            write(&at.join("src/app.py"));
        });
        assert_eq!(bench.after(|at| write(&at.join("src/app.py"))), Some(changed("src/app.py")));
    }

    #[test]
    fn a_link_that_is_pointed_elsewhere_is_followed_there() {
        let mut bench = Bench::new("tree-link", &["src"]);
        let link = bench.directory.join("current");
        std::os::unix::fs::symlink(bench.directory.join("src/shop"), &link).unwrap();
        bench.tree = Tree::new(std::slice::from_ref(&link), &bench.directory.join("run")).unwrap();
        assert_eq!(bench.after(|at| write(&at.join("src/shop/a.py"))), Some(changed("src/shop/a.py")));
        let flipped = bench.after(|at| {
            fs::create_dir(at.join("next")).unwrap();
            std::os::unix::fs::symlink(at.join("next"), at.join("current.new")).unwrap();
            fs::rename(at.join("current.new"), at.join("current")).unwrap();
        });
        assert_eq!(flipped, Some(changed("current")));
        assert_eq!(bench.after(|at| write(&at.join("next/a.py"))), Some(changed("next/a.py")));
    }

    #[test]
    fn a_path_that_is_not_there_is_refused() {
        let missing = test_directory("tree-missing").join("nowhere");
        let error = Tree::new(std::slice::from_ref(&missing), Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("nowhere: No such file"), "{error}");
    }
}
