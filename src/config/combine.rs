//! What keys say about each other, and about who runs the manager.

use nix::unistd::{Gid, Group, Uid, User};

use super::diagnostic::{Diagnostic, Origin};
use super::key::Key;
use super::model::{Config, Ready, Size, Workers};
use super::rules::Rules;
use super::units::{render_size, render_time};
use super::value::Problem;

/// Who runs the manager, as far as a configuration depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// The effective user, credentials(7).
    pub uid: u32,
    /// Its name, if it has one.
    pub user: Option<String>,
    /// The effective group.
    pub gid: u32,
    /// Its name, if it has one.
    pub group: Option<String>,
}

impl Runner {
    /// Whoever runs this process.
    pub fn of_process() -> Self {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        let user = User::from_uid(uid).ok().flatten();
        let group = Group::from_gid(gid).ok().flatten();
        Self {
            uid: uid.as_raw(),
            user: user.map(|user| user.name),
            gid: gid.as_raw(),
            group: group.map(|group| group.name),
        }
    }
}

/// The rules that several keys share.
pub(super) fn check(rules: &mut Rules<'_>, config: &Config, runner: &Runner) {
    readiness(rules, config);
    backoff(rules, config);
    soft_limit(rules, config);
    budget(rules, config);
    accounts(rules, config, runner);
}

/// What is legal but probably not meant.
pub(super) fn warnings(rules: &Rules<'_>, config: &Config, runner: &Runner) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    let memory = &config.memory;
    let has_max = memory.budget.is_some() || memory.max.is_some_and(|max| max != Size::Infinity);
    if rules.is_given(Key::MemoryRecycleAt) && matches!(memory.recycle_at, Size::Percent(_)) && !has_max {
        let message = "a percentage of max, but there is no max: it does nothing";
        let remedy = "set memory.max or memory.budget, or write a size such as \"400M\"";
        let origin = rules.origin(Key::MemoryRecycleAt);
        warnings.push(Diagnostic::text(origin, Key::MemoryRecycleAt.path(), message).remedy(remedy));
    }
    if runner.uid == 0 && config.user.is_none() {
        let message = "not set, and the manager is root: workers run as root too";
        let remedy = "give them a user of their own; a worker that is root can leave its limits";
        warnings.push(Diagnostic::text(Origin::Whole, Key::User.path(), message).remedy(remedy));
    }
    warnings
}

fn readiness(rules: &mut Rules<'_>, config: &Config) {
    let ready = Key::Ready;
    let times = &config.timeouts;
    if config.ready != Ready::Settle || !rules.sound(&[ready]) {
        return;
    }
    if times.watchdog.is_some() && rules.sound(&[Key::TimeoutWatchdog]) {
        let diagnostic = Diagnostic::text(
            rules.origin(Key::TimeoutWatchdog),
            Key::TimeoutWatchdog.path(),
            "a watchdog needs ready = \"notify\": a worker that says nothing would be killed for it",
        )
        .remedy("remove watchdog, or have the workers send READY=1 and WATCHDOG=1")
        .context(&rules.origin(ready), "ready is \"settle\" here");
        rules.bad.insert(Key::TimeoutWatchdog);
        rules.found.push(diagnostic);
    }
    if times.settle >= times.start && rules.sound(&[Key::TimeoutSettle, Key::TimeoutStart]) {
        let message = format!(
            "a worker settles after {} but is killed if it is not ready after {}",
            render_time(times.settle),
            render_time(times.start),
        );
        let key = if rules.is_given(Key::TimeoutSettle) { Key::TimeoutSettle } else { Key::TimeoutStart };
        rules.report(key, Problem::new(message).remedy("make timeouts.settle shorter than timeouts.start"));
    }
}

fn backoff(rules: &mut Rules<'_>, config: &Config) {
    let restart = &config.restart;
    let keys = [Key::Backoff, Key::BackoffMax];
    if restart.backoff > restart.backoff_max && rules.sound(&keys) {
        let message = format!(
            "backoff ({}) is longer than backoff_max ({})",
            render_time(restart.backoff),
            render_time(restart.backoff_max),
        );
        let key = if rules.is_given(Key::Backoff) { Key::Backoff } else { Key::BackoffMax };
        rules.report(key, Problem::new(message).remedy("raise backoff_max to at least backoff"));
    }
}

fn soft_limit(rules: &mut Rules<'_>, config: &Config) {
    let memory = &config.memory;
    let key = Key::MemoryRecycleAt;
    if !rules.sound(&[key, Key::MemoryMax, Key::MemoryBudget]) {
        return;
    }
    let problem = match (memory.recycle_at, memory.max) {
        (Size::Percent(10_000..), _) => {
            Problem::new("100% of max: the kernel would kill the worker before it is replaced")
                .remedy("leave room for the requests in flight, such as \"80%\"")
        }
        (Size::Bytes(soft), Some(Size::Bytes(max))) if soft >= max => {
            let message = format!("{} is not below max ({})", render_size(soft), render_size(max));
            Problem::new(message).remedy("leave room for the requests in flight, such as \"80%\"")
        }
        _ => return,
    };
    rules.report(key, problem);
}

