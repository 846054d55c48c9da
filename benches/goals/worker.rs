//! The worker whose first act is to look at the clock.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The argument that makes this program one.
pub(crate) const ROLE: &str = "--clock-worker";

/// The variable with the path to which it sends what it saw.
pub(crate) const CLOCK: &str = "clock";

/// `CLOCK_MONOTONIC` in nanoseconds, the same for all processes.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Looks at the clock, says what it saw, is ready, and idles until a signal ends it.
pub(crate) fn run(began: u64) -> ExitCode {
    let socket = UnixDatagram::unbound().expect("a socket");
    let slot = std::env::var("PADDOCK_SLOT").expect("a slot");
    let text = format!("{began} {} {slot}", std::process::id());
    socket.send_to(text.as_bytes(), std::env::var_os("W_CLOCK").expect("where to say it")).expect("it is said");
    socket.send_to(b"READY=1", std::env::var_os("NOTIFY_SOCKET").expect("a manager")).expect("ready");
    loop {
        std::thread::park();
    }
}

/// A worker's first act.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tick {
    pub(crate) at: u64,
    pub(crate) pid: u32,
    pub(crate) slot: usize,
}

/// Where the ticks of one manager's workers arrive.
pub(crate) struct Ticks(Receiver<Tick>);

impl Ticks {
    /// Listens at a path.
    pub(crate) fn bind(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket for ticks");
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 128];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let mut numbers = text.split(' ').map(|number| number.parse::<u64>().expect("a number"));
                let mut next = || numbers.next().expect("three numbers");
                let tick = Tick {
                    at: next(),
                    pid: u32::try_from(next()).expect("a pid"),
                    slot: usize::try_from(next()).expect("a slot"),
                };
                if sender.send(tick).is_err() {
                    break;
                }
            }
        });
        Self(receiver)
    }

    /// The next one.
    pub(crate) fn next(&self) -> Tick {
        self.0.recv_timeout(Duration::from_mins(1)).expect("a worker's first act within a minute")
    }
}
