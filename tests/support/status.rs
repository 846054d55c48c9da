//! What `paddock status --json` says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::pace;

/// The whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Status(pub(crate) Value);

impl Status {
    /// Asks through the control socket: the same answer without the cost of another process.
    pub(crate) fn ask(control: &Path) -> Result<Self, String> {
        let said = |error: std::io::Error| format!("{}: {error}", control.display());
        let mut stream = UnixStream::connect(control).map_err(said)?;
        stream.set_read_timeout(Some(pace::patient(Duration::from_secs(30)))).map_err(said)?;
        stream.write_all(b"{\"method\":\"io.paddock.Control.Status\",\"parameters\":{}}\0").map_err(said)?;
        let mut answer = Vec::new();
        BufReader::new(stream).read_until(0, &mut answer).map_err(said)?;
        answer.pop();
        let answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        if answer["error"].is_null() { Ok(Self(answer["parameters"].clone())) } else { Err(answer.to_string()) }
    }

    /// The workers, living ones and empty slots.
    pub(crate) fn workers(&self) -> Vec<Worker> {
        self.0["workers"].as_array().into_iter().flatten().map(|worker| Worker(worker.clone())).collect()
    }

    /// The workers in a state.
    pub(crate) fn in_state(&self, state: &str) -> Vec<Worker> {
        self.workers().into_iter().filter(|worker| worker.state() == state).collect()
    }

    /// Pids of the ready workers.
    pub(crate) fn ready_pids(&self) -> BTreeSet<u32> {
        self.in_state("ready").iter().filter_map(Worker::pid).collect()
    }

    /// Pids of the ready workers by slot.
    pub(crate) fn ready_by_slot(&self) -> BTreeMap<u64, u32> {
        self.in_state("ready").iter().filter_map(|worker| Some((worker.slot(), worker.pid()?))).collect()
    }

    /// The app's generation.
    pub(crate) fn generation(&self) -> u64 {
        self.0["generation"].as_u64().unwrap_or(0)
    }

    /// Which fence is in use.
    pub(crate) fn isolation(&self) -> &str {
        self.0["isolation"].as_str().unwrap_or_default()
    }

    /// Whether generations are mixed after a roll that was stopped.
    pub(crate) fn is_mixed(&self) -> bool {
        self.0["mixed"].as_bool().unwrap_or(false)
    }

    /// Whether the app is being stopped.
    pub(crate) fn is_stopping(&self) -> bool {
        self.0["stopping"].as_bool().unwrap_or(false)
    }

    /// Whether a roll is under way.
    pub(crate) fn is_rolling(&self) -> bool {
        !self.0["roll"].is_null()
    }

    /// Deaths with that verdict, over all slots.
    pub(crate) fn restarts(&self, verdict: &str) -> u64 {
        let mut by_slot: BTreeMap<u64, u64> = BTreeMap::new();
        for worker in self.workers() {
            let count = worker.0["restarts"][verdict].as_u64().unwrap_or(0);
            let entry = by_slot.entry(worker.slot()).or_default();
            *entry = count.max(*entry);
        }
        by_slot.values().sum()
    }
}

/// One worker, or an empty slot.
#[derive(Debug, Clone)]
pub(crate) struct Worker(pub(crate) Value);

impl Worker {
    pub(crate) fn slot(&self) -> u64 {
        self.0["slot"].as_u64().expect("a slot")
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.0["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
    }

    pub(crate) fn generation(&self) -> Option<u64> {
        self.0["generation"].as_u64()
    }

    pub(crate) fn state(&self) -> &str {
        self.0["state"].as_str().unwrap_or_default()
    }

    pub(crate) fn quota(&self) -> Option<u64> {
        self.0["quota"].as_u64()
    }

    pub(crate) fn requests(&self) -> Option<u64> {
        self.0["requests"].as_u64()
    }

    pub(crate) fn last_verdict(&self) -> &str {
        self.0["last_verdict"].as_str().unwrap_or_default()
    }
}
