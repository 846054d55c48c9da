//! Workers that are born in their groups instead of being moved there.

use std::ffi::CStr;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixStream;

use paddock::isolation::{FenceLimits, Isolation as _, Place};
use paddock::sys::Birthplace;
use paddock::worker::birth::{Nursery, Program};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use super::{MIB, Worker, cgroup, directories, memory, name, run};

/// The lines of `/proc/PID/cgroup` that name a fence of this app.
fn places(cgroup: &str, app: &str) -> usize {
    cgroup.lines().filter(|line| line.contains(app)).count()
}

fn places_of(pid: Pid, app: &str) -> usize {
    places(&std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_pid())).unwrap(), app)
}

/// A shell with this script; the socket is its standard input and output.
fn born(place: &dyn Place, script: &CStr) -> (Pid, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = Program {
        path: c"/bin/sh",
        arguments: &[c"sh", c"-c", script],
        environment: &[],
        input: theirs.as_fd(),
        output: theirs.as_fd(),
    };
    (Nursery::new().unwrap().bear(place.birthplace(), &program).unwrap(), ours)
}

/// All that it says until it is over.
fn words(mut theirs: &UnixStream) -> String {
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn b4_a_worker_is_born_inside_all_its_groups() {
    let Some(isolation) = cgroup("born inside") else { return };
    run(async {
        let limits = FenceLimits { tasks_max: Some(50), ..memory(64 * MIB) };
        let (name, unused) = (name("born"), name("unused"));
        let place = isolation.prepare(&name, &limits).unwrap().unwrap();
        let (pid, theirs) = born(&*place, c"while read line; do echo \"$line\"; done </proc/self/cgroup; read go");
        let at_birth = places_of(pid, "born");
        assert!(at_birth > 0);
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
        let fence = place.enclose(pid).unwrap();
        assert_eq!(places_of(pid, "born"), at_birth, "nothing was left to move");
        assert!(fence.contains(pid));
        assert_eq!(fence.memory().unwrap().limit, Some(64 * MIB));
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let said = words(&theirs);
        assert_eq!(places(&said, "born"), at_birth, "what it saw itself: {said}");
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        fence.sweep().await.unwrap();
        assert!(directories(&fence).is_empty());
        // Nobody comes: nothing is left.
        drop(isolation.prepare(&unused, &limits).unwrap());
        let again = isolation.prepare(&unused, &limits).unwrap().unwrap();
        // Who was born elsewhere is moved.
        let mut worker = Worker::script("true");
        let fence = again.enclose(worker.pid()).unwrap();
        assert_eq!(places_of(worker.pid(), "unused"), at_birth);
        worker.order("go");
        worker.reap().await;
        fence.sweep().await.unwrap();
    });
}

/// A program that does not fit is killed while it is being loaded; whoever was moved into the group afterwards would
/// have said its word, for memory stays where it was taken.
#[test]
fn b4_the_limit_holds_before_the_first_instruction() {
    let Some(isolation) = cgroup("limited from the first instruction") else { return };
    run(async {
        for (limit, says) in [(MIB / 16, ""), (64 * MIB, "alive\n")] {
            let (name, limits) = (name("tight"), memory(limit));
            let place = isolation.prepare(&name, &limits).unwrap().unwrap();
            let (pid, theirs) = born(&*place, c"echo alive; read go");
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(words(&theirs), says, "in {limit} bytes");
            let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
            let killed = says.is_empty();
            assert_eq!(status.terminating_signal() == Some(Signal::KILL.as_raw()), killed, "{status:?}");
            // It may have been over before it could be looked for; another takes its place, and only waits.
            let mut other = Worker::script("true");
            let fence = place.enclose(other.pid()).unwrap();
            assert_eq!(fence.death_facts().await.oom_killed, Some(killed));
            fence.kill().unwrap();
            other.reap().await;
            fence.sweep().await.unwrap();
        }
    });
}

#[test]
fn a_program_that_is_not_there_is_an_error_and_no_child() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let program = Program {
        path: c"/nowhere/at/all",
        arguments: &[c"x"],
        environment: &[],
        input: null.as_fd(),
        output: null.as_fd(),
    };
    let error = Nursery::new().unwrap().bear(&Birthplace::default(), &program).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_child_has_its_own_descriptors_and_none_of_ours() {
    let nursery = Nursery::new().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    // Above what the child needs, and not closed by exec.
    let ours = rustix::io::fcntl_dupfd_cloexec(null, 500).unwrap();
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::empty()).unwrap();
    let (hears, says) = UnixStream::pair().unwrap();
    let program = Program {
        path: c"/bin/sh",
        arguments: &[c"sh", c"-c", c"exec ls /proc/self/fd"],
        environment: &[],
        input: says.as_fd(),
        output: says.as_fd(),
    };
    let pid = nursery.bear(&Birthplace::default(), &program).unwrap();
    drop(says);
    // That it ends: with the child the last end of the socket is gone, and the nursery keeps none.
    let listed = words(&hears);
    assert!(listed.lines().any(|line| line == "2"), "{listed}");
    assert!(listed.lines().all(|line| line != ours.as_raw_fd().to_string()), "{listed}");
    waitpid(Some(pid), WaitOptions::empty()).unwrap();
    // Ours have stayed what they were.
    assert!(rustix::io::fcntl_getfd(&ours).unwrap().is_empty());
}
