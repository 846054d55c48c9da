//! Mode `cgroup`: a group for each worker below the manager's own, so that outer limits and accounts hold for everyone.

mod comb;
mod eventfd;
pub(crate) mod files;
mod group;
pub(crate) mod hierarchy;
mod leftovers;
mod limits;
mod v1;
mod v2;

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::process::Pid;

use super::{Fence, FenceError, FenceLimits, FenceName, Isolation, Leftovers, LocalFuture, Mode, Place};

/// Fences made of cgroups, without anybody's help.
pub struct CgroupIsolation(Version);

enum Version {
    V1(v1::V1),
    V2(v2::V2),
}

impl CgroupIsolation {
    /// Find out whether this process may make groups with a memory limit below its own. On cgroup v2 it moves itself
    /// into a leaf of its own, so call this once, before any child is started.
    ///
    /// # Errors
    /// Why it may not, as a fragment of a sentence.
    pub fn probe() -> Result<Self, String> {
        let homes = hierarchy::own().map_err(|error| format!("our own cgroup cannot be found: {error}"))?;
        // A controller is in one hierarchy only: where v1 has memory, v2 has not.
        if homes.memory.is_some() {
            return v1::V1::probe(&homes).map(|v1| Self(Version::V1(v1)));
        }
        let unified = homes.unified.ok_or("no mounted cgroup hierarchy shows our own group")?;
        v2::V2::probe(&unified).map(|v2| Self(Version::V2(v2)))
    }

    /// One line about where the groups are made.
    pub fn describe(&self) -> String {
        match &self.0 {
            Version::V1(v1) => v1.describe(),
            Version::V2(v2) => v2.describe(),
        }
    }
}

impl CgroupIsolation {
    fn place<'a>(&'a self, name: &FenceName, limits: &FenceLimits) -> Result<Box<dyn Place + 'a>, FenceError> {
        Ok(match &self.0 {
            Version::V1(v1) => Box::new(v1.prepare(name, limits)?),
            Version::V2(v2) => Box::new(v2.prepare(name, limits)?),
        })
    }
}

impl Isolation for CgroupIsolation {
    fn mode(&self) -> Mode {
        Mode::Cgroup
    }

    fn prepare<'a>(
        &'a self,
        name: &'a FenceName,
        limits: &'a FenceLimits,
    ) -> Result<Option<Box<dyn Place + 'a>>, FenceError> {
        self.place(name, limits).map(Some)
    }

    fn enclose<'a>(
        &'a self,
        name: &'a FenceName,
        gate: Pid,
        limits: &'a FenceLimits,
    ) -> LocalFuture<'a, Result<Rc<dyn Fence>, FenceError>> {
        Box::pin(async move { self.place(name, limits)?.enclose(gate) })
    }

    fn leftovers<'a>(&'a self, app: &'a str) -> LocalFuture<'a, Result<Leftovers, FenceError>> {
        Box::pin(async move {
            match &self.0 {
                Version::V1(v1) => v1.leftovers(app),
                Version::V2(v2) => v2.leftovers(app),
            }
        })
    }

    fn take_back(
        &self,
        name: &FenceName,
        _data: &serde_json::Value,
        _fd: Option<OwnedFd>,
    ) -> Result<Rc<dyn Fence>, FenceError> {
        match &self.0 {
            Version::V1(v1) => v1.take_back(name),
            Version::V2(v2) => v2.take_back(name),
        }
    }
}
