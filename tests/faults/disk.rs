//! The runtime directory: full of bytes, full of names, read-only.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::shortage::{app, kill_one, load, worker_files};
use crate::support::manager::{Manager, SOON};
use crate::support::proc;
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("runtime_directory_full_of_bytes", EVERYWHERE, full_of_bytes);
    suite.add("runtime_directory_full_of_names", EVERYWHERE, full_of_names);
    suite.add("runtime_directory_read_only", EVERYWHERE, read_only);
}

/// A small file system of its own; goes away when dropped.
struct Small(PathBuf);

impl Small {
    /// None: this process may not mount, so there is nothing to be seen.
    fn at(path: &Path) -> Option<Self> {
        match mount("tmpfs", path, "tmpfs", MountFlags::NOSUID, Some(c"size=256k,nr_inodes=64,mode=711")) {
            Ok(()) => Some(Self(path.to_owned())),
            Err(errno) => {
                let _ = writeln!(std::io::stderr(), "cannot mount: {errno}: not tested");
                None
            }
        }
    }

    /// Whoever comes by this path finds it read-only; what is open stays open, as the kernel insists.
    fn make_read_only(&self) {
        mount_bind(&self.0, &self.0).expect("binding");
        mount_remount(&self.0, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID, c"").expect("remounting");
    }

    fn make_writable(&self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmounting");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = fs::remove_dir_all(self.0.parent().expect("a parent"));
    }
}

/// A manager of two workers whose runtime directory is small. The file system outlives it.
fn in_a_small_directory(mode: Mode) -> Option<(Manager, Small)> {
    let mut app = app(mode);
    let small = Small::at(&app.dir.path().join("run"))?;
    app.put("timeouts.start", "5s");
    Some((app.start_ready(2), small))
}

fn full_of_bytes(mode: Mode) {
    let Some((mut manager, small)) = in_a_small_directory(mode) else { return };
    let ballast = small.0.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    kill_one(&manager);
    manager.log.wait(SOON, "that it is full", |line| {
        line.message().contains("writing the state") && line.message().contains("No space left")
    });
    // Sockets take no room: the worker is replaced all the same.
    let replaced = manager.wait_ready(2).ready_pids();
    assert_eq!(manager.log.count(|line| line.message().contains("writing the state")), 1, "said once");

    // A manager that dies now leaves an old state: what it says of the one is wrong, and that one is a stray.
    let load = load(&manager);
    manager.crash();
    let mark = manager.log.mark();
    manager.start_again();
    manager.log.wait_after(mark, SOON, "the new manager", |line| line.message().contains("took over"));
    let is_ready = |line: &crate::support::log::Line| line.is("worker-ready");
    let ready = manager.log.wait_after(mark, SOON, "a worker in its place", is_ready);
    let drained =
        manager.log.wait_after(mark, SOON, "the stray's drain", |line| line.message().contains("not known: drained"));
    assert!(drained.at >= ready.at, "drained before there was another");
    let after = manager.wait_ready(2).ready_pids();
    assert_eq!((&after & &replaced).len(), 1, "the one that was known serves on");
    proc::wait_until(SOON, "the other one is drained", || {
        replaced.iter().filter(|pid| proc::is_alive(**pid)).count() == 1
    });

    drop(file);
    fs::remove_file(&ballast).unwrap();
    load.stop().assert_none_lost();
    kill_one(&manager);
    let whole = manager.wait_ready(2).ready_pids();
    manager.crash();
    manager.start_again();
    assert_eq!(manager.wait_ready(2).ready_pids(), whole, "with room again, everybody is known again");
    manager.stop();
    drop(small);
}

fn full_of_names(mode: Mode) {
    let Some((manager, small)) = in_a_small_directory(mode) else { return };
    let mut names = Vec::new();
    for number in 0.. {
        let path = small.0.join(format!("ballast-{number}"));
        if fs::File::create(&path).is_err() {
            break;
        }
        names.push(path);
    }
    // What the worker that is gone had makes room for a part of the next one's files, never for all and the state's.
    let mark = manager.log.mark();
    fs::create_dir(small.0.join("one-more")).expect_err("it is full");
    kill_one(&manager);
    let victims = manager.log.try_wait_after(mark, SOON, |line| line.is("worker-died"));
    assert!(victims.is_some());
    for number in 0..3 {
        // Take what became free at once.
        let _ = fs::File::create(small.0.join(format!("more-{number}")))
            .map(|_| names.push(small.0.join(format!("more-{number}"))));
    }
    let load = load(&manager);
    proc::wait_until(SOON, "answers", || load.answered() > 20);
    for path in names {
        fs::remove_file(path).unwrap();
    }
    manager.wait_ready(2);
    load.stop().assert_none_lost();
    proc::wait_until(SOON, "no file stays behind", || worker_files(&manager).len() == 6);
    manager.stop();
    drop(small);
}

fn read_only(mode: Mode) {
    let Some((mut manager, small)) = in_a_small_directory(mode) else { return };
    let before = manager.status().ready_pids();
    small.make_read_only();
    let mark = manager.log.mark();
    kill_one(&manager);
    manager.log.wait_after(mark, SOON, "why there is no worker", |line| {
        line.is("start-failed") && line.message().contains("Read-only file system")
    });
    let load = load(&manager);
    proc::wait_until(SOON, "answers", || load.answered() > 20);
    // A manager cannot start there, says so, and shoots nobody.
    manager.crash();
    manager.start_again();
    assert_eq!(manager.wait_exit(SOON).code(), Some(1));
    assert!(manager.log.text().contains("Read-only file system"), "{}", manager.log.text());
    let answered = load.answered();
    proc::wait_until(SOON, "answers without a manager", || load.answered() > answered + 20);
    small.make_writable();
    manager.start_again();
    let after = manager.wait_ready(2).ready_pids();
    assert_eq!((&after & &before).len(), 1, "the one that lived is adopted");
    load.stop().assert_none_lost();
    proc::wait_until(SOON, "no file stays behind", || worker_files(&manager).len() == 6);
    manager.stop();
    drop(small);
}
