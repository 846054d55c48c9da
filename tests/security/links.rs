//! Symbolic links in the directories that a manager writes to lead nowhere.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::as_root;
use crate::support::manager::{App, Dir, SOON};
use crate::support::suite::{Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("links_planted_in_the_runtime_directory_are_not_followed", &[Mode::None], runtime);
    as_root(suite, "links_planted_in_a_sockets_directory_are_not_followed", sockets);
}

/// A file that nothing may happen to.
struct Victim {
    dir: Dir,
}

impl Victim {
    fn new() -> Self {
        let dir = Dir::create();
        let victim = Self { dir };
        fs::write(victim.path(), "untouched").unwrap();
        fs::set_permissions(victim.path(), fs::Permissions::from_mode(0o640)).unwrap();
        victim
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("victim")
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let status = fs::symlink_metadata(self.path()).expect("the victim is there");
        assert_eq!((status.mode() & 0o7777, status.uid()), (0o640, rustix::process::geteuid().as_raw()));
        assert_eq!(fs::read_to_string(self.path()).unwrap(), "untouched");
    }
}

fn plant(link: &Path, victim: &Path) {
    let _ = fs::remove_file(link);
    symlink(victim, link).unwrap();
}

fn runtime(mode: Mode) {
    let victim = Victim::new();
    let mut manager = App::new(mode).worker("direct", 1).start_ready(1);
    let before = manager.status().ready_by_slot();
    let run = manager.app.dir.path().join("run");
    manager.crash();
    // `state`, `lock` and `performed` stay: without them nothing is adopted, and their own tests are in the host's.
    for name in ["state.new", "control", "1.notify", "1.pressure", "2.notify", "2.pressure", "2.output", "77.notify"] {
        plant(&run.join(name), &victim.path());
    }
    manager.start_again();
    assert_eq!(manager.wait_ready(1).ready_by_slot(), before, "it is adopted");
    victim.assert_untouched();
    for name in ["control", "1.notify", "1.pressure"] {
        let kind = fs::symlink_metadata(run.join(name)).unwrap().file_type();
        assert!(!kind.is_symlink(), "{name} is still a link");
    }
    assert!(fs::symlink_metadata(run.join("77.notify")).is_err(), "a leftover that is nobody's");
    // The next worker's names are taken as soon as they are planted again.
    plant(&run.join("state.new"), &victim.path());
    assert_eq!(manager.cli("recycle", &["0"]).status.code(), Some(0));
    manager.wait_status(SOON, "a new worker", |status| {
        let now = status.ready_by_slot();
        now.len() == 1 && now[&0] != before[&0]
    });
    victim.assert_untouched();
    manager.stop();
    victim.assert_untouched();
}

fn sockets() {
    let victim = Victim::new();
    let open = Dir::create();
    chown(open.path(), Some(65_534), None).unwrap();
    let socket = open.path().join("http.sock");
    let start = || {
        let mut app = App::new(Mode::None).sockets(Vec::new());
        app.put("listen.bind", vec![format!("unix:{}", socket.display())]);
        app.put("listen.socket_mode", "0600");
        app.put("listen.socket_user", "nobody");
        app
    };
    plant(&socket, &victim.path());
    let mut refused = start().start();
    assert_eq!(refused.wait_exit(SOON).code(), Some(1));
    assert!(refused.log.text().contains("a file of another kind"), "{}", refused.log.text());
    victim.assert_untouched();
    // A stale socket behind a link is none of ours either.
    let elsewhere = victim.dir.path().join("stale.sock");
    drop(UnixListener::bind(&elsewhere).unwrap());
    plant(&socket, &elsewhere);
    let mut refused = start().start();
    assert_eq!(refused.wait_exit(SOON).code(), Some(1));
    assert!(elsewhere.exists(), "what the link leads to was removed");
    fs::remove_file(&socket).unwrap();
    let manager = start().start_ready(1);
    let status = fs::symlink_metadata(&socket).unwrap();
    assert_eq!((status.uid(), status.mode() & 0o7777), (65_534, 0o600));
    // Exchanged while we run: at the end only what is ours is removed.
    plant(&socket, &victim.path());
    manager.stop();
    assert!(fs::symlink_metadata(&socket).is_ok(), "a link that is not ours was removed");
    victim.assert_untouched();
}
