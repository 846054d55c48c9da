//! Development: `run --reload-on-change`.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::support::http;
use crate::support::load::Load;
use crate::support::manager::{App, Manager, SOON};
use crate::support::pace;
use crate::support::proc;
use crate::support::suite::{EVERYWHERE, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("development_each_change_is_one_roll", &[Mode::None], each_change_is_one_roll);
    suite.add("development_a_module_that_does_not_import", EVERYWHERE, broken_module);
    suite.add("development_nothing_has_ever_started", EVERYWHERE, never_started);
    suite.add("development_changes_during_a_roll", &[Mode::None], changes_during_a_roll);
    suite.add("development_a_path_that_is_not_there", &[Mode::None], missing_path);
}

/// An app whose code is watched: a directory, and the file that says what the test worker does.
fn watched(mode: Mode) -> App {
    let app = App::new(mode);
    fs::create_dir_all(app.dir.path().join("src/shop")).unwrap();
    let (source, switch) = (app.dir.path().join("src"), app.switch_path());
    fs::write(&switch, "").unwrap();
    app.argument("--reload-on-change").argument(source).argument("--reload-on-change").argument(switch)
}

/// As editors save: a new file beside it, renamed over it.
fn save(path: &Path, text: &str) {
    let next = path.with_extension("tmp");
    fs::write(&next, text).and_then(|()| fs::rename(&next, path)).unwrap();
}

fn rolls(manager: &Manager) -> usize {
    manager.log.count(|line| line.is("reload-started"))
}

fn wait_generation(manager: &Manager, generation: u64, workers: usize) {
    manager.wait_status(SOON, &format!("generation {generation}"), |status| {
        status.generation() == generation && !status.is_rolling() && status.ready_pids().len() == workers
    });
}

fn each_change_is_one_roll(mode: Mode) {
    let manager = watched(mode).set("workers", 2).start_ready(2);
    let source = manager.app.dir.path().join("src");
    let said = |name: &str| {
        let words = format!("{name} has changed: reload");
        manager.log.wait(SOON, &words, |line| line.message().ends_with(&words));
    };
    // What is no code comes first: were it a change, there would be one roll more in the end.
    fs::create_dir(source.join("__pycache__")).unwrap();
    fs::write(source.join("__pycache__/app.pyc"), "0").unwrap();
    fs::write(source.join(".app.py.swp"), "0").unwrap();
    save(&source.join("app.py"), "1");
    said("src/app.py");
    wait_generation(&manager, 2, 2);

    fs::create_dir_all(source.join("shop/views")).unwrap();
    fs::write(source.join("shop/views/cart.py"), "1").unwrap();
    said("src/shop/views/cart.py");
    wait_generation(&manager, 3, 2);
    // That directory is watched now; many files at once are one change.
    for number in 0..200 {
        fs::write(source.join(format!("shop/views/page{number}.py")), "1").unwrap();
    }
    wait_generation(&manager, 4, 2);

    // The configuration is watched without being named.
    save(&manager.app.config_path(), &manager.app.config_text());
    said("shop.toml");
    wait_generation(&manager, 5, 2);
    assert_eq!(rolls(&manager), 4);
    manager.stop();
}

fn broken_module(mode: Mode) {
    let manager = watched(mode).set("workers", 2).start_ready(2);
    let old = manager.status().ready_pids();
    let load = Load { clients: 4, rate: Some(pace::rate(100.0)), ..Load::default() }.start(&manager.target());
    proc::wait_until(SOON, "load", || load.answered() > 20);
    manager.switch("refuse=3\n");
    manager.log.wait(SOON, "the roll is undone", |line| line.is("reload-undone"));
    // The worker's own words, as it wrote them, and the last of them in the sentence about the roll.
    manager.log.wait(SOON, "the traceback", |line| !line.is("reload-undone") && line.message() == WORDS);
    let undone = manager.log.all(|line| line.is("reload-undone"));
    assert!(undone[0].message().contains(WORDS), "{}", undone[0]);
    assert_eq!(manager.wait_ready(2).ready_pids(), old, "the running workers serve on");

    manager.switch("version=2\n");
    wait_generation(&manager, 3, 2);
    load.stop().assert_none_lost();
    assert!(manager.status().ready_pids().is_disjoint(&old));
    assert_eq!(http::get(&manager.target(), "/").expect("an answer").body["version"], "2");
    manager.stop();
}

/// What the test worker writes before it gives up.
const WORDS: &str = "refusing to start: the code on disk is broken";

fn never_started(mode: Mode) {
    let app = watched(mode).set("workers", 2).set("restart.backoff", "10ms").set("restart.backoff_max", "10ms");
    fs::write(app.switch_path(), "refuse=3\n").unwrap();
    let mut manager = app.start();
    let waiting = |line: &crate::support::log::Line| line.message().contains("every worker failed to start");
    let said = manager.log.wait(SOON, "that it waits", waiting);
    assert!(said.message().contains(WORDS) && said.message().ends_with("waiting for a change"), "{said}");
    // A status, so that whatever would follow at once has followed.
    assert!(manager.status().ready_pids().is_empty());
    let deaths = |manager: &Manager| manager.log.count(|line| line.is("worker-died"));
    assert_eq!(deaths(&manager), 2, "each of the first workers once, and no other");

    // Still broken: one more try, by one worker.
    manager.switch("refuse=4\n");
    let undone = manager.log.wait(SOON, "the second try", |line| line.is("reload-undone"));
    assert!(undone.message().contains("nobody serves, waiting for a change"), "{undone}");
    assert_eq!(deaths(&manager), 3);

    manager.switch("version=2\n");
    manager.wait_told_ready(SOON);
    wait_generation(&manager, 3, 2);
    assert_eq!(deaths(&manager), 3);
    manager.stop();

    let app = watched(mode);
    fs::write(app.switch_path(), "refuse=3\n").unwrap();
    let mut manager = app.start();
    manager.log.wait(SOON, "that it waits", waiting);
    manager.signal(Signal::TERM);
    assert_eq!(manager.wait_exit(SOON).code(), Some(0), "a stop is a stop");
    manager.assert_nothing_left();
}

fn changes_during_a_roll(mode: Mode) {
    let manager = watched(mode).set("workers", 2).start_ready(2);
    manager.switch("ready_delay_ms=1000\n");
    proc::wait_until(SOON, "a roll", || rolls(&manager) == 1);
    for number in 0..3 {
        let mark = manager.log.mark();
        save(&manager.app.dir.path().join("src/app.py"), &number.to_string());
        manager
            .log
            .wait_after(mark, SOON, "the change is seen", |line| line.message().ends_with("has changed: reload"));
    }
    assert_eq!(rolls(&manager), 1, "one at a time");
    wait_generation(&manager, 3, 2);
    manager.wait_ready(2);
    assert_eq!(rolls(&manager), 2, "exactly one further roll");
    manager.stop();
}

fn missing_path(mode: Mode) {
    let mut manager = App::new(mode).argument("--reload-on-change=no/such/directory").start();
    assert_eq!(manager.wait_exit(SOON).code(), Some(1));
    let said = manager.log.text();
    assert!(said.contains("no/such/directory: No such file or directory"), "{said}");
    manager.assert_nothing_left();
}
