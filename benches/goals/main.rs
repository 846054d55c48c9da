//! Whether paddock is as good as it is meant to be: one table of figures and goals.
//!
//! ```text
//! cargo bench --bench goals                        everything, about five minutes
//! cargo bench --bench goals -- death idle --json   only some of: core throughput death adoption idle; as JSON
//! ```
//!
//! Real managers (a release build), real workers: what is not in the core is measured from outside. The exit status is 1
//! if a goal was missed. docs/benchmarks.md says what each figure means.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a benchmark that cannot measure ends, has a clock of its own, and prints figures for people"
)]

mod adoption;
mod core;
mod death;
mod figure;
mod fleet;
mod idle;
#[expect(dead_code, reason = "most of it is for the behaviour tests")]
#[path = "../../tests/support/mod.rs"]
mod support;
mod throughput;
mod usage;
mod worker;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use figure::Figure;

/// A part's name and what it measures.
type Part = (&'static str, fn() -> Vec<Figure>);

const PARTS: [Part; 5] = [
    ("core", core::measure),
    ("throughput", throughput::measure),
    ("death", death::measure),
    ("adoption", adoption::measure),
    ("idle", idle::measure),
];

fn main() -> ExitCode {
    let began = worker::now();
    if std::env::args().nth(1).is_some_and(|role| role == worker::ROLE) {
        return worker::run(began);
    }
    if let Some(code) = support::hidden_role() {
        return code;
    }
    // cargo itself adds --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let known = |name: &String| name == "--json" || PARTS.iter().any(|(part, _)| part == name);
    if let Some(unknown) = arguments.iter().find(|argument| !known(argument)) {
        say(&format!("{unknown} is none of --json core throughput death adoption idle"));
        return ExitCode::from(2);
    }
    let all = arguments.iter().all(|argument| argument == "--json");
    let mut figures = Vec::new();
    for (name, measure) in PARTS.iter().filter(|(name, _)| all || arguments.iter().any(|argument| argument == name)) {
        let began = Instant::now();
        figures.extend(measure());
        say(&format!("{name}: {:.0} s", began.elapsed().as_secs_f64()));
    }
    let text = if arguments.iter().any(|argument| argument == "--json") {
        format!("{:#}\n", figure::json(&figures))
    } else {
        figure::table(&figures)
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(figures.iter().any(|figure| figure.is_met() == Some(false))))
}

/// To standard error: standard output is the table's.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