/// What can be said of the budget without knowing the machine.
fn budget(rules: &mut Rules<'_>, config: &Config) {
    let keys = [Key::MemoryBudget, Key::MemoryMax, Key::Workers, Key::Surge];
    if !rules.sound(&keys) {
        return;
    }
    let workers = match config.workers {
        Workers::Count(count) => count,
        Workers::Auto => 1,
    };
    let surge = config.recycle.surge;
    let lives = u64::from(workers) + u64::from(surge);
    // In tenths of what the unit is, so that bytes and shares go the same way.
    let (needed, there) = match (config.memory.max, config.memory.budget) {
        (Some(Size::Bytes(max)), Some(Size::Bytes(budget))) => (max.saturating_mul(lives), budget),
        (Some(Size::Percent(max)), Some(Size::Percent(budget))) => (u64::from(max) * lives, u64::from(budget)),
        (Some(Size::Infinity), Some(Size::Bytes(_) | Size::Percent(_))) => {
            let problem = Problem::new("infinite, but there is a budget to fit in");
            let remedy = "remove one of the two; without max, max = budget / (workers + surge)";
            rules.report(Key::MemoryMax, problem.remedy(remedy));
            return;
        }
        _ => return,
    };
    if needed <= there {
        return;
    }
    let spell = |amount: u64| match config.memory.max {
        Some(Size::Percent(_)) => super::units::render_permyriad(u32::try_from(amount).unwrap_or(u32::MAX)),
        _ => render_size(amount),
    };
    let (message, remedy) = over_budget(workers, surge, &spell(needed), &spell(there));
    let diagnostic = Diagnostic::text(rules.origin(Key::MemoryBudget), Key::MemoryBudget.path(), message)
        .remedy(remedy)
        .context(&rules.origin(Key::MemoryMax), "max of each");
    rules.bad.insert(Key::MemoryBudget);
    rules.found.push(diagnostic);
}

/// What is said when all workers and their overlaps do not fit.
pub(super) fn over_budget(workers: u32, surge: u32, needed: &str, there: &str) -> (String, String) {
    let plural = |count: u32| if count == 1 { "" } else { "s" };
    let overlaps = match surge {
        0 => String::new(),
        _ => format!(" and {surge} overlapping replacement{}", plural(surge)),
    };
    let message =
        format!("{workers} worker{}{overlaps} may hold {needed} together, the budget is {there}", plural(workers));
    let without = if surge > 0 { ", or surge = 0 (stop first)" } else { "" };
    (message, format!("fewer workers, a smaller memory.max, a larger memory.budget{without}"))
}

