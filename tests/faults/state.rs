//! A manager dies and what it wrote down cannot be read.

use std::fs;
use std::path::Path;

use crate::shortage::{app, load};
use crate::support::manager::{Manager, SOON};
use crate::support::proc;
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("state_file_damaged", EVERYWHERE, damaged);
    suite.add("state_file_missing", EVERYWHERE, missing);
    suite.add("state_file_of_another_version", EVERYWHERE, other_version);
}

/// Crashes the manager, changes the state, starts the next one: the old workers serve until the new ones are ready.
fn spoil(manager: &mut Manager, spoil: impl FnOnce(&Path), error: Option<&str>) {
    let before = manager.wait_ready(2).ready_pids();
    let load = load(manager);
    proc::wait_until(SOON, "answers", || load.answered() > 5);
    manager.crash();
    let mark = manager.log.mark();
    spoil(&manager.app.dir.path().join("run/state"));
    manager.start_again();
    if let Some(error) = error {
        manager.log.wait_after(mark, SOON, "what is wrong with the state", |line| line.message().contains(error));
    }
    let first_ready = manager.log.wait_after(mark, SOON, "a worker of its own", |line| line.is("worker-ready"));
    for _ in &before {
        let drained = manager.log.wait_after(mark, SOON, "the drain of a stray", |line| {
            line.message().contains("is of an earlier manager and not known")
        });
        assert!(drained.at >= first_ready.at, "drained before there was another");
    }
    proc::wait_until(SOON, "the old ones are gone", || before.iter().all(|pid| !proc::is_alive(*pid)));
    let after = manager.wait_ready(2).ready_pids();
    assert!(after.is_disjoint(&before));
    load.stop().assert_none_lost();
}

fn damaged(mode: Mode) {
    let mut manager = app(mode).start_ready(2);
    let garbage = |bytes: &'static [u8]| move |path: &Path| fs::write(path, bytes).unwrap();
    spoil(&mut manager, garbage(b"\xff\x00not json"), Some("is damaged"));
    spoil(&mut manager, garbage(b""), Some("is damaged"));
    let half = |path: &Path| {
        let text = fs::read(path).unwrap();
        fs::write(path, &text[..text.len() / 2]).unwrap();
    };
    spoil(&mut manager, half, Some("is damaged"));
    manager.stop();
}

fn missing(mode: Mode) {
    let mut manager = app(mode).start_ready(2);
    spoil(&mut manager, |path| fs::remove_file(path).unwrap(), None);
    manager.stop();
}

fn other_version(mode: Mode) {
    let mut manager = app(mode).start_ready(2);
    let newer = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let from = text.find("\"version\":").unwrap();
        let digits = text[from + 10..].bytes().take_while(u8::is_ascii_digit).count();
        fs::write(path, format!("{}\"version\":4294967295{}", &text[..from], &text[from + 10 + digits..])).unwrap();
    };
    spoil(&mut manager, newer, Some("is of version 4294967295"));
    manager.stop();
}
