//! Mode `scope`: a transient systemd scope for each worker.
//!
//! Sources: `org.freedesktop.systemd1(5)`, `systemd.scope(5)`, the kernel's cgroup-v2.rst.

mod fence;
mod group;
mod properties;
#[cfg(test)]
mod tests;
pub(crate) mod unit;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};
use serde::Deserialize;

use self::fence::{HandedScope, ScopeFence};
use self::group::{Group, Mounts};
use self::properties::{Common, Member};
use super::{
    DeathFacts, Drain, Fence, FenceError, FenceLimits, FenceName, Isolation, Leftover, Leftovers, LocalFuture, Mode,
};
use crate::systemd::dbus::{Bus, BusError, CALL, Which};

/// `PIDFDs` came with this version.
const PIDFDS_SINCE: u32 = 255;
/// How often a worker's scope is tried, each time under a new name.
const ATTEMPTS: u32 = 6;
/// The pause after the bus said that it is at its limits; three times longer after each further time.
const CROWDED: Duration = Duration::from_millis(20);
/// How long a start waits for a systemd that has left the bus; the worker's own deadline (`timeouts.start`) is over it.
const RETURN: Duration = Duration::from_mins(2);
/// How long a death waits for systemd to say whether it is stopping everything.
const SYSTEM_STATE: Duration = Duration::from_secs(2);
/// cgroup v2's file system (statfs(2), `CGROUP2_SUPER_MAGIC`).
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Fences made by systemd.
pub struct ScopeIsolation {
    bus: Rc<Bus>,
    mounts: Mounts,
    which: Which,
    version: String,
    common: Common,
    drain: Cell<Drain>,
    above: String,
    by_pidfd: Cell<bool>,
    /// What this systemd has refused.
    without: RefCell<BTreeSet<&'static str>>,
}

impl ScopeIsolation {
    /// Find out whether systemd makes scopes for this process: PID 1 for root, else the user's own `systemd --user`.
    /// Nobody else should be allowed to: whoever may manage units of PID 1 is root.
    ///
    /// # Errors
    /// Why not, as a fragment of a sentence.
    pub async fn probe(app: &str, drain: Drain) -> Result<Self, String> {
        if !sd_notify::booted().unwrap_or(false) {
            return Err("systemd is not running".to_owned());
        }
        let mounts = Mounts::default();
        let kind = rustix::fs::statfs(&mounts.cgroup)
            .map_err(|error| format!("{} cannot be looked at: {error}", mounts.cgroup.display()))?;
        if u64::try_from(kind.f_type).ok() != Some(CGROUP2_MAGIC) {
            return Err(format!("{} is not cgroup v2", mounts.cgroup.display()));
        }
        let which = if geteuid().is_root() { Which::System } else { Which::User };
        let bus = Bus::new(which);
        let name = manager_name(which);
        let version = bus.version().await.map_err(|error| format!("{name} cannot be reached: {error}"))?;
        let root = bus.control_group().await.map_err(|error| format!("{name} has no cgroup: {error}"))?;
        let controllers = mounts.directory(&root).join("cgroup.controllers");
        let controllers = std::fs::read_to_string(&controllers).unwrap_or_default();
        if !controllers.split_ascii_whitespace().any(|controller| controller == "memory") {
            return Err(format!("{name} has no memory controller"));
        }
        Ok(Self::new(bus, mounts, which, version, &root, app, drain))
    }

    fn new(bus: Bus, mounts: Mounts, which: Which, version: String, root: &str, app: &str, drain: Drain) -> Self {
        let slice = unit::slice(app);
        Self {
            bus: Rc::new(bus),
            mounts,
            which,
            above: format!("{}/paddock.slice/{slice}", root.trim_end_matches('/')),
            by_pidfd: Cell::new(version_number(&version) >= PIDFDS_SINCE),
            version,
            common: Common { app: app.to_owned(), slice },
            drain: Cell::new(drain),
            without: RefCell::default(),
        }
    }

    /// One line about where the scopes are made.
    pub fn describe(&self) -> String {
        format!("scopes in {} of {} {}", self.common.slice, manager_name(self.which), self.version)
    }

    /// Whose workers these are.
    pub fn app(&self) -> &str {
        &self.common.app
    }

