//! Which file a replacement is made from.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};

use crate::trust::{self, Who};

/// What the kernel appends to the name of a running program whose file is gone (`proc_pid_exe(5)`).
const DELETED: &[u8] = b" (deleted)";

/// Where this program was started from: a package puts the next version there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    path: PathBuf,
}

impl Image {
    /// The name that this process was started by, made absolute, if it leads to the running program; symbolic links in it
    /// are followed anew each time, for some packages change only those. Else where the kernel says that the program is;
    /// none if it is not there any more.
    pub fn of_process() -> Option<Self> {
        let named = std::env::args_os().next().filter(|name| name.as_bytes().contains(&b'/'));
        let named = named.and_then(|name| std::path::absolute(name).ok()).filter(|path| is_running(path));
        let path = named
            .or_else(|| std::env::current_exe().ok().filter(|path| !path.as_os_str().as_bytes().ends_with(DELETED)))?;
        Some(Self { path })
    }

    /// One that was recorded earlier.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name as the kernel shows it of a process: 15 bytes (`PR_SET_NAME`).
    pub fn short_name(&self) -> Option<CString> {
        let name = self.path.file_name()?.as_bytes();
        CString::new(name.get(..15).unwrap_or(name)).ok()
    }

    /// Take hold of the file that is there now, so that what is asked and what is executed are the same.
    ///
    /// # Errors
    /// It is not there, is no program, or somebody could have put it there who may not decide what this process does.
    pub fn open(&self) -> Result<OwnedFd, String> {
        let fd = rustix::fs::openat(CWD, &self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| errno.to_string())?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| errno.to_string())?;
        let user = rustix::process::geteuid().as_raw();
        judge(&stat, user)?;
        if user == 0
            && let Some(fault) = trust::exchanger(&self.path, user).map_err(|error| error.to_string())?
        {
            return Err(format!("{} can replace it, for they can write {}", fault.who, fault.path.display()));
        }
        Ok(fd)
    }

    /// Whether this very program may be a manager: one of root's must not be what another user has made it. The way to it
    /// is not looked at before the next one comes that way: whoever exchanged it has exchanged this check too.
    ///
    /// # Errors
    /// What is wrong, where, and what mends it.
    pub fn check_own(path: Option<&Self>) -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let failed = |error: std::io::Error| format!("looking at the running program: {error}");
        let status = rustix::fs::stat("/proc/self/exe").map_err(|errno| failed(errno.into()))?;
        let path = path.map_or(Path::new("/proc/self/exe"), Self::path);
        let Some(who) = trust::writer(&status, 0) else { return Ok(()) };
        let (remedy, path) = (who.remedy(path, 0), path.display());
        Err(format!("{path}: {who} can write this program, and the manager is root; {remedy}"))
    }
}

fn is_running(path: &Path) -> bool {
    let identity = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    identity(path).is_some_and(|found| identity(Path::new("/proc/self/exe")) == Some(found))
}

/// Whether a file may become this process: a regular one of root's or this user's, that no other may write to.
fn judge(status: &Stat, user: u32) -> Result<(), String> {
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file".to_owned());
    }
    match trust::writer(status, user) {
        None => Ok(()),
        Some(Who::User(owner)) => Err(format!("it belongs to user {owner}")),
        Some(Who::Group | Who::Everybody) => Err("others than its owner may write to it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::files::test_directory;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_a_file_that_others_cannot_change_is_taken() {
        let directory = test_directory("image");
        let image = Image::at(directory.join("paddock"));
        assert!(image.open().unwrap_err().contains("No such file"));
        let mode = |mode| {
            std::fs::write(image.path(), "x").unwrap();
            std::fs::set_permissions(image.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            image.open()
        };
        assert!(mode(0o755).is_ok());
        assert!(mode(0o757).unwrap_err().contains("others"));
        if rustix::process::geteuid().is_root() {
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
            assert!(mode(0o755).unwrap_err().contains("everybody can replace it"));
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert!(Image::at(directory.clone()).open().unwrap_err().contains("regular"));
        mode(0o755).unwrap();
        let mut status = rustix::fs::stat(image.path()).unwrap();
        status.st_uid = 1001;
        assert!(judge(&status, 1000).unwrap_err().contains("user 1001"));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_running_program_is_found() {
        let image = Image::of_process().unwrap();
        assert!(is_running(image.path()));
        assert!(image.short_name().unwrap().as_bytes().len() <= 15);
    }
}
