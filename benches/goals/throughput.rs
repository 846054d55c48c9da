//! Requests a second of the same server, alone and with paddock around it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::figure::{Figure, median};
use crate::fleet::modes;
use crate::support::activate::{self, ListenPid};
use crate::support::http::Target;
use crate::support::manager::{App, Manager, SOON, Socket};
use crate::support::proc::wait_until;
use crate::usage::processor_time;

/// Pairs of windows, one on each side, in alternating order.
const PAIRS: usize = 41;

/// One window.
const WINDOW: Duration = Duration::from_millis(400);

/// Clients of each side, each with a connection that stays open: the threads that serve them live to the end, and so
/// their processor time can be read.
const CLIENTS: usize = 4;

/// In the best mode that this machine has.
pub(crate) fn measure() -> Vec<Figure> {
    let mode = *modes().first().expect("a mode");
    let mut app = App::new(mode);
    app.put("workers", 1);
    // High enough never to be reached: the counting is what is measured, not the recycling.
    app.put("recycle.max_requests", 1_000_000_000);
    app.put("memory.max", "256M");
    let manager = app.start_ready(1);
    let fenced = Side::of_manager(&manager);
    let alone = Alone::start();
    let free = Side::of_server(&alone);
    // The first window warms both.
    for side in [&free, &fenced] {
        side.window();
    }
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let (without, with) = if pair % 2 == 0 {
            let without = free.window();
            (without, fenced.window())
        } else {
            let with = fenced.window();
            (free.window(), with)
        };
        rates.push(with.rate / without.rate);
        costs.push(without.cost / with.cost);
    }
    let counted = manager.status().workers().iter().filter_map(crate::support::status::Worker::requests).sum::<u64>();
    assert!(counted > 0, "no request was counted");
    let key = mode.key();
    drop((free, fenced));
    manager.stop();
    vec![
        Figure::at_least(
            format!("{key}: requests a second with against without, median of {PAIRS}"),
            median(rates),
            0.98,
        ),
        Figure::at_least(
            format!("{key}: processor time a request without against with (manager included)"),
            median(costs),
            0.98,
        ),
        Figure::plain(format!("{key}: requests counted by the manager, thousands"), counted as f64 / 1e3),
    ]
}

/// The server without paddock, started with its socket as systemd would.
struct Alone {
    child: Child,
    socket: Socket,
}

impl Alone {
    fn start() -> Self {
        let socket = Socket::tcp();
        let program = std::env::current_exe().expect("this program's path");
        let mut command = activate::command(&program, &[socket.as_fd()], ListenPid::Own, &[]);
        let child = command.arg("--worker").stdout(Stdio::null()).spawn().expect("the server starts");
        let alone = Self { child, socket };
        let address = tcp(&alone.socket.target());
        wait_until(SOON, "an answer of the server alone", || Client::connect(address).ask().is_some());
        alone
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tcp(target: &Target) -> SocketAddr {
    match target {
        Target::Tcp(address) => *address,
        Target::Unix(path) => panic!("{} is no TCP socket", path.display()),
    }
}

/// What came of a window.
struct Outcome {
    /// Requests a second.
    rate: f64,
    /// Processor time a request.
    cost: f64,
}

/// A server with its clients, and the processes that work for it.
struct Side {
    pids: Vec<u32>,
    shared: Arc<Shared>,
}

/// What the clients' threads see.
struct Shared {
    begin: Barrier,
    end: Barrier,
    /// Nanoseconds since the harness began: when the window is over; 0: for good.
    until: AtomicU64,
    answers: AtomicU64,
}

impl Side {
    fn of_manager(manager: &Manager) -> Self {
        let mut pids: Vec<u32> = manager.status().ready_pids().into_iter().collect();
        pids.push(manager.pid());
        Self::new(tcp(&manager.target()), pids)
    }

    fn of_server(server: &Alone) -> Self {
        Self::new(tcp(&server.socket.target()), vec![server.child.id()])
    }

    fn new(address: SocketAddr, pids: Vec<u32>) -> Self {
        let shared = Arc::new(Shared {
            begin: Barrier::new(CLIENTS + 1),
            end: Barrier::new(CLIENTS + 1),
            until: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        });
        for _ in 0..CLIENTS {
            let (shared, mut client) = (Arc::clone(&shared), Client::connect(address));
            std::thread::spawn(move || {
                loop {
                    shared.begin.wait();
                    let until = shared.until.load(Relaxed);
                    if until == 0 {
                        return;
                    }
                    let mut answers = 0;
                    while crate::worker::now() < until {
                        client.ask().expect("an answer");
                        answers += 1;
                    }
                    shared.answers.fetch_add(answers, Relaxed);
                    shared.end.wait();
                }
            });
        }
        Self { pids, shared }
    }

    fn window(&self) -> Outcome {
        let shared = &self.shared;
        shared.answers.store(0, Relaxed);
        let length = u64::try_from(WINDOW.as_nanos()).expect("a short time");
        shared.until.store(crate::worker::now() + length, Relaxed);
        let used = self.processor_time();
        let began = Instant::now();
        shared.begin.wait();
        shared.end.wait();
        let took = began.elapsed().as_secs_f64();
        let answers = shared.answers.load(Relaxed) as f64;
        Outcome { rate: answers / took, cost: (self.processor_time() - used) as f64 / answers }
    }

    fn processor_time(&self) -> u64 {
        self.pids.iter().map(|pid| processor_time(*pid)).sum()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.shared.until.store(0, Relaxed);
        self.shared.begin.wait();
    }
}

/// A client that is cheaper than any server: one fixed request, and an answer of which only the end is looked for.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(SOON)).expect("a bound");
        Self { stream, buffer: vec![0; 16 << 10] }
    }

    /// Asks and waits for the whole answer.
    fn ask(&mut self) -> Option<()> {
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: keep-alive\r\n\r\n").ok()?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(self.buffer.get_mut(filled..)?).ok().filter(|read| *read > 0)?;
            filled += read;
            // The body is one JSON object without another closing brace at its end.
            if self.buffer[..filled].ends_with(b"}") {
                return Some(());
            }
        }
    }
}