/// Nobody but root can become somebody else.
fn accounts(rules: &mut Rules<'_>, config: &Config, runner: &Runner) {
    if config.group.is_some() && config.user.is_none() && rules.sound(&[Key::User, Key::Group]) {
        let problem = Problem::new("set without user");
        rules.report(Key::Group, problem.remedy("set user too, or remove group"));
    }
    if runner.uid == 0 {
        return;
    }
    let is = |given: &str, id: u32, name: Option<&str>| Some(given) == name || given.parse() == Ok(id);
    let own_user = runner.user.as_deref();
    let own_group = runner.group.as_deref();
    let pairs = [
        (Key::User, config.user.as_deref(), runner.uid, own_user),
        (Key::Group, config.group.as_deref(), runner.gid, own_group),
        (Key::SocketUser, config.listen.socket_user.as_deref(), runner.uid, own_user),
    ];
    for (key, given, id, own) in pairs {
        let Some(given) = given else { continue };
        if is(given, id, own) || !rules.sound(&[key]) {
            continue;
        }
        let own = own.map_or_else(|| id.to_string(), str::to_owned);
        let message = format!("only a manager that is root can take {given:?}; this one is {own:?}");
        rules.report(key, Problem::new(message).remedy("remove it, or start the manager as root"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{given, load_flags, somebody};
    use crate::config::{Diagnostics, Invocation, Loaded, load};

    /// What is wrong with a command and these flags.
    fn wrong(flags: &[(Key, &str)]) -> Vec<String> {
        let all: Vec<(Key, [&str; 1])> = flags.iter().map(|(key, text)| (*key, [*text])).collect();
        let mut all: Vec<(Key, &[&str])> = all.iter().map(|(key, texts)| (*key, texts.as_slice())).collect();
        all.push((Key::Command, &["a"]));
        lines(load_flags(&all).err())
    }

    fn lines(diagnostics: Option<Diagnostics>) -> Vec<String> {
        diagnostics.map(|wrong| wrong.to_string().lines().map(str::to_owned).collect()).unwrap_or_default()
    }

    fn run_by(uid: u32, flags: &[(Key, &[&str])]) -> Result<Loaded, Diagnostics> {
        let mut flags = given(flags);
        flags.insert(Key::Command, vec!["a".to_owned()]);
        load(&Invocation { file: None, flags, runner: Runner { uid, ..somebody() } })
    }

    #[test]
    fn impossible_combinations_are_errors() {
        let cases: &[(&[(Key, &str)], &str)] = &[
            (
                &[(Key::Ready, "settle"), (Key::TimeoutWatchdog, "30s")],
                "--timeout-watchdog: a watchdog needs ready = \"notify\"",
            ),
            (
                &[(Key::Ready, "settle"), (Key::TimeoutSettle, "1min")],
                "--timeout-settle: a worker settles after 1min but is killed if it is not ready after 1min",
            ),
            (
                &[(Key::Ready, "settle"), (Key::TimeoutStart, "500ms")],
                "--timeout-start: a worker settles after 1s but is killed if it is not ready after 500ms",
            ),
            (&[(Key::Backoff, "1min")], "--restart-backoff: backoff (1min) is longer than backoff_max (30s)"),
            (&[(Key::BackoffMax, "10ms")], "--restart-backoff-max: backoff (100ms) is longer than backoff_max (10ms)"),
            (
                &[(Key::MemoryMax, "100M"), (Key::MemoryRecycleAt, "100M")],
                "--memory-recycle-at: 100M is not below max (100M)",
            ),
            (&[(Key::MemoryMax, "100M"), (Key::MemoryRecycleAt, "100%")], "--memory-recycle-at: 100% of max"),
            (
                &[(Key::MemoryMax, "100M"), (Key::MemoryBudget, "499M"), (Key::Workers, "4")],
                "--memory-budget: 4 workers and 1 overlapping replacement may hold 500M together, the budget is 499M",
            ),
            (
                &[(Key::MemoryMax, "20%"), (Key::MemoryBudget, "50%"), (Key::Workers, "3"), (Key::Surge, "0")],
                "--memory-budget: 3 workers may hold 60% together, the budget is 50%",
            ),
            (
                &[(Key::MemoryMax, "infinity"), (Key::MemoryBudget, "1G")],
                "--memory-max: infinite, but there is a budget",
            ),
            (&[(Key::Names, "a")], "--names: 1 names for 0 addresses"),
            (&[(Key::Group, "users")], "--group: set without user"),
        ];
        for (flags, expected) in cases {
            let told = wrong(flags);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told.iter().all(|line| line.starts_with(expected) && line.contains("; ")), "{told:?}");
        }
    }

    #[test]
    fn what_fits_is_no_error() {
        let cases: &[&[(Key, &str)]] = &[
            &[(Key::MemoryMax, "100M"), (Key::MemoryBudget, "500M"), (Key::Workers, "4")],
            &[(Key::MemoryMax, "100M"), (Key::MemoryBudget, "400M"), (Key::Workers, "4"), (Key::Surge, "0")],
            &[(Key::MemoryMax, "25%"), (Key::MemoryBudget, "50%")],
            &[(Key::MemoryMax, "100M"), (Key::MemoryRecycleAt, "99M")],
            &[(Key::MemoryRecycleAt, "400M")],
            &[(Key::MaxRequestsJitter, "5%")],
            &[(Key::TimeoutWatchdog, "30s")],
            &[(Key::Ready, "settle"), (Key::TimeoutWatchdog, "0")],
            &[(Key::Backoff, "10ms"), (Key::BackoffMax, "10ms")],
            &[(Key::TimeoutStart, "infinity"), (Key::TimeoutGraceful, "infinity")],
        ];
        for flags in cases {
            assert_eq!(wrong(flags), Vec::<String>::new(), "{flags:?}");
        }
    }

    #[test]
    fn only_root_takes_another_user() {
        let flags: &[(Key, &[&str])] = &[(Key::User, &["shop"]), (Key::SocketUser, &["www"])];
        let told = lines(run_by(1000, flags).err());
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().all(|line| line.contains("only a manager that is root can take")), "{told:?}");
        assert!(run_by(0, flags).is_ok());
        for own in ["ann", "1000"] {
            assert!(run_by(1000, &[(Key::User, &[own])]).is_ok(), "{own}");
            assert!(run_by(1000, &[(Key::User, &[own]), (Key::Group, &["100"])]).is_ok(), "{own}");
        }
        assert!(run_by(1000, &[(Key::User, &["ann"]), (Key::Group, &["adm"])]).is_err());
    }

    #[test]
    fn root_without_a_user_is_warned() {
        let warnings = |uid, flags| run_by(uid, flags).unwrap().warnings.list().len();
        assert_eq!(warnings(0, &[]), 1);
        assert_eq!(warnings(0, &[(Key::User, &["shop"])]), 0);
        assert_eq!(warnings(1000, &[]), 0);
        assert_eq!(warnings(1000, &[(Key::MemoryRecycleAt, &["80%"])]), 1);
        assert_eq!(warnings(1000, &[(Key::MemoryRecycleAt, &["80%"]), (Key::MemoryBudget, &["1G"])]), 0);
    }
}