    /// The cgroup above the workers, as `/proc/PID/cgroup` writes it; it exists while a worker does.
    pub fn above(&self) -> &str {
        &self.above
    }

    async fn open(
        &self,
        name: &FenceName,
        gate: Pid,
        limits: &FenceLimits,
        drain: Drain,
    ) -> Result<ScopeFence, FenceError> {
        let mut made = Vec::new();
        let result = self.try_open(name, gate, (limits, drain), &mut made).await;
        // systemd keeps a scope that no process ever was in until somebody stops it.
        for unit in made {
            if let Err(error) = self.bus.stop(&unit).await.and(self.bus.reset_failed(&unit).await) {
                tracing::warn!(unit, "left behind: {error}");
            }
        }
        result
    }

    /// Tries until the process is inside with its limits in force; notes the scopes that did not do.
    async fn try_open(
        &self,
        name: &FenceName,
        gate: Pid,
        (limits, drain): (&FenceLimits, Drain),
        made: &mut Vec<String>,
    ) -> Result<ScopeFence, FenceError> {
        let mut pause = CROWDED;
        let mut last = None;
        let mut late = false;
        for attempt in 0..ATTEMPTS {
            let unit = unit::scope(name, attempt);
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| FenceError {
                what: format!("making {unit}"),
                source,
            };
            let member = self.member(gate).map_err(|error| failed(error.into()))?;
            let properties = {
                let without = self.without.borrow();
                properties::all(&self.common, name.slot, member, (limits, drain), &without)
            };
            match self.bus.start_scope(&unit, properties).await {
                Ok(stop) => match self.verify(&unit, gate, limits).await {
                    Ok(group) => {
                        return Ok(ScopeFence::new(Rc::clone(&self.bus), self.mounts.clone(), unit, group, *limits)
                            .stopped_through(stop));
                    }
                    // systemd up to 257 could call a scope dead while its process lived
                    // (systemd issue 36781): under a new name it is made anew, and the process moves over.
                    Err(problem) => {
                        let over = has_ended(gate);
                        if !over {
                            tracing::info!(unit, "tried again under another name: {problem}");
                        }
                        made.push(unit.clone());
                        last = Some(failed(problem.into()));
                        if over {
                            break;
                        }
                    }
                },
                Err(BusError::Property(text)) => match properties::refused(&text) {
                    Some(property) => {
                        tracing::info!(property, "systemd {} does without: {text}", self.version);
                        self.without.borrow_mut().insert(property);
                        last = Some(failed(text.into()));
                    }
                    None if self.by_pidfd.get() && text.contains("PIDFDs") => {
                        self.by_pidfd.set(false);
                        last = Some(failed(text.into()));
                    }
                    None => return Err(failed(BusError::Property(text).into())),
                },
                Err(error @ BusError::Limits(_)) => {
                    tokio::time::sleep(pause).await;
                    pause *= 3;
                    last = Some(failed(error.into()));
                }
                // It replaces itself; the bus keeps calls for it meanwhile, and answers them in their order afterwards.
                Err(error @ (BusError::Away(_) | BusError::TimedOut(CALL))) if !late => {
                    late = matches!(error, BusError::TimedOut(_));
                    last = Some(failed(error.into()));
                    self.bus.until_back(RETURN).await.map_err(|error| failed(error.into()))?;
                }
                Err(error @ (BusError::UnitExists | BusError::Lost(_))) => last = Some(failed(error.into())),
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(last.unwrap_or_else(|| FenceError { what: "making a scope".to_owned(), source: "not tried".into() }))
    }

    async fn left_by_others(&self, app: &str) -> Result<Leftovers, FenceError> {
        let failed =
            |error: BusError| FenceError { what: format!("listing the scopes of {app}"), source: error.into() };
        let mut found = Leftovers::default();
        for unit in self.bus.units(&unit::pattern(app)).await.map_err(failed)? {
            // The pattern is systemd's to interpret: look again.
            let Some(name) = unit::parse(&unit.name).filter(|name| name.app == app) else { continue };
            if unit.active_state == "failed" {
                // It stays loaded to tell this.
                let result = self.bus.scope_result(&unit.name).await.map_err(failed)?;
                found.dead.push((name, DeathFacts { oom_killed: Some(result == "oom-kill"), peak: None }));
                self.bus.reset_failed(&unit.name).await.map_err(failed)?;
                continue;
            }
            let path = self.bus.scope_control_group(&unit.name).await.map_err(failed)?;
            if path.is_empty() {
                continue;
            }
            // Ended since it was listed.
            let Ok(group) = self.mounts.group(&path) else { continue };
            let limits = group.limits();
            let fence = ScopeFence::new(Rc::clone(&self.bus), self.mounts.clone(), unit.name, group, limits);
            found.living.push(Leftover { name, fence: Rc::new(fence) });
        }
        Ok(found)
    }

    fn member(&self, gate: Pid) -> std::io::Result<Member> {
        if self.by_pidfd.get() {
            return Ok(Member::Pidfd(pidfd_open(gate, PidfdFlags::empty())?));
        }
        // An unreaped child keeps its number.
        Ok(Member::Pid(gate.as_raw_pid().unsigned_abs()))
    }

    /// A job that is done proves little: look at the process, the limits and the unit.
    async fn verify(&self, unit: &str, gate: Pid, limits: &FenceLimits) -> Result<Group, String> {
        let path =
            self.mounts.cgroup_of(gate).map_err(|error| format!("where the process is cannot be read: {error}"))?;
        if Path::new(&path).file_name() != Some(unit.as_ref()) {
            return Err(format!("the process is in {path}"));
        }
        let group = self.mounts.group(&path).map_err(|error| format!("{path} cannot be opened: {error}"))?;
        let group_kill = !self.without.borrow().contains("OOMPolicy");
        if let Some(missing) = group.missing_limit(limits, group_kill) {
            return Err(missing);
        }
        match self.bus.active_state(unit).await {
            Ok(state) if state == "active" => Ok(group),
            Ok(state) => Err(format!("the scope is {state} while its process lives")),
            Err(error) => Err(format!("its state cannot be read: {error}")),
        }
    }
}

impl Isolation for ScopeIsolation {
    fn mode(&self) -> Mode {
        Mode::Scope
    }

    fn enclose<'a>(
        &'a self,
        name: &'a FenceName,
        gate: Pid,
        limits: &'a FenceLimits,
    ) -> LocalFuture<'a, Result<Rc<dyn Fence>, FenceError>> {
        // As it is now, whatever the next one is told while this one is being made.
        let drain = self.drain.get();
        Box::pin(async move { Ok(Rc::new(self.open(name, gate, limits, drain).await?) as Rc<dyn Fence>) })
    }

