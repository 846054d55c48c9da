//! One worker's scope.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify};

use super::super::{DeathFacts, Fence, FenceError, FenceEvent, FenceLimits, Handed, LocalFuture, MemoryReading};
use super::group::{EventFile, Group, Mounts, is_gone};
use super::properties;
use crate::systemd::dbus::Bus;
use crate::systemd::stops::StopAsked;

/// What the next image of this process is told; the open cgroup goes along.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HandedScope {
    unit: String,
    pub(super) path: String,
    limits: FenceLimits,
    kills_before: u64,
}

/// A transient scope that holds one worker.
pub(super) struct ScopeFence {
    pub(super) bus: Rc<Bus>,
    pub(super) mounts: Mounts,
    pub(super) unit: String,
    pub(super) group: Group,
    limits: RefCell<FenceLimits>,
    /// `memory.events`; none if it was gone before it could be opened.
    watch: Option<EventFile>,
    /// OOM kills inside before this fence was ours, or since it was made: none.
    kills_before: u64,
    kills_reported: Cell<u64>,
    edge: Cell<Option<Edge>>,
    /// Wakes [`Fence::next_event`] when the edge was changed.
    edge_changed: Notify,
    /// One change of `memory.high` at a time.
    changing: Mutex<()>,
    /// Whether systemd asks for its end; none: we are not its controller, and systemd ends it without asking.
    stop: Option<Arc<StopAsked>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edge {
    bytes: u64,
    /// `high` of `memory.events` when it was armed.
    high: u64,
    /// It was passed before it was armed.
    passed: bool,
}

impl ScopeFence {
    pub(super) fn new(bus: Rc<Bus>, mounts: Mounts, unit: String, group: Group, limits: FenceLimits) -> Self {
        let kills_before = group.events().map(|events| events.oom_kill).unwrap_or_default();
        Self::with(bus, mounts, unit, group, limits, kills_before)
    }

    /// What an earlier image of this process handed over: kills that nobody has seen yet count.
    pub(super) fn again(bus: Rc<Bus>, mounts: Mounts, scope: HandedScope, group: Group) -> Self {
        Self::with(bus, mounts, scope.unit, group, scope.limits, scope.kills_before)
    }

    fn with(bus: Rc<Bus>, mounts: Mounts, unit: String, group: Group, limits: FenceLimits, kills_before: u64) -> Self {
        let watch = group.watch("memory.events").ok();
        Self {
            bus,
            mounts,
            unit,
            group,
            limits: RefCell::new(limits),
            watch,
            kills_before,
            kills_reported: Cell::new(kills_before),
            edge: Cell::new(None),
            edge_changed: Notify::new(),
            changing: Mutex::new(()),
            stop: None,
        }
    }

    /// We are its controller.
    pub(super) fn stopped_through(self, stop: Arc<StopAsked>) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// systemd asks for its end.
    async fn stop_requested(&self) {
        let Some(stop) = &self.stop else { return std::future::pending().await };
        loop {
            stop.asked().await;
            // Anybody on the bus could say so; the unit's state is systemd's.
            let state = self.bus.active_state(&self.unit).await;
            stop.answered();
            match state {
                Ok(state) if state == "deactivating" => return,
                Ok(_) => {}
                Err(error) => tracing::warn!(unit = self.unit, "whether it is to be stopped cannot be known: {error}"),
            }
        }
    }

    /// What the kernel reports.
    async fn memory_event(&self) -> FenceEvent {
        let Some(watch) = &self.watch else { return std::future::pending().await };
        loop {
            // Asked for first, so that a change during the look is not missed.
            let edge_changed = self.edge_changed.notified();
            match self.look(watch).await {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                // The cgroup is gone.
                Err(_) => return std::future::pending().await,
            }
            tokio::select! {
                changed = watch.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = edge_changed => {}
            }
        }
    }

    fn failed(&self, what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> FenceError {
        FenceError { what: format!("{what} of {}", self.unit), source: source.into() }
    }

    async fn set_edge(&self, edge: Option<u64>) -> Result<(), FenceError> {
        let _one = self.changing.lock().await;
        let Some(bytes) = edge else {
            self.edge.set(None);
            return self.lift().await;
        };
        let armed = |passed| {
            let high = self.group.events().map(|events| events.high).unwrap_or_default();
            self.edge.set(Some(Edge { bytes, high, passed }));
            self.edge_changed.notify_one();
        };
        if self.has_passed(bytes) {
            armed(true);
            return Ok(());
        }
        armed(false);
        self.bus
            .set_properties(&self.unit, &properties::memory_high(Some(bytes)))
            .await
            .map_err(|error| self.failed("setting MemoryHigh", error))?;
        // The kernel tells of charges over the line only: look whether the last one was before it was drawn.
        if self.has_passed(bytes) {
            armed(true);
        }
        Ok(())
    }

    fn has_passed(&self, edge: u64) -> bool {
        self.group.memory().is_ok_and(|reading| with_slack(reading, edge).unreclaimable >= edge)
    }

    /// Let the worker run at full speed.
    async fn lift(&self) -> Result<(), FenceError> {
        match self.bus.set_properties(&self.unit, &properties::memory_high(None)).await {
            Ok(()) => Ok(()),
            // systemd cannot be reached, and the worker crawls meanwhile: the file itself, this once.
            Err(error) => self.group.lift_high().or_else(|direct| {
                if is_gone(&direct) { Ok(()) } else { Err(self.failed("lifting MemoryHigh", error)) }
            }),
        }
    }

    /// What happened since the last time, if anything.
    async fn look(&self, watch: &EventFile) -> io::Result<Option<FenceEvent>> {
        let events = watch.events()?;
        if events.oom_kill > self.kills_reported.get() {
            self.kills_reported.set(events.oom_kill);
            return Ok(Some(FenceEvent::OomKill));
        }
        let reached = |edge: Edge| edge.passed || events.high > edge.high;
        if !self.edge.get().is_some_and(reached) {
            return Ok(None);
        }
        let _one = self.changing.lock().await;
        // Somebody may have moved the edge while we waited for the lock.
        let Some(edge) = self.edge.get().filter(|&edge| reached(edge)) else { return Ok(None) };
        let reading = with_slack(self.group.memory()?, edge.bytes);
        if let Err(error) = self.lift().await {
            tracing::warn!(unit = self.unit, "{error}: {}", error.source);
        }
        self.edge.set(None);
        Ok(Some(FenceEvent::Memory(reading)))
    }
}

/// The kernel's counters lag behind the charges that it stops at the line, by batches for each processor
/// (`MEMCG_CHARGE_BATCH`): what is nearly at the edge when the line was crossed is at the edge.
fn with_slack(mut reading: MemoryReading, edge: u64) -> MemoryReading {
    if reading.unreclaimable < edge && edge - reading.unreclaimable <= edge / 32 && reading.current >= edge - edge / 32
    {
        reading.unreclaimable = edge;
    }
    reading
}

impl Fence for ScopeFence {
    fn describe(&self) -> String {
        self.unit.clone()
    }

