//! How many files may be open: several for each worker here, as many as whoever started us says in a worker.

use nix::libc::rlim_t;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// `RLIMIT_NOFILE` (`getrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFiles {
    /// In force.
    pub soft: rlim_t,
    /// As high as it can be set without privileges.
    pub hard: rlim_t,
}

impl OpenFiles {
    /// The same for both, as `limits.nofile` sets it.
    pub const fn exactly(most: rlim_t) -> Self {
        Self { soft: most, hard: most }
    }

    /// Raise our own soft limit to the hard one; what it was before, which is the workers' business. The default of
    /// 1024 exists for programs that use `select(2)` (systemd's NEWS, 240) and would stop us at some 150 workers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn raise_own() -> std::io::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(Self { soft, hard })
    }

    /// Set this process's own.
    ///
    /// # Errors
    /// What the kernel says: only root may raise the hard limit.
    pub fn set_own(self) -> std::io::Result<()> {
        Ok(setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard)?)
    }
}