    fn set_drain(&self, drain: Drain) {
        self.drain.set(drain);
    }

    fn leftovers<'a>(&'a self, app: &'a str) -> LocalFuture<'a, Result<Leftovers, FenceError>> {
        Box::pin(self.left_by_others(app))
    }

    fn system_stops(&self) -> LocalFuture<'_, bool> {
        Box::pin(async {
            let state = tokio::time::timeout(SYSTEM_STATE, self.bus.system_state()).await;
            state.is_ok_and(|state| state.is_ok_and(|state| state == "stopping"))
        })
    }

    fn take_back(
        &self,
        _name: &FenceName,
        data: &serde_json::Value,
        fd: Option<OwnedFd>,
    ) -> Result<Rc<dyn Fence>, FenceError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| FenceError {
            what: "taking up a worker's scope".to_owned(),
            source,
        };
        let scope = HandedScope::deserialize(data).map_err(|error| failed(error.into()))?;
        let fd = fd.ok_or_else(|| failed("its cgroup was not handed over".into()))?;
        let group = self.mounts.group_again(&scope.path, fd);
        Ok(Rc::new(ScopeFence::again(Rc::clone(&self.bus), self.mounts.clone(), scope, group)))
    }
}

/// Whether the process is over: killed by whoever has given it up.
fn has_ended(process: Pid) -> bool {
    let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) else { return true };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

const fn manager_name(which: Which) -> &'static str {
    match which {
        Which::System => "systemd",
        Which::User => "systemd --user",
    }
}

/// The number that a version begins with, e.g. 257 of `257.13-1~deb13u1`.
fn version_number(version: &str) -> u32 {
    let digits = version.find(|character: char| !character.is_ascii_digit()).unwrap_or(version.len());
    version.get(..digits).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