    fn contains(&self, pid: Pid) -> bool {
        self.mounts.cgroup_of(pid).is_ok_and(|path| self.group.holds(&path))
    }

    fn memory(&self) -> Result<MemoryReading, FenceError> {
        self.group.memory().map_err(|error| self.failed("reading the memory", error))
    }

    fn arm(&self, edge: Option<u64>) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(self.set_edge(edge))
    }

    fn next_event(&self) -> LocalFuture<'_, FenceEvent> {
        Box::pin(async move {
            tokio::select! {
                biased;
                event = self.memory_event() => event,
                () = self.stop_requested() => FenceEvent::StopRequested,
            }
        })
    }

    fn set_limits<'a>(&'a self, limits: &'a FenceLimits) -> LocalFuture<'a, Result<Vec<String>, FenceError>> {
        Box::pin(async move {
            let before = *self.limits.borrow();
            let mut now = *limits;
            let mut not_applied = Vec::new();
            let held = self.memory()?.unreclaimable;
            // The kernel answers a limit below what is in use by killing.
            if let Some(max) = now.memory_max.filter(|&max| max < held.saturating_add(held / 16)) {
                now.memory_max = before.memory_max;
                not_applied.push(format!(
                    "memory.max {max} was not applied: the worker holds {held} bytes that cannot be reclaimed"
                ));
            }
            let changes = properties::changed(&before, &now);
            if !changes.is_empty() {
                self.bus
                    .set_properties(&self.unit, &changes)
                    .await
                    .map_err(|error| self.failed("changing the limits", error))?;
                *self.limits.borrow_mut() = now;
                not_applied.extend(self.group.missing_limit(&now, false));
            }
            Ok(not_applied)
        })
    }

    fn kill(&self) -> Result<(), FenceError> {
        match self.group.kill() {
            Err(error) if is_gone(&error) && self.group.is_there() => {
                // Before Linux 5.14 there is no cgroup.kill.
                let (bus, unit) = (Rc::clone(&self.bus), self.unit.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = bus.kill(&unit).await {
                        tracing::warn!(unit, "killing it: {error}");
                    }
                });
                Ok(())
            }
            Err(error) if is_gone(&error) => Ok(()),
            result => result.map_err(|error| self.failed("killing every process", error)),
        }
    }

    fn death_facts(&self) -> LocalFuture<'_, DeathFacts> {
        Box::pin(async move {
            let counted = self.group.events().ok().map(|events| events.oom_kill > self.kills_before);
            // Counters of a cgroup that nothing was ever charged to are not the worker's (seen on 6.1 with systemd 252).
            let peak = self.group.peak().filter(|&peak| peak > 0);
            let oom_killed = match counted {
                // The counter rises before the signal is sent (mm/oom_kill.c): no need to look twice.
                Some(true) => Some(true),
                Some(false) if peak.is_some() => Some(false),
                // systemd removes the cgroup, but looks at the counter before it does.
                _ => match self.bus.scope_result(&self.unit).await {
                    Ok(result) => Some(result == "oom-kill"),
                    Err(error) => {
                        tracing::warn!(unit = self.unit, "how it ended cannot be known: {error}");
                        None
                    }
                },
            };
            let limit = self.limits.borrow().memory_max;
            DeathFacts { oom_killed, peak: peak.or(limit.filter(|_| oom_killed == Some(true))) }
        })
    }

    fn sweep(&self) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            self.kill()?;
            match self.group.watch("cgroup.events") {
                Ok(file) => file.emptied().await.map_err(|error| self.failed("waiting for the end", error))?,
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(self.failed("watching the end", error)),
            }
            self.bus.stop(&self.unit).await.map_err(|error| self.failed("stopping what is left", error))?;
            self.bus.reset_failed(&self.unit).await.map_err(|error| self.failed("forgetting the failure", error))?;
            // A scope that systemd had forgotten (see `enclose`) leaves its cgroup to us; else it is gone.
            let _ = std::fs::remove_dir(&self.group.dir);
            Ok(())
        })
    }

    fn hand_over(&self) -> Handed<'_> {
        let scope = HandedScope {
            unit: self.unit.clone(),
            path: self.group.path.clone(),
            limits: *self.limits.borrow(),
            kills_before: self.kills_before,
        };
        // Texts and numbers always have a form.
        Handed { data: serde_json::to_value(scope).unwrap_or_default(), fd: Some(self.group.descriptor()) }
    }
}
