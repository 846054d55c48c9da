//! Every corpus again, and inputs made from it, in every test run.
//!
//! `PADDOCK_FUZZ_SECONDS` is how long each target may take for new inputs, `PADDOCK_FUZZ_INPUTS` how many there are at
//! most, `PADDOCK_FUZZ_SEED` where chance begins, `PADDOCK_FUZZ_TARGET` the only target. Without them every run makes the same
//! inputs: what a change breaks is seen with the change, and what is new is looked for on purpose.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mutate::Mutator;
use super::{TARGETS, Target};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?}")))
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", directory.display());
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Run one input; a panic names the file that holds it.
fn run((name, target): Target, input: &[u8], from: &str) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        let path = std::env::temp_dir().join(format!("paddock-fuzz-{name}"));
        std::fs::write(&path, input).unwrap();
        panic!("{name}: {from} breaks a law; the input is in {}", path.display());
    }
}

/// The runner shows it only if a test fails, or with --nocapture.
#[expect(clippy::print_stderr, reason = "figures for people")]
fn say(text: &str) {
    eprintln!("{text}");
}

#[expect(clippy::disallowed_methods, reason = "a bound on how long this takes, nothing else")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn every_input_of_the_corpora_is_survived() {
    for target in TARGETS {
        for (path, input) in corpus(target.0) {
            run(target, &input, &path.display().to_string());
        }
    }
}

#[test]
fn inputs_made_from_the_corpora_are_survived() {
    let seconds = number("PADDOCK_FUZZ_SECONDS", 1);
    let most = number("PADDOCK_FUZZ_INPUTS", 20_000);
    let seed = number("PADDOCK_FUZZ_SEED", 1);
    let only = std::env::var("PADDOCK_FUZZ_TARGET").ok();
    say(&format!("PADDOCK_FUZZ_SEED={seed}"));
    for target in TARGETS {
        if only.as_deref().is_some_and(|only| only != target.0) {
            continue;
        }
        let corpus: Vec<Vec<u8>> = corpus(target.0).into_iter().map(|(_, input)| input).collect();
        let mut mutator = Mutator::new(seed, &corpus);
        let begun = now();
        let mut count = 0;
        while count < most && begun.elapsed() < Duration::from_secs(seconds) {
            run(target, &mutator.input(&corpus), &format!("input {count} of seed {seed}"));
            count += 1;
        }
        let took = begun.elapsed().as_secs_f64();
        say(&format!("{}: {count} inputs from {} in {took:.1} s", target.0, corpus.len()));
    }
}
