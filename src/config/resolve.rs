//! A configuration's meaning on this machine: percentages into bytes, `auto` into a number.

use std::sync::Arc;

use crate::isolation::FenceLimits;
use crate::supervisor::policy::Policy;

use super::Loaded;
use super::combine::over_budget;
use super::diagnostic::{Diagnostic, Diagnostics, Origin};
use super::key::Key;
use super::machine::Machine;
use super::model::{Share, Size, Workers};
use super::units::render_size;

/// Hundredths of a percent in a whole.
const WHOLE: u128 = 10_000;

/// The kernel keeps memory limits in pages; a limit that it had to round would not be the one that we show.
const PAGE: u64 = 4096;

/// What a configuration means on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What the core needs.
    pub policy: Policy,
    /// What each worker's fence enforces.
    pub fence: FenceLimits,
}

/// Turn percentages into bytes and `auto` into a number of workers.
pub fn resolve(loaded: &Loaded, machine: &Machine) -> Result<Resolved, Diagnostics> {
    let resolver = Resolver { loaded, machine };
    resolver.resolve().map_err(|diagnostic| Diagnostics::new(loaded.source.as_ref().map(Arc::clone), vec![*diagnostic]))
}

/// What of a whole.
fn part(whole: u64, share: u32) -> u64 {
    let part = u128::from(whole) * u128::from(share) / WHOLE;
    u64::try_from(part).unwrap_or(u64::MAX)
}

struct Resolver<'a> {
    loaded: &'a Loaded,
    machine: &'a Machine,
}

/// Memory figures in bytes.
struct Amounts {
    workers: u32,
    max: Option<u64>,
    budget: Option<u64>,
    recycle_at: Option<u64>,
}

impl Resolver<'_> {
    fn fault(&self, key: Key, message: String) -> Diagnostic {
        let origins = &self.loaded.origins;
        let origin = origins.get(&key).cloned().unwrap_or(Origin::Whole);
        Diagnostic::machine(origin, key.path(), message)
    }

    /// A size that may be a percentage of the machine; infinity is none.
    fn bytes(&self, size: Size) -> Option<u64> {
        match size {
            Size::Bytes(bytes) => Some(bytes),
            Size::Percent(share) => Some(part(self.machine.memory().bytes, share) / PAGE * PAGE),
            Size::Infinity => None,
        }
    }

    fn resolve(&self) -> Result<Resolved, Box<Diagnostic>> {
        let config = &self.loaded.config;
        let amounts = self.amounts()?;
        let max_requests = config.recycle.max_requests;
        let policy = Policy {
            workers: amounts.workers,
            ready: config.ready,
            drain_signal: config.drain_signal,
            memory_max: amounts.max,
            memory_budget: amounts.budget,
            recycle_at: amounts.recycle_at,
            max_requests,
            max_requests_jitter: match config.recycle.max_requests_jitter {
                Share::Absolute(number) => number,
                Share::Percent(share) => part(max_requests, share),
            },
            spread: config.recycle.spread,
            max_lifetime: config.recycle.max_lifetime,
            surge: config.recycle.surge,
            start: config.timeouts.start,
            settle: config.timeouts.settle,
            watchdog: config.timeouts.watchdog,
            graceful: config.timeouts.graceful,
            abort: config.timeouts.abort,
            backoff: config.restart.backoff,
            backoff_max: config.restart.backoff_max,
            hold: config.reload.hold,
            parallel_starts: self.machine.cpus.saturating_mul(2).max(4),
        };
        let fence = FenceLimits {
            memory_max: amounts.max,
            swap_max: Some(self.bytes(config.memory.swap_max).unwrap_or(u64::MAX)),
            tasks_max: config.limits.tasks_max,
            cpu_weight: config.limits.cpu_weight,
        };
        Ok(Resolved { policy, fence })
    }

    fn amounts(&self) -> Result<Amounts, Box<Diagnostic>> {
        let config = &self.loaded.config;
        let surge = config.recycle.surge;
        let budget = config.memory.budget.and_then(|size| self.bytes(size));
        let given_max = config.memory.max.and_then(|size| self.bytes(size));
        let workers = match (config.workers, given_max, budget) {
            (Workers::Count(count), ..) => count,
            (Workers::Auto, Some(max), Some(budget)) => {
                let fit = u32::try_from(budget / max.max(1)).unwrap_or(u32::MAX);
                self.machine.cpus.min(fit.saturating_sub(surge)).max(1)
            }
            (Workers::Auto, ..) => self.machine.cpus.max(1),
        };
        let lives = u64::from(workers) + u64::from(surge);
        let max = match (given_max, budget) {
            (None, Some(budget)) if config.memory.max.is_none() => Some(self.share_of_budget(budget, lives)?),
            (max, _) => max,
        };
        if let (Some(max), Some(budget)) = (max, budget) {
            let needed = max.saturating_mul(lives);
            if needed > budget {
                let (needed, there) = (render_size(needed), self.spell(config.memory.budget, budget));
                let (message, remedy) = over_budget(workers, surge, &needed, &there);
                let fault = self.fault(Key::MemoryBudget, message).remedy(remedy);
                return Err(Box::new(fault));
            }
        }
        Ok(Amounts { workers, max, budget, recycle_at: self.soft_limit(max)? })
    }

    /// Each worker's part, in whole pages.
    fn share_of_budget(&self, budget: u64, lives: u64) -> Result<u64, Box<Diagnostic>> {
        let max = budget / lives.max(1) / PAGE * PAGE;
        if max >= 1 << 20 {
            return Ok(max);
        }
        let there = self.spell(self.loaded.config.memory.budget, budget);
        let message = format!("{there} for {lives} workers and replacements: no program starts in that");
        let remedy = "fewer workers, or a larger memory.budget";
        Err(Box::new(self.fault(Key::MemoryBudget, message).remedy(remedy)))
    }

    fn soft_limit(&self, max: Option<u64>) -> Result<Option<u64>, Box<Diagnostic>> {
        let soft = match (self.loaded.config.memory.recycle_at, max) {
            (Size::Percent(share), Some(max)) => part(max, share) / PAGE * PAGE,
            (Size::Bytes(soft), _) => soft,
            (Size::Percent(_), None) | (Size::Infinity, _) => return Ok(None),
        };
        match max {
            Some(max) if soft >= max => {
                let message = format!("{} is not below max ({})", render_size(soft), render_size(max));
                let remedy = "leave room for the requests in flight, such as \"80%\"";
                Err(Box::new(self.fault(Key::MemoryRecycleAt, message).remedy(remedy)))
            }
            _ => Ok(Some(soft)),
        }
    }

    /// An amount, and what it is a part of if it was written as one.
    fn spell(&self, written: Option<Size>, bytes: u64) -> String {
        let whole = self.machine.memory();
        match written {
            Some(Size::Percent(share)) => format!(
                "{} ({} of {}, {})",
                render_size(bytes),
                super::units::render_permyriad(share),
                render_size(whole.bytes),
                whole.what,
            ),
            _ => render_size(bytes),
        }
    }
}
