//! Workers and clients that send descriptors along whose closing takes as long as they like.

use std::env;
use std::io::{IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sockopt};
use rustix::process::Signal;

use crate::support::manager::{App, SOON};
use crate::support::suite::{Mode, Suite};

/// The argument that makes this program that worker.
pub(crate) const ROLE: &str = "--linger";

/// How long each takes to be closed.
const LINGER: Duration = Duration::from_mins(1);

/// The longest that anybody may wait for the manager.
const BOUND: Duration = Duration::from_secs(5);

pub(crate) fn register(suite: &mut Suite) {
    suite.add("descriptors_that_take_long_to_close_hold_nobody_up", &[Mode::None], by_workers);
    suite.add("descriptors_of_clients_that_take_long_to_close_hold_nobody_up", &[Mode::None], by_clients);
}

/// A socket in whose queue one waits that lingers: whoever closes it last has to wait, whatever its own options are.
fn slow() -> std::io::Result<(OwnedFd, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    let (never_reads, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    while stream.write(&[0; 4096]).is_ok() {}
    sockopt::set_socket_linger(&stream, Some(LINGER))?;
    let (near, far) = UnixDatagram::pair()?;
    send(&near, b"x", stream.as_fd())?;
    Ok((far.into(), never_reads))
}

fn send(to: impl AsFd, text: &[u8], fd: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(to, &[IoSlice::new(text)], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Close our copy elsewhere: where the manager has closed its own already, it is us who have to wait.
fn let_go(fd: OwnedFd) {
    std::thread::spawn(move || drop(fd));
}

/// What is sent, and must stay open on our side.
type Kept = (Vec<TcpStream>, Vec<UnixStream>);

/// The worker, or a client of the control socket if it is told so. It says that it is ready only when all is sent that is to
/// hold the manager up.
pub(crate) fn run() -> ExitCode {
    let mean = || -> std::io::Result<Kept> {
        let notify = UnixDatagram::unbound()?;
        let at = env::var_os("NOTIFY_SOCKET").unwrap_or_default();
        notify.connect(&at)?;
        let kept = match env::args().nth(2) {
            Some(_) => as_client(&Path::new(&at).with_file_name("control")),
            None => as_worker(&notify),
        };
        notify.send(b"READY=1")?;
        kept
    };
    match mean() {
        Ok(_kept) => loop {
            std::thread::park();
        },
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cannot be mean: {error}");
            ExitCode::FAILURE
        }
    }
}

fn as_worker(notify: &UnixDatagram) -> std::io::Result<Kept> {
    let (mut peers, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        give(notify, b"STATUS=with a present", &mut peers)?;
    }
    // One more than are kept there, so that the first is let go of.
    for number in 0..70 {
        let stream = UnixStream::connect(env::var_os("MEMORY_PRESSURE_WATCH").unwrap_or_default())?;
        if number < 3 {
            give(&stream, b"x", &mut peers)?;
        }
        connections.push(stream);
    }
    Ok((peers, connections))
}

fn as_client(control: &Path) -> std::io::Result<Kept> {
    let mut peers = Vec::new();
    let half = UnixStream::connect(control)?;
    give(&half, b"half a message", &mut peers)?;
    let garbage = UnixStream::connect(control)?;
    for _ in 0..3 {
        // Who is dropped for the first is told so at the next.
        let _ = give(&garbage, b"no message\0", &mut peers);
    }
    let gone = UnixStream::connect(control)?;
    for _ in 0..3 {
        give(&gone, b"x", &mut peers)?;
    }
    Ok((peers, vec![half, garbage]))
}

fn give(to: &impl AsFd, text: &[u8], peers: &mut Vec<TcpStream>) -> std::io::Result<()> {
    let (fd, peer) = slow()?;
    let sent = send(to, text, fd.as_fd());
    let_go(fd);
    peers.push(peer);
    sent
}

fn by_workers(mode: Mode) {
    hold(mode, &[ROLE]);
}

fn by_clients(mode: Mode) {
    hold(mode, &[ROLE, "as a client"]);
}

fn hold(mode: Mode, arguments: &[&str]) {
    let program = env::current_exe().unwrap().display().to_string();
    let begun = Instant::now();
    let command = [program].into_iter().chain(arguments.iter().map(|&argument| argument.to_owned()));
    let manager = App::new(mode).set("command", command.collect::<Vec<_>>()).set("workers", 2).start_ready(2);
    let asked = Instant::now();
    let pids = manager.status().ready_by_slot();
    assert!(asked.elapsed() < BOUND, "the status took {:?}", asked.elapsed());
    // One that is gone: its sockets are closed, with what waits in them.
    crate::support::proc::signal(pids[&0], Signal::KILL);
    manager.wait_status(SOON, "another worker in its place", |status| {
        status.ready_by_slot().get(&0).is_some_and(|pid| *pid != pids[&0])
    });
    let stopped = Instant::now();
    assert_eq!(manager.cli("stop", &["--fast"]).status.code(), Some(0));
    assert!(stopped.elapsed() < BOUND, "the stop took {:?}", stopped.elapsed());
    assert!(begun.elapsed() < LINGER, "that proves nothing on a machine this slow");
    let mut manager = manager;
    assert_eq!(manager.wait_exit(SOON).code(), Some(0));
    manager.assert_nothing_left();
}
