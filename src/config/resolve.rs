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
use super::units::{render_permyriad, render_size};

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

    /// A key's size, which may be a percentage of the machine; infinity is none.
    fn bytes(&self, key: Key, size: Size) -> Result<Option<u64>, Box<Diagnostic>> {
        let share = match size {
            Size::Bytes(bytes) => return Ok(Some(bytes)),
            Size::Infinity => return Ok(None),
            Size::Percent(share) => share,
        };
        if let Some(whole) = self.machine.memory() {
            return Ok(Some(part(whole.bytes, share) / PAGE * PAGE));
        }
        let message = "a percentage of the machine's memory, but /proc/meminfo does not say how much that is";
        let fault = self.fault(key, message.to_owned());
        Err(Box::new(fault.remedy("mount /proc, or write a size such as \"512M\"")))
    }

    /// The same of a key that may be unset.
    fn given_bytes(&self, key: Key, size: Option<Size>) -> Result<Option<u64>, Box<Diagnostic>> {
        size.map_or(Ok(None), |size| self.bytes(key, size))
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
            swap_max: Some(self.bytes(Key::MemorySwapMax, config.memory.swap_max)?.unwrap_or(u64::MAX)),
            tasks_max: config.limits.tasks_max,
            cpu_weight: config.limits.cpu_weight,
        };
        Ok(Resolved { policy, fence })
    }

    fn amounts(&self) -> Result<Amounts, Box<Diagnostic>> {
        let config = &self.loaded.config;
        let surge = config.recycle.surge;
        let budget = self.given_bytes(Key::MemoryBudget, config.memory.budget)?;
        let given_max = self.given_bytes(Key::MemoryMax, config.memory.max)?;
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
        match (written, self.machine.memory()) {
            (Some(Size::Percent(share)), Some(whole)) => format!(
                "{} ({} of {}, {})",
                render_size(bytes),
                render_permyriad(share),
                render_size(whole.bytes),
                whole.what,
            ),
            _ => render_size(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load_flags;

    const GIB: u64 = 1 << 30;

    fn machine() -> Machine {
        Machine { cpus: 6, mem_total: Some(8 * GIB), memory_limit: None }
    }

    fn on(machine: &Machine, flags: &[(Key, &str)]) -> Result<Resolved, Diagnostics> {
        let mut all: Vec<(Key, Vec<&str>)> = vec![(Key::Command, vec!["a"])];
        all.extend(flags.iter().map(|(key, text)| (*key, vec![*text])));
        let all: Vec<(Key, &[&str])> = all.iter().map(|(key, texts)| (*key, texts.as_slice())).collect();
        resolve(&load_flags(&all).unwrap(), machine)
    }

    /// Workers, max, budget, soft limit.
    fn amounts(flags: &[(Key, &str)]) -> (u32, Option<u64>, Option<u64>, Option<u64>) {
        let policy = on(&machine(), flags).unwrap().policy;
        (policy.workers, policy.memory_max, policy.memory_budget, policy.recycle_at)
    }

    #[test]
    fn without_memory_keys_nothing_is_limited() {
        assert_eq!(amounts(&[]), (1, None, None, None));
        assert_eq!(amounts(&[(Key::Workers, "auto")]), (6, None, None, None));
        let fence = on(&machine(), &[]).unwrap().fence;
        assert_eq!(fence, FenceLimits { swap_max: Some(0), ..FenceLimits::default() });
    }

    #[test]
    fn percentages_are_of_the_machine_or_of_the_limit_above() {
        let ten_percent = |machine: &Machine| on(machine, &[(Key::MemoryMax, "10%")]).unwrap().policy.memory_max;
        assert_eq!(ten_percent(&machine()), Some(8 * GIB / 10 / PAGE * PAGE));
        let limited = Machine { memory_limit: Some(GIB), ..machine() };
        assert_eq!(ten_percent(&limited), Some(GIB / 10 / PAGE * PAGE));
    }

    #[test]
    fn a_budget_without_max_is_shared_by_workers_and_surge() {
        let flags = [(Key::Workers, "4"), (Key::MemoryBudget, "5G")];
        assert_eq!(amounts(&flags), (4, Some(GIB), Some(5 * GIB), Some(GIB * 8 / 10 / PAGE * PAGE)));
        let stop_first = [(Key::Workers, "5"), (Key::Surge, "0"), (Key::MemoryBudget, "5G")];
        assert_eq!(amounts(&stop_first).1, Some(GIB));
        let auto = [(Key::Workers, "auto"), (Key::MemoryBudget, "7G")];
        assert_eq!((amounts(&auto).0, amounts(&auto).1), (6, Some(GIB)));
    }

    #[test]
    fn auto_is_as_many_workers_as_cpus_and_budget_allow() {
        let workers = |max, budget, surge| {
            let flags =
                [(Key::Workers, "auto"), (Key::MemoryMax, max), (Key::MemoryBudget, budget), (Key::Surge, surge)];
            amounts(&flags).0
        };
        assert_eq!(workers("1G", "75%", "1"), 5);
        assert_eq!(workers("1G", "75%", "0"), 6);
        assert_eq!(workers("100M", "75%", "1"), 6);
        assert_eq!(workers("3G", "75%", "1"), 1);
    }

    #[test]
    fn what_does_not_fit_names_the_key_and_the_remedy() {
        let cases: [(&[(Key, &str)], &str); 4] = [
            (
                &[(Key::Workers, "8"), (Key::MemoryMax, "1G"), (Key::MemoryBudget, "75%")],
                "--memory-budget: 8 workers and 1 overlapping replacement may hold 9G together, the budget is 6G (75% of 8G, the machine's memory); fewer workers, a smaller memory.max, a larger memory.budget, or surge = 0 (stop first)",
            ),
            (
                &[(Key::Workers, "auto"), (Key::MemoryMax, "4G"), (Key::MemoryBudget, "75%")],
                "--memory-budget: 1 worker and 1 overlapping replacement may hold 8G together, the budget is 6G (75% of 8G, the machine's memory); fewer workers, a smaller memory.max, a larger memory.budget, or surge = 0 (stop first)",
            ),
            (
                &[(Key::Workers, "9000"), (Key::MemoryBudget, "1%")],
                "--memory-budget: 83884K (1% of 8G, the machine's memory) for 9001 workers and replacements: no program starts in that; fewer workers, or a larger memory.budget",
            ),
            (
                &[(Key::MemoryMax, "10%"), (Key::MemoryRecycleAt, "1G")],
                "--memory-recycle-at: 1G is not below max (838860K); leave room for the requests in flight, such as \"80%\"",
            ),
        ];
        for (flags, expected) in cases {
            let wrong = on(&machine(), flags).unwrap_err();
            assert_eq!(wrong.to_string(), expected);
            assert_eq!(wrong.exit_code(), 1);
        }
    }

    #[test]
    fn a_percentage_of_nobody_knows_what_is_an_error() {
        let blind = Machine { mem_total: None, ..machine() };
        let wrong = on(&blind, &[(Key::MemoryMax, "10%")]).unwrap_err();
        assert!(wrong.to_string().starts_with("--memory-max: a percentage of the machine's memory"), "{wrong}");
        assert!(on(&blind, &[(Key::MemoryMax, "512M")]).is_ok());
    }

    #[test]
    fn jitter_is_a_number_or_a_part_of_the_quota() {
        let jitter = |text| {
            let flags = [(Key::MaxRequests, "1000"), (Key::MaxRequestsJitter, text)];
            on(&machine(), &flags).unwrap().policy.max_requests_jitter
        };
        assert_eq!(jitter("5%"), 50);
        assert_eq!(jitter("12.5%"), 125);
        assert_eq!(jitter("70"), 70);
    }

    #[test]
    fn no_more_starts_at_a_time_than_twice_the_cpus() {
        let starts = |cpus| on(&Machine { cpus, ..machine() }, &[]).unwrap().policy.parallel_starts;
        assert_eq!((starts(1), starts(2), starts(6)), (4, 4, 12));
    }
}
