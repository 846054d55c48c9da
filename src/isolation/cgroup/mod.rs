//! Mode `cgroup`: a group for each worker below the manager's own, so that outer limits and accounts hold for everyone.

mod eventfd;
mod files;
mod group;
mod hierarchy;
mod limits;
mod name;
mod v1;

use std::rc::Rc;

use rustix::process::Pid;

use super::{Fence, FenceError, FenceLimits, FenceName, Isolation, Leftover, LocalFuture, Mode};

/// Fences made of cgroups, without anybody's help.
pub struct CgroupIsolation {
    v1: v1::V1,
}

impl CgroupIsolation {
    /// Find out whether this process may make groups with a memory limit below its own.
    ///
    /// # Errors
    /// Why it may not, as a fragment of a sentence.
    pub fn probe() -> Result<Self, String> {
        let homes = hierarchy::own().map_err(|error| format!("our own cgroup cannot be found: {error}"))?;
        Ok(Self { v1: v1::V1::probe(&homes)? })
    }

    /// One line about where the groups are made.
    pub fn describe(&self) -> String {
        self.v1.describe()
    }
}

impl Isolation for CgroupIsolation {
    fn mode(&self) -> Mode {
        Mode::Cgroup
    }

    fn enclose<'a>(
        &'a self,
        name: &'a FenceName,
        gate: Pid,
        limits: &'a FenceLimits,
    ) -> LocalFuture<'a, Result<Rc<dyn Fence>, FenceError>> {
        Box::pin(async move { self.v1.enclose(name, gate, limits) })
    }

    fn leftovers<'a>(&'a self, app: &'a str) -> LocalFuture<'a, Result<Vec<Leftover>, FenceError>> {
        Box::pin(async move { self.v1.leftovers(app) })
    }
}
