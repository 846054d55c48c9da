//! Load: N clients at a rate, and what became of every request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::{Client, Failure, Target};

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Clients at the same time.
    pub(crate) clients: u32,
    /// Many requests on a connection, or one.
    pub(crate) keep_alive: bool,
    /// Requests a second, all clients together; none: as fast as answers come.
    pub(crate) rate: Option<f64>,
    /// Requests in all; none: until told to stop.
    pub(crate) total: Option<u64>,
    /// What to ask for.
    pub(crate) path: &'static str,
    /// The longest wait for an answer.
    pub(crate) patience: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            clients: 8,
            keep_alive: false,
            rate: Some(100.0),
            total: None,
            path: "/",
            patience: Duration::from_secs(20),
        }
    }
}

/// One request that was answered.
#[derive(Debug, Clone)]
pub(crate) struct Completion {
    pub(crate) at: Instant,
    pub(crate) pid: u32,
    pub(crate) generation: u64,
}

/// What became of everything.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) completed: Vec<Completion>,
    pub(crate) failed: Vec<(Instant, Failure)>,
}

impl Report {
    /// Fails the test unless every request was answered.
    #[track_caller]
    pub(crate) fn assert_none_lost(&self) {
        let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
        for (_, failure) in &self.failed {
            *kinds.entry(failure.to_string()).or_default() += 1;
        }
        assert!(self.failed.is_empty(), "{} of {} requests lost: {kinds:?}", self.failed.len(), self.total());
        assert!(!self.completed.is_empty(), "nothing was asked");
    }

    /// Answered and lost.
    pub(crate) fn total(&self) -> usize {
        self.completed.len() + self.failed.len()
    }

    /// Who answered.
    pub(crate) fn pids(&self) -> BTreeSet<u32> {
        self.completed.iter().map(|completion| completion.pid).collect()
    }

    /// Under which generations.
    pub(crate) fn generations(&self) -> BTreeSet<u64> {
        self.completed.iter().map(|completion| completion.generation).collect()
    }

    /// The longest time in which nothing was answered.
    pub(crate) fn longest_gap(&self) -> Duration {
        let mut times: Vec<Instant> = self.completed.iter().map(|completion| completion.at).collect();
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

/// Load that is under way.
pub(crate) struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    load: Load,
    target: Target,
    began: Instant,
    next: AtomicU64,
    stop: AtomicBool,
    report: Mutex<Report>,
}

impl Load {
    /// Starts the clients.
    pub(crate) fn start(self, target: &Target) -> Running {
        let shared = Arc::new(Shared {
            target: target.clone(),
            began: Instant::now(),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            report: Mutex::default(),
            load: self,
        });
        let threads = (0..shared.load.clients).map(|_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.be_a_client())
        });
        Running { threads: threads.collect(), shared: Arc::clone(&shared) }
    }

    /// Starts them and waits until all that was to be asked has been asked.
    pub(crate) fn run(self, target: &Target) -> Report {
        self.start(target).finish()
    }
}

impl Running {
    /// How many requests have been answered so far.
    pub(crate) fn answered(&self) -> usize {
        self.shared.report.lock().unwrap_or_else(PoisonError::into_inner).completed.len()
    }

    /// No new requests; waits for the answers.
    pub(crate) fn stop(self) -> Report {
        self.shared.stop.store(true, SeqCst);
        self.finish()
    }

    fn finish(self) -> Report {
        for thread in self.threads {
            thread.join().expect("a client's thread");
        }
        std::mem::take(&mut *self.shared.report.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    fn be_a_client(&self) {
        let mut connection: Option<Client> = None;
        while let Some(due) = self.next_request() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if self.stop.load(SeqCst) {
                return;
            }
            let outcome = self.ask(&mut connection);
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok((pid, generation)) => {
                    report.completed.push(Completion { at: Instant::now(), pid, generation });
                }
                Err(failure) => {
                    connection = None;
                    report.failed.push((Instant::now(), failure));
                }
            }
        }
    }

    /// When the next request is due; none: all have been asked.
    fn next_request(&self) -> Option<Instant> {
        let number = self.next.fetch_add(1, SeqCst);
        if self.stop.load(SeqCst) || self.load.total.is_some_and(|total| number >= total) {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
        let after = self.load.rate.map_or(0.0, |rate| number as f64 / rate);
        Some(self.began + Duration::from_secs_f64(after))
    }

    fn ask(&self, connection: &mut Option<Client>) -> Result<(u32, u64), Failure> {
        let client = match connection {
            Some(client) => client,
            None => connection.insert(Client::connect(&self.target, self.load.patience)?),
        };
        let reply = client.get(self.load.path, !self.load.keep_alive)?;
        if reply.closes || !self.load.keep_alive {
            *connection = None;
        }
        Ok((reply.pid(), reply.body["generation"].as_u64().unwrap_or(0)))
    }
}
