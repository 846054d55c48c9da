//! Which fence: the best that the machine has, and why not a better one.

use std::rc::Rc;

use super::cgroup::CgroupIsolation;
use super::none::{self, NoneIsolation};
use super::scope::ScopeIsolation;
use super::{Drain, FenceLimits, Isolation, Mode};
use crate::config::model::IsolationChoice;

/// The fence to use.
pub struct Chosen {
    /// It.
    pub isolation: Rc<dyn Isolation>,
    /// The cgroup that workers' fences are made in, as /proc/PID/cgroup writes it; none: the manager's own.
    pub above: Option<String>,
    /// One line: the mode, where the fences are, and why the better modes were not available.
    pub explanation: String,
}

/// What was asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("isolation = {wanted:?} is not available here: {reason}; choose another mode or \"auto\"")]
pub struct Unavailable {
    wanted: &'static str,
    reason: String,
}

/// Find the fence that was asked for, or the best. `drain` is what systemd does when it stops a scope.
///
/// # Errors
/// A mode that was asked for is not there: it is never replaced by a weaker one.
pub async fn choose(choice: IsolationChoice, app: &str, drain: Drain) -> Result<Chosen, Unavailable> {
    let unavailable = |wanted| move |reason| Unavailable { wanted, reason };
    match choice {
        IsolationChoice::Scope => scope(app, drain).await.map_err(unavailable("scope")),
        IsolationChoice::Cgroup => cgroup().map_err(unavailable("cgroup")),
        IsolationChoice::None => nothing().map_err(unavailable("none")),
        IsolationChoice::Auto => {
            let mut reasons = Vec::new();
            let found = match scope(app, drain).await {
                Ok(chosen) => Ok(chosen),
                Err(reason) => {
                    reasons.push(format!("scope is not available: {reason}"));
                    cgroup().or_else(|reason| {
                        reasons.push(format!("cgroup is not available: {reason}"));
                        nothing()
                    })
                }
            };
            let mut chosen = found.map_err(unavailable("auto"))?;
            for reason in reasons {
                chosen.explanation.push_str("; ");
                chosen.explanation.push_str(&reason);
            }
            Ok(chosen)
        }
    }
}

/// What of the limits has no effect in this mode, for the log.
pub fn warnings(mode: Mode, limits: &FenceLimits) -> Vec<String> {
    match mode {
        Mode::None => none::not_enforced(limits),
        Mode::Scope | Mode::Cgroup => Vec::new(),
    }
}

async fn scope(app: &str, drain: Drain) -> Result<Chosen, String> {
    let isolation = ScopeIsolation::probe(app, drain).await?;
    let explanation = format!("isolation scope: {}", isolation.describe());
    let above = Some(isolation.above().to_owned());
    Ok(Chosen { isolation: Rc::new(isolation), above, explanation })
}

fn cgroup() -> Result<Chosen, String> {
    let isolation = CgroupIsolation::probe()?;
    let explanation = format!("isolation cgroup: {}", isolation.describe());
    Ok(Chosen { isolation: Rc::new(isolation), above: None, explanation })
}

fn nothing() -> Result<Chosen, String> {
    let isolation = NoneIsolation::new().map_err(|error| error.to_string())?;
    Ok(Chosen { isolation: Rc::new(isolation), above: None, explanation: "isolation none".to_owned() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::model::Signal;

    fn choose_now(choice: IsolationChoice) -> Result<Chosen, Unavailable> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let drain = Drain { signal: Signal(15), graceful: Duration::from_secs(1) };
        runtime.block_on(choose(choice, "select", drain))
    }

    /// Whether this machine has it, and if not, why; a mode that was asked for is that mode or an error that says so.
    fn asked(choice: IsolationChoice, mode: Mode) -> Result<(), String> {
        match choose_now(choice) {
            Ok(chosen) => {
                assert_eq!(chosen.isolation.mode(), mode);
                assert!(chosen.explanation.starts_with(&format!("isolation {mode}")), "{}", chosen.explanation);
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with(&format!("isolation = \"{mode}\" is not available here: ")), "{text}");
                Err(error.reason)
            }
        }
    }

    #[test]
    fn auto_takes_the_best_that_is_there_and_explains_the_others() {
        let scope = asked(IsolationChoice::Scope, Mode::Scope);
        let cgroup = asked(IsolationChoice::Cgroup, Mode::Cgroup);
        asked(IsolationChoice::None, Mode::None).unwrap();
        let chosen = choose_now(IsolationChoice::Auto).unwrap();
        let mut better = vec![(Mode::Scope, scope), (Mode::Cgroup, cgroup)];
        if let Some(best) = better.iter().position(|(_, there)| there.is_ok()) {
            assert_eq!(chosen.isolation.mode(), better[best].0);
            better.truncate(best);
        } else {
            assert_eq!(chosen.isolation.mode(), Mode::None);
        }
        for (mode, reason) in better {
            assert!(chosen.explanation.contains(&format!("{mode} is not available: ")), "{}", chosen.explanation);
            assert!(reason.is_err());
        }
    }

    #[test]
    fn what_is_not_enforced_is_said() {
        let limits = FenceLimits { memory_max: Some(5), tasks_max: Some(6), cpu_weight: Some(7), swap_max: Some(0) };
        let said = warnings(Mode::None, &limits).join("\n");
        for words in ["memory.max 5 is not enforced", "tasks_max 6", "cpu_weight 7"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(!said.contains("swap"), "{said}");
        assert!(warnings(Mode::Cgroup, &limits).is_empty());
        assert!(warnings(Mode::None, &FenceLimits::default()).is_empty());
    }
}
