//! What the threads of a worker share.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::notify::Notify;
use super::settings::Settings;

/// See the module.
pub(super) struct State {
    pub(super) facts: Value,
    pub(super) settings: Settings,
    pub(super) notify: Notify,
    quota: Option<u64>,
    requests: AtomicU64,
    /// Connections that are open or about to be.
    busy: Mutex<u64>,
    busy_changed: Condvar,
    held: Mutex<Vec<Vec<u8>>>,
    held_bytes: AtomicU64,
    pulses: AtomicU64,
    signals: Mutex<Vec<String>>,
    mute: AtomicBool,
    hung: AtomicBool,
    draining: AtomicBool,
    /// Hangs up when the drain begins, for everybody who polls it.
    latch: OwnedFd,
    latch_holder: Mutex<Option<OwnedFd>>,
}

impl State {
    pub(super) fn new(facts: Value, settings: Settings) -> io::Result<Self> {
        let (latch, latch_holder) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self {
            quota: facts.get("quota").and_then(Value::as_u64).filter(|&quota| quota > 0),
            facts,
            settings,
            notify: Notify::from_env()?,
            requests: AtomicU64::new(0),
            busy: Mutex::new(0),
            busy_changed: Condvar::new(),
            held: Mutex::new(Vec::new()),
            held_bytes: AtomicU64::new(0),
            pulses: AtomicU64::new(0),
            signals: Mutex::new(Vec::new()),
            mute: AtomicBool::new(false),
            hung: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            latch,
            latch_holder: Mutex::new(Some(latch_holder)),
        })
    }

    /// The facts and the counters.
    pub(super) fn report(&self) -> Value {
        let mut report = self.facts.clone();
        if let Value::Object(fields) = &mut report {
            fields.insert("requests".to_owned(), json!(self.requests.load(SeqCst)));
            fields.insert("held".to_owned(), json!(self.held_bytes.load(SeqCst)));
            fields.insert("pulses".to_owned(), json!(self.pulses.load(SeqCst)));
            fields.insert("draining".to_owned(), json!(self.is_draining()));
            fields.insert("signals".to_owned(), json!(*lock(&self.signals)));
        }
        report
    }

    /// The few facts that every answer carries.
    pub(super) fn short_report(&self) -> Value {
        json!({
            "pid": self.facts.get("pid"),
            "slot": self.facts.get("slot"),
            "generation": self.facts.get("generation"),
            "version": self.facts.get("version"),
            "quota": self.facts.get("quota"),
            "requests": self.requests.load(SeqCst),
            "held": self.held_bytes.load(SeqCst),
            "draining": self.is_draining(),
        })
    }

    /// One request has been answered.
    pub(super) fn count_request(&self) {
        let total = self.requests.fetch_add(1, SeqCst) + 1;
        if self.quota == Some(total) && self.counts() {
            self.notify.send(&format!("X_PADDOCK_REQUESTS={total}"));
        }
    }

    fn counts(&self) -> bool {
        self.settings.get("count") != Some("0")
    }

    /// Sends the running total while it grows, ten times a second at most.
    pub(super) fn report_requests(&self) {
        let mut reported = 0;
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let total = self.requests.load(SeqCst);
            if total != reported && self.counts() {
                self.notify.send(&format!("X_PADDOCK_REQUESTS={total}"));
                reported = total;
            }
        }
    }

    /// Connects to `MEMORY_PRESSURE_WATCH` and counts the bytes that arrive.
    pub(super) fn hear_pressure(&self) {
        let Some(path) = std::env::var_os("MEMORY_PRESSURE_WATCH") else { return };
        let Ok(mut stream) = UnixStream::connect(path) else { return };
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            self.pulses.fetch_add(1, SeqCst);
        }
    }

    /// Takes memory, touches every page of it, and keeps it; returns what is held in bytes.
    pub(super) fn leak(&self, megabytes: u64) -> u64 {
        let bytes = usize::try_from(megabytes << 20).unwrap_or(usize::MAX);
        let block = vec![0xA5_u8; bytes];
        lock(&self.held).push(block);
        self.held_bytes.fetch_add(megabytes << 20, SeqCst) + (megabytes << 20)
    }

    pub(super) fn note_signal(&self, name: &str) {
        lock(&self.signals).push(name.to_owned());
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, SeqCst);
        lock(&self.latch_holder).take();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// Readable (hung up) from the moment that the drain begins.
    pub(super) fn drain_latch(&self) -> BorrowedFd<'_> {
        self.latch.as_fd()
    }

    pub(super) fn wait_for_drain(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || wait_readable(&[self.drain_latch()], Some(left)) == [true] {
                return;
            }
        }
    }

    pub(super) fn mute(&self) {
        self.mute.store(true, SeqCst);
    }

    pub(super) fn is_mute(&self) -> bool {
        self.mute.load(SeqCst)
    }

    /// From its next turn on, the serving path neither accepts nor pings.
    pub(super) fn make_hang(&self) {
        self.hung.store(true, SeqCst);
    }

    pub(super) fn is_hung(&self) -> bool {
        self.hung.load(SeqCst)
    }

    pub(super) fn enter(&self) {
        *lock(&self.busy) += 1;
    }

    pub(super) fn leave(&self) {
        *lock(&self.busy) -= 1;
        self.busy_changed.notify_all();
    }

    /// Until no connection is open.
    pub(super) fn wait_until_idle(&self) {
        let busy = lock(&self.busy);
        let _idle = self.busy_changed.wait_while(busy, |busy| *busy > 0).unwrap_or_else(PoisonError::into_inner);
    }

    /// Ends the process from any thread.
    pub(super) fn exit_now(&self, code: u8) -> ! {
        let _ = self;
        std::process::exit(i32::from(code))
    }
}

/// Never returns, burns nothing.
pub(super) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `poll(2)`: which of the descriptors have something to read or have hung up.
pub(super) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Vec<bool> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) => polled.iter().map(|fd| !fd.revents().is_empty()).collect(),
        Err(_) => vec![false; fds.len()],
    }
}
