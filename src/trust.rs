//! Whether a file is ours alone: who else could change it, or put another in its place.
//!
//! Whoever could, decides what this process does. Root is always trusted, and so is root's group; a group with its
//! owner's own number is the owner's alone, as most systems make them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat};
use rustix::io::Errno;

/// As many symbolic links as the kernel follows in one path (`path_resolution(7)`).
const LINKS_MAX: usize = 40;

/// Somebody who can do what only we should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Every user.
    Everybody,
    /// The members of the file's group.
    Group,
    /// The owner, by number.
    User(u32),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("everybody"),
            Self::Group => f.write_str("its group"),
            Self::User(uid) => write!(f, "user {uid}"),
        }
    }
}

impl Who {
    /// What mends it, for whoever trusts `user` and root.
    pub fn remedy(self, path: &Path, user: u32) -> String {
        let path = path.display();
        match self {
            Self::Everybody | Self::Group => format!("chmod go-w {path}"),
            Self::User(_) if user == 0 => format!("chown root {path}"),
            Self::User(_) => format!("chown {user} {path}"),
        }
    }
}

/// Somebody who can put another file in the place of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Who.
    pub who: Who,
    /// The directory or symbolic link on the way that they can change.
    pub path: PathBuf,
}

/// Who besides root and `user` can change a file of this status.
pub fn writer(status: &Stat, user: u32) -> Option<Who> {
    let mode = Mode::from_raw_mode(status.st_mode);
    if status.st_uid != 0 && status.st_uid != user {
        Some(Who::User(status.st_uid))
    } else if mode.contains(Mode::WOTH) {
        Some(Who::Everybody)
    } else if mode.contains(Mode::WGRP) && status.st_gid != 0 && status.st_gid != status.st_uid {
        Some(Who::Group)
    } else {
        None
    }
}

/// Who besides root and `user` can exchange what is at `path`: each directory and symbolic link that the kernel passes on
/// the way there is looked at, and `path` itself if it is a directory.
///
/// # Errors
/// What looking says, e.g. that there is nothing.
pub fn exchanger(path: &Path, user: u32) -> io::Result<Option<Fault>> {
    let mut left = Vec::new();
    push(&mut left, &std::path::absolute(path)?);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    loop {
        let status = rustix::fs::statat(CWD, &here, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        let who = if kind == FileType::Symlink {
            // Nobody changes a link, but its owner can take it away even where the directory is sticky (inode(7)).
            Some(status.st_uid).filter(|uid| *uid != 0 && *uid != user).map(Who::User)
        } else if kind == FileType::Directory {
            let is_sticky = Mode::from_raw_mode(status.st_mode).contains(Mode::SVTX);
            writer(&status, user).filter(|who| matches!(who, Who::User(_)) || !is_sticky)
        } else {
            None
        };
        if let Some(who) = who {
            return Ok(Some(Fault { who, path: here }));
        }
        if kind == FileType::Symlink {
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            let target = rustix::fs::readlinkat(CWD, &here, Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.as_bytes()));
            if target.is_absolute() {
                here = PathBuf::from("/");
            } else {
                here.pop();
            }
            push(&mut left, target);
            continue;
        }
        match left.pop() {
            None => return Ok(None),
            Some(name) if name == ".." => drop(here.pop()),
            Some(name) => here.push(name),
        }
    }
}

/// What is to be passed next, the first on top.
fn push(left: &mut Vec<OsString>, path: &Path) {
    let steps = path.components().filter_map(|step| match step {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    left.extend(steps.collect::<Vec<_>>().into_iter().rev());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::files::test_directory;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    /// Neither root nor whoever runs the tests.
    const STRANGER: u32 = 12_345;

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn found(path: &Path) -> Option<(Who, PathBuf)> {
        exchanger(path, me()).unwrap().map(|fault| (fault.who, fault.path))
    }

    #[test]
    fn each_directory_and_link_on_the_way_counts() {
        let base = test_directory("trust");
        let deep = base.join("a/b/c");
        std::fs::create_dir_all(&deep).unwrap();
        for directory in [base.join("a"), base.join("a/b"), deep.clone()] {
            chmod(&directory, 0o755);
        }
        std::fs::write(deep.join("file"), "").unwrap();
        let file = deep.join("file");
        assert_eq!(found(&file), None);
        chmod(&base.join("a"), 0o777);
        assert_eq!(found(&file), Some((Who::Everybody, base.join("a"))));
        chmod(&base.join("a"), 0o1777);
        assert_eq!(found(&file), None, "sticky: only owners rename");
        chmod(&base.join("a"), 0o755);
        // By way of two links, the second of which lies where everybody can exchange it.
        std::fs::create_dir(base.join("open")).unwrap();
        symlink("../a/b", base.join("open/second")).unwrap();
        symlink(base.join("open/second"), base.join("first")).unwrap();
        chmod(&base.join("open"), 0o755);
        let linked = base.join("first/c/file");
        assert_eq!(found(&linked), None);
        assert_eq!(found(&base.join("first/c/../c/file")), None);
        chmod(&base.join("open"), 0o777);
        assert_eq!(found(&linked), Some((Who::Everybody, base.join("open"))));
        chmod(&base.join("open"), 0o755);
        symlink("loop", base.join("loop")).unwrap();
        assert!(exchanger(&base.join("loop"), me()).is_err());
        assert!(exchanger(&base.join("missing"), me()).is_err());
        if me() == 0 {
            lchown(base.join("open/second"), Some(STRANGER), None).unwrap();
            assert_eq!(found(&linked), Some((Who::User(STRANGER), base.join("open/second"))));
            chmod(&base.join("a/b"), 0o1777);
            chown(base.join("a/b"), Some(STRANGER), None).unwrap();
            assert_eq!(found(&file), Some((Who::User(STRANGER), base.join("a/b"))), "its owner renames, sticky or not");
            assert_eq!(exchanger(&file, STRANGER).unwrap(), None);
        }
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn root_its_group_and_an_owners_own_group_are_trusted() {
        let directory = test_directory("trust-writer");
        let path = directory.join("file");
        std::fs::write(&path, "").unwrap();
        let judged = |uid, gid, mode: u32, user| {
            let mut status = rustix::fs::stat(&path).unwrap();
            (status.st_uid, status.st_gid, status.st_mode) = (uid, gid, 0o100_000 | mode);
            writer(&status, user)
        };
        assert_eq!(judged(0, 0, 0o664, 0), None);
        assert_eq!(judged(0, 50, 0o644, 0), None);
        assert_eq!(judged(0, 50, 0o664, 0), Some(Who::Group));
        assert_eq!(judged(0, 0, 0o646, 0), Some(Who::Everybody));
        assert_eq!(judged(1000, 1000, 0o600, 0), Some(Who::User(1000)));
        assert_eq!(judged(1000, 1000, 0o664, 1000), None);
        assert_eq!(judged(1000, 100, 0o664, 1000), Some(Who::Group));
        assert_eq!(judged(0, 0, 0o644, 1000), None);
        assert_eq!(judged(1001, 0, 0o600, 1000), Some(Who::User(1001)));
        assert_eq!(Who::User(7).remedy(&path, 0), format!("chown root {}", path.display()));
        assert_eq!(Who::Group.remedy(&path, 7), format!("chmod go-w {}", path.display()));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
