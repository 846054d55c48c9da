//! B33 under a real systemd: another file takes the program's place, and the service goes on in it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::adoption::{crash, main_pid, slowly};
use crate::service::{PATIENCE, Service, app, journal, property, systemctl_ok};
use crate::support::load::{Load, Running};
use crate::support::manager::{Dir, install, paddock, run_within};
use crate::support::proc;
use crate::support::suite::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.system("b33_upgrades_and_crashes_under_load", upgrades_and_crashes);
}

/// How many upgrades with a crash after each, and another one at the end; more of them by `PADDOCK_UPGRADES`.
fn times() -> usize {
    std::env::var("PADDOCK_UPGRADES").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// The file that the manager runs.
fn image(service: &Service) -> (u64, u64) {
    inode(Path::new(&format!("/proc/{}/exe", main_pid(&service.unit))))
}

fn inode(path: &Path) -> (u64, u64) {
    let status = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (status.dev(), status.ino())
}

/// Puts a file where the program is, as a package manager does, and does what a package's `postinst` does; again if the
/// file had no time to answer, as the guide says.
#[track_caller]
fn upgrade(service: &Service, file: &Path, program: &Path, outcome: &str) {
    let postinst = include_str!("../../contrib/debian/paddock.postinst");
    install(file, program);
    // Read anew each time: on systemd 252 a `journalctl --follow` was once seen to miss what came after a crash.
    let field = format!("PADDOCK_APP={}", service.app.name);
    let outcomes = || -> Vec<String> {
        let said = journal(&[&field]).into_iter().filter_map(|entry| entry["MESSAGE"].as_str().map(str::to_owned));
        said.filter(|said| said.contains("replaced in place") || said.contains("USR2: not replaced")).collect()
    };
    for _ in 0..5 {
        let before = outcomes().len();
        let done = run_within(PATIENCE, Command::new("sh").args(["-c", postinst, "postinst", "configure", "0.0.1"]));
        assert!(done.status.success(), "{done:?}");
        slowly(|| outcomes().len() > before);
        let said = &outcomes()[before];
        if !said.contains("did not answer") {
            assert!(said.contains(outcome), "{said}");
            return;
        }
    }
    panic!("the program never has the time to answer");
}

fn upgrades_and_crashes() {
    // Not below /run, which some systems mount without the right to execute.
    let own = Dir::create_in(Path::new("/var/lib"));
    let program: PathBuf = own.path().join("paddock");
    install(&paddock(), &program);
    let service = Service::install(app().set("workers", 3).set("memory.max", "200M"));
    let start =
        format!("[Service]\nExecStart=\nExecStart={} run {}\n", program.display(), service.config_path().display());
    let drop_in = service.drop_in("program.conf", &start);
    service.start_with_socket(3);
    let before = service.wait_ready(3).ready_by_slot();
    let load: Vec<Running> = [false, true]
        .into_iter()
        .map(|keep_alive| {
            Load { clients: 4, keep_alive, rate: Some(5.0), patience: PATIENCE, ..Load::default() }
                .start(&service.target())
        })
        .collect();
    let serve_on = || {
        for each in &load {
            let until = each.answered() + 3;
            proc::wait_until(PATIENCE, "answers", || each.answered() >= until);
        }
    };
    serve_on();
    let pinged = || property(&service.unit, "WatchdogTimestampMonotonic").parse::<u64>().expect("a time");
    for number in 1..=times() {
        let (manager, ran, ping) = (main_pid(&service.unit), image(&service), pinged());
        upgrade(&service, Path::new("/bin/true"), &program, "USR2: not replaced");
        assert_eq!((main_pid(&service.unit), image(&service)), (manager, ran), "the old program stays in charge");
        upgrade(&service, &paddock(), &program, "replaced in place");
        assert_eq!(main_pid(&service.unit), manager, "the same process");
        assert_eq!(image(&service), inode(&program));
        assert_ne!(image(&service), ran);
        assert_eq!(service.wait_ready(3).ready_by_slot(), before, "upgrade {number}");
        assert_eq!(property(&service.unit, "ActiveState"), "active");
        slowly(|| pinged() > ping);
        serve_on();
        crash(&service.unit);
        assert_eq!(service.wait_ready(3).ready_by_slot(), before, "the crash after upgrade {number}");
        serve_on();
    }
    assert_eq!(property(&service.unit, "NRestarts"), times().to_string(), "an upgrade is no restart");
    // Whoever made the service's program anew can be told to replace the workers, and killed for good.
    upgrade(&service, &paddock(), &program, "replaced in place");
    assert_eq!(property(&service.unit, "NFileDescriptorStore"), "3", "a notify socket for each worker");
    systemctl_ok(&["reload", &service.unit]);
    let after = service.wait_ready(3);
    assert!(after.ready_pids().is_disjoint(&before.values().copied().collect()));
    assert_eq!(after.generation(), 2);
    for each in load {
        let report = each.stop();
        report.assert_none_lost();
        let _ = writeln!(
            std::io::stderr(),
            "{} requests, {} upgrades, {} crashes, 0 failed",
            report.total(),
            times() + 1,
            times()
        );
    }
    let victim = *after.ready_pids().first().expect("a worker");
    proc::signal(victim, Signal::KILL);
    service.log.wait(PATIENCE, "its death", |line| line.is_of("worker-died", victim));
    service.wait_ready(3);
    service.stop();
    drop(drop_in);
}
