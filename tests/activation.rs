//! Sockets passed by a service manager, taken by paddock and by the crates that other servers use: all must agree.
//!
//! The test starts itself once more, through a shell that does what systemd does: descriptors from 3, `LISTEN_PID` the
//! pid of the program itself.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    reason = "tests panic, and the other half of this one answers on its stdout"
)]

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;

use libtest_mimic::{Arguments, Trial};
use rustix::io::FdFlags;

const ROLE: &str = "PADDOCK_TEST_ROLE";

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("paddock") => return as_paddock(),
        Ok("listenfd") => return as_listenfd(),
        Ok("sd-notify") => return as_sd_notify(),
        _ => {}
    }
    let arguments = Arguments::from_args();
    let trials = vec![
        Trial::test("b1_sockets_for_another_process_are_not_touched", || {
            let answer = passed("paddock", "1");
            assert_eq!(answer, "meant for 1\n");
            Ok(())
        }),
        Trial::test("b2_three_named_sockets_arrive_as_they_were_sent", || {
            let answer = passed("paddock", "$$");
            assert_eq!(
                answer,
                "3 web tcp listening=true cloexec=true\n\
                 4 admin unix listening=true cloexec=true\n\
                 5 log unix-datagram listening=false cloexec=true\n\
                 stored state\n\
                 taken before\n"
            );
            Ok(())
        }),
        Trial::test("b2_other_implementations_see_the_same", || {
            assert_eq!(passed("listenfd", "$$"), "tcp unix datagram 4\n");
            assert_eq!(passed("sd-notify", "$$"), "3 web\n4 admin\n5 log\n6 paddock.state\n");
            Ok(())
        }),
        Trial::test("a_promise_that_is_not_kept_is_named", || {
            let answer = run("paddock", "LISTEN_FDS=2 LISTEN_PID=$$", [null(), null(), null()], "");
            assert_eq!(
                answer,
                "LISTEN_FDS promises descriptor 3, which cannot be used: Bad file descriptor (os error 9)\n"
            );
            Ok(())
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// What the program answers that was passed a TCP listener, a unix listener, a unix datagram socket and a file.
fn passed(role: &str, pid: &str) -> String {
    let path = std::env::temp_dir().join(format!("paddock-passed-{}-{role}-{}", std::process::id(), pid.len()));
    std::fs::create_dir_all(&path).unwrap();
    let sockets = [
        OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()),
        UnixListener::bind(path.join("socket")).unwrap().into(),
        UnixDatagram::unbound().unwrap().into(),
    ];
    let variables = format!("LISTEN_FDS=4 LISTEN_FDNAMES=web:admin:log:paddock.state LISTEN_PID={pid}");
    let answer = run(role, &variables, sockets, "3<&0 4<&1 5<&2 6</dev/null");
    std::fs::remove_dir_all(&path).unwrap();
    answer
}

fn run(role: &str, variables: &str, [zero, one, two]: [OwnedFd; 3], redirections: &str) -> String {
    let out = tempfile(role, variables.len());
    let script = format!(
        "exec {redirections} 0</dev/null 1>\"$1\" 2>&1; {variables}; \
         export LISTEN_FDS LISTEN_PID LISTEN_FDNAMES; exec \"$0\""
    );
    let status = Command::new("/bin/sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .arg(&out)
        .env(ROLE, role)
        .env_remove("LISTEN_FDNAMES")
        .stdin(zero)
        .stdout(one)
        .stderr(two)
        .status()
        .unwrap();
    let answer = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    assert!(status.success(), "{role}: {status}: {answer}");
    answer
}

fn tempfile(role: &str, number: usize) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("paddock-answer-{}-{role}-{number}", std::process::id()))
}

fn as_paddock() {
    let inherited = match paddock::systemd::activation::take(|name| std::env::var_os(name)) {
        Ok(inherited) => inherited,
        Err(error) => return println!("{error}"),
    };
    if let Some(pid) = inherited.meant_for {
        println!("meant for {pid}");
        return;
    }
    for socket in &inherited.sockets {
        let cloexec = rustix::io::fcntl_getfd(&socket.fd).unwrap().contains(FdFlags::CLOEXEC);
        println!(
            "{} {} {} listening={} cloexec={cloexec}",
            socket.fd.as_raw_fd(),
            socket.name,
            socket.kind,
            socket.listening
        );
    }
    for (name, _) in &inherited.stored {
        println!("stored {name}");
    }
    match paddock::systemd::activation::take(|name| std::env::var_os(name)) {
        Err(paddock::systemd::activation::ActivationError::TakenBefore) => println!("taken before"),
        other => panic!("{other:?}"),
    }
}

fn as_listenfd() {
    let mut fds = listenfd::ListenFd::from_env();
    let tcp = fds.take_tcp_listener(0).unwrap().map_or("-", |_| "tcp");
    let unix = fds.take_unix_listener(1).unwrap().map_or("-", |_| "unix");
    let datagram = fds.take_unix_datagram(2).unwrap().map_or("-", |_| "datagram");
    println!("{tcp} {unix} {datagram} {}", fds.len());
}

fn as_sd_notify() {
    for (fd, name) in sd_notify::listen_fds_with_names().unwrap() {
        println!("{fd} {name}");
    }
}
