//! The core in a simulated world: random policies and events, a reference model, laws after each step.
//!
//! `PADDOCK_SIM_SEED` is the first seed, `PADDOCK_SIM_RUNS` how many follow it; a failure prints its seed and writes its
//! trace, which `PADDOCK_SIM_REPLAY` judges again. `mutants.py` plants errors in the core and expects them to be found.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a simulation that is wrong about itself should stop"
)]
#![expect(
    clippy::match_same_arms,
    clippy::option_option,
    clippy::print_stderr,
    clippy::similar_names,
    clippy::unused_self,
    clippy::wildcard_enum_match_arm,
    reason = "laws read best one by one, in the words of the rule"
)]

mod deeds;
mod dice;
mod judge;
mod model;
mod policies;
mod program;
mod purity;
mod rolls;
mod run;
mod scenarios;
mod standstill;
mod steps;
mod world;

use run::{Case, Header, Line, Tally, simulate};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn random_worlds_obey_the_laws() {
    if std::env::var_os("PADDOCK_SIM_REPLAY").is_some() {
        return;
    }
    let first = number("PADDOCK_SIM_SEED", 1);
    let runs = number("PADDOCK_SIM_RUNS", 1500);
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    for seed in first..first + runs {
        if let Err(report) = simulate(seed, &mut tally) {
            failures.push((seed, report));
        }
        if failures.len() == 20 {
            break;
        }
    }
    eprintln!("{tally:?}");
    let others: Vec<String> = failures
        .iter()
        .skip(1)
        .map(|(seed, report)| format!("also seed {seed}: {:.300}", report.lines().next().unwrap_or_default()))
        .collect();
    if let Some((_, report)) = failures.first() {
        panic!("{report}\n{}", others.join("\n"));
    }
}

#[test]
fn a_recorded_trace_is_judged_again() {
    let Some(path) = std::env::var_os("PADDOCK_SIM_REPLAY") else {
        return;
    };
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let header: Header = serde_json::from_str(lines.next().unwrap()).unwrap();
    let (mut case, mut actions, mut law) = Case::new(header);
    for line in lines {
        if law.is_err() {
            break;
        }
        let line: Line = serde_json::from_str(line).unwrap();
        case.now = line.now;
        law = case.step(&line.input, &mut actions);
    }
    if let Err(why) = law {
        panic!("{}", case.report(&why));
    }
}
