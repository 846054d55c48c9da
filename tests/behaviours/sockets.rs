//! B1–B3: sockets in, sockets out, sockets that stay.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::support::http::{self, Target};
use crate::support::manager::{App, SOON, Socket};
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("b01_sockets_for_another_process_are_not_touched", &[Mode::None], b01_another);
    suite.add("b01_own_bind_beside_sockets_for_another_process", &[Mode::None], b01_bind);
    suite.add("b01_no_sockets_at_all", EVERYWHERE, b01_queue_workers);
    suite.add("b02_three_named_sockets", EVERYWHERE, b02_three_sockets);
    suite.add("b02_blocking_sockets_stay_blocking", &[Mode::None], b02_blocking);
    suite.add("b03_the_path_of_an_inherited_socket_stays", &[Mode::None], b03_path_stays);
    suite.add("b03_the_path_of_an_own_socket_goes", &[Mode::None], b03_own_path_goes);
}

fn b01_another(mode: Mode) {
    let mut manager = App::new(mode).for_another_process().start();
    let status = manager.wait_exit(SOON);
    assert_eq!(status.code(), Some(1));
    manager.log.wait(SOON, "an error that names LISTEN_FDS", |line| line.text.contains("LISTEN_FDS"));
    assert_eq!(manager.notify.count("READY=1"), 0);
}

fn b01_bind(mode: Mode) {
    let path = |app: &App| app.dir.path().join("own.sock");
    let app = App::new(mode).for_another_process();
    let own = path(&app);
    let app = app.set("listen.bind", vec![format!("unix:{}", own.display())]);
    let manager = app.start_ready(1);
    let facts = http::get(&Target::Unix(own), "/facts").expect("an answer on the own socket").body;
    assert_eq!(facts["env"]["LISTEN_FDS"], "1", "{facts:#}");
    manager.stop();
}

fn b01_queue_workers(mode: Mode) {
    let manager = App::new(mode).sockets(Vec::new()).set("workers", 2).worker("direct", 1).start_ready(2);
    for pid in manager.status().ready_pids() {
        let facts = manager.ask(pid, "/facts").body;
        assert_eq!(facts["env"]["LISTEN_FDS"].as_str().unwrap_or("0"), "0", "{facts:#}");
        assert_eq!(open_beyond_standard(&facts), BTreeSet::new());
    }
    manager.stop();
}

fn b02_three_sockets(mode: Mode) {
    let app = App::new(mode);
    let dir = app.dir.path().to_owned();
    let feed = UnixDatagram::bind(dir.join("feed.sock")).expect("a datagram socket");
    let app = app.sockets(vec![
        ("http", Socket::tcp()),
        ("admin", Socket::unix(&dir.join("admin.sock"))),
        ("feed", Socket::Datagram(feed)),
    ]);
    let manager = app.set("workers", 3).worker("direct", 1).start_ready(3);
    let ours: Vec<String> = (0..3).map(|index| inode_of(manager.socket(index))).collect();
    for pid in manager.status().ready_pids() {
        let facts = manager.ask(pid, "/facts").body;
        assert_eq!(facts["env"]["LISTEN_FDS"], "3");
        assert_eq!(facts["env"]["LISTEN_FDNAMES"], "http:admin:feed");
        assert_eq!(facts["env"]["LISTEN_PID"], pid.to_string());
        let theirs: Vec<&str> = (3..6).map(|fd| facts["fds"][fd.to_string()].as_str().unwrap_or_default()).collect();
        assert_eq!(theirs, ours, "the same sockets in the same order");
        assert_eq!(open_beyond_standard(&facts), (3..6).collect(), "nothing else is open: {facts:#}");
    }
    assert_eq!(http::get(&manager.socket(0).target(), "/").map(|reply| reply.closes), Ok(true));
    assert_eq!(http::get(&manager.socket(1).target(), "/").map(|reply| reply.closes), Ok(true));

    let held = sockets_of(manager.pid());
    assert!(ours.iter().all(|socket| held.contains(socket)), "the manager holds {held:?}, was passed {ours:?}");
    manager.stop();
}

fn b02_blocking(mode: Mode) {
    let app = App::new(mode).sockets(vec![("http", Socket::blocking_tcp())]).set("workers", 2);
    let manager = app.start_ready(2);
    for _ in 0..20 {
        http::get(&manager.target(), "/").expect("an answer");
    }
    let flags = rustix::fs::fcntl_getfl(manager.socket(0)).expect("flags");
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "someone made the socket non-blocking");
    manager.stop();
}

fn b03_path_stays(mode: Mode) {
    let app = App::new(mode);
    let path = app.dir.path().join("http.sock");
    let mut manager = app.sockets(vec![("http", Socket::unix(&path))]).start_ready(1);
    http::get(&manager.target(), "/").expect("an answer");
    manager.signal(rustix::process::Signal::TERM);
    assert_eq!(manager.wait_exit(SOON).code(), Some(0));
    assert!(path.exists(), "systemd's path was unlinked");
    std::os::unix::net::UnixStream::connect(&path).expect("the held listener still takes connections");
}

fn b03_own_path_goes(mode: Mode) {
    let app = App::new(mode).sockets(Vec::new());
    let path = app.dir.path().join("own.sock");
    let stale = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    drop(stale);
    assert!(path.exists(), "a stale path lies there");
    let mut manager = app.set("listen.bind", vec![format!("unix:{}", path.display())]).start_ready(1);
    http::get(&Target::Unix(path.clone()), "/").expect("an answer");
    manager.signal(rustix::process::Signal::TERM);
    assert_eq!(manager.wait_exit(SOON).code(), Some(0));
    assert!(!path.exists(), "the own path is left behind");
}

fn open_beyond_standard(facts: &serde_json::Value) -> BTreeSet<u32> {
    let fds = facts["fds"].as_object().expect("descriptors");
    fds.iter().filter_map(|(fd, _)| fd.parse().ok()).filter(|fd| *fd > 2).collect()
}

fn inode_of(socket: &Socket) -> String {
    let stat = rustix::fs::fstat(socket).expect("a socket");
    format!("socket:[{}]", stat.st_ino)
}

fn sockets_of(pid: u32) -> BTreeSet<String> {
    let entries = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).expect("descriptors");
    entries.flatten().filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
}
